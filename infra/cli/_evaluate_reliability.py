"""``driftline evaluate reliability``: is the staleness score right, and what are refreshes worth that it asks for."""

from __future__ import annotations

from dataclasses import asdict
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
    short,
    signed,
    with_half_width,
)
from streams.settings import LEAST_TRENDS_HOURS, MOST_TRENDS_HOURS

if TYPE_CHECKING:
    from rich.console import Console

    from cloud_worker.evaluation.reliability import Bin, Decision, Quality


def reliability(
    ctx: typer.Context,
    dataset: DatasetOption = None,
    bundle: BundleOption = None,
    moments: MomentsOption = 5_000,
    gaps: Annotated[
        str, typer.Option(metavar="G,G,…", help="Each moment is paired with each of these gaps that it bears.")
    ] = "0,1,2,4,8,16,32",
    every_hours: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=MOST_TRENDS_HOURS,
            help="Hours of event time from one table of the broadcast to the next, "
            f"at least {LEAST_TRENDS_HOURS}; 0: none is sent. The setting's.",
        ),
    ] = None,
    seed: SeedOption = 0,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Whether the staleness score is right, and what refreshes are worth where each score asks for them.

    AUC, ECE and diagram of staleness s against "a refresh pays", with the stale embedding and with the calibrated one
    instead of it; gain and precision of the refreshes that the expected gain w would hand out at 5, 10 and 20 %,
    against s, random, gap, age, cosine and rank disagreement. Gains are those of devices that have the newest table of
    the broadcast anyway; --every-hours 0 takes it from them, as `device.trends = false` does.
    """
    wanted = numbers(gaps, "--gaps")
    settings = ctx.obj.settings
    candidates = settings.cloud.candidates
    if every_hours is None:
        every_hours = settings.cloud.trends_hours if settings.device.trends else 0.0
    if 0 < every_hours < LEAST_TRENDS_HOURS:
        wrong = f"{every_hours:g} is neither 0 nor at least {LEAST_TRENDS_HOURS}"
        raise typer.BadParameter(wrong, param_hint="--every-hours")
    options = {"moments": moments, "gaps": wanted, "candidates": candidates, "every_hours": every_hours, "seed": seed}
    with evaluation(
        ctx, "reliability", dataset=dataset, bundle=bundle, out=out, as_json=as_json, options=options
    ) as run:
        from cloud_worker.evaluation import reliability as measure
        from infra.evaluation.plots import plot_reliability

        period = run.period(moments=moments, seed=seed, gaps=wanted)
        found = measure.sample(
            period,
            wanted,
            sent=run.broadcast(period, every_hours=every_hours) if every_hours else None,
            candidates=candidates,
            seed=seed,
            on_gap=lambda done, total: run.bars.show("serving", done, total),
        )
        run.bars.show("resampling", 0, 1)
        kept = sorted(set(found.gap.tolist()))
        labels = (measure.STALE, measure.CALIBRATED)
        qualities = {(label, gap): measure.quality(found, label, gap) for label in labels for gap in (None, *kept)}
        diagrams = {label: measure.diagram(found, label) for label in labels}
        decisions = measure.decisions(found)
        run.bars.show("resampling", 1, 1)
        run.notes.append(
            f"pairs: each of {len(period.moments)} moments with each gap of {','.join(map(str, kept))} that its "
            f"history bears, {len(found.gap)} in all; lists of {candidates} candidates"
        )
        run.notes.append(
            f"a refresh pays where it lifts 1/log2(1+rank) of what was taken by more than {measure.CLEARLY}"
        )
        run.notes.append(
            f"a table of the broadcast every {every_hours:g} h is added before and after a refresh"
            if every_hours
            else "no broadcast: a refresh brings what it would have told as well; w was trained beside it"
        )
        run.warn_of_few_users(found.resamples.n_users)
        result = {
            "rows": [_quality_row(*key, each) for key, each in qualities.items()],
            "diagram": [
                {"without": label, "pairs": each.pairs, "predicted": each.predicted}
                | columns_of("observed", each.observed)
                for label, bins in diagrams.items()
                for each in bins
            ],
            "decisions": [_decision_row(each) for each in decisions],
        }

        def show(console: Console) -> None:
            print_whole(console, _quality_table(qualities))
            for label, bins in diagrams.items():
                print_whole(console, _diagram_table(label, bins))
            print_whole(console, _decisions_table(decisions))

        run.finish(
            result,
            lambda path: plot_reliability(path, period.bundle.manifest.dataset, found, diagrams, decisions),
            show,
        )


def _quality_row(without: str, gap: int | None, quality: Quality) -> dict[str, Any]:
    row = {"without": without, "gap": "all" if gap is None else gap} | asdict(quality)
    return row | columns_of("auc", quality.auc) | columns_of("ece", quality.ece)


def _decision_row(decision: Decision) -> dict[str, Any]:
    row: dict[str, Any] = {"score": decision.score, "rate": decision.rate}
    row |= columns_of("gain", decision.gain) | columns_of("precision", decision.precision)
    return row | compared("ours_over", decision.ours_over)


def _quality_table(qualities: dict[tuple[str, int | None], Quality]) -> Any:
    from rich.table import Table

    table = Table(
        title="the bundle's staleness s as the probability that a refresh pays",
        caption="± half the width of the 95 % interval over users; ECE over ten bins of equal width",
    )
    for column in ("instead of a refresh", "gap"):
        table.add_column(column)
    for column in ("pairs", "it pays", "mean s", "AUC", "ECE"):
        table.add_column(column, justify="right", no_wrap=True)
    for (without, gap), each in qualities.items():
        if gap is None:
            table.add_section()
        table.add_row(
            without if gap is None else "",
            "all" if gap is None else str(gap),
            str(each.pairs),
            f"{each.share:.1%}",
            f"{each.predicted:.1%}",
            with_half_width(each.auc),
            with_half_width(each.ece),
        )
    return table


def _diagram_table(without: str, bins: list[Bin]) -> Any:
    from rich.table import Table

    table = Table(title=f"reliability diagram, {without} instead of a refresh: ten equal bins")
    table.add_column("bin")
    for nth in range(len(bins)):
        table.add_column(str(nth + 1), justify="right")
    table.add_row("mean s", *(short(each.predicted, ".3f") for each in bins))
    table.add_row("it pays", *(short(each.observed.mean, ".3f") for each in bins))
    table.add_row("from", *(short(each.observed.low, ".3f") for each in bins))
    table.add_row("to", *(short(each.observed.high, ".3f") for each in bins))
    return table


def _decisions_table(decisions: list[Decision]) -> Any:
    from rich.table import Table

    from cloud_worker.evaluation.reliability import OURS

    rates = list(dict.fromkeys(each.rate for each in decisions))
    table = Table(
        title="refreshes handed out by a score: NDCG@10 that one brings (fused fresh less fused calibrated)",
        caption="pays: share of the refreshes that pay; w less it: gain by w less gain by this score, paired, "
        "* if its 95 % interval leaves out 0",
    )
    table.add_column("score", no_wrap=True)
    for rate in rates:
        for column in (f"{rate:.0%}: gain", "pays", "w less it"):
            table.add_column(column, justify="right", no_wrap=True)
    by = {(each.score, each.rate): each for each in decisions}
    for score in dict.fromkeys(each.score for each in decisions):
        values = []
        for rate in rates:
            each = by[score, rate]
            over = "" if score == OURS else signed(each.ours_over)
            values += [signed(each.gain), f"{each.precision.mean:.1%}", over]
        table.add_row(score, *values)
    return table
