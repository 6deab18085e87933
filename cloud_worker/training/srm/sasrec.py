"""SASRec (Kang & McAuley, arXiv 1808.09781, section III): causal self-attention over a window of the last items.

    x_0 = Dropout(LayerNorm(E[item]) + P[place])                       place 0 is the oldest item of the window
    x  ← x + Dropout(Attention(LayerNorm(x)))       one head, causal, no output projection
    x  ← x + Dropout(W₂ ReLU(W₁ LayerNorm(x)))      two such blocks
    h   = LayerNorm(x at the last place)                scores = h · Eᵀ + b       (E tied; h = 0 without a history)

The LayerNorm of the input and the bias of the scores are ours, as in our GRU4Rec; the loss is ours too, a softmax over
the catalogue instead of one sampled negative (`cloud_worker.training.next_item`). Places are counted from the window's
oldest item, so each item of a full window changes its place with every event: nothing can be kept from event to event,
and a device computes h anew from the items in its record. What it keeps as the state is h.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from cloud_worker.sequence import PAD
from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.srm.base import Floats, Srm, as_arrays
from streams.bundle import SASREC_BLOCKS

_WINDOWS: Final = 512
"""Windows at a time where nothing is learned: 512 × 50 × 64 floats are 6.5 MB."""
_PLACES_STD: Final = 0.7
"""Of the places at the start. An item's part has variance 1; places much smaller are not told apart within the few
hundred steps that a training has."""


class Sasrec(Srm):
    """SASRec with tied item embeddings and LayerNorm on the input.

    Parameters
    ----------
    n_items, dim
        N and h.
    window
        W, items that are looked at.
    dropout
        On the input, on the attention's weights and on what a block adds.
    """

    carries_state = False

    def __init__(self, n_items: int, dim: int, window: int, dropout: float = 0.3) -> None:
        super().__init__(n_items, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.positions = nn.Parameter(torch.empty(window, dim).normal_(std=_PLACES_STD))
        self.blocks = nn.ModuleList(_Block(dim, dropout) for _ in range(SASREC_BLOCKS))
        self.last_norm = nn.LayerNorm(dim, eps=1e-5)
        self.dropout = nn.Dropout(dropout)

    def before_each(self, items: Tensor, gaps: Tensor, table: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002 - the port has them
        """(B, L, h) what scores each interaction, twice; L is at most W + 1.

        The states after each are read of networks that carry theirs alone, and after W + 1 items there is none.
        """
        states = self._states(items[:, :-1], table)
        before = F.pad(states, (0, 0, 1, 0))
        return before, before

    def _states(self, items: Tensor, table: Tensor) -> Tensor:
        """(B, L, h) after each of items (B, L), what comes behind it having no say."""
        if not items.shape[1]:
            return table.new_zeros(*items.shape, table.shape[1])
        x = self.norm(F.embedding(items.clamp_min(0), table)) + self.positions[: items.shape[1]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        states: Tensor = self.last_norm(x)
        return states

    @torch.no_grad()
    def running_states(self, histories: Histories, users: Ints, positions: Ints) -> Floats:
        """(Q, h) of the last W of users' (Q,) first positions (Q,) interactions."""
        self.eval()
        found = np.zeros((len(users), self.items.embedding_dim), np.float32)
        window, device = len(self.positions), self.bias.device
        order = np.argsort(-positions, kind="stable")
        order = order[positions[order] > 0]
        for start in range(0, len(order), _WINDOWS):
            rows = order[start : start + _WINDOWS]
            ends = histories.starts[users[rows]] + positions[rows]
            lengths = np.minimum(positions[rows], window)
            steps = np.arange(int(lengths.max()))
            at = np.minimum((ends - lengths)[:, None] + steps, len(histories.items) - 1)
            items = np.where(steps < lengths[:, None], histories.items[at], PAD)
            found[rows] = self._of_windows(torch.from_numpy(items).to(device)).cpu().numpy()
        return found

    def after(self, hidden: Tensor, windows: Tensor) -> Tensor:  # noqa: ARG002 - the port has it
        """See `Srm.after`: nothing of the state before is looked at."""
        return self._of_windows(windows)

    def _of_windows(self, windows: Tensor) -> Tensor:
        """(R, h) after the last item of windows (R, L), `PAD` behind, none of them empty."""
        last = (windows >= 0).sum(dim=1) - 1
        return self._states(windows, self.table())[torch.arange(len(windows), device=windows.device), last]

    def tensors(self) -> dict[str, Floats]:
        """See `Srm.tensors`."""
        own = {f"srm.{name}": each for name, each in self.named_parameters() if name not in {"items.weight", "bias"}}
        return as_arrays(
            {"srm.item_in": self.items.weight, "srm.item_out": self.items.weight, "srm.bias_out": self.bias} | own
        )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[np.float32]]) -> Self:
        """See `Srm.from_tensors`."""
        n_items, dim = tensors["srm.item_in"].shape
        model = cls(n_items, dim, len(tensors["srm.positions"]))
        renamed = {"items.weight": "srm.item_in", "bias": "srm.bias_out"}
        state = {name: tensors[renamed.get(name, f"srm.{name}")] for name in model.state_dict()}
        model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state.items()})
        return model.eval()


class _Block(nn.Module):
    """Attention and a feed-forward part, each over the normalised input and added to it."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=1e-5)
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.feed_norm = nn.LayerNorm(dim, eps=1e-5)
        self.feed = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention_norm(x)
        mixed = F.scaled_dot_product_attention(
            self.query(y),
            self.key(y),
            self.value(y),
            is_causal=True,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        x = x + self.dropout(mixed)
        added: Tensor = x + self.dropout(self.feed(self.feed_norm(x)))
        return added
