"""The device's small recommendation model: GRU4Rec (Hidasi et al., arXiv 1511.06939), trained here, run in numpy there.

    x_t = LayerNorm(E[item_t])      h_t = GRU(x_t, h_{t-1})      scores = h_t · Eᵀ + b       (E tied, h_0 = 0)

The device runs the hidden state over a user's whole history, event by event, and never resets it. So in training a
chunk of a history begins with the state that the chunk before ended with (`cloud_worker.training.next_item`), and
everything that is measured here comes from the running state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from cloud_worker.sequence import PAD
from cloud_worker.training.data import Histories, Ints


class Gru4Rec(nn.Module):
    """GRU4Rec with tied item embeddings and LayerNorm on the input.

    Parameters
    ----------
    n_items, dim
        N and h.
    dropout
        On the normalised input and on the hidden state that scores.
    """

    carries_state = True

    def __init__(self, n_items: int, dim: int, dropout: float = 0.3) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items, dim)
        nn.init.normal_(self.items.weight, std=dim**-0.5)
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.gru = nn.GRU(dim, dim, batch_first=True)
        self.bias = nn.Parameter(torch.zeros(n_items))
        self.dropout = nn.Dropout(dropout)

    def table(self) -> Tensor:
        """(N, h) output embeddings: the input embeddings, tied."""
        weight: Tensor = self.items.weight
        return weight

    def before_each(self, items: Tensor, gaps: Tensor, table: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002 - the device's GRU reads no clock
        """(B, L, h) hidden states that score each interaction, and (B, L, h) those after each.

        Parameters
        ----------
        items
            (B, L), `PAD` behind.
        gaps
            Not used.
        table
            From `table`.
        initial
            (B, h) states to begin with; None: zero.
        """
        inputs = self.dropout(self.norm(F.embedding(items.clamp_min(0), table)))
        states: Tensor = self.gru(inputs, initial[None] if initial is not None else None)[0]
        first = initial[:, None] if initial is not None else torch.zeros_like(states[:, :1])
        return self.dropout(torch.cat([first, states[:, :-1]], dim=1)), states

    def tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """What a bundle's device part holds of this model (`streams.bundle.DEVICE_TENSORS`)."""
        gru = dict(self.gru.named_parameters())
        named: dict[str, Tensor] = {
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
        return {name: tensor.detach().cpu().numpy().astype(np.float32) for name, tensor in named.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[np.float32]]) -> Self:
        """Build the network of a bundle's device part."""
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


def _whole(lengths: Ints, positions: int) -> Iterator[Ints]:
    """Cut users into batches of at most so many padded positions, users of like length together."""
    users = np.flatnonzero(lengths)
    users = users[np.argsort(-lengths[users], kind="stable")]
    begin = 0
    while begin < len(users):
        rows = max(1, positions // int(lengths[users[begin]]))
        yield users[begin : begin + rows]
        begin += rows


@torch.no_grad()
def running_states(model: Gru4Rec, histories: Histories, users: Ints, positions: Ints) -> npt.NDArray[np.float32]:
    """(Q, h) hidden states of users (Q,) when their first positions (Q,) interactions are known, never reset."""
    model.eval()
    device, table = model.bias.device, model.table()
    lengths = np.zeros(histories.n_users, np.int64)
    np.maximum.at(lengths, users, positions)
    found = np.zeros((len(users), model.items.embedding_dim), np.float32)
    order = np.argsort(users, kind="stable")
    edges = np.searchsorted(users[order], np.arange(histories.n_users + 1))
    for batch in _whole(lengths, 8192):
        rows = np.full((len(batch), int(lengths[batch].max())), PAD, np.int64)
        for row, user in enumerate(batch):
            rows[row, : lengths[user]] = histories.of(user, int(lengths[user]))
        items = torch.from_numpy(rows).to(device)
        after = model.before_each(items, torch.zeros_like(items), table, None)[1].cpu().numpy()
        for row, user in enumerate(batch):
            wanted = order[edges[user] : edges[user + 1]]
            known = wanted[positions[wanted] > 0]
            found[known] = after[row, positions[known] - 1]
    return found
