"""What a refresh is worth: the discounted gain that it is expected to add to what the device serves without it.

The device repairs much of its own drift; what only a refresh brings is what the world has learned since. One next item
says little about which of both it is: most moments gain or lose by luck. So the head is distilled from what both models
together expect to come next::

    w* = Σ_i q_i (1 / log2(1 + rank_fresh(i)) - 1 / log2(1 + rank_served(i)))
    q  = λ softmax(⟨e_fresh, v⟩ + b) + (1 - λ) softmax(⟨h, o⟩ + c)

with ranks as a device serves: fused, what the newest neighbour table says added to both, what the user took left out,
and *served* the calibrated embedding at its α and β. So what the broadcast tells everybody is not counted as a gain.
The cloud alone (λ = 1) would take each change of its own mind for a gain, so λ is the one under which what was really
taken is likeliest. The sums are over the most probable items. w = y (`cloud_worker.training.signal_head`) is fitted to
w* by least squares, and then scaled to the gains that the moments really had, across folds of users: so that a
threshold is a price. At gap 0 a refresh brings what is there, and w is 0.

Ours: SCaLRec (arXiv 2601.22543) and LSC4Rec (arXiv 2501.05647) ask by unreliability and by disagreement of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import softmax
from torch.nn.functional import mse_loss

from cloud_worker.training.evaluate import Added, Catalogue, Moments
from cloud_worker.training.fusion import fused, standardised
from cloud_worker.training.options import HeadOptions
from cloud_worker.training.reliability import gain
from cloud_worker.training.signal_head import SignalHead, across_users, train_head

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ITEMS: Final = 200
"""Most probable items that are looked at."""
_LEAST_SLOPE: Final = 0.05
_ROUNDS: Final = 200


@dataclass(frozen=True)
class Expected:
    """What refreshes of Q moments are expected to gain.

    Attributes
    ----------
    by_model
        (2, Q) with q that of the cloud's fresh embedding alone, and that of the SRM alone.
    cloud_share
        λ.
    """

    by_model: Doubles
    cloud_share: float

    @property
    def gains(self) -> Doubles:
        """(Q,) w*."""
        return np.asarray(self.cloud_share * self.by_model[0] + (1 - self.cloud_share) * self.by_model[1])


@dataclass(frozen=True)
class Served:
    """With what Q moments are served: embeddings (Q, d), their weight α (Q,), and the weight β (Q,) of the tables."""

    embeddings: Floats
    alphas: Doubles
    betas: Doubles


def expected_gains(catalogue: Catalogue, moments: Moments, fresh: Served, served: Served, said: Added) -> Expected:
    """w* of serving Q moments as they are `served`, where the cloud would send what is `fresh` now.

    Parameters
    ----------
    said
        What the newest tables say, which β weighs.
    """
    gains, likelihoods = np.zeros((2, len(moments))), np.zeros((2, len(moments)))
    for rows, part in moments.blocks():
        own = part.hidden @ catalogue.srm_out.T + catalogue.srm_bias
        raw, other = (each.embeddings[rows] @ catalogue.vectors.T + catalogue.bias for each in (fresh, served))
        srm, told = standardised(own), said(rows)
        with_it = _scores(standardised(raw), srm, told, fresh, rows)
        without = _scores(standardised(other), srm, told, served, rows)
        if (seen := part.seen()) is not None:
            for scores in (raw, own, with_it, without):
                scores[seen] = -np.inf
        probable = [softmax(scores, axis=1) for scores in (raw, own)]
        kept = min(ITEMS, raw.shape[1])
        likely = [np.argpartition(-each, kept - 1, axis=1)[:, :kept] for each in probable]
        both = np.concatenate(likely, axis=1)  # ranked at once: sorting the catalogue is what takes the time
        changes = np.split(gain(_ranks(with_it, both)) - gain(_ranks(without, both)), 2, axis=1)
        for model, (each, items, change) in enumerate(zip(probable, likely, changes, strict=True)):
            gains[model, rows] = (np.take_along_axis(each, items, axis=1) * change).sum(axis=1)
            likelihoods[model, rows] = each[np.arange(len(part)), part.targets]
    return Expected(gains, _share_of_first(likelihoods))


def _share_of_first(likelihoods: Doubles) -> float:
    """The share λ of the first of two models in the mixture under which (2, Q) likelihoods are largest together.

    It is found by expectation-maximisation, from ½; the logarithm of the likelihood is concave in λ. Where the models
    hardly differ, λ makes no difference and stays near ½.
    """
    share = 0.5
    known = likelihoods[:, likelihoods.sum(axis=0) > 0]
    for _ in range(_ROUNDS if known.size else 0):
        first = share * known[0]
        share = float(np.mean(first / (first + (1 - share) * known[1])))
    return share


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
    """The head, and (Q,) what it says across folds of users; 0 at gap 0."""

    head: SignalHead
    predicted: Doubles


def fit(
    phi: Floats,
    gaps: Ints,
    expected: Doubles,
    realised: Doubles,
    users: npt.NDArray[np.integer],
    options: HeadOptions,
    seed: int,
) -> Fitted:
    """Train the head.

    Parameters
    ----------
    phi
        (Q, P) standardised signals.
    gaps
        (Q,) moments of gap 0 are no part of it: there w is 0.
    expected, realised
        (Q,) w*, and the discounted gain that a refresh really had.
    users
        (Q,) whose moment it is.
    """
    aged = gaps > 0
    x, aim, had = phi[aged], expected[aged], realised[aged]
    unit = (float(aim.std()) if len(aim) else 0.0) or 1.0

    def train(rows: npt.NDArray[np.bool_]) -> SignalHead:
        return train_head(x[rows], aim[rows] / unit, mse_loss, options, seed)

    guessed = across_users(train, x, users[aged])
    centred = guessed - guessed.mean() if len(guessed) else guessed
    spread = float(centred @ centred)
    # Never turned around, and never flat: what noise says of the scale must not undo the order.
    slope = max(float(centred @ had) / spread if spread > 0 else unit, _LEAST_SLOPE * unit)
    offset = float(had.mean() - slope * guessed.mean()) if len(guessed) else 0.0
    head = train(np.ones(len(x), np.bool_))
    head.rescale(slope, offset)
    predicted = np.zeros(len(phi))
    predicted[aged] = slope * guessed + offset
    return Fitted(head, predicted)
