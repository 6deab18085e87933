"""How a demo stands, on stderr: a bar and a line for each arm on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from infra.replay_progress import describe
from streams.experiment.outcomes import Outcomes
from streams.replay import ReplayProgress

EVERY_S: Final = 10.0
"""Between two lines where there is no terminal."""


class DemoScreen:
    """Shows the replay and the arms. It is drawn by whoever calls `show`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:,.0f} events/s"),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("replay", total=None, rate=0.0, note="")
        self._live = Live(self._bar, console=console, refresh_per_second=4) if console.is_terminal else None
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, progress: ReplayProgress | None, outcomes: Outcomes) -> None:
        """Draw the replay's progress (None: as it was) and where each arm stands."""
        if progress is not None:
            self._bar.update(
                self._task,
                total=progress.total,
                completed=progress.acknowledged,
                rate=progress.events_per_s,
                note=describe(progress),
            )
        if self._live:
            self._live.update(Group(self._bar, _arms(outcomes)))
        elif time.monotonic() - self._said >= EVERY_S:
            self._said = time.monotonic()
            done = self._bar.tasks[0]
            arms = ", ".join(
                f"{arm.arm} {arm.events:,} served, {arm.refresh_rate:.1%} refreshed, NDCG@10 {arm.mean('ndcg@10'):.4f}"
                for arm in outcomes
            )
            self._console.print(f"replayed {done.completed:,.0f} of {done.total or 0:,.0f}: {arms}", highlight=False)


def _arms(outcomes: Outcomes) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("arm", "served", "refreshes", "rate", "NDCG@10", "HR@10", "gap", "staleness"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm in outcomes:
        gap, stale = arm.gap_mean, arm.staleness_mean
        table.add_row(
            arm.arm,
            f"{arm.events:,}",
            f"{arm.refreshes:,}",
            f"{arm.refresh_rate:.1%}",
            f"{arm.mean('ndcg@10'):.4f}",
            f"{arm.mean('hr@10'):.4f}",
            "–" if gap is None else f"{gap:.1f}",
            "–" if stale is None else f"{stale:.2f}",
        )
    return table
