"""GRU4Rec's step, in numpy, the same to the bit for any batch size.

The hidden part of the gates is a `RowProduct`; the input part depends on the item alone and is a table. Element-wise
functions treat each number alone.

Source: GRU4Rec (Hidasi et al., arXiv 1511.06939), with LayerNorm on the input; gates as in `torch.nn.GRU`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from device_agent.layer_norm import layer_norm
from device_agent.row_product import RowProduct

Floats = npt.NDArray[np.float32]


class Gru4Rec:
    """The GRU of a bundle.

    Parameters
    ----------
    tensors
        Those of `streams.bundle.device_tensors` that begin with ``srm.``.
    """

    def __init__(self, tensors: Mapping[str, Floats]) -> None:
        h = tensors["srm.gru.weight_hh"].shape[1]
        self.dim = h
        self._hidden_gates = RowProduct(tensors["srm.gru.weight_hh"].T, tensors["srm.gru.bias_hh"])
        normed = layer_norm(tensors["srm.item_in"], tensors["srm.norm.weight"], tensors["srm.norm.bias"])
        self._input_gates = RowProduct(tensors["srm.gru.weight_ih"].T, tensors["srm.gru.bias_ih"])(normed)

    def step(
        self,
        hidden: Floats,
        items: npt.NDArray[np.integer],
        history: npt.NDArray[np.int32],  # noqa: ARG002 - the port has it
        before: npt.NDArray[np.int64],  # noqa: ARG002 - the port has it
    ) -> Floats:
        """See `device_agent.srm.Srm.step`; the history is not looked at."""
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
