"""``driftline train``: make a bundle for a dataset, or find the one that is there; its other verbs beside it."""

from __future__ import annotations

import enum
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli._console import print_whole, table_console
from infra.cli._context import CliContext
from infra.cli._train_collaborative import train_collaborative
from infra.cli._train_encoder import train_encoder

if TYPE_CHECKING:
    from streams.bundle import Manifest


class Device(enum.StrEnum):
    """Where torch computes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Srm(enum.StrEnum):
    """The device's small model."""

    gru4rec = "gru4rec"
    sasrec = "sasrec"
    din = "din"


app = typer.Typer()
app.command("encoder")(train_encoder)
app.command("collaborative")(train_collaborative)


@app.callback(invoke_without_command=True)
def train(
    ctx: typer.Context,
    dataset: Annotated[str | None, typer.Option(metavar="NAME", help="Prepared dataset; the setting's.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The bundle's folder; one under home.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal bundles on one machine.")] = 0,
    device: Annotated[Device, typer.Option(help="Where torch computes.")] = Device.auto,
    split: Annotated[
        str, typer.Option(metavar="A,B,C", help="Training, validation and test period, by time; scaled to sum to 1.")
    ] = "0.8,0.1,0.1",
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="A third of the work, no controls: as the demo trains, whose test period is the last fifth.",
        ),
    ] = False,
    srm: Annotated[Srm, typer.Option(help="The device's small model; SASRec costs a device more.")] = Srm.gru4rec,
    retrain: Annotated[bool, typer.Option(help="Let both networks go on over the validation period.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Train even where a fitting bundle is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Train a model bundle: SRM, cloud network, projector, live formula, blend, calibrator, staleness head, controls.

    A fitting bundle (same data, split, seed, encoder, small model and version) is kept, and only shown.
    """
    if ctx.invoked_subcommand is not None:
        given = [each for each in ctx.params if getattr(ctx.get_parameter_source(each), "name", "") == "COMMANDLINE"]
        if given:  # it would ignore them
            verb = f"train {ctx.invoked_subcommand}"
            raise typer.BadParameter(f"options of `{verb}` come after it; before it: {', '.join(given)}")
        return
    from cloud_worker.encoder.factory import encoder_id
    from cloud_worker.training.bundles import bundle_path, fits, read_manifest
    from streams.bundle import load_bundle
    from streams.datasets import ensure_prepared, global_time_split

    context: CliContext = ctx.obj
    settings = context.settings
    name = dataset or settings.dataset
    prepared = ensure_prepared(settings, name)
    periods = global_time_split(prepared.events, _fractions(split))
    path = out or bundle_path(settings.home, name, seed, periods, quick=quick, srm=srm.value)
    manifest = read_manifest(path)
    found = (
        manifest is not None
        and not force
        and fits(manifest, prepared.manifest.hash, periods, seed, encoder_id(settings.cloud))
        and manifest.retrained == retrain
        and manifest.quick == quick
        and manifest.srm == srm.value
    )
    if found:
        manifest = load_bundle(path).manifest
    else:
        from cloud_worker.training.options import TrainOptions, in_a_hurry, with_srm
        from cloud_worker.training.train import train_bundle
        from infra.cli._bars import StageBars
        from infra.evaluation.opening import open_encoder
        from streams.bundle import refuse_to_replace

        refuse_to_replace(path)  # before the encoder is loaded
        options = with_srm(TrainOptions(seed=seed, device=device.value, retrain=retrain), srm.value)
        if quick:
            options = in_a_hurry(options)
        try:
            with open_encoder(settings) as encoder, StageBars() as bars:
                manifest = train_bundle(
                    prepared, periods, encoder, path, options, lambda p: bars.show(p.stage, p.done, p.total, p.note)
                )
        except KeyboardInterrupt:
            typer.echo("interrupted; networks that were done are kept, and the same command goes on", err=True)
            raise
    assert manifest is not None
    _report(manifest, path, found=found, as_json=as_json)


def _fractions(given: str) -> tuple[float, float, float]:
    try:
        first, second, third = (float(part) for part in given.split(","))
    except ValueError as exc:
        raise typer.BadParameter("three numbers with commas between them, as in 0.8,0.1,0.1") from exc
    if not (0 < min(first, second, third) <= max(first, second, third) < math.inf):
        raise typer.BadParameter("the fractions must be finite and above 0")
    return first, second, third


def _rows(metrics: dict[str, float]) -> list[dict[str, Any]]:
    """One row a model: its measures as columns."""
    rows: dict[str, dict[str, Any]] = {}
    for key, value in metrics.items():
        model, _, measure = key.rpartition(".")
        if measure in {"ndcg@10", "hr@10", "mrr"}:
            rows.setdefault(model, {"model": model})[measure] = value
    return list(rows.values())


def _report(manifest: Manifest, path: Path, *, found: bool, as_json: bool) -> None:
    rows = _rows(manifest.metrics)
    others = {k: v for k, v in manifest.metrics.items() if k.rpartition(".")[2] not in {"ndcg@10", "hr@10", "mrr"}}
    if as_json:
        meta = {
            "bundle": manifest.bundle_id,
            "path": str(path),
            "found": found,
            "dataset": manifest.dataset,
            "seed": manifest.seed,
            "srm": manifest.srm,
            **others,
        }
        print(json.dumps({"meta": meta, "rows": rows}))
        return
    from rich.table import Table

    title = f"{manifest.dataset}, SRM {manifest.srm}, validation period, full catalogue of {manifest.n_items}"
    table = Table(title=title)
    for column in ("model", "ndcg@10", "hr@10", "mrr"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        table.add_row(row["model"], *(f"{row[c]:.4f}" for c in ("ndcg@10", "hr@10", "mrr")))
    console = table_console()
    print_whole(console, table)
    console.print("  ".join(f"{key} {value:.3g}" for key, value in others.items()), highlight=False)
    console.print(
        f"{'found' if found else 'made'} bundle {manifest.bundle_id} in {path}", highlight=False, soft_wrap=True
    )
