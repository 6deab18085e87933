"""``driftline evaluate demo``: whether the demo's table agrees with the offline evaluation of the same moments."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli._console import print_whole
from infra.cli._evaluate import (
    BundleOption,
    Evaluation,
    JsonOption,
    OutOption,
    SeedOption,
    columns_of,
    evaluation,
    signed,
    with_half_width,
)

if TYPE_CHECKING:
    from rich.console import Console

    from infra.demo.record import ServedRun
    from infra.evaluation.as_served import Compared

METRIC = "ndcg@10"


def demo(
    ctx: typer.Context,
    run_dir: Annotated[
        Path | None, typer.Argument(metavar="[RUN_DIR]", help="Folder of a demo's run; the newest under home.")
    ] = None,
    bundle: BundleOption = None,
    seed: SeedOption = 0,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Whether a demo's table agrees with the offline evaluation: same devices, events and arms, made again offline.

    For each recommendation the rank of what was taken, by the bundle's offline pipeline with an embedding and a
    neighbour table of the same as_of; then the paired difference of each arm, and the same with the embeddings that
    were really sent.
    """
    from infra.demo.record import newest_run, read_served

    served = read_served(run_dir or newest_run(ctx.obj.settings.home))
    options = {"run": str(served.path.absolute()), "seed": seed}
    with evaluation(
        ctx,
        "demo",
        dataset=served.manifest.dataset,
        bundle=bundle or Path(served.manifest.bundle_path),
        out=out,
        as_json=as_json,
        options=options,
    ) as run:
        from infra.evaluation.as_served import compare
        from infra.evaluation.as_served_plot import plot_as_served
        from infra.evaluation.opening import open_encoder

        judged = run.judged
        with open_encoder(judged.settings) as encoder:
            found = compare(served, judged.bundle, judged.prepared, encoder, seed=seed, on_progress=run.bars.show)
        _say(run, served, found)
        result = {"served": _plain(served), "rows": _rows(found), "over_first": _over_rows(found)}

        def show(console: Console) -> None:
            print_whole(console, _table(found))
            if found.over_first:
                print_whole(console, _over_table(found))

        run.finish(result, lambda path: plot_as_served(path, served.manifest.dataset, found.arms), show)


def _say(run: Evaluation, served: ServedRun, found: Compared) -> None:
    manifest, notes = served.manifest, run.notes
    said = ", ".join(f"{name}: {runtime}" for name, runtime in sorted(manifest.runtimes.items())) or "not said"
    notes.append(f"the demo's devices ranked by {said}; offline it is torch and numpy")
    notes.append(
        f"compared: the rank of what was taken at {found.moments} events of {found.users} devices, in each arm with an "
        "embedding of the same as_of, or without one (then the SRM ranks)"
    )
    notes.append(
        "offline: embeddings are made anew, with a live index that read every interaction before the request's event "
        "and nothing else; the demo's had read a little less or more by then. "
        f"Cosine of the embeddings sent and made anew: {_cosines(found)}"
    )
    notes.append(
        "as sent: with the embeddings that the demo's cloud really sent; what differs then is the devices' side, where "
        "numbers are rounded otherwise, and the tables"
    )
    tables = served.outcomes["trends_as_of_ms"]
    if len(made := tables.filter(tables >= 0)):
        notes.append(
            f"{len(made) / len(tables):.1%} of the recommendations were served with one of {made.n_unique()} tables of "
            "what people take near what; offline each is made from all interactions "
            "before its time, of which the demo's may lack a few"
        )
    notes.append(
        "agrees: the offline mean lies in the 95 % interval of the demo's own; a star says that the paired difference "
        "leaves out 0, however small it is"
    )
    for each in found.arms:
        if not each.offline.within(METRIC):
            notes.append(f"arm {each.arm} does NOT agree with the offline evaluation")
    if manifest.item_vectors != "float32":
        notes.append(f"the demo ranked with item vectors of {manifest.item_vectors}, offline they are float32")
    if found.repeated:
        notes.append(f"{found.repeated} recommendations stand in the record more than once; the first ones count")
    unknown = sum(each.offline.moments - each.same.moments for each in found.arms)
    if unknown:
        notes.append(f"as sent: the record lacks the embeddings of {unknown} recommendations, which are left out there")
    run.warn_of_few_users(found.users)


