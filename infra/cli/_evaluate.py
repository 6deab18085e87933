"""What the verbs of ``driftline evaluate`` have in common: options, beginning, end, and how numbers are written."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from infra.cli._console import table_console
from infra.cli._context import CliContext

if TYPE_CHECKING:
    from rich.console import Console

    from cloud_worker.evaluation.bootstrap import Interval
    from cloud_worker.evaluation.broadcast import Broadcast
    from cloud_worker.evaluation.test_period import TestPeriod
    from infra.cli._bars import StageBars
    from infra.evaluation.opening import Judged
    from infra.evaluation.run_folder import RunFolder

DatasetOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Whose newest bundle is judged; the setting's.")
]
BundleOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Bundle folder; the newest one of the dataset by default.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the moments drawn and of the resamples.")]
MomentsOption = Annotated[
    int, typer.Option(min=1, help="Moments of the test period to judge at; the last user drawn is taken whole.")
]
OutOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where table, plot and manifest go; a folder under home.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]

FEW_USERS: Final = 30
"""Below this, intervals that resample users are too narrow (Cameron & Miller 2015, section VI)."""


@dataclass
class Evaluation:
    """One run, from its beginning to its folder."""

    judged: Judged
    folder: RunFolder
    manifest: Mapping[str, Any]
    bars: StageBars
    as_json: bool
    notes: list[str] = field(default_factory=list)

    def period(self, *, moments: int, seed: int, gaps: Sequence[int], nearest: bool = False) -> TestPeriod:
        """Look at the test period."""
        from infra.evaluation.opening import open_period

        return open_period(self.judged, self.bars.show, moments=moments, seed=seed, gaps=gaps, nearest=nearest)

    def broadcast(self, period: TestPeriod, *, every_hours: float, kept: int | None = None) -> Broadcast:
        """Make the tables that devices would have had at the period's moments.

        Parameters
        ----------
        kept
            Neighbours of an item; None: as many as the cloud sends.
        """
        from cloud_worker.evaluation.broadcast import broadcast
        from cloud_worker.live.neighbour_counts import neighbours_kept
        from cloud_worker.live.reader import live_options

        bundle = self.judged.bundle
        return broadcast(
            period.bench.moments(period.moments),
            begin_ms=bundle.manifest.test.start_ms,
            every_hours=every_hours,
            ring=live_options(bundle).ring,
            kept=neighbours_kept(bundle.manifest.n_items) if kept is None else kept,
            on_done=partial(self.bars.show, "tables"),
        )

    def finish(
        self, result: dict[str, Any], plot: Callable[[Path], None] | None, show: Callable[[Console], None]
    ) -> None:
        """Write the run folder, then print tables or JSON.

        Parameters
        ----------
        result
            Its ``rows`` and other tables; ``meta`` is added.
        plot
            Draws into the file it is given; None: there is nothing to draw.
        """
        from infra.evaluation.run_folder import plain

        image = self.folder.path / f"{self.manifest['verb']}.png"
        meta = {**self.manifest, "notes": self.notes, "folder": str(self.folder.path)}
        whole = plain({"meta": meta, **result})
        self.folder.write_result(whole)
        self.folder.write_manifest(self.manifest)
        if plot is not None:
            plot(image)
        self.bars.__exit__()
        if self.as_json:
            print(json.dumps(whole))
            return
        console = table_console()
        self._introduce(console)
        show(console)
        for note in self.notes:
            console.print(f"note: {note}", highlight=False, markup=False)
        console.print(f"written to {self.folder.path}", highlight=False, markup=False, soft_wrap=True)

    def _introduce(self, console: Console) -> None:
        manifest, bundle = self.manifest, self.judged.bundle.manifest
        kept = "what was taken before is left out" if bundle.exclude_seen else "what was taken before counts again"
        console.print(
            f"{manifest['dataset']}, bundle {manifest['bundle']} (Driftline {bundle.driftline_version}), "
            f"seed {manifest['options']['seed']}; ranked among all {bundle.n_items} items, {kept}",
            highlight=False,
            markup=False,
        )
        for name, period in manifest["periods"].items():
            line = f"  {name:<10}  {period['start']} to {period['end']} UTC, {period['interactions']} interactions"
            console.print(line, highlight=False, markup=False)

    def warn_of_few_users(self, users: int) -> None:
        """Say so where intervals are not to be trusted."""
        if users < FEW_USERS:
            self.notes.append(
                "one user: there are no intervals"
                if users == 1
                else f"{users} users are few: intervals that resample users are too narrow then"
            )


@contextlib.contextmanager
def evaluation(
    ctx: typer.Context,
    verb: str,
    *,
    dataset: str | None,
    bundle: Path | None,
    out: Path | None,
    as_json: bool,
    options: Mapping[str, Any],
) -> Iterator[Evaluation]:
    """Begin an evaluation: load the bundle, make its run folder; where it fails, no empty folder is left."""
    from infra.bundles import choose_bundle

    context: CliContext = ctx.obj
    settings = context.settings
    wanted = settings if dataset is None else settings.model_copy(update={"dataset": dataset})
    path = choose_bundle(wanted, bundle)  # said before torch is waited for
    from infra.cli._bars import StageBars
    from infra.evaluation.opening import open_judged
    from infra.evaluation.run_folder import describe, make_run_folder

    judged = open_judged(settings, dataset, path)
    now = datetime.now(UTC)
    folder = make_run_folder(settings.home, verb, judged.bundle.manifest.dataset, out, now)
    try:
        with StageBars() as bars:
            yield Evaluation(judged, folder, describe(judged, verb, options, now), bars, as_json)
    finally:
        with contextlib.suppress(OSError):
            folder.path.rmdir()


def columns_of(name: str, interval: Interval) -> dict[str, float]:
    """An interval as three columns of a row."""
    return {name: interval.mean, f"{name}.low": interval.low, f"{name}.high": interval.high}


def compared(name: str, interval: Interval) -> dict[str, Any]:
    """A paired difference as columns of a row, and whether its interval leaves out 0."""
    return columns_of(name, interval) | {"significant": interval.significant}


def with_half_width(interval: Interval) -> str:
    """``.1234 ±.0056``: half the width of the interval, which need not lie evenly."""
    return f"{short(interval.mean)} ±{short((interval.high - interval.low) / 2)}"


def signed(interval: Interval) -> str:
    """``+.0123*`` over ``[+.001,+.023]``: a difference; the star says that the interval leaves out 0."""
    star = "*" if interval.significant else ""
    low, high = (short(each, "+.3f") for each in (interval.low, interval.high))
    return f"{short(interval.mean, '+.4f')}{star}\n[{low},{high}]"


def short(value: float, spec: str = ".4f") -> str:
    """A number without the zero before its point; a dash for none."""
    if math.isnan(value):
        return "–"
    text = format(value, spec)
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def numbers(given: str, option: str) -> list[int]:
    """A list of different whole numbers, at least 0, as an option gives it."""
    try:
        found = sorted({int(part) for part in given.split(",")})
    except ValueError as exc:
        raise typer.BadParameter(f"{option} takes whole numbers with commas between them, as in 0,4,16") from exc
    if found[0] < 0:
        raise typer.BadParameter(f"{option} takes numbers from 0 on")
    return found
