"""GRU4Rec (Hidasi et al., arXiv 1511.06939): the state is carried from event to event, at the same cost for each.

    x_t = LayerNorm(E[item_t])      h_t = GRU(x_t, h_{t-1})      scores = h_t · Eᵀ + b       (E tied, h_0 = 0)

The device runs the hidden state over a user's whole history, event by event, and never resets it. So in training a
chunk of a history begins with the state that the chunk before ended with (`cloud_worker.training.next_item`), and
everything that is measured here comes from the running state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from cloud_worker.training.srm.base import Floats, as_arrays
from cloud_worker.training.srm.carried import CarriedSrm


class Gru4Rec(CarriedSrm):
    """GRU4Rec with tied item embeddings and LayerNorm on the input.

    Parameters
    ----------
    n_items, dim
        N and h.
    dropout
        On the normalised input and on the hidden state that scores.
    """

    def __init__(self, n_items: int, dim: int, dropout: float = 0.3) -> None:
        super().__init__(n_items, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.gru = nn.GRU(dim, dim, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def before_each(self, items: Tensor, gaps: Tensor, table: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002 - the port has it
        """See `Srm.before_each`."""
        inputs = self.dropout(self.norm(F.embedding(items.clamp_min(0), table)))
        states: Tensor = self.gru(inputs, initial[None] if initial is not None else None)[0]
        first = initial[:, None] if initial is not None else torch.zeros_like(states[:, :1])
        return self.dropout(torch.cat([first, states[:, :-1]], dim=1)), states

    def tensors(self) -> dict[str, Floats]:
        """See `Srm.tensors`."""
        gru = dict(self.gru.named_parameters())
        return as_arrays(
            {
                "srm.item_in": self.items.weight,
                "srm.norm.weight": self.norm.weight,
                "srm.norm.bias": self.norm.bias,
                "srm.gru.weight_ih": gru["weight_ih_l0"],
                "srm.gru.weight_hh": gru["weight_hh_l0"],
                "srm.gru.bias_ih": gru["bias_ih_l0"],
                "srm.gru.bias_hh": gru["bias_hh_l0"],
                "srm.item_out": self.items.weight,
                "srm.bias_out": self.bias,
            }
        )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[np.float32]]) -> Self:
        """See `Srm.from_tensors`."""
        n_items, dim = tensors["srm.item_in"].shape
        model = cls(n_items, dim)
        named = {
            "items.weight": tensors["srm.item_in"],
            "norm.weight": tensors["srm.norm.weight"],
            "norm.bias": tensors["srm.norm.bias"],
            "gru.weight_ih_l0": tensors["srm.gru.weight_ih"],
            "gru.weight_hh_l0": tensors["srm.gru.weight_hh"],
            "gru.bias_ih_l0": tensors["srm.gru.bias_ih"],
            "gru.bias_hh_l0": tensors["srm.gru.bias_hh"],
            "bias": tensors["srm.bias_out"],
        }
        model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in named.items()})
        return model.eval()
