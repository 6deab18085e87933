"""SASRec's state after an item, in numpy, the same to the bit for any batch size.

The network looks at the last W items and nothing can be kept from event to event (`cloud_worker.training.srm.sasrec`
says why), so an event costs some 4 W h² + 2 W² h multiplications, where GRU4Rec's costs 3 h². A history of n < W items
costs less: a window is only as wide as the next of 8, 16, 32, … places. A device's window is computed by products whose
size follows from its own history alone, each so small that BLAS uses one thread: so neither the other devices of a wave
nor the number of threads has a say.

Of the last block only the last place is wanted. And with one head the product of an item's query with another's key is
y_i (Q Kᵀ) y_jᵀ, so Q Kᵀ is one matrix, made when the bundle is loaded; values are multiplied after they were mixed.

Source: SASRec (Kang & McAuley, arXiv 1808.09781).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from device_agent.layer_norm import layer_norm, standardised
from device_agent.row_product import RowProduct
from streams.bundle import SASREC_BLOCKS

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_NARROWEST: Final = 8
_PLACES: Final = 1600
"""Of windows that are worked on at a time: 1600 × 64 floats are 400 kB, so that they stay in the processor's caches."""
_SINGLE_THREAD_PRODUCT: Final = 262_144
"""OpenBLAS computes a matrix product of more multiplications with several threads if it has them."""
_SINGLE_THREAD_VECTOR: Final = 9_000
"""The same for a vector-matrix product of 9,216 and more."""
_ZERO: Final = np.array(0, np.float32)
_NEVER: Final = np.array(-np.inf, np.float32)


