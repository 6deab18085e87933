"""Serving through the ONNX graph, on one thread of ONNX Runtime. Imports onnx and onnxruntime."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from device_agent.device_graph import SERVED, build_graph, dense_pays
from device_agent.fusion import ItemVectors
from device_agent.ranking import Mode
from device_agent.serving import Pairs, RuntimeName, Served, told
from streams.bundle import Bundle
from streams.neighbours import NeighbourTable

_Inputs = dict[str, npt.NDArray[np.generic]]

BOUND_ROWS: Final = 8
"""Up to so many rows, inputs and outputs are bound once to arrays that stay: handing arrays over at each call costs a
single event as much as half of the graph."""
_BLOCK_BYTES: Final = 2 << 20
"""Of gathered item rows, or of scores, worked on at a time: so that they stay in the processor's caches."""


class OnnxServing:
    """The served graph of a bundle in a session of its own: sequential, one thread.

    Not for several threads at once: the arrays of `_Bound` are reused.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        ranking: Mode = "catalogue",
        list_length: int = 10,
        candidates: int = 100,
        item_vectors: ItemVectors = "float32",
        trends: bool = False,
    ) -> None:
        self.runtime: RuntimeName = "onnx"
        self.ranking: Mode = ranking
        self.list_length = list_length
        model = build_graph(
            bundle,
            ranking=ranking,
            candidates=candidates,
            list_length=list_length,
            item_vectors=item_vectors,
            trends=trends,
            outputs=SERVED,
        )
        # Folding constants would turn int8 tables into float32 ones when the graph is loaded.
        self._session = open_session(model.SerializeToString(), fold=item_vectors != "int8")
        self._choice = next((each.name for each in self._session.get_inputs() if each.name in _CHOICES), None)
        self._bound: dict[int, _Bound] = {}
        manifest = bundle.manifest
        gathers = ranking == "candidates" and not dense_pays(manifest.n_items, candidates)
        row_bytes = 4 * (candidates * (manifest.d + manifest.srm_dim) if gathers else manifest.n_items)
        self._trends = trends
        if trends:
            row_bytes = 4 * manifest.n_items  # a table's sums are made for the whole catalogue
        self._columns = candidates if ranking == "candidates" else manifest.n_items
        self._block = max(BOUND_ROWS, _BLOCK_BYTES // row_bytes)

    def __call__(self, pairs: Pairs, table: NeighbourTable | None = None) -> Served:
        """See `device_agent.serving.Serving`."""
        rows = len(pairs.items)
        if rows <= BOUND_ROWS:
            inputs = self._inputs(pairs, table)
            bound = self._bound.get(rows)
            if bound is None:
                bound = self._bound[rows] = _Bound(self._session, inputs, self.list_length)
            return bound(inputs)
        if rows <= self._block:
            return self._run(pairs, table)
        parts = [self._run(pairs.take(slice(at, at + self._block)), table) for at in range(0, rows, self._block)]
        return Served(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _run(self, pairs: Pairs, table: NeighbourTable | None) -> Served:
        return Served(*self._session.run(SERVED, self._inputs(pairs, table)))

    def _inputs(self, pairs: Pairs, table: NeighbourTable | None) -> _Inputs:
        """What the graph is given, by name."""
        if table is not None and not self._trends:
            raise ValueError("this graph was built without a place for neighbour tables")
        inputs: _Inputs = {
            "items": pairs.items,
            "hidden": pairs.hidden,
            "embedding": pairs.embedding,
            "recent": pairs.recent,
            "gap": pairs.gap,
        }
        if self._choice:
            inputs[self._choice] = pairs.choice
        if self._trends:
            if table is None:
                inputs["told"] = np.zeros((len(pairs.items), self._columns), np.float32)
            else:
                inputs["told"] = told(pairs, table, self.ranking)
        return inputs


_CHOICES: Final = ("candidates", "seen")


class _Bound:
    """The graph for a fixed number of rows, with arrays that ONNX Runtime reads and writes in place."""

    def __init__(self, session: ort.InferenceSession, like: _Inputs, list_length: int) -> None:
        rows = len(like["items"])
        self._session = session
        self._inputs = [np.empty(each.shape, each.dtype) for each in like.values()]
        self._outputs = Served(
            np.empty((rows, 1), np.float32),
            np.empty((rows, 1), np.int32),
            np.empty((rows, 1), np.int32),
            np.empty((rows, list_length), np.int32),
        )
        self._binding = session.io_binding()
        # The values keep no reference to the arrays, nor the binding to the values.
        self._values = [ort.OrtValue.ortvalue_from_numpy(each) for each in (*self._inputs, *self._outputs)]
        for name, value in zip(like, self._values[: len(like)], strict=True):
            self._binding.bind_ortvalue_input(name, value)
        for name, value in zip(SERVED, self._values[len(like) :], strict=True):
            self._binding.bind_ortvalue_output(name, value)

    def __call__(self, inputs: _Inputs) -> Served:
        for mine, given in zip(self._inputs, inputs.values(), strict=True):
            mine[...] = given
        self._session.run_with_iobinding(self._binding)
        staleness, rank, ranked, top = self._outputs
        return Served(staleness.copy(), rank.copy(), ranked.copy(), top.copy())


def open_session(model: bytes, *, fold: bool = True) -> ort.InferenceSession:
    """A session on one thread, which does not spin while it waits. `fold`: compute what is constant at once."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(
        model,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=None if fold else ["ConstantFolding"],
    )
