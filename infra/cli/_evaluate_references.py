"""``driftline evaluate references``: our SRM against public implementations, at the same moments."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from infra.cli._console import print_whole
from infra.cli._evaluate import (
    BundleOption,
    DatasetOption,
    JsonOption,
    MomentsOption,
    OutOption,
    SeedOption,
    columns_of,
    compared,
    evaluation,
    short,
    signed,
    with_half_width,
)
from streams.errors import EnvironmentProblem

if TYPE_CHECKING:
    from rich.console import Console

    from cloud_worker.evaluation.bootstrap import Interval
    from cloud_worker.evaluation.references import Comparison
    from cloud_worker.evaluation.staleness import Cell
    from cloud_worker.evaluation.tuning import Tuned

PACKAGE: Final = "cornac"
METRIC: Final = "ndcg@10"
_TEXT_WIDTH: Final = 40
"""Columns that settings are folded to: only figures have to stay on one line."""


def references(
    ctx: typer.Context,
    dataset: DatasetOption = None,
    bundle: BundleOption = None,
    moments: MomentsOption = 5_000,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="How many of the reference's settings to try, in order; all by default.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="At which a candidate ends though it still gets better.")] = 40,
    seed: SeedOption = 0,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """The SRM against popularity, item-kNN and a published GRU4Rec, which is tuned and trained for it.

    NDCG@10, HR@10 and MRR over the whole catalogue; intervals resample users. GRU4Rec is its authors' own, from the
    package Cornac (the extra `compare`); its settings and epochs are chosen on the validation period.
    """
    need_package()
    options = {"moments": moments, "candidates": candidates, "epochs": epochs, "seed": seed}
    with evaluation(
        ctx, "references", dataset=dataset, bundle=bundle, out=out, as_json=as_json, options=options
    ) as run:
        from cloud_worker.evaluation import references as measure
        from cloud_worker.evaluation.cornac_gru4rec import tuned_gru4rec
        from cloud_worker.evaluation.gru4rec_settings import CANDIDATES
        from cloud_worker.evaluation.staleness import METRICS, SRM, cells, difference
        from infra.evaluation.paired_plot import plot_paired

        judged = run.judged.bundle.manifest
        tuned: list[Tuned[Any]] = []

        def train(histories: Any) -> measure.Trained:
            tuned.append(
                tuned_gru4rec(
                    histories,
                    CANDIDATES[:candidates],
                    exclude_seen=judged.exclude_seen,
                    most_epochs=epochs,
                    seed=seed,
                    on_epoch=run.bars.show,
                )
            )
            return tuned[0].trained

        found = measure.compare(
            run.judged.bundle, run.judged.prepared, train, moments=moments, seed=seed, on_progress=run.bars.show
        )
        column = found.column
        values = {name: cells(column, name) for name in METRICS}
        over = {
            (method.name, name): difference(column, SRM, method.name, name)
            for method in found.methods
            if method.name != SRM
            for name in METRICS
        }
        _notes(run.notes, found, tuned[0], epochs)
        run.warn_of_few_users(column.resamples.n_users)
        result = {
            "rows": [_row(found, method.name, values) for method in found.methods],
            "differences": [
                {"method": SRM, "other": other, "metric": name} | compared("difference", interval)
                for (other, name), interval in over.items()
            ],
            "trials": [
                {"settings": str(trial.options), "epochs": trial.epochs, METRIC: trial.ndcg}
                for trial in tuned[0].trials
            ],
        }
        means = {name: cell.value for name, cell in values[METRIC].items()}
        less = {other: each for (other, name), each in over.items() if name == METRIC}

        def show(console: Console) -> None:
            print_whole(console, _table(found, values, over))
            print_whole(console, _trials_table(tuned[0]))

        plot = partial(
            plot_paired,
            title=f"Our SRM and public references: {judged.dataset}",
            values=means,
            differences=less,
            ours=SRM,
            less="SRM less the method",
        )
        run.finish(result, plot, show)


def need_package() -> None:
    """Say what is missing before anything is waited for.

    Raises
    ------
    EnvironmentProblem
        Cornac is not installed in this Python.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise EnvironmentProblem(
            f"the published GRU4Rec to compare with is that of the package {PACKAGE}, "
            f"which is not installed in {sys.prefix}",
            remedy=f"in the checkout: {shlex.quote(sys.executable)} -m uv pip install -e '.[compare]' "
            "-c infra/constraints.txt",
        )


def _notes(notes: list[str], found: Comparison, tuned: Tuned[Any], most_epochs: int) -> None:
    """What the table does not say."""
    column, trained = found.column, tuned.trained
    notes.append(
        f"{len(column.users)} moments of {column.resamples.n_users} users; every method was trained on everything "
        "before the test period, and sees before each moment all that its user took"
    )
    notes.append(
        f"{trained.name}: the best of {len(tuned.trials)} candidates by {METRIC.upper()} at {tuned.watched} moments of "
        f"the validation period, which took {trained.search_seconds:.0f} s; then trained anew on both periods"
    )
    if tuned.trials[0].epochs == most_epochs:
        notes.append(
            f"{trained.name} was best in epoch {most_epochs}, the last one allowed: it may get better (--epochs)"
        )
    if found.stood_in:
        notes.append(f"at {found.stood_in} moments {trained.name} knew nothing of the history: popularity ranks there")
    if any(method.seconds is None for method in found.methods):
        notes.append("the bundle does not say how long its SRM alone was trained")


def _row(found: Comparison, method: str, cells: dict[str, dict[str, Cell]]) -> dict[str, Any]:
    """A method with what it is, and its measures."""
    what = next(each for each in found.methods if each.name == method)
    row: dict[str, Any] = {"method": method, "moments": len(found.column.users)}
    row |= {"users": found.column.resamples.n_users, "seconds": what.seconds, "settings": what.settings}
    for name, values in cells.items():
        row |= columns_of(name, values[method].value)
    return row


def _table(found: Comparison, cells: dict[str, dict[str, Cell]], over: dict[tuple[str, str], Interval]) -> Any:
    from rich.table import Table

    column = found.column
    table = Table(
        title=f"public references: {len(column.users)} moments of {column.resamples.n_users} users",
        caption="± half the width of the 95 % interval over users; * the interval leaves out 0",
    )
    table.add_column("method", no_wrap=True)
    for name in cells:
        table.add_column(name.upper(), justify="right", no_wrap=True)
    table.add_column(f"SRM less it,\n{METRIC.upper()}", justify="right", no_wrap=True)
    table.add_column("training", justify="right", no_wrap=True)
    table.add_column("settings", max_width=_TEXT_WIDTH)
    for method in found.methods:
        values = [with_half_width(values[method.name].value) for values in cells.values()]
        less = over.get((method.name, METRIC))
        seconds = "–" if method.seconds is None else f"{method.seconds:.1f} s"
        table.add_row(method.name, *values, "" if less is None else signed(less), seconds, method.settings)
    return table


def _trials_table(tuned: Tuned[Any]) -> Any:
    from rich.table import Table

    table = Table(title=f"{tuned.trained.name} on the validation period")
    table.add_column("candidate", max_width=_TEXT_WIDTH)
    table.add_column("best epoch", justify="right")
    table.add_column(METRIC.upper(), justify="right")
    for trial in tuned.trials:
        table.add_row(str(trial.options), str(trial.epochs), short(trial.ndcg))
    return table
