"""The port behind which a device's models serve: staleness, calibration, fusion and ranking of a wave.

There are two implementations with the same answers up to rounding (tests/device_agent/test_device_graph.py): numpy,
which is the reference, and one ONNX graph, which is quicker for a single event. What a record keeps is not computed
here but in `device_agent.learning`, in numpy whatever serves: see `device_agent.device_graph` for why.
"""

from __future__ import annotations

import importlib
from typing import Final, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import structlog

from device_agent.calibration import Calibrator
from device_agent.fusion import FusionTables, ItemVectors
from device_agent.ranking import Mode, Ranker
from device_agent.staleness import StalenessModel
from streams.bundle import PHI, Bundle
from streams.errors import SettingsError
from streams.neighbours import NeighbourTable

Floats = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]
Runtime = Literal["auto", "onnx", "numpy"]
RuntimeName = Literal["onnx", "numpy"]
"""What really serves: it stands in a worker's status file."""

TRENDS_BLOCK: Final = 512 << 10
"""Cells of what a table says, made at a time: so that they stay in the processor's caches."""


class Pairs(NamedTuple):
    """R pairs of a device and an arm that are to be served, from their records before the interaction."""

    items: Int32s
    """(R, 1) what the user then took; -1: not in the bundle."""
    hidden: Floats
    """(R, h) SRM state."""
    embedding: npt.NDArray[np.float16]
    """(R, d) cached embedding."""
    recent: Floats
    """(R, d+2+P) m, its weight, 1 / ‖e‖ and φ, as they lie in a record (`StateLayout.recent`)."""
    gap: npt.NDArray[np.int64]
    """(R, 1) interactions since as_of; -1: no embedding."""
    choice: Int32s | npt.NDArray[np.uint8]
    """What to rank: (R, C) candidates, or (R, ⌈N/8⌉) bitmaps of what is not to be ranked, as the ranking wants."""
    last: Int32s
    """(R, L) last items, newest first, -1 for none: what a neighbour table is asked with; L may be 0 without one."""

    def take(self, rows: slice | npt.NDArray[np.intp]) -> Pairs:
        """The pairs at `rows`."""
        return Pairs(
            self.items[rows],
            self.hidden[rows],
            self.embedding[rows],
            self.recent[rows],
            self.gap[rows],
            self.choice[rows],
            self.last[rows],
        )


class Served(NamedTuple):
    """What was made of them."""

    staleness: Floats
    """(R, 1) s; 0 at gap 0, 1 without an embedding."""
    rank: Int32s
    """(R, 1) as `device_agent.ranking.Ranked.rank`."""
    ranked: Int32s
    """(R, 1)"""
    top: Int32s
    """(R, k)"""


class Serving(Protocol):
    """The models of one bundle, ready to serve with one kind of ranking."""

    runtime: RuntimeName
    ranking: Mode
    list_length: int

    def __call__(self, pairs: Pairs, table: NeighbourTable | None = None) -> Served:
        """Serve R pairs, with the table of what people take near what if there is one."""
        ...


