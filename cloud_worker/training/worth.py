"""What a refresh is worth: the discounted gain that it is expected to add to what the device serves without it.

The device repairs much of its own drift; what only a refresh brings is what the world has learned since. One next item
says little about which of both it is: most moments gain or lose by luck. So the head is distilled from the whole
distribution that the fresh embedding stands for::

    w* = Σ_i q_i (1 / log2(1 + rank_fresh(i)) - 1 / log2(1 + rank_served(i)))      q = softmax(⟨e_fresh, v⟩ + b)

with ranks as a device serves: fused, what the newest neighbour table says added to both, what the user took left out,
and *served* the calibrated embedding at its α and β. So what the broadcast tells everybody is not counted as a gain.
The sum is over the most probable items. w = y (`cloud_worker.training.signal_head`) is fitted to w* by least squares,
and then scaled to the gains that the moments really had, across folds of users: so that a threshold is a price.

Ours: SCaLRec (arXiv 2601.22543) and LSC4Rec (arXiv 2501.05647) ask by unreliability and by disagreement of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from torch.nn.functional import mse_loss

from cloud_worker.training.evaluate import Added, Catalogue, Moments
from cloud_worker.training.fusion import fused, standardised
from cloud_worker.training.options import HeadOptions
from cloud_worker.training.reliability import gain
from cloud_worker.training.signal_head import SignalHead, across_users, train_head

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

ITEMS: Final = 200
"""Most probable items that are looked at."""
_LEAST_SLOPE: Final = 0.05


@dataclass(frozen=True)
class Served:
    """With what Q moments are served: embeddings (Q, d), their weight α (Q,), and the weight β (Q,) of the tables."""

    embeddings: Floats
    alphas: Doubles
    betas: Doubles


def expected_gains(catalogue: Catalogue, moments: Moments, fresh: Served, served: Served, said: Added) -> Doubles:
    """(Q,) w* of serving moments as they are `served`, where the cloud would send what is `fresh` now.

    Parameters
    ----------
    said
        What the newest tables say, which β weighs.
    """
    found = np.zeros(len(moments))
    for rows, part in moments.blocks():
        srm = standardised(part.hidden @ catalogue.srm_out.T + catalogue.srm_bias)
        told = said(rows)
        raw, other = (each.embeddings[rows] @ catalogue.vectors.T + catalogue.bias for each in (fresh, served))
        with_it = _scores(standardised(raw), srm, told, fresh, rows)
        without = _scores(standardised(other), srm, told, served, rows)
        if (seen := part.seen()) is not None:
            for scores in (raw, with_it, without):
                scores[seen] = -np.inf
        share = np.exp(raw - raw.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        likely = np.argpartition(-share, min(ITEMS, share.shape[1]) - 1, axis=1)[:, :ITEMS]
        change = gain(_ranks(with_it, likely)) - gain(_ranks(without, likely))
        found[rows] = (np.take_along_axis(share, likely, axis=1) * change).sum(axis=1)
    return found


def _scores(cloud: Floats, srm: Floats, told: Floats, served: Served, rows: slice) -> Floats:
    """(B, N) what a block is ranked by, from standardised scores of both models."""
    both = standardised(fused(cloud, srm, served.alphas[rows].astype(np.float32)))
    return np.asarray(both + served.betas[rows].astype(np.float32)[:, None] * told, np.float32)


def _ranks(scores: Floats, items: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """(B, K) ranks of items (B, K) among scores (B, N), equal ones counted as better."""
    ascending = np.sort(scores, axis=1)
    wanted = np.take_along_axis(scores, items, axis=1)
    below = np.stack([np.searchsorted(*row, side="left") for row in zip(ascending, wanted, strict=True)])
    return np.asarray(scores.shape[1] - below, np.int64)


@dataclass(frozen=True)
class Fitted:
    """The head, and (Q,) what it says across folds of users."""

    head: SignalHead
    predicted: Doubles


def fit(
    phi: Floats, expected: Doubles, realised: Doubles, users: npt.NDArray[np.integer], options: HeadOptions, seed: int
) -> Fitted:
    """Train the head.

    Parameters
    ----------
    phi
        (Q, P) standardised signals.
    expected, realised
        (Q,) w*, and the discounted gain that a refresh really had.
    users
        (Q,) whose moment it is.
    """
    unit = (float(expected.std()) if len(expected) else 0.0) or 1.0

    def train(rows: npt.NDArray[np.bool_]) -> SignalHead:
        return train_head(phi[rows], expected[rows] / unit, mse_loss, options, seed)

    guessed = across_users(train, phi, users)
    centred = guessed - guessed.mean() if len(guessed) else guessed
    spread = float(centred @ centred)
    # Never turned around, and never flat: what noise says of the scale must not undo the order.
    slope = max(float(centred @ realised) / spread if spread > 0 else unit, _LEAST_SLOPE * unit)
    offset = float(realised.mean() - slope * guessed.mean()) if len(guessed) else 0.0
    head = train(np.ones(len(phi), np.bool_))
    head.rescale(slope, offset)
    return Fitted(head, slope * guessed + offset)
