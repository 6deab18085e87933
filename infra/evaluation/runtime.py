"""The device step in torch, ONNX Runtime and numpy: whether they agree, how long each takes, and what int8 costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits

from cloud_worker.evaluation.bootstrap import Interval, UserResamples
from device_agent.device_graph import WHOLE, build_graph
from device_agent.fusion import FusionTables, ItemVectors, QuantisedRows
from device_agent.onnx_serving import open_session
from device_agent.ranking import Mode
from device_agent.serving import NumpyServing, Pairs, make_serving
from infra.evaluation.recorded import Recorded
from infra.evaluation.torch_step import TorchStep
from streams.bundle import PHI
from streams.experiment.ranking_metrics import ndcg_at

Floats = npt.NDArray[np.floating]
Served = Callable[[Pairs], object]

RANKINGS: Final[tuple[Mode, ...]] = ("candidates", "catalogue")
KINDS: Final[tuple[ItemVectors, ...]] = ("float32", "int8")
WAVE: Final = 256
ROUNDS: Final = 7
_ROUND_S: Final = 0.06
"""Each runtime's share of a round."""
_LOG_AGE: Final = PHI.index("log_age")


@dataclass(frozen=True)
class Parity:
    """The largest difference between two runtimes in one quantity."""

    quantity: str
    ranking: str
    item_vectors: str
    one: str
    other: str
    error: float


@dataclass(frozen=True)
class Timing:
    """Time of one call with so many rows: the median over rounds in turns, and their quartiles."""

    runtime: str
    ranking: str
    item_vectors: str
    rows: int
    us_per_call: float
    low: float
    high: float


@dataclass(frozen=True)
class Eight:
    """What int8 item vectors change.

    Attributes
    ----------
    ndcg
        NDCG@10 with float32, and the paired difference of int8 less it.
    bytes
        Of the item tables, float32 and int8.
    """

    ranking: str
    runtime: str
    ndcg: float
    difference: Interval
    top_changed: float
    bytes: tuple[int, int]


def parity(recorded: Recorded) -> list[Parity]:
    """The largest absolute differences over the recorded moments."""
    found: list[Parity] = []
    d = recorded.bundle.manifest.d
    known, signals = recorded.trained_after
    for ranking, kind in product(RANKINGS, KINDS):
        pairs = recorded.pairs(ranking)
        reference = NumpyServing(recorded.bundle, ranking=ranking, item_vectors=kind)
        candidates = recorded.layout.candidates
        graph = build_graph(recorded.bundle, ranking=ranking, candidates=candidates, item_vectors=kind)
        session = open_session(graph.SerializeToString(), fold=kind != "int8")
        feed = {each.name: recorded.graph_inputs(ranking)[each.name] for each in session.get_inputs()}
        onnx = dict(zip(WHOLE, session.run(WHOLE, feed), strict=True))
        after = recorded.learned()
        by_runtime: dict[str, dict[str, Floats]] = {
            "numpy": {
                "staleness s": reference(pairs).staleness,
                "calibrated ê": reference.calibrated(pairs),
                "scores": reference.scores(pairs),
                "SRM state after": after["srm_hidden"],
                "m and φ after": _signals(recorded.layout.recent(after)[known, 0], d),
            },
            "ONNX": {
                "staleness s": onnx["staleness"],
                "calibrated ê": onnx["calibrated"],
                "scores": onnx["scores"],
                "SRM state after": onnx["hidden_after"],
                "m and φ after": _signals(onnx["recent_after"][known], d),
            },
        }
        if kind == "float32":
            step = TorchStep(recorded.bundle, ranking)
            served = step(pairs)
            by_runtime["torch"] = {
                "staleness s": served.staleness.numpy(),
                "calibrated ê": served.calibrated.numpy(),
                "scores": served.scores.numpy(),
                "SRM state after": step.hidden_after(pairs, recorded.windows()),
                "m and φ after": _signals(signals, d),
            }
        names = list(by_runtime)
        for nth, one in enumerate(names):
            for other in names[nth + 1 :]:
                for quantity in by_runtime[one].keys() & by_runtime[other].keys():
                    error = _distance(by_runtime[one][quantity], by_runtime[other][quantity])
                    found.append(Parity(quantity, ranking, kind, one, other, error))
    return sorted(found, key=lambda each: (each.ranking, each.item_vectors, each.quantity, each.one, each.other))


