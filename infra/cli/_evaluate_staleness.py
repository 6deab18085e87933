"""``driftline evaluate staleness``: what a stale embedding costs, gap by gap, and what calibration makes good."""

from __future__ import annotations

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
    numbers,
    signed,
    with_half_width,
)

if TYPE_CHECKING:
    from rich.console import Console

    from cloud_worker.evaluation.bootstrap import Interval
    from cloud_worker.evaluation.staleness import Cell, Column

METRIC: Final = "ndcg@10"
WORTH_SPLITTING: Final = 0.01
"""Share of moments at one time with the one before, from which (and up to 1 less it) both kinds are shown apart."""


def staleness(
    ctx: typer.Context,
    dataset: DatasetOption = None,
    bundle: BundleOption = None,
    moments: MomentsOption = 5_000,
    gaps: Annotated[
        str, typer.Option(metavar="G,G,…", help="Interactions since the embedding was made.")
    ] = "0,1,2,4,8,16,32",
    seed: SeedOption = 0,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a stale embedding costs, gap by gap, and how much of it each method makes good.

    NDCG@10, HR@10 and MRR over the whole catalogue; intervals resample users.
    """
    wanted = numbers(gaps, "--gaps")
    options = {"moments": moments, "gaps": wanted, "seed": seed}
    with evaluation(ctx, "staleness", dataset=dataset, bundle=bundle, out=out, as_json=as_json, options=options) as run:
        from cloud_worker.evaluation import staleness as measure
        from infra.evaluation.plots import plot_staleness

        period = run.period(moments=moments, seed=seed, gaps=wanted)
        columns = measure.columns(
            period, run.judged.controls, wanted, seed, lambda done, total: run.bars.show("ranking", done, total)
        )
        cells = {name: [measure.cells(each, name) for each in columns] for name in measure.METRICS}
        if run.judged.controls is None:
            run.notes.append("the bundle was trained without controls: their two rows are left out")
        if left_out := [gap for gap in wanted if gap > period.longest_gap]:
            said = ", ".join(map(str, left_out))
            run.notes.append(f"no history drawn is long enough for gap {said}; the longest is {period.longest_gap}")
        run.warn_of_few_users(columns[-1].resamples.n_users)
        differences = _differences(columns)
        shares = [(column.gap, name, measure.recovered(column, name)) for name in measure.METRICS for column in columns]
        repeated = _repeated(columns)
        result = {
            "rows": _rows(columns, cells),
            "differences": [
                {"method": method, "other": other, "gap": gap, "metric": name} | compared("difference", interval)
                for (method, other, gap, name), interval in differences.items()
            ],
            "recovered": [
                {"gap": gap, "metric": name, "recovered": None}
                if share is None
                else {"gap": gap, "metric": name} | columns_of("recovered", share)
                for gap, name, share in shares
            ],
            "repeated": repeated,
        }

        def show(console: Console) -> None:
            for name in measure.METRICS:
                print_whole(console, _table(name, columns, cells[name]))
            found = {gap: share for gap, name, share in shares if name == METRIC}
            print_whole(console, _differences_table(columns, differences, found))
            if repeated:
                print_whole(console, _repeated_table(columns, repeated))

        run.finish(
            result, lambda path: plot_staleness(path, period.bundle.manifest.dataset, columns, cells[METRIC]), show
        )


def _rows(columns: list[Column], cells: dict[str, list[dict[str, Cell]]]) -> list[dict[str, Any]]:
    """A row for each method and gap."""
    rows = []
    for at, column in enumerate(columns):
        for method in column.ranks:
            row: dict[str, Any] = {"method": method, "gap": column.gap, "moments": len(column.users)}
            row["users"] = column.resamples.n_users
            for name, found in cells.items():
                row |= columns_of(name, found[at][method].value)
                row |= columns_of(f"{name}-srm", found[at][method].over_srm)
            rows.append(row)
    return rows


def _differences(columns: list[Column]) -> dict[tuple[str, str, int, str], Interval]:
    from cloud_worker.evaluation import staleness as measure

    return {
        (method, other, column.gap, name): measure.difference(column, method, other, name)
        for name in measure.METRICS
        for column in columns
        for method, other in measure.compared(column)
    }


def _repeated(columns: list[Column]) -> list[dict[str, Any]]:
    """The same methods at moments with and without the time stamp of the one before; nothing where one is rare."""
    from cloud_worker.evaluation import staleness as measure

    share = float(columns[0].repeated.mean())
    if not WORTH_SPLITTING <= share <= 1 - WORTH_SPLITTING:
        return []
    rows = []
    for column in columns:
        for same in (True, False):
            part = column.only(column.repeated == same)
            for method in (measure.SRM, measure.STALE, measure.CALIBRATED, measure.FRESH):
                cell = measure.cells(part, METRIC)[method]
                row: dict[str, Any] = {"time": "same" if same else "later", "method": method, "gap": column.gap}
                row |= {"moments": len(part.users), "users": part.resamples.n_users}
                rows.append(row | columns_of(METRIC, cell.value) | columns_of(f"{METRIC}-srm", cell.over_srm))
    return rows


def _table(metric: str, columns: list[Column], cells: list[dict[str, Cell]]) -> Any:
    from rich.table import Table

    table = Table(
        title=f"{metric.upper()} by interactions since the embedding was made (over: moments/users)",
        caption="± half the width of the 95 % interval over users; ▲ ▼ significantly above or below the SRM",
    )
    table.add_column("method", no_wrap=True)
    for column in columns:
        table.add_column(f"gap {column.gap}\n{len(column.users)}/{column.resamples.n_users}", justify="right")
    for method in columns[0].ranks:
        values = []
        for each in cells:
            over = each[method].over_srm
            mark = " " if not over.significant else "▲" if over.low > 0 else "▼"
            values.append(f"{with_half_width(each[method].value)}{mark}")
        table.add_row(method, *values)
    return table


def _differences_table(
    columns: list[Column], differences: dict[tuple[str, str, int, str], Interval], shares: dict[int, Interval | None]
) -> Any:
    from rich.table import Table

    table = Table(
        title=f"{METRIC.upper()}: paired differences at the same moments, with 95 % intervals",
        caption="* the interval leaves out 0; at gap 0 fused calibrated is fused fresh, by construction",
    )
    table.add_column("difference", no_wrap=True)
    for column in columns:
        table.add_column(f"gap {column.gap}", justify="right", no_wrap=True)
    for method, other in dict.fromkeys((method, other) for method, other, _, _ in differences):
        found = [differences.get((method, other, column.gap, METRIC)) for column in columns]
        table.add_row(f"{method}\n  less {other}", *("" if each is None else signed(each) for each in found))
    table.add_section()
    table.add_row(
        "share of the fused loss that\n  calibration recovers", *(_share(shares[each.gap]) for each in columns)
    )
    return table


def _share(share: Interval | None) -> str:
    return "–" if share is None else f"{share.mean:.0%}\n[{share.low:.0%},{share.high:.0%}]"


def _repeated_table(columns: list[Column], rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(
        title=f"{METRIC.upper()} apart: what was taken at the same time as the one before, and what was taken later"
    )
    table.add_column("time")
    table.add_column("method")
    for column in columns:
        table.add_column(f"gap {column.gap}", justify="right")
    by = {(row["time"], row["method"], row["gap"]): row for row in rows}
    for time in ("same", "later"):
        counts = [by[time, rows[0]["method"], column.gap]["moments"] for column in columns]
        table.add_row(time, "moments", *map(str, counts))
        for method in dict.fromkeys(row["method"] for row in rows):
            values = [by[time, method, column.gap][METRIC] for column in columns]
            table.add_row("", method, *(f"{value:.4f}" for value in values))
        table.add_section()
    return table
