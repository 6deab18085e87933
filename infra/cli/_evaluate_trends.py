"""``driftline evaluate trends``: what the broadcast to all devices is worth, and saves in refreshes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

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
from streams.errors import SettingsError
from streams.settings import LEAST_TRENDS_HOURS, MOST_TRENDS_HOURS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from cloud_worker.evaluation.bootstrap import Interval
    from cloud_worker.evaluation.staleness import Column

METRIC = "ndcg@10"


def trends(
    ctx: typer.Context,
    dataset: DatasetOption = None,
    bundle: BundleOption = None,
    moments: MomentsOption = 5_000,
    gaps: Annotated[str, typer.Option(metavar="N,…", help="Interactions since the embedding was made.")] = "1,4,16",
    every_hours: Annotated[
        float | None,
        typer.Option(
            min=LEAST_TRENDS_HOURS,
            max=MOST_TRENDS_HOURS,
            help="Hours of event time from one table to the next; the setting's.",
        ),
    ] = None,
    kept: Annotated[
        int | None, typer.Option(min=1, help="Neighbours of an item in a table; as many as the cloud sends.")
    ] = None,
    seed: SeedOption = 0,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """What the broadcast to all devices is worth: which items people took lately near which others.

    The device adds that to what it serves, with no embedding, a stale calibrated one and a fresh one: by the table as
    of the bundle's day, which a bundle could carry, and by one that comes every so many hours of event time. A moment
    whose history is shorter than a gap has the largest one that it bears.
    """
    asked = numbers(gaps, "--gaps")
    settings = ctx.obj.settings
    every_hours = settings.cloud.trends_hours if every_hours is None else every_hours
    if not every_hours:
        raise SettingsError("cloud.trends_hours is 0: no table is sent", remedy="name hours with --every-hours")
    options = {"moments": moments, "gaps": asked, "every_hours": every_hours, "kept": kept}
    with evaluation(
        ctx, "trends", dataset=dataset, bundle=bundle, out=out, as_json=as_json, options=options | {"seed": seed}
    ) as run:
        from cloud_worker.evaluation import trends as measure
        from cloud_worker.evaluation.staleness import difference
        from infra.evaluation.trends_plot import plot_trends

        judged = run.judged.bundle
        period = run.period(moments=moments, seed=seed, gaps=asked, nearest=True)
        sent = run.broadcast(period, every_hours=every_hours, kept=kept)
        columns = measure.columns(period, sent, asked, seed=seed, on_done=partial(run.bars.show, "ranking"))
        fresh, stale = judged.device["fusion.trends"]
        last = columns[-1]
        means = [each.means(METRIC) for each in columns]
        values = {method: [each[method] for each in means] for method in measure.METHODS}
        over = {
            (method, other): [difference(each, method, other, METRIC) for each in columns]
            for method, other in measure.COMPARED
        }
        refreshed = measure.refreshed(period, last)
        users = last.resamples.n_users
        run.notes.append(
            f"{len(last.users)} moments of {users} users; β {fresh:g} fresh, {stale:g} stale; a table of {sent.kept} "
            f"neighbours of each of {judged.manifest.n_items} items is {sent.table_bytes:,} bytes, one every "
            f"{every_hours:g} h; made: {len(sent.tables)}, that of the bundle's day among them; an embedding is "
            f"{2 * judged.manifest.d} bytes"
        )
        if not judged.manifest.retrained:
            run.notes.append("the bundle's networks end before the validation period, what is added does not")
        run.warn_of_few_users(users)
        result = {
            "rows": [
                {"method": method, "gap": gap} | columns_of(METRIC, each)
                for method, found in values.items()
                for gap, each in zip(asked, found, strict=True)
            ],
            "differences": [
                {"method": method, "other": other, "gap": gap} | compared("difference", each)
                for (method, other), found in over.items()
                for gap, each in zip(asked, found, strict=True)
            ],
            "refreshes": [
                {"added": added.removeprefix(" + ") or "nothing", "gap": last.gap, "share": share}
                | columns_of(METRIC, each)
                for added, by_share in refreshed.items()
                for share, each in by_share.items()
            ],
        }
        plot = partial(
            plot_trends,
            dataset=judged.manifest.dataset,
            gaps=asked,
            values=values,
            refreshed=refreshed,
            gap=last.gap,
        )
        run.finish(result, plot, lambda console: _show(console, columns, values, over, refreshed))


def _show(
    console: Console,
    columns: Sequence[Column],
    values: Mapping[str, Sequence[Interval]],
    over: Mapping[tuple[str, str], Sequence[Interval]],
    refreshed: Mapping[str, Mapping[float, Interval]],
) -> None:
    by_gap = _table("NDCG@10 by interactions since the embedding", "method", [f"gap {each.gap}" for each in columns])
    for method, found in values.items():
        by_gap.add_row(method, *map(with_half_width, found))
    less = _table("paired differences", "method less other", [f"gap {each.gap}" for each in columns])
    for (method, other), found in over.items():
        less.add_row(f"{method}\n  less {other}", *map(signed, found))
    shares = [f"{share:.0%}" for share in next(iter(refreshed.values()))]
    by_share = _table(f"NDCG@10 by share of refreshes, handed out by w, gap {columns[-1].gap}", "added", shares)
    for added, found_by in refreshed.items():
        by_share.add_row(added.removeprefix(" + ") or "nothing", *map(with_half_width, found_by.values()))
    for table in (by_gap, less, by_share):
        print_whole(console, table)


def _table(title: str, first: str, columns: Sequence[str]) -> Any:
    from rich.table import Table

    table = Table(title=title, caption="± half the width of the 95 % interval over users; * the interval leaves out 0")
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