def timings(recorded: Recorded, on_done: Callable[[int, int], None] = lambda _done, _total: None) -> list[Timing]:
    """Time of one step and of a wave, each runtime on one thread."""
    found: list[Timing] = []
    cases = list(product(RANKINGS, (1, WAVE)))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):  # numpy's BLAS
            for nth, (ranking, rows) in enumerate(cases):
                on_done(nth, len(cases))
                found += _of_case(recorded, ranking, rows)
        on_done(len(cases), len(cases))
    finally:
        torch.set_num_threads(before)
    return found


def eight_bits(recorded: Recorded, seed: int) -> list[Eight]:
    """What int8 item vectors change in what is recommended at the recorded moments."""
    bundle, found = recorded.bundle, []
    tables = FusionTables.of(bundle)
    quantised = QuantisedRows.of(tables)
    sizes = (tables.rows.nbytes, quantised.codes.nbytes + quantised.side.nbytes)
    resamples = UserResamples(recorded.users, seed)
    for ranking in RANKINGS:
        pairs = recorded.pairs(ranking)
        for runtime in ("onnx", "numpy"):
            full, rounded = (
                make_serving(
                    bundle,
                    "onnx" if runtime == "onnx" else "numpy",
                    ranking=ranking,
                    candidates=recorded.layout.candidates,
                    item_vectors=kind,
                )(pairs)
                for kind in KINDS
            )
            ndcg, other = ndcg_at(full.rank[:, 0]), ndcg_at(rounded.rank[:, 0])
            changed = float((full.top != rounded.top).any(axis=1).mean())
            name = "ONNX" if runtime == "onnx" else "numpy"
            found.append(Eight(ranking, name, float(ndcg.mean()), resamples.mean(other - ndcg), changed, sizes))
    return found


def _of_case(recorded: Recorded, ranking: Mode, rows: int) -> list[Timing]:
    """All runtimes with so many rows."""
    bundle, candidates = recorded.bundle, recorded.layout.candidates
    at = np.resize(np.arange(len(recorded)), rows)
    pairs = Pairs._make(np.ascontiguousarray(each[at]) for each in recorded.pairs(ranking))
    runtimes: dict[tuple[str, str], Served] = {("torch", "float32"): TorchStep(bundle, ranking)}
    for kind in KINDS:
        options: dict[str, Any] = {"ranking": ranking, "candidates": candidates, "item_vectors": kind}
        runtimes["ONNX", kind] = make_serving(bundle, "onnx", **options)
        runtimes["numpy", kind] = make_serving(bundle, "numpy", **options)
    found = []
    for (name, tables), rounds in _measured(runtimes, pairs).items():
        low, middle, high = np.quantile(rounds, [0.25, 0.5, 0.75]) * 1e6
        found.append(Timing(name, ranking, tables, rows, float(middle), float(low), float(high)))
    return found


def _measured(runtimes: Mapping[tuple[str, str], Served], pairs: Pairs) -> dict[tuple[str, str], list[float]]:
    """Seconds a call, a number for each round; all runtimes take their turn in each round."""
    calls: dict[tuple[str, str], int] = {}
    for name, serve in runtimes.items():
        for _ in range(3):  # the first calls allocate and choose kernels
            serve(pairs)
        start = time.perf_counter()
        serve(pairs)
        calls[name] = max(1, int(_ROUND_S / max(time.perf_counter() - start, 1e-7)))
    found: dict[tuple[str, str], list[float]] = {name: [] for name in runtimes}
    for _ in range(ROUNDS):
        for name, serve in runtimes.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                serve(pairs)
            found[name].append((time.perf_counter() - start) / calls[name])
    return found


def _signals(recent: Floats, d: int) -> Floats:
    """(R, d+P-1) m and φ of what lies in a record, without log_age, which is of the moment and not of the record."""
    return np.concatenate([recent[:, :d], np.delete(recent[:, -len(PHI) :], _LOG_AGE, axis=1)], axis=1)


def _distance(one: Floats, other: Floats) -> float:
    """The largest difference; NaN where one can rank what the other cannot."""
    if not np.array_equal(np.isfinite(one), np.isfinite(other)):
        return float("nan")
    finite = np.isfinite(one)
    return float(np.abs(one[finite].astype(np.float64) - other[finite]).max(initial=0.0))
