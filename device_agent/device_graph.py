"""The device step of a bundle as one ONNX graph: SRM update, signals, staleness, calibration, fusion, ranking.

`build_graph` makes it from the bundle's tensors with the onnx package alone (a device has no torch). Each model part is
a small function that adds its nodes to a `Nodes` and returns the names of what it computes; the numpy modules of the
same parts (srm, staleness, calibration, ranking) are the reference that they are tested against.

A row is one pair of a device and an arm, R of them, R free. With B devices and A arms R = B · A, and a device's own
fields are repeated for each arm; where a device runs one arm of several (a split experiment), R = B.

===============  ===============  =======================================================================
input            type             meaning
===============  ===============  =======================================================================
items            i32 (R, 1)        the item that the user took; -1: not in the bundle
hidden           f32 (R, h)       SRM state before it
embedding        f16 (R, d)       cached embedding e
recent           f32 (R, d+2+P)   of the record before it: m, its weight, 1 / ‖e‖, φ with the present log_age
gap              i64 (R, 1)        interactions since as_of, before it; -1: no embedding
candidates       i32 (R, C)       with the ranking "candidates": items, -1 for none
seen             u8 (R, ⌈N/8⌉)    with the ranking "catalogue", if the bundle excludes what was seen
last_items       i32 (R, 1)        of the whole graph alone: last item before it; -1: none
count            i64 (R, 1)        of the whole graph alone: interactions before it
age_ms           i64 (R, 1)        of the whole graph alone: event time since the embedding was asked for
history          i32 (R, W)        of the whole graph of a SASRec alone: the record's ring of items before it
history_len      i64 (R, 1)        the same: how many items had gone into the ring
told             f32 (R, C or N)   with ``trends`` alone: z(t), what a neighbour table says (`streams.neighbours`)
===============  ===============  =======================================================================

===============  ===============  =======================================================================
output           type             meaning
===============  ===============  =======================================================================
staleness        f32 (R, 1)        s; 0 at gap 0, 1 without an embedding
rank, ranked     i32 (R, 1)        as `device_agent.ranking.Ranked`
top              i32 (R, k)
calibrated       f32 (R, d)       ê; means nothing without an embedding
scores           f32 (R, C or N)  fused scores; -inf where an item is not to be ranked
hidden_after     f32 (R, h)       SRM state after the item
recent_after     f32 (R, d+2+P)   m, its weight, 1 / ‖e‖ and φ after the item
===============  ===============  =======================================================================

The **served** graph has the first four outputs and none of the nodes behind the others. What a record keeps (SRM state,
m, φ) is computed in numpy even then: a record must be the same to the bit however its events were batched, and ONNX
Runtime does not promise that. Its matrix product takes other kernels for one row than for several, and its vectorised
exp and log treat the last elements of an array, which depend on R, by another routine than the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from device_agent.fusion import SMALLEST_VARIANCE, FusionTables, ItemVectors, QuantisedRows, square_root
from device_agent.graph_nodes import Nodes
from device_agent.graph_srm import SRM_NODES
from device_agent.ranking import Mode
from device_agent.signal_head import folded
from device_agent.signals import LARGEST_HALF, unit_vectors
from device_agent.srm import largest_state
from device_agent.staleness import CLOUD_DEVIATION, LOG_AGE
from streams.bundle import PHI, Bundle
from streams.errors import BundleError

Floats = npt.NDArray[np.float32]

OPSET: Final = 20
IR_VERSION: Final = 10
SERVED: Final = ("staleness", "rank", "ranked", "top")
WHOLE: Final = (*SERVED, "calibrated", "scores", "hidden_after", "recent_after")
_DENSE_FROM: Final = 8
_DENSE_ITEMS: Final = 30
_LARGEST_PHI: Final = 1e6  # logarithms and correlations are small; a z-score stays below the root of N
_MS_PER_HOUR: Final = 3_600_000.0


def build_graph(
    bundle: Bundle,
    *,
    ranking: Mode,
    candidates: int = 100,
    list_length: int = 10,
    item_vectors: ItemVectors = "float32",
    trends: bool = False,
    outputs: Sequence[str] = WHOLE,
) -> onnx.ModelProto:
    """The device step of a bundle.

    Parameters
    ----------
    ranking
        What is ranked: the whole catalogue, or the input `candidates`.
    candidates
        C
    list_length
        k
    item_vectors
        How the ranking's item tables are kept: as they are, or as int8 with a scale for each item, which takes a
        quarter of the memory.
    trends
        Whether the input `told` joins the scores. The table behind it is no constant of the bundle, it comes anew
        every day: so it is looked up outside.
    outputs
        Which of `WHOLE`; nodes and inputs that they do not need are left out.
    """
    tensors, manifest = bundle.device, bundle.manifest
    g = Nodes()
    d = manifest.d
    embedding = g("Cast", "embedding", to=TensorProto.FLOAT)
    has = g("GreaterOrEqual", "gap", g.const(0, np.int64))
    recent = "recent"
    if "recent_after" in outputs:
        recent = _present_age(g, d)
    found = {"staleness": _staleness(g, tensors, recent)}
    found["calibrated"] = _calibrated(g, tensors, embedding, recent)
    tables = FusionTables.of(bundle)
    _check_range(bundle, tables)
    query = _query(g, tables, found["calibrated"], found["staleness"], has)
    added = _added(g, tables, query, found["staleness"]) if trends else None
    catalogue = _Catalogue(g, tables, item_vectors, query, added)
    if ranking == "candidates":
        columns = candidates
        scores, ranked = catalogue.of_candidates(candidates)
    else:
        columns = manifest.n_items
        scores, ranked = catalogue.of_all(exclude_seen=manifest.exclude_seen)
    found["scores"] = scores
    found["rank"] = _rank(g, scores, ranking)
    found["ranked"] = ranked
    found["top"] = _top(g, scores, ranking, list_length, columns)
    if "hidden_after" in outputs or "recent_after" in outputs:
        after = SRM_NODES[manifest.srm](g, tensors)
        found["hidden_after"] = g("Where", _known(g), after, "hidden")
    if "recent_after" in outputs:
        found["recent_after"] = _signals(g, bundle, tables, embedding, recent, found["hidden_after"], has)
    return _model(g, bundle, {name: found[name] for name in outputs}, ranking, candidates)


def dense_pays(n_items: int, candidates: int) -> bool:
    """Whether, for eight and more lists at once, the scores of the whole catalogue cost less than to gather rows."""
    return n_items <= _DENSE_ITEMS * candidates


def write_graph(bundle: Bundle, path: Path, **options: Any) -> onnx.ModelProto:
    """Write the whole graph to a file, its tables inside; `options` as of `build_graph`."""
    model = build_graph(bundle, **options)
    path.write_bytes(model.SerializeToString())
    return model


# Model parts


def _staleness(g: Nodes, tensors: Mapping[str, Floats], recent: str) -> str:
    """(R, 1) s as in `device_agent.staleness`, 0 at gap 0 and 1 without an embedding."""
    weight, bias = folded(tensors, "staleness")
    unread = np.zeros((tensors["item_vectors"].shape[1] + 2, len(weight)))  # reading all saves a node that cuts φ out
    inner = g("Tanh", g("Gemm", recent, g.const(np.concatenate([unread, weight.T])), g.const(bias)))
    second, second_bias = tensors["staleness.2.weight"].T, tensors["staleness.2.bias"]
    s = g("Sigmoid", g("Gemm", inner, g.const(second), g.const(second_bias)))
    zero = g.const(0, np.int64)
    lacking = g("Cast", g("Less", "gap", zero), to=TensorProto.FLOAT)
    return g("Where", g("Greater", "gap", zero), s, lacking)


def _calibrated(g: Nodes, tensors: Mapping[str, Floats], embedding: str, recent: str) -> str:
    """(R, d) ê as in `device_agent.calibration`.

    Gate and first layer read the same input, so they are one product; m's weight and 1 / ‖e‖, which lie between m and
    φ in the record, meet weights of zero. The gate appears only as 1 - σ(z) = σ(-z), so its weights are negated.
    """
    gate, first = (tensors[f"calibrator.{each}.weight"].astype(np.float64) for each in ("gate", "mlp.0"))
    d, hidden = gate.shape[0], first.shape[0]
    weight = np.concatenate([-gate, first])
    of_e_and_m, of_srm, of_phi = np.split(weight, [2 * d, weight.shape[1] - len(PHI)], axis=1)
    of_phi = of_phi / tensors["phi.scale"]
    bias = np.concatenate([-tensors["calibrator.gate.bias"], tensors["calibrator.mlp.0.bias"]])
    bias = bias - of_phi @ tensors["phi.mean"]
    spread = np.concatenate([of_e_and_m, np.zeros((len(weight), 2)), of_phi, of_srm], axis=1)
    joint = g("Gemm", g("Concat", embedding, recent, "hidden", axis=1), g.const(spread.T), g.const(bias))
    gate_logit, inner = g.many("Split", 2, joint, g.ints(d, hidden), axis=1)
    tau = float(tensors["calibrator.tau"][0])
    second, second_bias = tensors["calibrator.mlp.2.weight"].T, tensors["calibrator.mlp.2.bias"]
    repaired = g("Gemm", g("Gelu", inner), g.const(second), g.const(second_bias))
    opening = g("Tanh", g("Mul", g("Cast", "gap", to=TensorProto.FLOAT), g.const(1 / tau)))
    change = g("Mul", g("Sub", repaired, embedding), g("Mul", g("Sigmoid", gate_logit), opening))
    return g("Add", embedding, change)


def _query(g: Nodes, tables: FusionTables, calibrated: str, staleness: str, has: str) -> tuple[str, str, str, str]:
    """The query in four parts, (R, d), (R, 1), (R, h), (R, 1): see `device_agent.fusion`.

    Where one of the two has no say (no embedding, or scores that do not differ) its part is 0 and the other's weight 1.
    """

    def variance(x: str, covariance: npt.NDArray[np.float64]) -> str:
        root = square_root(covariance)
        spread = g("Gemm", x, g.const(root[:-1]), g.const(root[-1:]))
        return g("ReduceSumSquare", spread, g.ints(1), keepdims=1)

    of_cloud = variance(calibrated, tables.cloud_covariance)
    of_srm = variance("hidden", tables.srm_covariance)
    of_cloud = g("Mul", of_cloud, g("Cast", has, to=TensorProto.FLOAT))
    both = g("Concat", of_cloud, of_srm, axis=1)
    tiny = g.const(SMALLEST_VARIANCE)
    usable = g("Cast", g("Greater", both, tiny), to=TensorProto.FLOAT)
    # Arithmetic on flags: a weight is 1, less the other's share if the other is usable. Each Where would cost three of
    # these nodes.
    fresh, stale = tables.alpha
    others_share = g("Gemm", staleness, g.const([[fresh - stale, stale - fresh]]), g.const([1 - fresh, fresh]))
    others = g("MatMul", usable, g.const([[0, 1], [1, 0]]))
    weights = g("Mul", usable, g("Sub", g.const(1), g("Mul", others, others_share)))
    scales = g("Div", weights, g("Sqrt", g("Max", both, tiny)))
    cloud_scale, srm_scale = g.many("Split", 2, scales, g.ints(1, 1), axis=1)
    return g("Mul", calibrated, cloud_scale), cloud_scale, g("Mul", "hidden", srm_scale), srm_scale


def _added(g: Nodes, tables: FusionTables, query: tuple[str, str, str, str], staleness: str) -> str:
    """(R, C or N) β(s) σ z(t), with σ the standard deviation of the fused scores over the catalogue."""
    fresh, stale = tables.trends
    beta = g("Add", g("Mul", staleness, g.const(stale - fresh)), g.const(fresh))
    spread = g("MatMul", g("Concat", *query, axis=1), g.const(square_root(tables.covariance)))
    variance = g("ReduceSumSquare", spread, g.ints(1), keepdims=1)
    return g("Mul", "told", g("Mul", beta, g("Sqrt", variance)))


def _check_range(bundle: Bundle, tables: FusionTables) -> None:
    """Refuse weights with which scores of some float16 embedding could overflow: the graph has no nodes for NaN."""
    tensors, phi = bundle.device, (np.full(len(PHI), _LARGEST_PHI) + np.abs(bundle.device["phi.mean"]))
    d, h = bundle.manifest.d, bundle.manifest.srm_dim
    state = np.full(h, largest_state(bundle))
    largest = np.concatenate([np.full(d, LARGEST_HALF), np.ones(d), state, phi / np.abs(tensors["phi.scale"])])
    for layer in ("0", "2"):  # GELU shrinks
        weight = np.abs(tensors[f"calibrator.mlp.{layer}.weight"].astype(np.float64))
        largest = weight @ largest + np.abs(tensors[f"calibrator.mlp.{layer}.bias"])
    variance = (d * max(LARGEST_HALF, largest.max()) ** 2 + 1) * np.trace(tables.cloud_covariance)
    if not variance < np.finfo(np.float32).max:
        raise BundleError(
            f"bundle {bundle.path}: the calibrator's weights are so large that scores would overflow",
            remedy="train it anew with weight decay",
        )


class _Catalogue:
    """The items' tables and their products with a query (R, d), (R, 1), (R, h), (R, 1)."""

    def __init__(
        self,
        g: Nodes,
        tables: FusionTables,
        kind: ItemVectors,
        query: tuple[str, str, str, str],
        added: str | None,
    ) -> None:
        self._g = g
        self._added = added
        self._n_items = len(tables.rows)
        self._eight_bit = kind == "int8"
        cloud, self._cloud_bias, srm, self._srm_bias = query
        if self._eight_bit:
            quantised = QuantisedRows.of(tables)
            self._query = g("Concat", cloud, g("Mul", srm, g.const(1 / quantised.srm_factor)), axis=1)
            self._rows: npt.NDArray[np.generic] = quantised.codes
            self._side = quantised.side
        else:
            self._query = g("Concat", *query, axis=1)
            self._rows = tables.rows

    def of_candidates(self, candidates: int) -> tuple[str, str]:
        """(R, C) scores, and (R, 1) how many can be ranked.

        An index of -1 takes some score or other, which is then masked.
        """
        g = self._g
        rankable = g("GreaterOrEqual", "candidates", g.const(0, np.int32))
        if dense_pays(self._n_items, candidates):
            few = g("Less", g("Shape", "items", end=1), g.ints(_DENSE_FROM))
            scores = g.either(few, self._gathered, lambda: g("GatherElements", self._dense(), "candidates", axis=1))
        else:
            scores = self._gathered()
        ranked = g("ReduceSum", g("Cast", rankable, to=TensorProto.INT32), g.ints(1), keepdims=1)
        return g("Where", rankable, self._with_added(scores), g.const(-np.inf)), ranked

    def of_all(self, *, exclude_seen: bool) -> tuple[str, str]:
        """(R, N) scores, and (R, 1) how many can be ranked.

        Tables say, for each value of a byte of the bitmap, what to add to its eight items' scores and how many of them
        are left: single bits would be eight times the work.
        """
        g, scores = self._g, self._with_added(self._dense())
        if not exclude_seen:
            return scores, g("Expand", g.const([[self._n_items]], np.int32), g("Shape", "items"))
        values = np.arange(256)[:, None] >> np.arange(8) & 1
        byte = g("Cast", "seen", to=TensorProto.INT32)
        hidden = g("Gather", g.const(np.where(values, -np.inf, 0)), byte)
        hidden = g("Reshape", hidden, g.ints(-1, (self._n_items + 7) // 8 * 8))
        if self._n_items % 8:
            hidden = g("Slice", hidden, g.ints(0), g.ints(self._n_items), g.ints(1))
        taken = g("ReduceSum", g("Gather", g.const(values.sum(axis=1), np.int32), byte), g.ints(1), keepdims=1)
        return g("Add", scores, hidden), g("Sub", g.const(self._n_items, np.int32), taken)

    def _with_added(self, scores: str) -> str:
        return scores if self._added is None else self._g("Add", scores, self._added)

    def _gathered(self) -> str:
        """(R, C) from the candidates' rows."""
        g = self._g
        rows = g("Gather", g.const(self._rows, self._rows.dtype), "candidates")
        if self._eight_bit:
            rows = g("Cast", rows, to=TensorProto.FLOAT)
        product = g("Squeeze", g("MatMul", rows, g("Unsqueeze", self._query, g.ints(2))), g.ints(2))
        if not self._eight_bit:
            return product
        side = g("Gather", g.const(self._side), "candidates")
        scale, b, c = (g("Squeeze", each, g.ints(2)) for each in g.many("Split", 3, side, g.ints(1, 1, 1), axis=2))
        biases = g("Add", g("Mul", b, self._cloud_bias), g("Mul", c, self._srm_bias))
        return g("Add", g("Mul", product, scale), biases)

    def _dense(self) -> str:
        """(R, N) from the whole table."""
        g = self._g
        columns = g.const(self._rows.T, self._rows.dtype)
        if not self._eight_bit:
            return g("MatMul", self._query, columns)
        columns = g("Cast", columns, to=TensorProto.FLOAT)
        product = g("Mul", g("MatMul", self._query, columns), g.const(self._side[:, 0]))
        bias_query = g("Concat", self._cloud_bias, self._srm_bias, axis=1)
        return g("Add", product, g("MatMul", bias_query, g.const(self._side[:, 1:].T)))


def _rank(g: Nodes, scores: str, ranking: Mode) -> str:
    """(R, 1) rank of `items` among the scores, pessimistic and 1-based; 0 where it cannot be ranked."""
    never = g.const(-np.inf)
    if ranking == "candidates":
        # An item of -1 meets the candidates of -1, whose scores are -inf.
        best = g("ReduceMax", g("Where", g("Equal", "candidates", "items"), scores, never), g.ints(1), keepdims=1)
    else:
        best = g("GatherElements", scores, "items", axis=1)
        best = g("Where", g("GreaterOrEqual", "items", g.const(0, np.int32)), best, never)
    at_least = g("Cast", g("GreaterOrEqual", scores, best), to=TensorProto.INT32)
    placed = g("Cast", g("Greater", best, never), to=TensorProto.INT32)
    return g("Mul", g("ReduceSum", at_least, g.ints(1), keepdims=1), placed)


def _top(g: Nodes, scores: str, ranking: Mode, list_length: int, columns: int) -> str:
    """(R, k) best items, best first; -1 where there are fewer."""
    kept = min(list_length, columns)
    values, places = g.many("TopK", 2, scores, g.ints(kept), axis=1)
    if ranking == "candidates":
        top = g("GatherElements", "candidates", places, axis=1)  # what is no candidate comes last, and is -1 already
    else:
        items = g("Cast", places, to=TensorProto.INT32)
        top = g("Where", g("Greater", values, g.const(-np.inf)), items, g.const(-1, np.int32))
    if kept < list_length:
        top = g("Pad", top, g.ints(0, 0, 0, list_length - kept), g.const(-1, np.int32))
    return top


def _known(g: Nodes) -> str:
    """(R, 1) which `items` the bundle knows."""
    return g("GreaterOrEqual", "items", g.const(0, np.int32))


def _present_age(g: Nodes, d: int) -> str:
    """(R, d+2+P) `recent` with the log_age that `age_ms` gives."""
    at = d + 2 + LOG_AGE
    before = g("Slice", "recent", g.ints(0), g.ints(at), g.ints(1))
    after = g("Slice", "recent", g.ints(at + 1), g.ints(d + 2 + len(PHI)), g.ints(1))
    hours = g("Div", g("Cast", "age_ms", to=TensorProto.DOUBLE), g.const(_MS_PER_HOUR, np.float64))
    log = g("Log", g("Add", hours, g.const(1, np.float64)))
    return g("Concat", before, g("Cast", log, to=TensorProto.FLOAT), after, axis=1)


def _signals(
    g: Nodes, bundle: Bundle, tables: FusionTables, embedding: str, recent: str, hidden_after: str, has: str
) -> str:
    """(R, d+2+P) m, its weight, 1 / ‖e‖ and φ after the item, as in `device_agent.signals`."""
    d, h, p = bundle.manifest.d, bundle.manifest.srm_dim, len(PHI)
    known, one, zero = _known(g), g.const(1), g.const(0)
    mean, norm, inverse_norm, phi = g.many("Split", 4, recent, g.ints(d, 1, 1, p), axis=1)
    # The last row is zero: the direction of item -1, the last item of a device without a history.
    directions = g.const(np.concatenate([unit_vectors(bundle.device["item_vectors"]), np.zeros((1, d), np.float32)]))
    direction = g("Gather", directions, g("Squeeze", "items", g.ints(1)))
    weight = g("Add", g("Mul", norm, g.const(bundle.manifest.recency_decay)), one)
    moved = g("Add", mean, g("Div", g("Sub", direction, mean), weight))
    mean, norm = g("Where", known, moved, mean), g("Where", known, weight, norm)
    last_item = g("Squeeze", g("Where", known, "items", "last_items"), g.ints(1))
    last = g("Gather", directions, last_item)

    def dot(x: str, y: str) -> str:
        return g("ReduceSum", g("Mul", x, y), g.ints(1), keepdims=1)

    length = g("Add", g("Sqrt", dot(mean, mean)), g.const(1e-30))
    nothing = g("Equal", norm, zero)
    cos_recent = g("Where", nothing, one, g("Div", g("Mul", dot(embedding, mean), inverse_norm), length))
    cos_last = g("Mul", dot(embedding, last), inverse_norm)
    gap = g("Add", g("Cast", "gap", to=TensorProto.FLOAT), g.const(2))
    log_gap = g("Log", gap)
    log_age, cloud_deviation = (
        g("Slice", phi, g.ints(at), g.ints(at + 1), g.ints(1)) for at in (LOG_AGE, CLOUD_DEVIATION)
    )
    spread = g("Where", nothing, zero, g("Sub", one, length))

    of_srm = np.concatenate([square_root(tables.srm_covariance), tables.cross_covariance], axis=1)
    of_hidden = g("Gemm", hidden_after, g.const(of_srm[:-1]), g.const(of_srm[-1:]))
    root, across, across_bias = g.many("Split", 3, of_hidden, g.ints(h + 1, d, 1), axis=1)
    variance = g("Max", g("ReduceSumSquare", root, g.ints(1), keepdims=1), g.const(SMALLEST_VARIANCE))
    srm_deviation = g("Mul", g("Log", variance), g.const(0.5))
    inverse = g("Exp", g("Neg", cloud_deviation))
    together = g("Mul", g("Add", dot(embedding, across), across_bias), inverse)
    agreement = g("Div", together, g("Sqrt", variance))
    # Rows are centred, so a score less its mean is a product; the last row is zero: item -1 surprises nobody.
    cut = tables.split
    centred = g.const(np.concatenate([tables.rows[:, :cut], np.zeros((1, cut), np.float32)]))
    vector, bias = g.many("Split", 2, g("Gather", centred, last_item), g.ints(d, 1), axis=1)
    surprise = g("Mul", g("Add", dot(embedding, vector), bias), inverse)
    log_count = g("Log", g("Add", g("Cast", "count", to=TensorProto.FLOAT), g.const(2)))
    by_name = {
        "cos_cached_recent": cos_recent,
        "cos_cached_last": cos_last,
        "log_gap": log_gap,
        "log_age": log_age,
        "spread": spread,
        "agreement": agreement,
        "cloud_deviation": cloud_deviation,
        "srm_deviation": srm_deviation,
        "surprise": surprise,
        "log_count": log_count,
    }
    phi = g("Concat", *(by_name[name] for name in PHI), axis=1)
    phi = g("Where", has, phi, zero)
    return g("Concat", mean, norm, inverse_norm, phi, axis=1)


# The model file


def _model(g: Nodes, bundle: Bundle, outputs: Mapping[str, str], ranking: Mode, candidates: int) -> onnx.ModelProto:
    manifest, p = bundle.manifest, len(PHI)
    columns = candidates if ranking == "candidates" else manifest.n_items
    shapes: dict[str, tuple[int, list[str | int]]] = {
        "items": (TensorProto.INT32, ["R", 1]),
        "hidden": (TensorProto.FLOAT, ["R", manifest.srm_dim]),
        "embedding": (TensorProto.FLOAT16, ["R", manifest.d]),
        "recent": (TensorProto.FLOAT, ["R", manifest.d + 2 + p]),
        "gap": (TensorProto.INT64, ["R", 1]),
        "candidates": (TensorProto.INT32, ["R", candidates]),
        "seen": (TensorProto.UINT8, ["R", (manifest.n_items + 7) // 8]),
        "last_items": (TensorProto.INT32, ["R", 1]),
        "count": (TensorProto.INT64, ["R", 1]),
        "age_ms": (TensorProto.INT64, ["R", 1]),
        "history": (TensorProto.INT32, ["R", manifest.window]),
        "history_len": (TensorProto.INT64, ["R", 1]),
        "told": (TensorProto.FLOAT, ["R", columns]),
    }
    results: dict[str, tuple[int, list[str | int]]] = {
        "staleness": (TensorProto.FLOAT, ["R", 1]),
        "rank": (TensorProto.INT32, ["R", 1]),
        "ranked": (TensorProto.INT32, ["R", 1]),
        "top": (TensorProto.INT32, ["R", "k"]),
        "calibrated": (TensorProto.FLOAT, ["R", manifest.d]),
        "scores": (TensorProto.FLOAT, ["R", columns]),
        "hidden_after": (TensorProto.FLOAT, ["R", manifest.srm_dim]),
        "recent_after": (TensorProto.FLOAT, ["R", manifest.d + 2 + p]),
    }
    needed, nodes = set(outputs.values()), []
    for node in reversed(g.nodes):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
            for branch in (each.g for each in node.attribute if each.type == onnx.AttributeProto.GRAPH):
                needed.update(name for inner in branch.node for name in inner.input)
    nodes.reverse()
    nodes += [helper.make_node("Identity", [name], [output]) for output, name in outputs.items()]
    graph = helper.make_graph(
        nodes,
        "device_step",
        [helper.make_tensor_value_info(name, *shape) for name, shape in shapes.items() if name in needed],
        [helper.make_tensor_value_info(name, *results[name]) for name in outputs],
        initializer=[each for each in g.constants if each.name in needed],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name = "driftline"
    helper.set_model_props(
        model, {"bundle_id": bundle.id, "ranking": ranking, "recency_decay": str(manifest.recency_decay)}
    )
    return model
