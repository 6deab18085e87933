"""``driftline train encoder``: make the ONNX encoders of the text model, and say what int8 gains and costs."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Final

import typer

from infra.cli._console import print_whole, table_console
from infra.cli._context import CliContext

TEXTS: Final = 96
JUDGED: Final = 200
ROUNDS: Final = 5


def train_encoder(
    ctx: typer.Context,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose texts are encoded to measure; the setting's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Make the int8 text encoder, and compare it with float32 on one thread.

    It is kept under home; the setting cloud.encoder = "onnx-int8" uses it (and makes it, where it is not there).
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from cloud_worker.encoder.base import Encoder
    from cloud_worker.encoder.measure import measure_encoders
    from cloud_worker.encoder.model_folder import find_model_folder, weight_files
    from cloud_worker.encoder.onnx import OnnxEncoder
    from cloud_worker.encoder.onnx_int8 import OnnxInt8Encoder
    from cloud_worker.encoder.sample_texts import sample_texts
    from cloud_worker.encoder.sentence_transformers import SentenceTransformersEncoder
    from streams.clock import SystemClock
    from streams.datasets import ensure_prepared
    from streams.errors import EncoderError

    context: CliContext = ctx.obj
    settings = context.settings
    if settings.cloud.encoder == "openai":
        raise EncoderError(
            "the encoder 'openai' runs elsewhere; there is no model here to make int8",
            remedy='set cloud.encoder = "onnx-int8", and cloud.encoder_model to a model folder or to nothing',
        )
    folder = find_model_folder(settings.cloud.encoder_model)
    name = dataset or settings.dataset
    profiles, items = sample_texts(ensure_prepared(settings, name), JUDGED)
    exports = settings.home / "onnx"
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description:<22}"), *columns, console=console, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("loading torch float32", total=3 + 3 * (ROUNDS + 1))

        def done(next_step: str) -> None:
            bar.update(task, advance=1, description=next_step)

        encoders: dict[str, Encoder] = {"torch float32": SentenceTransformersEncoder(folder, threads=1, device="cpu")}
        done("making onnx float32")
        encoders["onnx float32"] = onnx = OnnxEncoder.from_model_folder(folder, exports, threads=1)
        done("making onnx int8")
        encoders["onnx int8"] = int8 = OnnxInt8Encoder.from_model_folder(folder, exports, threads=1)
        done("measuring")
        for encoder in encoders.values():
            encoder.encode(profiles[:8])  # the first call allocates
        found = measure_encoders(
            encoders,
            profiles[:TEXTS],
            [*profiles, *items],
            SystemClock(),
            rounds=ROUNDS,
            progress=lambda: done("measuring"),
        )
    sizes = {
        "torch float32": sum(path.stat().st_size for path in weight_files(folder)),
        "onnx float32": onnx.graph_bytes,
        "onnx int8": int8.graph_bytes,
    }
    rows = [
        {
            "model": model,
            "id": encoders[model].model_id,
            "size_mb": sizes[model] / 1e6,
            "texts_per_s": each.texts_per_s,
            "ratio": each.ratio,
            "cosine_mean": each.cosine_mean,
            "cosine_min": each.cosine_min,
        }
        for model, each in found.items()
    ]
    tokens = encoders["onnx float32"].encode(profiles[:TEXTS]).tokens
    meta = {
        "model": str(folder),
        "dataset": name,
        "threads": 1,
        "timed_texts": len(tokens),
        "tokens_a_text": float(tokens.mean()),
        "compared_texts": len(profiles) + len(items),
        "rounds": ROUNDS,
        "exports": str(exports),
    }
    _report(rows, meta, as_json=as_json)


def _report(rows: list[dict[str, Any]], meta: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"meta": meta, "rows": rows}))
        return
    from rich.table import Table

    table = Table(title=f"text encoders on one thread, {meta['dataset']}")
    shown = {"size_mb": ".1f", "texts_per_s": ".1f", "ratio": ".2f", "cosine_mean": ".4f", "cosine_min": ".4f"}
    table.add_column("model")
    for column in shown:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row["model"], *(format(row[column], spec) for column, spec in shown.items()))
    console = table_console()
    print_whole(console, table)
    console.print(
        f"speed: {meta['timed_texts']} profiles of {meta['tokens_a_text']:.0f} tokens, median of {meta['rounds']} "
        f"rounds in turns; cosine to torch float32: {meta['compared_texts']} profiles and items",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f'{rows[-1]["id"]} is kept in {meta["exports"]}; the setting cloud.encoder = "onnx-int8" uses it',
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