class NumpyServing:
    """The reference, in numpy.

    Parameters
    ----------
    item_vectors
        ``"int8"`` ranks with the rounded tables of the int8 graph; it saves no memory here.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        ranking: Mode = "catalogue",
        list_length: int = 10,
        item_vectors: ItemVectors = "float32",
    ) -> None:
        tables = FusionTables.of(bundle)
        self.runtime: RuntimeName = "numpy"
        self.ranking: Mode = ranking
        self.list_length = list_length
        self._phi = slice(-len(PHI), None)
        self._d = bundle.manifest.d
        fresh, stale = tables.trends
        self._trends, self._trends_slope = np.float32(fresh), np.float32(stale - fresh)
        self._block = max(1, TRENDS_BLOCK // bundle.manifest.n_items)
        self._calibrate = Calibrator(bundle.device)
        self._staleness = StalenessModel(bundle.device)
        self._ranker = Ranker(
            tables.rounded() if item_vectors == "int8" else tables,
            list_length=list_length,
            exclude_seen=bundle.manifest.exclude_seen,
        )

    def __call__(self, pairs: Pairs, table: NeighbourTable | None = None) -> Served:
        """See `Serving`."""
        if table is None:
            return self._serve(pairs, None)
        blocks = [slice(at, at + self._block) for at in range(0, len(pairs.items), self._block)]
        parts = [self._serve(part, table) for part in map(pairs.take, blocks)]
        return Served(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _serve(self, pairs: Pairs, table: NeighbourTable | None) -> Served:
        has = pairs.gap[:, 0] >= 0
        lacking = None if np.count_nonzero(has) == len(has) else ~has
        phi = pairs.recent[:, self._phi]
        staleness = self._staleness(phi, pairs.gap[:, 0])
        known = None if lacking is None else has
        queries = self._ranker.queries(self.calibrated(pairs), pairs.hidden, known, staleness)
        added = None if table is None else self._added(queries, pairs, table, staleness)
        if self.ranking == "catalogue":
            found = self._ranker.catalogue(queries, pairs.items[:, 0], pairs.choice.view(np.uint8), added)
        else:
            found = self._ranker.candidates(queries, pairs.choice.view(np.int32), pairs.items[:, 0], added)
        return Served(staleness[:, None], found.rank[:, None], found.ranked[:, None], found.top)

    def calibrated(self, pairs: Pairs) -> Floats:
        """(R, d) ê."""
        phi, mean = pairs.recent[:, self._phi], pairs.recent[:, : self._d]
        return self._calibrate(pairs.embedding.astype(np.float32), mean, pairs.hidden, phi, pairs.gap[:, 0])

    def scores(self, pairs: Pairs, table: NeighbourTable | None = None) -> Floats:
        """(R, C or N) fused scores with what the table adds, -inf where an item is not to be ranked."""
        has = pairs.gap[:, 0] >= 0
        staleness = self._staleness(pairs.recent[:, self._phi], pairs.gap[:, 0])
        queries = self._ranker.queries(self.calibrated(pairs), pairs.hidden, has, staleness)
        added = None if table is None else self._added(queries, pairs, table, staleness)
        if self.ranking == "catalogue":
            return self._ranker.catalogue_scores(queries, pairs.choice.view(np.uint8), added)
        return self._ranker.candidate_scores(queries, pairs.choice.view(np.int32), added)

    def _added(self, queries: Floats, pairs: Pairs, table: NeighbourTable, staleness: Floats) -> Floats:
        """(R, C or N) β(s) σ z(t)."""
        weight = (self._trends + self._trends_slope * staleness)[:, None] * self._ranker.spread(queries)
        return told(pairs, table, self.ranking) * weight


def told(pairs: Pairs, table: NeighbourTable, ranking: Mode) -> Floats:
    """(R, C or N) z(t) but for a number a row (`NeighbourTable.scaled`); 0 for what is no candidate."""
    # The arms of a device ask the same, one after the other: it is answered once.
    first = np.ones(len(pairs.last), np.bool_)
    np.any(pairs.last[1:] != pairs.last[:-1], axis=1, out=first[1:])
    found = table.scaled(pairs.last[first])
    if len(found) < len(first):
        found = found[np.cumsum(first) - 1]
    if ranking == "catalogue":
        return found
    candidates = pairs.choice.view(np.int32)
    return np.where(candidates >= 0, np.take_along_axis(found, candidates, axis=1), np.float32(0))


def make_serving(
    bundle: Bundle,
    runtime: Runtime = "auto",
    *,
    ranking: Mode = "catalogue",
    list_length: int = 10,
    candidates: int = 100,
    item_vectors: ItemVectors = "float32",
    trends: bool = False,
) -> Serving:
    """What the setting `device.runtime` names.

    Parameters
    ----------
    runtime
        ``"auto"``: ONNX Runtime where it can be imported, otherwise numpy and a line in the log.
    candidates
        C, length of the candidate lists.
    trends
        Whether there will be neighbour tables: a graph that has no place for them is a little quicker.

    Raises
    ------
    SettingsError
        ``"onnx"`` was asked for and cannot be imported.
    """
    if runtime != "numpy":
        try:
            module = importlib.import_module("device_agent.onnx_serving")
        except ImportError as exc:
            if runtime == "onnx":
                raise SettingsError(
                    f"device.runtime is 'onnx', but {exc.name} cannot be imported: {exc}",
                    remedy="install driftline[device], or set device.runtime to 'numpy'",
                ) from exc
            structlog.get_logger("device").info("no ONNX Runtime: the models run in numpy", missing=exc.name)
        else:
            serving: Serving = module.OnnxServing(
                bundle,
                ranking=ranking,
                list_length=list_length,
                candidates=candidates,
                item_vectors=item_vectors,
                trends=trends,
            )
            return serving
    return NumpyServing(bundle, ranking=ranking, list_length=list_length, item_vectors=item_vectors)
