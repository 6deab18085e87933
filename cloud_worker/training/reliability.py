"""The staleness head: how likely a refresh is to put what comes next clearly higher in the list.

    s = σ(w₂ · tanh(W₁ φ_std + b₁) + b₂)        reliability r = 1 - s

The label of a moment compares two ranks of the next item, under the fused scores: with the embedding the device has,
calibrated, and with the one the cloud would send now. A refresh **pays** if the fresh one lifts the item clearly: its
discounted gain grows by more than `PAYS`. What the calibrator repairs by itself is no reason for a refresh, so the head
learns to tell "my own drift" from "the world moved".

Moments of the validation period are used: on the training period the models have seen the next item. Predictions are
made across folds of users and then Platt-scaled (Platt 1999), which is folded into the last layer. Source: SCaLRec
(arXiv 2601.22543), reliability of cached semantics: a reconstruction from the abstract; the label is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from cloud_worker.training.options import ReliabilityOptions
from streams.bundle import PHI

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

PAYS: Final = 0.02
"""Gain 1 / log2(1 + rank): from rank 30 to 26, from 10 to 9, from 1000 to 300."""
FOLDS: Final = 4
_LAYERS: Final = (("first", "0"), ("second", "2"))
"""Ours, and their places in the bundle."""
_PARTS: Final = ("weight", "bias")


def gain(ranks: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """(Q,) 1 / log2(1 + rank); 0 for rank 0, which could not be ranked."""
    return np.where(ranks > 0, 1.0 / np.log2(1.0 + np.maximum(ranks, 1)), 0.0)


def pays(stale: npt.NDArray[np.integer], fresh: npt.NDArray[np.integer]) -> Bools:
    """(Q,) whether a refresh lifts the next item clearly, from its rank without and with it."""
    return np.asarray(gain(fresh) - gain(stale) > PAYS)


class StalenessHead(nn.Module):
    """The two layers."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(len(PHI), hidden), nn.Linear(hidden, 1)

    def forward(self, phi: Tensor) -> Tensor:
        """(Q,) logits from standardised φ (Q, P)."""
        logits: Tensor = self.second(torch.tanh(self.first(phi)))[:, 0]
        return logits

    @torch.no_grad()
    def logits(self, phi: Floats) -> npt.NDArray[np.float64]:
        """(Q,) logits."""
        return np.asarray(self(torch.from_numpy(phi)).numpy(), np.float64)

    @torch.no_grad()
    def rescale(self, slope: float, offset: float) -> None:
        """Fold a linear map of the logit into the last layer."""
        self.second.weight.mul_(slope)
        self.second.bias.mul_(slope).add_(offset)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Floats]) -> Self:
        """Build the head of a bundle's device part."""
        head = cls(len(tensors["staleness.0.bias"]))
        named = {f"{layer}.{part}": f"staleness.{place}.{part}" for layer, place in _LAYERS for part in _PARTS}
        head.load_state_dict({mine: torch.from_numpy(np.array(tensors[its])) for mine, its in named.items()})
        return head.eval()

    def tensors(self) -> dict[str, Floats]:
        """As in `streams.bundle.DEVICE_TENSORS`."""
        state = self.state_dict()
        return {
            f"staleness.{place}.{part}": state[f"{layer}.{part}"].numpy().astype(np.float32)
            for layer, place in _LAYERS
            for part in _PARTS
        }


@dataclass(frozen=True)
class Fitted:
    """The head, and the predictions across folds that its quality is told from.

    Attributes
    ----------
    head
        Trained on everything.
    predicted
        (Q,) staleness of each moment by a head that did not see its user, Platt-scaled.
    """

    head: StalenessHead
    predicted: npt.NDArray[np.float64]


def fit(phi: Floats, labels: Bools, users: npt.NDArray[np.integer], options: ReliabilityOptions, seed: int) -> Fitted:
    """Train the head.

    Parameters
    ----------
    phi
        (Q, P) standardised signals.
    labels
        (Q,) of `pays`.
    users
        (Q,) whose moment it is; folds are cut between users.
    """
    fold = np.unique(users, return_inverse=True)[1] % FOLDS
    logits = np.zeros(len(phi))
    for held_out in range(FOLDS):
        inside = fold != held_out
        if inside.any() and not inside.all():
            logits[~inside] = _train(phi[inside], labels[inside], options, seed).logits(phi[~inside])
    slope, offset = _platt(logits, labels)
    head = _train(phi, labels, options, seed)
    head.rescale(slope, offset)
    return Fitted(head, expit(slope * logits + offset))


def _train(phi: Floats, labels: Bools, options: ReliabilityOptions, seed: int) -> StalenessHead:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = StalenessHead(options.hidden)
    x, y = torch.from_numpy(phi), torch.from_numpy(labels.astype(np.float32))
    generator = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(head.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    batches = -(-len(phi) // options.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, options.epochs * batches))
    for _ in range(options.epochs if len(phi) else 0):
        for rows in np.array_split(generator.permutation(len(phi)), batches):
            at = torch.from_numpy(rows)
            loss = F.binary_cross_entropy_with_logits(head(x[at]), y[at])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return head


def _platt(logits: npt.NDArray[np.float64], labels: Bools) -> tuple[float, float]:
    """Slope and offset that make σ(slope · logit + offset) most likely; with Platt's softened labels."""
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        return 1.0, 0.0
    wanted = np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(parameters: npt.NDArray[np.float64]) -> float:
        z = parameters[0] * logits + parameters[1]
        return float(np.mean(np.logaddexp(0.0, z) - wanted * z))

    slope, offset = minimize(loss, np.array([1.0, 0.0]), method="BFGS").x
    return max(float(slope), 0.05), float(offset)  # never turned around: noise would make a fresh one look stale
