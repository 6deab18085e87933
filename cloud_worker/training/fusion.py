"""Score fusion of LSC4Rec (arXiv 2501.05647, collaborative inference): α z(cloud) + (1 - α) z(SRM).

z is taken over the whole catalogue, seen items included, as `device_agent.ranking` does. A score that does not differ
between items has no say.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.signal import savgol_filter

from streams.experiment.ranking_metrics import ndcg_at, reciprocal_rank

Floats = npt.NDArray[np.float32]
GRID: Final = tuple(round(0.05 * step, 2) for step in range(1, 20))
_SMOOTHED_OVER: Final = 5


def standardised(scores: Floats) -> Floats:
    """(Q, N) z-scores over each row."""
    centred = scores - scores.mean(axis=1, keepdims=True)
    deviation = centred.std(axis=1, keepdims=True)
    return np.where(deviation > 1e-6, centred / np.maximum(deviation, 1e-6), 0.0).astype(np.float32)


def fused(cloud: Floats, srm: Floats, alpha: Floats) -> Floats:
    """(Q, N) fused scores of standardised cloud and SRM scores with α (Q,)."""
    return alpha[:, None] * cloud + (np.float32(1.0) - alpha[:, None]) * srm


def between(fresh: float, stale: float, staleness: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """(Q,) a weight, α or β, at staleness s (Q,), of which the ends at 0 and 1 are given."""
    return np.asarray(fresh + (stale - fresh) * staleness, np.float64)


def best_alpha(ranks: npt.NDArray[np.int64], alphas: tuple[float, ...] = GRID) -> float:
    """The α with the best mean of NDCG@10 and MRR on a smoothed curve; of equal ones the smallest.

    Some hundred moments make the curve over α jagged; a single peak in it is luck. Parabolas through five values each
    (Savitzky & Golay 1964) take nothing from a peak and favour neither end.

    Parameters
    ----------
    ranks
        (len(alphas), Q) ranks of the same moments under each α; without moments it is the one in the middle.
    """
    return alphas[int(np.argmax(smoothed_worth(ranks)))] if ranks.shape[1] else alphas[len(alphas) // 2]


def smoothed_worth(ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(A,) the curve that `best_alpha` takes the top of, from ranks (A, Q) under each α; to nine places."""
    worth = _worth(ranks).mean(axis=1)
    if len(worth) > _SMOOTHED_OVER:
        worth = savgol_filter(worth, _SMOOTHED_OVER, 2)
    return np.asarray(np.round(worth, 9))


def as_good_nearest_to(
    wanted: float, best: float, ranks: npt.NDArray[np.int64], users: npt.NDArray[np.int64], alphas: tuple[float, ...]
) -> float:
    """Of the weights that are as good as the best one, the one nearest to what is wanted for other reasons.

    As good is what loses no more than one standard error of its paired difference to the best, users being what varies.
    Source: the one-standard-error rule (Breiman, Friedman, Olshen & Stone 1984, section 3.4.3).

    Parameters
    ----------
    best
        One of ``alphas``.
    ranks
        (len(alphas), Q) ranks of the same moments under each weight; without moments it is the best.
    users
        (Q,) whose the moments are.
    """
    if not len(users):
        return best
    worth = _worth(ranks)
    less = worth[alphas.index(best)] - worth
    of_users = np.stack([np.bincount(users, each) for each in less])
    error = np.sqrt(np.square(of_users).sum(axis=1))
    as_good = [alpha for alpha, lost, most in zip(alphas, of_users.sum(axis=1), error, strict=True) if lost <= most]
    return min(as_good, key=lambda alpha: abs(alpha - wanted))


def _worth(ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """What a rank is worth where a weight is chosen."""
    return np.asarray(ndcg_at(ranks) + reciprocal_rank(ranks), np.float64)
