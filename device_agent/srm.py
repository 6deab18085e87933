"""The small recommendation model on the device: GRU4Rec's step, in numpy, the same to the bit for any batch size.

A device that crashed and replays its events in other batches must arrive at the very same hidden state: that is how
a crashed run is compared with an undisturbed one. A matrix product of B rows is not the same to the bit for every B,
so the hidden part of the gates is computed as one vector-matrix product a row, of fixed size; the input part depends
on the item alone and is a table. Element-wise functions treat each number alone.

Source: GRU4Rec (Hidasi et al., arXiv 1511.06939), with LayerNorm on the input; gates as in `torch.nn.GRU`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit

Floats = npt.NDArray[np.float32]

_LAYER_NORM_EPS: Final = np.float32(1e-5)  # torch's
_SINGLE_THREAD_LIMIT: Final = 9000
"""OpenBLAS computes a vector-matrix product of 9,216 and more elements with several threads if it has them, and
their number then shows in the last bits. Products are cut into blocks smaller than that."""


class Srm:
    """The GRU of a bundle.

    Parameters
    ----------
    tensors
        Those of `streams.bundle.DEVICE_TENSORS` that begin with ``srm.``.
    """

    def __init__(self, tensors: Mapping[str, Floats]) -> None:
        h = tensors["srm.gru.weight_hh"].shape[1]
        self.dim = h
        self._hidden_blocks = _blocks(tensors["srm.gru.weight_hh"])
        self._hidden_bias = tensors["srm.gru.bias_hh"]
        normed = _layer_norm(tensors["srm.item_in"], tensors["srm.norm.weight"], tensors["srm.norm.bias"])
        self._input_gates = _each_row(normed, _blocks(tensors["srm.gru.weight_ih"]))
        self._input_gates += tensors["srm.gru.bias_ih"]

    def step(self, hidden: Floats, items: npt.NDArray[np.integer]) -> Floats:
        """(B, h) hidden states after the items (B,), from those before; row by row the same to the bit for any B."""
        h = self.dim
        x = self._input_gates.take(items, axis=0)
        y = _each_row(hidden, self._hidden_blocks)
        y += self._hidden_bias
        gates: Floats = expit(x[:, : 2 * h] + y[:, : 2 * h])
        new: Floats = gates[:, :h] * y[:, 2 * h :]
        new += x[:, 2 * h :]
        np.tanh(new, out=new)
        kept = hidden - new
        kept *= gates[:, h:]
        new += kept
        return new


def _blocks(weight: Floats) -> Floats:
    """(3h, h) weight as (G, h, 3h / G): transposed, in blocks small enough for one thread."""
    rows, h = weight.shape
    blocks = next(g for g in range(1, rows + 1) if rows % g == 0 and rows // g * h <= max(_SINGLE_THREAD_LIMIT, h))
    return np.ascontiguousarray(weight.reshape(blocks, rows // blocks, h).transpose(0, 2, 1), dtype=np.float32)


def _each_row(x: Floats, blocks: Floats) -> Floats:
    """(B, h) rows times the blocks, one vector-matrix product for each row and block: (B, 3h)."""
    product: Floats = np.matmul(x[:, None, None, :], blocks)
    return product.reshape(len(x), blocks.shape[0] * blocks.shape[2])


def _layer_norm(x: Floats, weight: Floats, bias: Floats) -> Floats:
    centred = x - x.mean(axis=1, keepdims=True, dtype=np.float32)
    variance = np.mean(centred * centred, axis=1, keepdims=True, dtype=np.float32)
    normed: Floats = centred / np.sqrt(variance + _LAYER_NORM_EPS) * weight + bias
    return normed.astype(np.float32, copy=False)
