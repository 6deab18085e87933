"""``driftline train collaborative``: LSC4Rec's cooperative and adaptive SRM, beside a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli._console import print_whole, table_console
from infra.cli._context import CliContext
from infra.cli._evaluate import columns_of, short, signed, with_half_width

if TYPE_CHECKING:
    from cloud_worker.training.train_collaborative import Judgement


def train_collaborative(
    ctx: typer.Context,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose newest bundle is gone on from; the setting's.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Bundle folder; the newest one of the dataset by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal networks on one machine.")] = 0,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where torch computes.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Train the SRM together with the cloud, as LSC4Rec does, from a trained bundle.

    Cooperative: warm-started from the bundle's SRM, then told to pick what was taken from the cloud's lists. Adaptive:
    trained on over the recent window alone. Both lie beside the bundle in collaborative.safetensors, and `driftline
    evaluate collaborative` compares them on the test period; nothing serves them.

    The table is of the validation period, by SRMs that were not trained on it; the bundle's cloud, that makes their
    lists, was.
    """
    from infra.bundles import choose_bundle

    context: CliContext = ctx.obj
    settings = context.settings
    wanted = settings if dataset is None else settings.model_copy(update={"dataset": dataset})
    path = choose_bundle(wanted, bundle)  # said before torch is waited for
    from cloud_worker.training import train_collaborative as training
    from infra.cli._bars import StageBars
    from infra.evaluation.opening import open_encoder, open_judged

    judged = open_judged(settings, dataset, path)
    with open_encoder(settings) as encoder, StageBars() as bars:
        _, found = training.train_collaborative(
            judged.bundle,
            judged.prepared,
            encoder,
            training.CollaborativeOptions(seed=seed, device=device),
            lambda p: bars.show(p.stage, p.done, p.total, p.note),
        )
    meta = {
        "bundle": judged.bundle.id,
        "path": str(path / training.FILE),
        "dataset": judged.bundle.manifest.dataset,
        "seed": seed,
        "period": "validation",
        "moments": len(found.users),
        "lambda": dict(found.weights),
    }
    _report(found, meta, as_json=as_json)


def _report(found: Judgement, meta: dict[str, Any], *, as_json: bool) -> None:
    from cloud_worker.evaluation.bootstrap import UserResamples
    from cloud_worker.training.collaborative import INDEPENDENT

    resamples = UserResamples(found.users, meta["seed"])
    own = found.ndcg[INDEPENDENT]
    worth = {
        (rule, training): (resamples.mean(rules[rule]), resamples.mean(rules[rule] - own[rule]))
        for rule in own
        for training, rules in found.ndcg.items()
    }
    meta["users"] = resamples.n_users
    if as_json:
        rows: list[dict[str, Any]] = [
            {"training": training, "rule": rule} | columns_of("ndcg@10", value) | columns_of("difference", difference)
            for (rule, training), (value, difference) in worth.items()
        ]
        print(json.dumps({"meta": meta, "rows": rows}))
        return
    from rich.table import Table

    table = Table(
        title=f"{meta['dataset']}, validation period: NDCG@10 by how the SRM was trained",
        caption="± half the width of the 95 % interval over users; Δ paired; * the interval leaves out 0",
    )
    table.add_column("fusion rule", no_wrap=True)
    for training in found.ndcg:
        table.add_column(training, justify="right", no_wrap=True)
        if training != INDEPENDENT:
            table.add_column("Δ", justify="right")
    for rule in own:
        row = [rule]
        for training in found.ndcg:
            value, difference = worth[rule, training]
            row += [with_half_width(value)] + ([] if training == INDEPENDENT else [signed(difference)])
        table.add_row(*row)
    console = table_console()
    print_whole(console, table)
    for line in (
        f"{meta['moments']} moments of {meta['users']} users, lists 0 to 7 interactions old; no SRM was "
        "trained on the period; the bundle's cloud was, so its lists are a little too good, for all alike",
        "learned λ, chosen at these moments: "
        + ", ".join(f"{short(weight, 'g')} {training}" for training, weight in found.weights.items()),
        f"made {meta['path']}; driftline evaluate collaborative judges it on the test period",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
