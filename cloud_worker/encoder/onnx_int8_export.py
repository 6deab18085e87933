"""Writing a model folder as an int8 graph: one text a run, attention fused, matrix products and tables in int8.

Weights have a scale a column, activations a scale a tensor, taken as the text passes (dynamic quantisation of
onnxruntime.quantization; no calibration data decides a scale). Products that cost too much of the direction of the
vectors stay float32: see `_quantise`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from cloud_worker.encoder.onnx_export import FEATURES, GRAPH, META, OUTPUT, TOKENIZER, GraphMeta, exporting, quiet
from cloud_worker.encoder.sentence_transformers import SentenceTransformersEncoder, load_model
from cloud_worker.encoder.unpadded import UnpaddedGraph
from streams.errors import EncoderError

RECIPE: Final = 1
"""Part of the id: vectors of another recipe are other vectors."""
MEAN_COSINE: Final = 0.99
"""To the float32 vectors of `CALIBRATION`, on average, at least."""
WORST_COSINE: Final = 0.96
"""And the lowest of them, at least; what is below MEAN_COSINE for one text may still be, for MiniLM 0.98."""
QUANTISED: Final = ("MatMul", "Gather")
OPSET: Final = 23
"""The first with an operator for attention, which ONNX Runtime runs a fifth faster than its own MultiHeadAttention."""
_ATTENTION: Final = "driftline-unmasked"
_REMEDY: Final = "use the encoder 'onnx' or 'sentence-transformers'"
_FLOAT: Final = "float32.onnx"

_TITLES: Final = (
    "Heat (1995) (Action, Crime, Thriller)",
    "Toy Story (1995) (Animation, Children's, Comedy)",
    "Graduate, The (1967) (Drama, Romance)",
    "Xtreme Brite Brightening Gel 1oz. (Beauty, Hair Care, Styling Products)",
    "15 Color Professional Makeup Eyeshadow Camouflage Concealer Palette (Beauty, Makeup, Face)",
    "WHITE HANGING HEART T-LIGHT HOLDER",
    "Crayola 24 Count Washable Markers, Broad Line, 8-Pack (Toys & Games, Arts & Crafts)",
    "USB-C to HDMI adapter, 4K@60Hz, 0.2 m",
    "Амели (2001) (комедия, мелодрама)",
    "Война и мир",
    "天空の城ラピュタ (アニメ)",
    "卧虎藏龙 (动作, 爱情)",
    "기생충 (스릴러)",
    "الرجل الذي باع ظهره",
    "Crème hydratante à l'aloès, peaux sèches – 50 ml",
    "untitled",
)
CALIBRATION: Final = (
    "",
    *_TITLES,
    *(
        f"Recently, newest first. today: {'; '.join(_TITLES[i : i + 3])}. "
        f"{i + 2} days before: {'; '.join(_TITLES[i + 3 : i + 6])}."
        for i in range(0, 11, 2)
    ),
    " ".join(_TITLES * 2),
)
"""Items and profiles of several kinds and scripts, on which the vectors are compared with those of float32."""


class Int8Meta(msgspec.Struct, frozen=True):
    """What the graph's file does not say, and what it must still be and do when it is read again."""

    graph: GraphMeta
    digest: str
    """BLAKE2b of the graph's file."""
    cosine_mean: float
    """Of the vectors of `CALIBRATION` to those of float32."""
    cosine_min: float
    float32: list[str]
    """Products and tables that were left in float32."""
    probe: list[float]
    """(dim,) vector of the last text of `CALIBRATION` on the machine that exported."""


def digest_of(path: Path) -> str:
    """BLAKE2b of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def write_int8_graph(
    folder: Path,
    model_id: str,
    target: Path,
    *,
    mean_cosine: float = MEAN_COSINE,
    worst_cosine: float = WORST_COSINE,
) -> None:
    """Export `folder` as an int8 graph into the folder `target`, and show how near it is to the model.

    Raises
    ------
    EncoderError
        A library is missing, torch cannot export this model, or its graph is not near enough.
    """
    reference = SentenceTransformersEncoder(folder, device="cpu").encode(CALIBRATION).vectors
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        unquantised = Path(scratch) / _FLOAT
        meta = _export(folder, model_id, unquantised, target / TOKENIZER)

        def judge(graph: Path) -> npt.NDArray[np.float32]:
            vectors, _ = UnpaddedGraph(graph, target / TOKENIZER, meta.max_tokens).run(CALIBRATION, meta.dim)
            lengths = np.maximum(np.linalg.norm(vectors, axis=1), np.finfo(np.float32).tiny)
            cosines: npt.NDArray[np.float32] = (vectors * reference).sum(axis=1) / lengths
            return cosines

        def good(cosines: npt.NDArray[np.float32]) -> bool:
            return bool(cosines.mean() >= mean_cosine and cosines.min() >= worst_cosine)

        if not good(cosines := judge(unquantised)):
            raise EncoderError(
                f"the unmasked ONNX graph of {folder} differs from the model: cosine {cosines.mean():.4f} on average, "
                f"{cosines.min():.4f} at worst",
                remedy=_REMEDY,
            )
        float32, cosines = _quantise(unquantised, target / GRAPH, judge, good)
        probe, _ = UnpaddedGraph(target / GRAPH, target / TOKENIZER, meta.max_tokens).run(CALIBRATION[-1:], meta.dim)
    described = Int8Meta(
        graph=meta,
        digest=digest_of(target / GRAPH),
        cosine_mean=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        float32=float32,
        probe=probe[0].tolist(),
    )
    (target / META).write_bytes(msgspec.json.encode(described))


def _quantise(
    source: Path,
    target: Path,
    judge: Callable[[Path], npt.NDArray[np.float32]],
    good: Callable[[npt.NDArray[np.float32]], bool],
) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Quantise products and tables; where that is not good enough, leave ever more of the most sensitive in float32.

    How sensitive a node is, is the mean cosine when it alone is left. 1, 2, 4, ... of them are left until it is good:
    a ranking of n graphs and log2 n more, where a search one by one would make n² / 2.
    """
    import onnx  # noqa: PLC0415 - not needed once the graph exists

    _to_int8(source, target, [])
    if good(cosines := judge(target)):
        return [], cosines
    nodes = [node.name for node in onnx.load(source).graph.node if node.op_type in QUANTISED]
    gains = {}
    for name in nodes:
        _to_int8(source, target, [name])
        gains[name] = float(judge(target).mean())
    ranked = sorted(nodes, key=lambda name: -gains[name])
    count = 1
    while count < len(ranked):
        _to_int8(source, target, ranked[:count])
        if good(cosines := judge(target)):
            return ranked[:count], cosines
        count *= 2
    raise EncoderError(
        f"no int8 graph of this model is near enough: cosine {cosines.mean():.4f} on average, {cosines.min():.4f} at "
        f"worst, with {count // 2} of {len(ranked)} products and tables in float32",
        remedy=_REMEDY,
    )


