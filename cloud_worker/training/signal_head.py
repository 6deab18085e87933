"""A head over the staleness signals: y = w₂ · tanh(W₁ φ_std + b₁) + b₂.

A bundle has two of them: the staleness s (`cloud_worker.training.reliability`) and what a refresh is expected to gain
(`cloud_worker.training.worth`). Both are made on moments of the validation period, where the models have not seen the
next item, and judged across folds of users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cloud_worker.training.options import HeadOptions
from streams.bundle import PHI

Floats = npt.NDArray[np.float32]

FOLDS: Final = 4
_LAYERS: Final = (("first", "0"), ("second", "2"))
"""Ours, and their places in the bundle."""
_PARTS: Final = ("weight", "bias")


class SignalHead(nn.Module):
    """The two layers."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(len(PHI), hidden), nn.Linear(hidden, 1)

    def forward(self, phi: Tensor) -> Tensor:
        """(Q,) y from standardised φ (Q, P)."""
        y: Tensor = self.second(torch.tanh(self.first(phi)))[:, 0]
        return y

    @torch.no_grad()
    def values(self, phi: Floats) -> npt.NDArray[np.float64]:
        """(Q,) y from standardised φ (Q, P)."""
        return np.asarray(self(torch.from_numpy(phi)).numpy(), np.float64)

    @torch.no_grad()
    def rescale(self, slope: float, offset: float) -> None:
        """Fold a linear map of y into the last layer."""
        self.second.weight.mul_(slope)
        self.second.bias.mul_(slope).add_(offset)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Floats], name: str) -> Self:
        """Build a head of a bundle's device part: ``staleness`` or ``worth``."""
        head = cls(len(tensors[f"{name}.0.bias"]))
        named = {f"{layer}.{part}": f"{name}.{place}.{part}" for layer, place in _LAYERS for part in _PARTS}
        head.load_state_dict({mine: torch.from_numpy(np.array(tensors[its])) for mine, its in named.items()})
        return head.eval()

    def tensors(self, name: str) -> dict[str, Floats]:
        """As in `streams.bundle.DEVICE_TENSORS`."""
        state = self.state_dict()
        return {
            f"{name}.{place}.{part}": state[f"{layer}.{part}"].numpy().astype(np.float32)
            for layer, place in _LAYERS
            for part in _PARTS
        }


def train_head(
    phi: Floats,
    targets: npt.NDArray[np.floating] | npt.NDArray[np.bool_],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    options: HeadOptions,
    seed: int,
) -> SignalHead:
    """Train a head on standardised φ (Q, P) and targets (Q,); equal seeds give equal heads."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = SignalHead(options.hidden)
    x, y = torch.from_numpy(phi), torch.from_numpy(targets.astype(np.float32))
    generator = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(head.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    batches = -(-len(phi) // options.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, options.epochs * batches))
    for _ in range(options.epochs if len(phi) else 0):
        for rows in np.array_split(generator.permutation(len(phi)), batches):
            at = torch.from_numpy(rows)
            loss = loss_of(head(x[at]), y[at])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return head


def across_users(
    train: Callable[[npt.NDArray[np.bool_]], SignalHead], phi: Floats, users: npt.NDArray[np.integer]
) -> npt.NDArray[np.float64]:
    """(Q,) y of each moment by a head that did not see its user; 0 where nothing is left to train on.

    Parameters
    ----------
    train
        Trains a head on the moments of a mask (Q,).
    users
        (Q,) whose moment it is; folds are cut between users.
    """
    fold = np.unique(users, return_inverse=True)[1] % FOLDS
    found = np.zeros(len(phi))
    for held_out in range(FOLDS):
        inside = fold != held_out
        if inside.any() and not inside.all():
            found[~inside] = train(inside).values(phi[~inside])
    return found
