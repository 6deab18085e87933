"""``driftline evaluate collaborative``: LSC4Rec's table of fusion rules, request ratios and who asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from infra.cli._evaluate import (
    BundleOption,
    DatasetOption,
    JsonOption,
    MomentsOption,
    OutOption,
    SeedOption,
    columns_of,
    evaluation,
    signed,
    with_half_width,
)

if TYPE_CHECKING:
    from rich.console import Console

    from cloud_worker.evaluation.bootstrap import Interval

SHOWN_RATIO: Final = 0.10


def collaborative(
    ctx: typer.Context,
    dataset: DatasetOption = None,
    bundle: BundleOption = None,
    moments: MomentsOption = 2_000,
    gap: Annotated[
        int, typer.Option(min=1, help="Interactions since the embedding was made that who does not ask is served with.")
    ] = 16,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="Length of the cloud's lists; the setting cloud.candidates.")
    ] = None,
    seed: SeedOption = 0,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """LSC4Rec's table: fusion rules, the share of moments that ask for a fresh embedding, and who asks.

    NDCG@10 over the whole catalogue; items outside the cloud's list stand behind it in the SRM's order.
    """
    length = candidates or ctx.obj.settings.cloud.candidates
    options = {"moments": moments, "gap": gap, "candidates": length, "seed": seed}
    with evaluation(
        ctx, "collaborative", dataset=dataset, bundle=bundle, out=out, as_json=as_json, options=options
    ) as run:
        from cloud_worker.evaluation import collaborative as measure
        from infra.evaluation.plots import plot_collaborative

        period = run.period(moments=moments, seed=seed, gaps=[gap], nearest=True)
        table = measure.measure(
            period,
            candidates=length,
            seed=seed,
            gap=gap,
            on_done=lambda done, total: run.bars.show("serving", done, total),
        )
        cells = {rule: measure.cells(table, rule) for rule in table.stale}
        over = {
            (rule, ratio): measure.reliability_over(table, rule, ratio)
            for rule in table.stale
            if rule != measure.SRM_ONLY
            for ratio in measure.RATIOS
            if 0 < ratio < 1
        }
        shorter = float((table.gaps < gap).mean())
        run.notes.append(
            f"{len(table.users)} moments of {table.resamples.n_users} users; mean gap {table.gaps.mean():.1f}: "
            f"{shorter:.0%} of the moments have histories too short for {gap} and are served with their first embedding"
        )
        run.notes.append(
            f"lists of {length}; as released: batches of 16 in the order of arrival, whole batches ask by their mean "
            "disagreement until the quota of all moments is spent"
        )
        if measure.LEARNED_RULE not in table.stale:
            run.notes.append(
                "learned λ is left out: the bundle has none, and its networks have seen the validation period on "
                "which it would have to be fitted"
            )
        run.warn_of_few_users(table.resamples.n_users)
        result = {
            "rows": [
                {"rule": rule, "asks": who, "ratio": ratio, "moments": len(table.users)} | columns_of("ndcg@10", each)
                for rule, found in cells.items()
                for who, intervals in found.items()
                for ratio, each in zip(measure.RATIOS, intervals, strict=True)
            ],
            "differences": [
                {"rule": rule, "ratio": ratio, "method": measure.RELIABILITY, "other": other}
                | columns_of("difference", each)
                | {"significant": each.significant}
                for (rule, ratio), found in over.items()
                for other, each in found.items()
            ],
        }

        def show(console: Console) -> None:
            console.print(_table(cells, measure.RATIOS, measure.SRM_ONLY))
            console.print(_differences_table({rule: each for (rule, at), each in over.items() if at == SHOWN_RATIO}))

        run.finish(
            result,
            lambda path: plot_collaborative(path, period.bundle.manifest.dataset, cells, measure.RATIOS),
            show,
        )


def _table(cells: dict[str, dict[str, list[Interval]]], ratios: tuple[float, ...], same_for_all: str) -> Any:
    from rich.table import Table

    table = Table(
        title="NDCG@10 where a share of the moments asks for a fresh embedding",
        caption="± half the width of the 95 % interval over users",
    )
    table.add_column("fusion rule", no_wrap=True)
    table.add_column("who asks", no_wrap=True)
    for ratio in ratios:
        table.add_column(f"{ratio:.0%}", justify="right", no_wrap=True)
    for rule, found in cells.items():
        for nth, (who, intervals) in enumerate(found.items()):
            if rule == same_for_all:
                table.add_row(rule, "nobody needs to", *([with_half_width(intervals[0])] * len(ratios)))
                break
            table.add_row("" if nth else rule, who, *(with_half_width(each) for each in intervals))
        table.add_section()
    return table


def _differences_table(over: dict[str, dict[str, Interval]]) -> Any:
    from rich.table import Table

    table = Table(
        title=f"NDCG@10 at {SHOWN_RATIO:.0%} of asking by reliability s less asking by another, paired",
        caption="* the 95 % interval leaves out 0",
    )
    table.add_column("fusion rule", no_wrap=True)
    for other in next(iter(over.values())):
        table.add_column(other, justify="right")
    for rule, found in over.items():
        table.add_row(rule, *(signed(each) for each in found.values()))
    return table