def _to_int8(source: Path, target: Path, left: Sequence[str]) -> None:
    import onnx  # noqa: PLC0415
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata  # noqa: PLC0415

    model = onnx.load(source)
    _drop_reshapes(model.graph)
    add_pre_process_metadata(model)  # else the library advises it, by logging.warning, which sets up the root logger
    with quiet():
        quantize_dynamic(
            model,
            str(target),
            per_channel=True,
            reduce_range=False,  # 8 bits need VNNI; without it sums saturate, and the cosine says so
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_exclude=list(left),
            extra_options={"MatMulConstBOnly": True},
        )


def _drop_reshapes(graph: Any) -> None:
    """Join attention to the products around it: both want (1, L, hidden), torch traces the heads between them.

    Three per cent of the time of a text.
    """
    made = {output: node for node in graph.node for output in node.output}
    taken: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            taken.setdefault(name, []).append(node)
    for attention in [node for node in graph.node if node.op_type == "Attention"]:
        for place, name in enumerate(attention.input):
            while name in made and made[name].op_type == "Reshape":
                name = made[name].input[0]  # noqa: PLW2901 - walks up
            attention.input[place] = name
        same = [attention.output[0]]
        for name in same:  # grows
            for node in taken.get(name, ()):
                if node.op_type == "Reshape":
                    same.append(node.output[0])
                else:
                    node.input[:] = [attention.output[0] if each == name else each for each in node.input]
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    while dead := [node for node in graph.node if not used.intersection(node.output)]:
        for node in dead:
            graph.node.remove(node)
        used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}


def _export(folder: Path, model_id: str, graph: Path, tokenizer_file: Path) -> GraphMeta:
    """Export the module chain of `folder`, from the token ids of one text to its vector, with fused attention."""
    try:
        import torch  # noqa: PLC0415 - not needed once the graph exists
        from transformers import AttentionInterface  # noqa: PLC0415
    except ImportError as exc:
        raise EncoderError(f"exporting a graph needs {exc.name}", remedy="install driftline[cloud]") from exc
    AttentionInterface.register(_ATTENTION, _unmasked_attention)
    try:
        model = load_model(folder, device="cpu", model_kwargs={"attn_implementation": _ATTENTION})
    except EncoderError as exc:
        raise EncoderError(exc.message, remedy=exc.remedy or _REMEDY) from exc
    tokenizer = getattr(model.tokenizer, "backend_tokenizer", None)
    if tokenizer is None:
        raise EncoderError(f"model folder {folder} has no fast tokenizer", remedy=_REMEDY)
    tokenizer.save(str(tokenizer_file))
    features = model.preprocess(["one text of a few words"])
    names = [name for name in FEATURES if name in features]
    meta = GraphMeta(
        model_id=model_id,
        dim=int(model.get_embedding_dimension()),
        max_tokens=int(model.max_seq_length or model.tokenizer.model_max_length),
        pad_id=int(model.tokenizer.pad_token_id or 0),
    )

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = model

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
            vectors: torch.Tensor = self.chain({name: whole[name] for name in names})["sentence_embedding"]
            return vectors

    with exporting(folder, _REMEDY), torch.no_grad():
        torch.onnx.export(
            Graph().eval(),
            (features["input_ids"],),
            str(graph),
            input_names=["input_ids"],
            output_names=[OUTPUT],
            dynamic_shapes=({1: torch.export.Dim("length", max=meta.max_tokens)},),
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    return meta


def _unmasked_attention(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **options: Any
) -> tuple[Any, None]:
    """Attention as transformers calls it, written as the one operator of ONNX; one text has nothing to mask.

    `query`, `key`, `value` are (1, heads, L, width); the answer is (1, L, heads, width).
    """
    import torch  # noqa: PLC0415

    del mask
    if getattr(module, "is_causal", False) or options.get("sliding_window") or query.shape[1] != key.shape[1]:
        raise NotImplementedError(f"the attention of {type(module).__name__}: causal, windowed or grouped")
    batch, heads, length, width = query.shape
    flat = [each.transpose(1, 2).reshape(batch, length, heads * width) for each in (query, key, value)]
    answer = torch.onnx.ops.symbolic(
        "Attention",
        flat,
        attrs={
            "q_num_heads": heads,
            "kv_num_heads": heads,
            "scale": float(scaling if scaling is not None else width**-0.5),
        },
        dtype=query.dtype,
        shape=(batch, length, heads * width),
        version=OPSET,
    )
    return answer.reshape(batch, length, heads, width), None
