"""The progress bar of a replay: events, events/s, what Kafka has yet to acknowledge and the devices have yet to do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from streams.replay import ReplayProgress


@contextmanager
def replay_bar(label: str) -> Iterator[Callable[[ReplayProgress], None] | None]:
    """Lend a progress callback that draws on stderr; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f} events/s"),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=None, rate=0.0, note="")

        def draw(now: ReplayProgress) -> None:
            progress.update(
                task, total=now.total, completed=now.acknowledged, rate=now.events_per_s, note=describe(now)
            )

        yield draw


def describe(now: ReplayProgress) -> str:
    """What is under way, in words."""
    parts = [f"producer lag {now.producer_lag:,}"]
    if now.consumer_lag is not None:
        parts.append(f"devices' lag {now.consumer_lag:,}")
    if now.backfilling:
        parts.append("sending history")
    if now.paused:
        parts.append("waiting for the devices")
    return ", ".join(parts)