@dataclass(frozen=True)
class FoldedBlock:
    """A block, with the affine parts of its LayerNorms and the scale of its attention folded into the matrices.

    With y the standardised places: mixed = softmax((y A + a) yᵀ) y V + v, and W₂ ReLU(y W₁ + b₁) + b₂. The rest of what
    a key's bias does is the same for all places and falls out of the softmax.
    """

    pairs: Floats
    pairs_bias: Floats
    value: Floats
    value_bias: Floats
    first: Floats
    first_bias: Floats
    second: Floats
    second_bias: Floats

    @staticmethod
    def of(tensors: Mapping[str, Floats], nth: int) -> FoldedBlock:
        """Block `nth` of a bundle's SRM."""

        def get(name: str) -> npt.NDArray[np.float64]:
            return tensors[f"srm.blocks.{nth}.{name}"].astype(np.float64)

        def after_norm(norm: str, linear: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
            weight, bias = get(f"{linear}.weight").T, get(f"{linear}.bias")
            return get(f"{norm}.weight")[:, None] * weight, get(f"{norm}.bias") @ weight + bias

        query, query_bias = after_norm("attention_norm", "query")
        key = after_norm("attention_norm", "key")[0] / np.sqrt(query.shape[1])
        folded = (
            query @ key.T,
            query_bias @ key.T,
            *after_norm("attention_norm", "value"),
            *after_norm("feed_norm", "feed.0"),
            get("feed.2.weight").T,
            get("feed.2.bias"),
        )
        return FoldedBlock(*(np.ascontiguousarray(each, np.float32) for each in folded))

    def bounds(self) -> tuple[float, float]:
        """Of the attention's scores, and of what the block adds: a standardised place is no longer than √h."""
        root = np.sqrt(len(self.pairs))

        def of(weight: Floats, bias: Floats, largest: float) -> float:
            return float((largest * np.abs(weight.astype(np.float64)).sum(axis=0) + np.abs(bias)).max())

        scores = of(self.pairs, self.pairs_bias, root) * root * len(self.pairs)
        added = of(self.value, self.value_bias, root)
        return scores, added + of(self.second, self.second_bias, of(self.first, self.first_bias, root))


@dataclass(frozen=True)
class SasrecTables:
    """The network of a bundle as tables.

    Attributes
    ----------
    items
        (N, h) inputs of the items, normalised.
    positions
        (W, h)
    norm
        Weight and bias (h,) of the LayerNorm over the output.
    """

    items: Floats
    positions: Floats
    blocks: tuple[FoldedBlock, ...]
    norm: tuple[Floats, Floats]

    @staticmethod
    def of(tensors: Mapping[str, Floats]) -> SasrecTables:
        """Of a bundle's device part.

        Raises
        ------
        OverflowError
            Its weights are so large that some history could lead to a state that is no number.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            tables = SasrecTables(
                layer_norm(tensors["srm.item_in"], tensors["srm.norm.weight"], tensors["srm.norm.bias"]),
                np.asarray(tensors["srm.positions"], np.float32),
                tuple(FoldedBlock.of(tensors, nth) for nth in range(SASREC_BLOCKS)),
                (tensors["srm.last_norm.weight"], tensors["srm.last_norm.bias"]),
            )
            largest, h = float(np.finfo(np.float32).max), tables.positions.shape[1]
            place = float(np.abs(tables.items).max(initial=0)) + float(np.abs(tables.positions).max())
            for block in tables.blocks:
                scores, added = block.bounds()
                place += added
                if not (scores < largest and h * (2 * place) ** 2 < largest):
                    raise OverflowError("the SRM's weights are so large that its state would overflow")
        return tables


class Sasrec:
    """The SASRec of a bundle.

    Parameters
    ----------
    tensors
        Those of `streams.bundle.device_tensors` that begin with ``srm.``.

    Raises
    ------
    OverflowError
        See `SasrecTables.of`.
    """

    def __init__(self, tensors: Mapping[str, Floats]) -> None:
        tables = SasrecTables.of(tensors)
        self.window, self.dim = tables.positions.shape
        self._items, self._positions, self._norm = tables.items, tables.positions, tables.norm
        self._blocks, self._last = tables.blocks[:-1], _LastBlock(tables.blocks[-1])
        # What comes later has no say; added to the scores of the attention.
        self._later = np.where(np.tri(self.window, dtype=np.bool_), _ZERO, _NEVER)
        widths = [_NARROWEST]
        while widths[-1] < self.window:
            widths.append(2 * widths[-1])
        self._widths = np.minimum(widths, self.window)
        self._width_of = self._widths[np.searchsorted(self._widths, np.arange(self.window + 1))]

    def step(
        self,
        hidden: Floats,  # noqa: ARG002 - the port has it
        items: npt.NDArray[np.integer],  # noqa: ARG002 - they lie in the history
        history: npt.NDArray[np.int32],
        before: npt.NDArray[np.int64],
    ) -> Floats:
        """See `device_agent.srm.Srm.step`; the state before is not looked at."""
        known = before + 1
        counts = np.minimum(known, self.window)
        oldest = np.where(known > self.window, known % self.window, 0)
        width_of_each = self._width_of.take(counts)
        states = np.empty((len(history), self.dim), np.float32)
        for width in self._widths.tolist():
            rows = np.flatnonzero(width_of_each == width)
            at_once = max(1, _PLACES // width)
            for start in range(0, len(rows), at_once):
                some = rows[start : start + at_once]
                slots = (oldest[some, None] + np.arange(width)) % self.window
                windows = np.take_along_axis(history[some], slots, axis=1)
                states[some] = self._states(windows, counts[some])
        return states

    def _states(self, windows: npt.NDArray[np.int32], counts: Ints) -> Floats:
        """(B, h) after the first counts (B,) items of windows (B, w); what lies behind them has no say."""
        width = windows.shape[1]
        x = self._items.take(windows, axis=0)
        x += self._positions[:width]
        for block in self._blocks:
            y = standardised(x)
            scores = _products(y, block.pairs)
            scores += block.pairs_bias
            shares = _products(scores, y.swapaxes(1, 2))
            shares += self._later[:width, :width]
            shares -= np.maximum.reduce(shares, axis=2, keepdims=True)
            np.exp(shares, out=shares)
            mixed = _products(shares, y)
            mixed /= np.add.reduce(shares, axis=2, keepdims=True)
            x += _products(mixed, block.value)
            x += block.value_bias
            inner = _products(standardised(x), block.first)
            inner += block.first_bias
            np.maximum(inner, _ZERO, out=inner)
            x += _products(inner, block.second)
            x += block.second_bias
        return layer_norm(self._last(x, counts), *self._norm)


class _LastBlock:
    """The block of which only the last place is wanted: everything but its scores is of one row."""

    def __init__(self, block: FoldedBlock) -> None:
        self._pairs = RowProduct(block.pairs, block.pairs_bias)
        self._value = RowProduct(block.value, block.value_bias)
        self._first = RowProduct(block.first, block.first_bias)
        self._second = RowProduct(block.second, block.second_bias)

    def __call__(self, x: Floats, counts: Ints) -> Floats:
        """(B, h) at place counts - 1 (B,), from places (B, w, h)."""
        at, last = np.arange(len(x)), counts - 1
        y = standardised(x)
        shares = np.vecdot(y, self._pairs(y[at, last])[:, None])
        shares[np.arange(x.shape[1]) > last[:, None]] = _NEVER
        shares -= np.maximum.reduce(shares, axis=1, keepdims=True)
        np.exp(shares, out=shares)
        shares /= np.add.reduce(shares, axis=1, keepdims=True)
        found: Floats = x[at, last]
        found += self._value(_mixed(shares, y))
        inner = self._first(standardised(found))
        np.maximum(inner, _ZERO, out=inner)
        found += self._second(inner)
        return found


def _products(x: Floats, y: Floats) -> Floats:
    """(B, m, n) products of (B, m, k) with (k, n) or (B, k, n), in blocks of rows for which BLAS uses one thread."""
    places = x.shape[1]
    blocks = -(-places // max(1, _SINGLE_THREAD_PRODUCT // (x.shape[2] * y.shape[-1])))
    rows = -(-places // blocks)  # of like size: a single row would be a vector, for which the limit is lower
    parts: list[Floats] = [np.matmul(x[:, start : start + rows], y) for start in range(0, places, rows)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _mixed(shares: Floats, y: Floats) -> Floats:
    """(B, h) places (B, w, h) weighted with (B, w), in blocks of columns that BLAS computes with one thread."""
    columns = max(1, _SINGLE_THREAD_VECTOR // y.shape[1])
    parts = [np.matmul(shares[:, None], y[:, :, at : at + columns])[:, 0] for at in range(0, y.shape[2], columns)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
