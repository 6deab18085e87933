"""The small recommendation model on the device: GRU4Rec's step, in numpy, the same to the bit for any batch size.

A device that crashed and replays its events in other batches must arrive at the very same hidden state: that is how
a crashed run is compared with an undisturbed one. So the hidden part of the gates is a `RowProduct`; the input part
depends on the item alone and is a table. Element-wise functions treat each number alone.

Source: GRU4Rec (Hidasi et al., arXiv 1511.06939), with LayerNorm on the input; gates as in `torch.nn.GRU`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from device_agent.row_product import RowProduct

Floats = npt.NDArray[np.float32]

_LAYER_NORM_EPS: Final = np.float32(1e-5)  # torch's


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
        self._hidden_gates = RowProduct(tensors["srm.gru.weight_hh"].T, tensors["srm.gru.bias_hh"])
        normed = _layer_norm(tensors["srm.item_in"], tensors["srm.norm.weight"], tensors["srm.norm.bias"])
        self._input_gates = RowProduct(tensors["srm.gru.weight_ih"].T, tensors["srm.gru.bias_ih"])(normed)

    def step(self, hidden: Floats, items: npt.NDArray[np.integer]) -> Floats:
        """(B, h) hidden states after the items (B,), from those before; row by row the same to the bit for any B."""
        h = self.dim
        x = self._input_gates.take(items, axis=0)
        y = self._hidden_gates(hidden)
        gates: Floats = expit(x[:, : 2 * h] + y[:, : 2 * h])
        new: Floats = gates[:, :h] * y[:, 2 * h :]
        new += x[:, 2 * h :]
        np.tanh(new, out=new)
        kept = hidden - new
        kept *= gates[:, h:]
        new += kept
        return new


def _layer_norm(x: Floats, weight: Floats, bias: Floats) -> Floats:
    centred = x - x.mean(axis=1, keepdims=True, dtype=np.float32)
    variance = np.mean(centred * centred, axis=1, keepdims=True, dtype=np.float32)
    normed: Floats = centred / np.sqrt(variance + _LAYER_NORM_EPS) * weight + bias
    return normed.astype(np.float32, copy=False)
