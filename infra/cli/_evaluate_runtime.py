"""``driftline evaluate runtime``: do torch, ONNX Runtime and numpy agree on the device step, and what each costs."""

from __future__ import annotations

from dataclasses import asdict
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
    evaluation,
    short,
    signed,
)

if TYPE_CHECKING:
    from rich.console import Console

    from infra.evaluation.runtime import Eight, Parity, Timing

TOLERANCE: Final = 1e-4


def runtime(
    ctx: typer.Context,
    dataset: DatasetOption = None,
    bundle: BundleOption = None,
    moments: MomentsOption = 500,
    gap: Annotated[int, typer.Option(min=1, help="Interactions since the embedding that is served with.")] = 8,
    seed: SeedOption = 0,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Whether torch, ONNX Runtime and numpy agree on the device step, how long each takes, and what int8 costs.

    On recorded moments of the test period: one step and a wave of 256, candidates and the whole catalogue.
    """
    candidates = ctx.obj.settings.cloud.candidates
    options = {"moments": moments, "gap": gap, "candidates": candidates, "seed": seed}
    with evaluation(ctx, "runtime", dataset=dataset, bundle=bundle, out=out, as_json=as_json, options=options) as run:
        from infra.evaluation import runtime as measure
        from infra.evaluation.plots import plot_runtime
        from infra.evaluation.recorded import record

        period = run.period(moments=moments, seed=seed, gaps=[gap], nearest=True)
        _, pairs = period.pairs(gap, nearest=True)
        recorded = record(period, pairs, candidates)
        run.bars.show("parity", 0, 1)
        parity = measure.parity(recorded)
        run.bars.show("parity", 1, 1)
        timings = measure.timings(recorded, lambda done, total: run.bars.show("timing", done, total))
        eight = measure.eight_bits(recorded, seed)
        run.notes.append(
            f"{len(recorded)} recorded moments with embeddings of {recorded.gap.mean():.1f} interactions ago, lists of "
            f"{recorded.layout.candidates}; all on one thread; "
            "what a record keeps afterwards (SRM state, m, φ) is no part of the times"
        )
        worst = max(each.error for each in parity)
        if not worst < TOLERANCE:
            run.notes.append(f"the runtimes differ by {worst:.1e}, which is more than {TOLERANCE:.0e}")
        result = {
            "rows": [asdict(each) | {"us_per_event": each.us_per_call / each.rows} for each in timings],
            "parity": [asdict(each) for each in parity],
            "int8": [_eight_row(each) for each in eight],
        }

        def show(console: Console) -> None:
            print_whole(console, _parity_table(parity))
            print_whole(console, _timing_table(timings))
            print_whole(console, _eight_table(eight))

        run.finish(result, lambda path: plot_runtime(path, period.bundle.manifest.dataset, timings), show)


def _eight_row(each: Eight) -> dict[str, Any]:
    row: dict[str, Any] = {"ranking": each.ranking, "runtime": each.runtime, "ndcg@10": each.ndcg}
    row |= columns_of("difference", each.difference) | {"top_changed": each.top_changed}
    return row | {"float32_bytes": each.bytes[0], "int8_bytes": each.bytes[1]}


def _parity_table(parity: list[Parity]) -> Any:
    from rich.table import Table

    table = Table(title="largest absolute difference between runtimes")
    table.add_column("ranking")
    table.add_column("item vectors")
    table.add_column("quantity")
    names = list(dict.fromkeys((each.one, each.other) for each in parity))
    for one, other in names:
        table.add_column(f"{one} – {other}", justify="right")
    by = {(each.ranking, each.item_vectors, each.quantity, (each.one, each.other)): each.error for each in parity}
    for ranking, kind in dict.fromkeys((each.ranking, each.item_vectors) for each in parity):
        for quantity in dict.fromkeys(each.quantity for each in parity):
            errors = [by.get((ranking, kind, quantity, name)) for name in names]
            table.add_row(ranking, kind, quantity, *("" if each is None else f"{each:.1e}" for each in errors))
        table.add_section()
    return table


def _timing_table(timings: list[Timing]) -> Any:
    from rich.table import Table

    table = Table(
        title="time to serve: µs a call, and µs an event",
        caption="median and quartiles of rounds in turns; staleness, calibration, fusion, rank and top 10",
    )
    for column in ("runtime", "item vectors"):
        table.add_column(column)
    cases = list(dict.fromkeys((each.ranking, each.rows) for each in timings))
    for ranking, rows in cases:
        table.add_column(f"{ranking},\n{'one step' if rows == 1 else f'wave of {rows}'}", justify="right", no_wrap=True)
    by = {(each.runtime, each.item_vectors, each.ranking, each.rows): each for each in timings}
    for name, kind in dict.fromkeys((each.runtime, each.item_vectors) for each in timings):
        found = [by[name, kind, *case] for case in cases]
        cells = [
            f"{each.us_per_call:.0f} [{each.low:.0f},{each.high:.0f}]"
            + ("" if each.rows == 1 else f"\n{each.us_per_call / each.rows:.1f} an event")
            for each in found
        ]
        table.add_row(name, kind, *cells)
    return table


def _eight_table(eight: list[Eight]) -> Any:
    from rich.table import Table

    table = Table(title="what int8 item vectors change", caption="* the 95 % interval over users leaves out 0")
    for column in ("ranking", "runtime"):
        table.add_column(column)
    for column in ("NDCG@10 float32", "int8 less float32", "lists that differ", "item tables"):
        table.add_column(column, justify="right")
    for each in eight:
        full, small = (f"{size / 1e6:.2f}" for size in each.bytes)
        row = (short(each.ndcg), signed(each.difference), f"{each.top_changed:.1%}", f"{full} to {small} MB")
        table.add_row(each.ranking, each.runtime, *row)
    return table
