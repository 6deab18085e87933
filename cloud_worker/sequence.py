"""The sequence part of the cloud model: a wider network than the device's, over items, their texts and time gaps.

    x_t = LayerNorm(E_id[i_t] + A · Text[i_t] + G[bucket of the time since i_(t-1)])
    h_t = GRU(x_t, h_(t-1))        e = W h_t + c        scores = ⟨e, v_i⟩ + b_i,   v_i = E_id[i] + A · Text[i]

h starts from zero at the beginning of a window, since a window is all that a refresh request sends. The item vectors
v, tied between input and output, are the shared space of cloud and device: an item that nobody took in training has
one too, from its text. Source: GRU4Rec (Hidasi et al., arXiv 1511.06939); text at the input as in UniSRec
(arXiv 2206.05941).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

Floats = npt.NDArray[np.float32]

PAD: Final = -1
GAP_BUCKETS: Final = 16


def gap_buckets(gaps_ms: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Bucket of each time gap: 0 for none, then wider and wider ones; a year and more share the last."""
    seconds = np.maximum(gaps_ms, 0) / 1000.0
    return np.asarray(np.minimum(0.6 * np.log2(1.0 + seconds), GAP_BUCKETS - 1), np.int64)


class SequenceModel(nn.Module):
    """The network.

    Parameters
    ----------
    text
        (N, T) text vectors of the items.
    dim
        d of the shared space.
    hidden
        Width of the GRU.
    dropout
        On the normalised input and on the state that scores.
    """

    text: Tensor
    carries_state = False

    def __init__(self, text: Floats, dim: int, hidden: int, dropout: float = 0.4) -> None:
        super().__init__()
        n_items, width = text.shape
        self.register_buffer("text", torch.from_numpy(np.asarray(text, np.float32)), persistent=False)
        self.ids = nn.Embedding(n_items, dim)
        nn.init.normal_(self.ids.weight, std=dim**-0.5)
        self.from_text = nn.Linear(width, dim, bias=False)
        nn.init.normal_(self.from_text.weight, std=0.3 * width**-0.5)
        self.gaps = nn.Embedding(GAP_BUCKETS, dim)
        nn.init.normal_(self.gaps.weight, std=0.3 * dim**-0.5)
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.gru = nn.GRU(dim, hidden, batch_first=True)
        self.out = nn.Linear(hidden, dim)
        self.bias = nn.Parameter(torch.zeros(n_items))
        self.dropout = nn.Dropout(dropout)

    def table(self) -> Tensor:
        """(N, d) item vectors."""
        vectors: Tensor = self.ids.weight + self.from_text(self.text)
        return vectors

    def before_each(self, items: Tensor, gaps: Tensor, table: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002 - the trainer's port has it
        """(B, L, d) what scores each interaction, from those before it, and (B, L, hidden) states after each.

        Parameters
        ----------
        items, gaps
            (B, L) item indexes, `PAD` behind, and gap buckets.
        table
            From `table`.
        initial
            Not used: a window starts from zero.
        """
        states = self._states(items, gaps, table)
        before = F.pad(states[:, :-1], (0, 0, 1, 0))
        return self.out(self.dropout(before)), states

    def _states(self, items: Tensor, gaps: Tensor, table: Tensor) -> Tensor:
        inputs = F.embedding(items.clamp_min(0), table) + self.gaps(gaps)
        states: Tensor = self.gru(self.dropout(self.norm(inputs)))[0]
        return states

    @torch.no_grad()
    def embed(
        self, windows: Sequence[npt.NDArray[np.integer]], times_ms: Sequence[npt.NDArray[np.integer]], table: Tensor
    ) -> Floats:
        """(B, d) e of windows, oldest first; an empty one has the state that every window begins with.

        Parameters
        ----------
        windows, times_ms
            B arrays of item indexes and of event times.
        table
            From `table`, computed once.
        """
        device = table.device
        lengths = np.array([len(window) for window in windows])
        items = np.full((len(windows), max(1, int(lengths.max(initial=1)))), PAD, np.int64)
        gaps = np.zeros_like(items)
        for row, (window, times) in enumerate(zip(windows, times_ms, strict=True)):
            items[row, : len(window)] = window
            if len(window):
                gaps[row, 1 : len(window)] = gap_buckets(np.diff(times))
        states = self._states(torch.from_numpy(items).to(device), torch.from_numpy(gaps).to(device), table)
        counts = torch.from_numpy(lengths).to(device)
        last = states[torch.arange(len(windows), device=device), counts.clamp_min(1) - 1]
        last[counts == 0] = 0.0
        e: Floats = self.out(last).cpu().numpy()
        return e

    def tensors(self) -> dict[str, Floats]:
        """What a bundle's cloud part holds of this model (`streams.bundle.CLOUD_TENSORS`)."""
        gru = dict(self.gru.named_parameters())
        with torch.no_grad():
            kept: dict[str, Tensor] = {
                "sequence.table": self.table(),
                "sequence.bias": self.bias,
                "sequence.gaps": self.gaps.weight,
                "sequence.norm.weight": self.norm.weight,
                "sequence.norm.bias": self.norm.bias,
                "sequence.gru.weight_ih": gru["weight_ih_l0"],
                "sequence.gru.weight_hh": gru["weight_hh_l0"],
                "sequence.gru.bias_ih": gru["bias_ih_l0"],
                "sequence.gru.bias_hh": gru["bias_hh_l0"],
                "sequence.out.weight": self.out.weight,
                "sequence.out.bias": self.out.bias,
            }
            return {name: tensor.detach().cpu().numpy().astype(np.float32) for name, tensor in kept.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Floats]) -> Self:
        """Build the network of a bundle for serving: its table is already made, so no text is needed."""
        table = tensors["sequence.table"]
        hidden = tensors["sequence.gru.weight_hh"].shape[1]
        model = cls(np.zeros((len(table), 1), np.float32), table.shape[1], hidden)
        named = {
            "ids.weight": table,
            "from_text.weight": np.zeros((table.shape[1], 1), np.float32),
            "bias": tensors["sequence.bias"],
            "gaps.weight": tensors["sequence.gaps"],
            "norm.weight": tensors["sequence.norm.weight"],
            "norm.bias": tensors["sequence.norm.bias"],
            "gru.weight_ih_l0": tensors["sequence.gru.weight_ih"],
            "gru.weight_hh_l0": tensors["sequence.gru.weight_hh"],
            "gru.bias_ih_l0": tensors["sequence.gru.bias_ih"],
            "gru.bias_hh_l0": tensors["sequence.gru.bias_hh"],
            "out.weight": tensors["sequence.out.weight"],
            "out.bias": tensors["sequence.out.bias"],
        }
        model.load_state_dict({name: torch.from_numpy(np.array(array, np.float32)) for name, array in named.items()})
        return model.eval()
