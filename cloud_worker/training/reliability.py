"""The staleness head: how likely the cached embedding, as it is, ranks what comes next clearly lower than a fresh one.

    s = σ(y)        reliability r = 1 - s        y: `cloud_worker.training.signal_head`

The label of a moment compares two ranks of the next item, under the fused scores: with the embedding that the device
has, and with the one that the cloud would send now. The embedding was **stale** if the fresh one lifts the item
clearly: its discounted gain grows by more than `CLEARLY`. How much of that the device can repair itself is another
question, which `cloud_worker.training.worth` answers. At gap 0 both embeddings are one, and s is 0.

Predictions across folds of users are Platt-scaled (Platt 1999), and the scale is folded into the last layer. Source:
SCaLRec (arXiv 2601.22543), reliability of cached semantics: a reconstruction from the abstract; the label is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit
from torch.nn.functional import binary_cross_entropy_with_logits

from cloud_worker.training.options import HeadOptions
from cloud_worker.training.signal_head import SignalHead, across_users, train_head

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

CLEARLY: Final = 0.02
"""Gain 1 / log2(1 + rank): from rank 30 to 26, from 10 to 9, from 1000 to 300."""


def gain(ranks: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """(Q,) 1 / log2(1 + rank); 0 for rank 0, which could not be ranked."""
    return np.where(ranks > 0, 1.0 / np.log2(1.0 + np.maximum(ranks, 1)), 0.0)


def pays(without: npt.NDArray[np.integer], fresh: npt.NDArray[np.integer]) -> Bools:
    """(Q,) whether a fresh embedding lifts the next item clearly, from its rank without one and with it."""
    return np.asarray(gain(fresh) - gain(without) > CLEARLY)


@dataclass(frozen=True)
class Fitted:
    """The head, and the predictions across folds that its quality is told from.

    Attributes
    ----------
    head
        Trained on everything.
    predicted
        (Q,) staleness of each moment by a head that did not see its user, Platt-scaled; 0 at gap 0.
    """

    head: SignalHead
    predicted: npt.NDArray[np.float64]


def fit(
    phi: Floats, gaps: Ints, labels: Bools, users: npt.NDArray[np.integer], options: HeadOptions, seed: int
) -> Fitted:
    """Train the head.

    Parameters
    ----------
    phi
        (Q, P) standardised signals.
    gaps
        (Q,) moments of gap 0 are no part of it: there s is 0.
    labels
        (Q,) of `pays`.
    users
        (Q,) whose moment it is.
    """
    aged = gaps > 0
    x, y = phi[aged], labels[aged]

    def train(rows: Bools) -> SignalHead:
        return train_head(x[rows], y[rows], binary_cross_entropy_with_logits, options, seed)

    logits = across_users(train, x, users[aged])
    slope, offset = _platt(logits, y)
    head = train(np.ones(len(x), np.bool_))
    head.rescale(slope, offset)
    predicted = np.zeros(len(phi))
    predicted[aged] = expit(slope * logits + offset)
    return Fitted(head, predicted)


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
