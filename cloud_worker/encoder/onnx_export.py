"""Writing a model folder as an ONNX graph, its tokenizer, and the few numbers that go with them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from cloud_worker.encoder.sentence_transformers import load_model
from streams.errors import EncoderError

GRAPH: Final = "model.onnx"
TOKENIZER: Final = "tokenizer.json"
META: Final = "meta.json"
OUTPUT: Final = "sentence_vector"
FEATURES: Final = ("input_ids", "attention_mask", "token_type_ids")
"""What a graph may take, (B, L) int64 each; some models have no token types."""
_REMEDY: Final = "use the encoder 'sentence-transformers', which runs any model"


class GraphMeta(msgspec.Struct, frozen=True):
    """What the graph's file does not say."""

    model_id: str
    dim: int
    max_tokens: int
    pad_id: int


def write_graph(folder: Path, model_id: str, target: Path) -> None:
    """Export the whole module chain of `folder`, from token ids to the sentence vector, into the folder `target`.

    Pooling and what follows it become part of the graph, so any chain that torch can export is served alike.

    Raises
    ------
    EncoderError
        A library is missing, or torch cannot export this model.
    """
    # Eager attention traces to plain matrix products, for which ONNX Runtime has fusions of its own.
    model = load_model(folder, device="cpu", model_kwargs={"attn_implementation": "eager"})
    tokenizer = getattr(model.tokenizer, "backend_tokenizer", None)
    if tokenizer is None:
        raise EncoderError(f"model folder {folder} has no fast tokenizer", remedy=_REMEDY)
    meta = GraphMeta(
        model_id=model_id,
        dim=int(model.get_embedding_dimension()),
        max_tokens=int(model.max_seq_length or model.tokenizer.model_max_length),
        pad_id=int(model.tokenizer.pad_token_id or 0),
    )
    _export(model, meta, target / GRAPH, folder)
    tokenizer.save(str(target / TOKENIZER))
    (target / META).write_bytes(msgspec.json.encode(meta))


def _export(model: Any, meta: GraphMeta, path: Path, folder: Path) -> None:
    import torch  # noqa: PLC0415 - not needed once the graph exists

    features = model.preprocess(["two texts of", "different lengths"])
    names = [name for name in FEATURES if name in features]

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = model

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            vectors: torch.Tensor = self.chain(dict(zip(names, tensors, strict=True)))["sentence_embedding"]
            return vectors

    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=meta.max_tokens)}
    with exporting(folder, _REMEDY), torch.no_grad():
        torch.onnx.export(
            Graph().eval(),
            tuple(features[name] for name in names),
            str(path),
            input_names=names,
            output_names=[OUTPUT],
            dynamic_shapes=(tuple(shape for _ in names),),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@contextmanager
def exporting(folder: Path, remedy: str) -> Iterator[None]:
    """Quiet, and whatever goes wrong is an `EncoderError` that names the model's folder."""
    try:
        with quiet():
            yield
    except ImportError as exc:
        raise EncoderError(f"exporting a graph needs {exc.name}", remedy="install driftline[cloud]") from exc
    except Exception as exc:  # torch raises whatever the traced model does
        raise EncoderError(f"model folder {folder} cannot be exported to ONNX: {exc}", remedy=remedy) from exc


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's and the quantiser's talk about their internals to themselves: some hundred lines a graph."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