def _cosines(found: Compared) -> str:
    return ", ".join(f"{each.arm} {each.cosine:.4f}" for each in found.arms if each.embedded) or "there were none"


def _plain(served: ServedRun) -> dict[str, Any]:
    import msgspec

    content: dict[str, Any] = msgspec.to_builtins(served.manifest)
    return content


def _rows(found: Compared) -> list[dict[str, Any]]:
    rows = []
    for each in found.arms:
        for metric in each.offline.served:
            row: dict[str, Any] = {
                "arm": each.arm,
                "metric": metric,
                "events": each.offline.moments,
                "devices": each.offline.users,
                "embedded": each.embedded,
            }
            row |= columns_of("demo", each.offline.served[metric])
            row |= columns_of("offline", each.offline.again[metric])
            row |= columns_of("difference", each.offline.difference[metric])
            row |= columns_of("as_sent.difference", each.same.difference[metric])
            row |= {
                "equal_ranks": each.offline.equal,
                "near_ranks": each.offline.near,
                "equal_ranks.embedded": each.offline_embedded.equal,
                "near_ranks.embedded": each.offline_embedded.near,
                "embedding_cosine": each.cosine,
                "as_sent.equal_ranks": each.same.equal,
                "as_sent.events": each.same.moments,
                "as_sent.staleness_error": each.staleness,
                "agrees": each.offline.within(metric),
                "significant": each.offline.difference[metric].significant,
            }
            rows.append(row)
    return rows


def _over_rows(found: Compared) -> list[dict[str, Any]]:
    return [
        {"arm": arm, "first": found.arms[0].arm, "metric": metric}
        | columns_of("demo", over.served[metric])
        | columns_of("offline", over.offline[metric])
        | {"agrees": over.served[metric].low <= over.offline[metric].mean <= over.served[metric].high}
        for arm, over in found.over_first.items()
        for metric in over.served
    ]


def _table(found: Compared) -> Any:
    from rich.table import Table

    table = Table(
        title="The demo and the offline evaluation of the same moments: NDCG@10",
        caption="± half the width of the 95 % interval over devices; * the paired interval leaves out 0; "
        "near: at most a tenth or one place away; in brackets: of those with an embedding",
    )
    table.add_column("arm", no_wrap=True)
    for heading in ("events", "embedded", "demo", "offline", "offline\nless demo", "equal\nranks", "near\nranks"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("as sent\nless demo", justify="right", no_wrap=True)
    table.add_column("as sent\nequal ranks", justify="right", no_wrap=True)
    table.add_column("agrees", no_wrap=True)
    for each in found.arms:
        table.add_row(
            each.arm,
            f"{each.offline.moments:,}",
            f"{each.embedded:.1%}",
            with_half_width(each.offline.served[METRIC]),
            with_half_width(each.offline.again[METRIC]),
            signed(each.offline.difference[METRIC]),
            _shares(each.offline.equal, each.offline_embedded.equal),
            _shares(each.offline.near, each.offline_embedded.near),
            signed(each.same.difference[METRIC]),
            f"{each.same.equal:.2%}",
            "yes" if each.offline.within(METRIC) else "NO",
        )
    return table


def _shares(of_all: float, embedded: float) -> str:
    """Of all, and of those with an embedding, where there is something to go wrong."""
    return f"{of_all:.1%}" if math.isnan(embedded) else f"{of_all:.1%}\n({embedded:.1%})"


def _over_table(found: Compared) -> Any:
    from rich.table import Table

    table = Table(title=f"NDCG@10 over the arm {found.arms[0].arm}, paired")
    table.add_column("arm", no_wrap=True)
    for heading in ("demo", "offline"):
        table.add_column(heading, justify="right", no_wrap=True)
    for arm, over in found.over_first.items():
        table.add_row(arm, signed(over.served[METRIC]), signed(over.offline[METRIC]))
    return table
