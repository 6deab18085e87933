"""``driftline evaluate collaborative``: LSC4Rec's table of fusion rules, request ratios, who asks, and trainings."""

from __future__ import annotations

from collections.abc import Mapping
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
    signed,
    with_half_width,
)

if TYPE_CHECKING:
    from rich.console import Console

    from cloud_worker.evaluation.bootstrap import Interval
    from cloud_worker.evaluation.collaborative import Table as Measured

SHOWN_RATIO: Final = 0.10


def collaborative(
    ctx: typer.Context,
    dataset: DatasetOption = None,
    bundle: BundleOption = None,
    moments: MomentsOption = 5_000,
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

    NDCG@10 over the whole catalogue; items outside the cloud's list stand behind it in the SRM's order. Where
    `driftline train collaborative` was run, the cooperative and the adaptive SRM are compared with the bundle's own.
    """
    length = candidates or ctx.obj.settings.cloud.candidates
    options = {"moments": moments, "gap": gap, "candidates": length, "seed": seed}
    with evaluation(
        ctx, "collaborative", dataset=dataset, bundle=bundle, out=out, as_json=as_json, options=options
    ) as run:
        from cloud_worker.evaluation import collaborative as measure
        from cloud_worker.training.collaborative import INDEPENDENT, load_collaborative
        from cloud_worker.training.list_fusion import LEARNED, SRM_ONLY
        from infra.evaluation.collaborative_plot import plot_collaborative

        judged = run.judged.bundle
        made = load_collaborative(judged.path, judged.id)
        period = run.period(moments=moments, seed=seed, gaps=[gap], nearest=True)
        tables = measure.measure(
            period,
            candidates=length,
            seed=seed,
            gap=gap,
            made=made,
            on_done=lambda done, total: run.bars.show("serving", done, total),
        )
        cells = {
            training: {rule: measure.cells(table, rule) for rule in table.stale} for training, table in tables.items()
        }
        own = tables[INDEPENDENT]
        over = {
            (rule, ratio): measure.reliability_over(own, rule, ratio)
            for rule in own.stale
            if rule != SRM_ONLY
            for ratio in measure.RATIOS
            if 0 < ratio < 1
        }
        trained = {
            (training, rule): measure.over_independent(tables, training, rule, measure.PER_DEVICE)
            for training, table in tables.items()
            if training != INDEPENDENT
            for rule in table.stale
        }
        shorter = float((own.gaps < gap).mean())
        run.notes.append(
            f"{len(own.users)} moments of {own.resamples.n_users} users; mean gap {own.gaps.mean():.1f}: "
            f"{shorter:.0%} of the moments have histories too short for {gap} and are served with their first embedding"
        )
        run.notes.append(
            f"lists of {length}, the top of the cloud's mixture; as released: batches of 16 in the order of arrival, "
            "whole batches ask by their mean disagreement until the quota of all moments is spent"
        )
        run.notes += _notes(tables, chosen_in_training=LEARNED in judged.manifest.metrics)
        run.warn_of_few_users(own.resamples.n_users)
        result = {
            "rows": [
                {"training": training, "rule": rule, "asks": who, "ratio": ratio, "moments": len(own.users)}
                | columns_of("ndcg@10", each)
                for training, rules in cells.items()
                for rule, found in rules.items()
                for who, intervals in found.items()
                for ratio, each in zip(measure.RATIOS, intervals, strict=True)
            ],
            "differences": [
                {"training": INDEPENDENT, "rule": rule, "ratio": ratio, "method": measure.RELIABILITY, "other": other}
                | compared("difference", each)
                for (rule, ratio), found in over.items()
                for other, each in found.items()
            ],
            "trainings": [
                {"training": training, "other": INDEPENDENT, "rule": rule, "asks": measure.PER_DEVICE, "ratio": ratio}
                | compared("difference", each)
                for (training, rule), found in trained.items()
                for ratio, each in zip(measure.RATIOS, found, strict=True)
            ],
        }

        def show(console: Console) -> None:
            print_whole(console, _table(cells[INDEPENDENT], measure.RATIOS, SRM_ONLY))
            shown = {rule: each for (rule, at), each in over.items() if at == SHOWN_RATIO}
            print_whole(console, _differences_table(shown))
            if made is not None:
                print_whole(console, _trainings_table(cells, trained, measure.RATIOS, measure.PER_DEVICE))

        run.finish(
            result,
            lambda path: plot_collaborative(path, judged.manifest.dataset, cells[INDEPENDENT], trained, measure.RATIOS),
            show,
        )


def _notes(tables: Mapping[str, Measured], *, chosen_in_training: bool) -> list[str]:
    """What is to be said about λ and the trainings."""
    found = []
    weights = {training: table.weight for training, table in tables.items() if table.weight is not None}
    if weights:
        listed = ", ".join(f"{weight:g} ({training})" for training, weight in weights.items())
        where = "the bundle's training" if chosen_in_training else "`driftline train collaborative`"
        found.append(
            f"learned λ: {listed}; chosen on the validation period, the independent SRM's in {where}; "
            "a λ for the other trainings is of lists that are a little too good (see cloud_worker/README.md)"
            if len(tables) > 1
            else f"learned λ: {listed}; chosen on the validation period by networks that had not seen it"
        )
    else:
        found.append(
            "learned λ is left out: this bundle was trained before training chose one, and its networks have seen the "
            "validation period on which it would have to be chosen; train it again, or run `driftline train "
            "collaborative`"
        )
    if len(tables) > 1:
        found.append(
            "s and calibration read the state of the bundle's own SRM: s is the same in every training, and what is "
            "calibrated is shown for the independent one alone"
        )
    else:
        found.append("only the independent SRM: `driftline train collaborative` makes the other trainings")
    return found


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


def _trainings_table(
    cells: Mapping[str, Mapping[str, dict[str, list[Interval]]]],
    trained: Mapping[tuple[str, str], list[Interval]],
    ratios: tuple[float, ...],
    who: str,
) -> Any:
    from rich.table import Table

    shown = [ratios.index(ratio) for ratio in (0.0, SHOWN_RATIO, 1.0)]
    table = Table(
        title=f"NDCG@10 by how the SRM was trained; who asks: {who}",
        caption="Δ: less the independent one, paired, with its 95 % interval; * it leaves out 0",
    )
    table.add_column("fusion rule", no_wrap=True)
    table.add_column("training", no_wrap=True)
    for at in shown:
        table.add_column(f"{ratios[at]:.0%} ask", justify="right", no_wrap=True)
        table.add_column("Δ", justify="right")
    for rule in dict.fromkeys(rule for _, rule in trained):
        for nth, (training, rules) in enumerate(cells.items()):
            row = ["" if nth else rule, training]
            for at in shown:
                differences = trained.get((training, rule))
                row += [with_half_width(rules[rule][who][at]), "" if differences is None else signed(differences[at])]
            table.add_row(*row)
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
