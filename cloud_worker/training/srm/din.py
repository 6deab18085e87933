"""DIN (Zhou et al., arXiv 1706.06978): a user's interests are what they took, weighted by the item that is scored.

    u(i) = Σ_j a(j, i) x_j           score(i) = u(i) · e_i + b_i           x = LayerNorm(E[item])

The sum is over the whole history, and the activation a is not normalised by a softmax: how strong an interest is
counts (section 4.3). In the paper a(j, i) is a small network over both items, and another one scores [u(i), e_i].
Neither can be here. The whole catalogue is ranked at every event, which would take a network for each pair of an item
and an interaction; and what a record keeps of an SRM is one vector h with scores h · o_i + b_i, by which it is fused,
calibrated and turned into signals. So three things are **ours**:

- the activation unit is a **sum of products**, of C parts, with φ and ψ > 0 a small network each (linear, softplus):

      a(j, i) = Σ_c a_c(j, i)      a_c(j, i) = (1 - γ_c) γ_c^age(j) φ_c(x_j) ψ_c(x_i)      age: interactions since j

- it **decays**, at a learned pace for each part: short-term and long-term interests. The paper's sum knows no order.
  With the factor 1 - γ a state is a mean of what items add, and bounded.
- the network over [u(i), e_i] is their product: whatever stands there has to be linear in u(i).

Then the score is a product, exactly, and costs a device O(h) an event:

    score(i) = Σ_c Σ_j a_c(j, i) x_j · e_i + b_i = Σ_c ψ_c(x_i) S_c · e_i + b_i = h · o_i + b_i
    h = vec S        S_c ← γ_c S_c + (1 - γ_c) φ_c(x_j) x_j        o_i = vec ψ(x_i) ⊗ e_i

An item's vector e has h / C numbers. What an item adds to a state is a table, as o is: a device has no network to run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from cloud_worker.training.srm.base import Floats, as_arrays
from cloud_worker.training.srm.carried import CarriedSrm
from streams.bundle import DIN_PARTS
from streams.errors import TrainingError

_FIRST_DECAYS: Final = (-0.5, 4.0)
"""Logits of γ at the start, the first part's and the last's: half is forgotten after one interaction, and after 40."""
_STRETCH: Final = 128
"""Interactions whose states are one product: the matrix of a longer history would be large, most of it near zero."""


class Din(CarriedSrm):
    """DIN with an activation unit that is a sum of products, and LayerNorm on the input.

    Parameters
    ----------
    n_items, dim
        N and h, a multiple of `streams.bundle.DIN_PARTS`.
    dropout
        On the normalised input of what is taken. On the state, as our GRU4Rec has it, it gained nothing.

    Raises
    ------
    TrainingError
        h is no such multiple.
    """

    def __init__(self, n_items: int, dim: int, dropout: float = 0.3) -> None:
        size, rest = divmod(dim, DIN_PARTS)
        if rest or not size:
            raise TrainingError(f"a DIN's state of {dim} numbers cannot be cut into {DIN_PARTS} parts of one size")
        super().__init__(n_items, size)
        self.norm = nn.LayerNorm(size, eps=1e-5)
        self.taken = nn.Linear(size, DIN_PARTS)
        self.candidate = nn.Linear(size, DIN_PARTS)
        self.decay_logit = nn.Parameter(torch.linspace(*_FIRST_DECAYS, DIN_PARTS))
        self.dropout = nn.Dropout(dropout)

    def table(self) -> Tensor:
        """(N, h) output vectors o = vec ψ ⊗ e."""
        weight: Tensor = self.items.weight
        activation = F.softplus(self.candidate(self.norm(weight)))
        return (activation[:, :, None] * weight[:, None]).flatten(1)

    def _added(self, x: Tensor) -> Tensor:
        """(..., C, k) what items with normalised vectors (..., k) add to a state, before the factor 1 - γ: φ ⊗ x."""
        activation = F.softplus(self.taken(x))
        added: Tensor = activation[..., None] * x[..., None, :]
        return added

    def before_each(self, items: Tensor, gaps: Tensor, table: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002 - the port has them
        """See `Srm.before_each`; the table has the output vectors alone, from which the items' cannot be read."""
        added = self._added(self.dropout(self.norm(self.items(items.clamp_min(0)))))
        rows, size = len(items), added.shape[-1]
        first = initial if initial is not None else added.new_zeros(rows, DIN_PARTS * size)
        parts, last = [first[:, None]], first.view(rows, DIN_PARTS, size)
        for some in torch.split(added, _STRETCH, dim=1):
            parts.append(self._states(some, last).flatten(2))
            last = parts[-1][:, -1].view(rows, DIN_PARTS, size)
        states = torch.cat(parts, dim=1)
        return states[:, :-1], states[:, 1:]

    def _states(self, added: Tensor, initial: Tensor) -> Tensor:
        """(B, L, C, k) states after each of L items that add (B, L, C, k), from those before them (B, C, k)."""
        steps = torch.arange(added.shape[1], device=added.device)
        ages = steps[:, None] - steps
        log_decay = F.logsigmoid(self.decay_logit)
        # Ages below 0 are masked before the exponential and after it: an infinite number would have no gradient.
        shares = (ages.clamp_min(0) * log_decay[:, None, None]).exp() * (ages >= 0)
        shares = shares * torch.sigmoid(-self.decay_logit)[:, None, None]
        mean = (shares @ added.transpose(1, 2)).transpose(1, 2)
        left = ((steps + 1)[:, None] * log_decay).exp()
        return mean + left[:, :, None] * initial[:, None]

    @torch.no_grad()
    def tensors(self) -> dict[str, Floats]:
        """See `Srm.tensors`: the tables that a device reads, and the network that made them, to be trained further."""
        vectors = self.items.weight
        own = {f"srm.{name}": each for name, each in self.named_parameters() if name not in {"items.weight", "bias"}}
        served = {
            "srm.item_in": self._added(self.norm(vectors)).flatten(1),
            "srm.item_out": self.table(),
            "srm.bias_out": self.bias,
            "srm.decay": torch.sigmoid(self.decay_logit).repeat_interleave(vectors.shape[1]),
        }
        return as_arrays(served | own | {"srm.items": vectors})

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[np.float32]]) -> Self:
        """See `Srm.from_tensors`."""
        n_items, dim = tensors["srm.item_in"].shape
        model = cls(n_items, dim)
        renamed = {"items.weight": "srm.items", "bias": "srm.bias_out"}
        state = {name: tensors[renamed.get(name, f"srm.{name}")] for name in model.state_dict()}
        model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state.items()})
        return model.eval()
