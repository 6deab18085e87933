"""Ranks over the full catalogue, as the device counts them, and the measures of a probability.

NDCG@k, HR@k and MRR of ranks are those of `streams.experiment.ranking_metrics`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streams.experiment.ranking_metrics import hit_rate_at, ndcg_at, reciprocal_rank

Ranks = npt.NDArray[np.int64]


def ranks_of(
    scores: npt.NDArray[np.floating],
    targets: npt.NDArray[np.integer],
    seen: npt.NDArray[np.bool_] | None = None,
) -> Ranks:
    """Rank of each row's target among all items that were not seen.

    Pessimistic, as on the device: the number of items that score at least as much, so a constant score looks bad.

    Parameters
    ----------
    scores
        (B, N), higher is better.
    targets
        (B,) item indexes.
    seen
        (B, N) items that may not be recommended; None: none.

    Returns
    -------
    Ranks
        (B,) 1-based; 0 where the target itself was seen.
    """
    rows = np.arange(len(targets))
    ahead: npt.NDArray[np.bool_] = scores >= scores[rows, targets][:, None]
    if seen is None:
        return np.asarray(ahead.sum(axis=1), np.int64)
    ranks = np.asarray((ahead & ~seen).sum(axis=1), np.int64)
    ranks[seen[rows, targets]] = 0
    return ranks


def summary(name: str, ranks: Ranks) -> dict[str, float]:
    """Mean NDCG@10, HR@10 and MRR, keyed ``<name>.ndcg@10`` and so on; empty where there are no ranks."""
    if not len(ranks):
        return {}
    return {
        f"{name}.ndcg@10": float(ndcg_at(ranks).mean()),
        f"{name}.hr@10": float(hit_rate_at(ranks).mean()),
        f"{name}.mrr": float(reciprocal_rank(ranks).mean()),
    }


def auc(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.bool_]) -> float:
    """Probability that a positive scores above a negative, ties half; 0.5 where one class is missing."""
    positives, negatives = scores[labels], np.sort(scores[~labels])
    if not len(positives) or not len(negatives):
        return 0.5
    below = np.searchsorted(negatives, positives, side="left")
    not_above = np.searchsorted(negatives, positives, side="right")
    return float((below + not_above).sum() / (2.0 * len(positives) * len(negatives)))


def expected_calibration_error(
    probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.bool_], bins: int = 10
) -> float:
    """ECE over ``bins`` equally wide bins of the predicted probability."""
    if not len(probabilities):
        return 0.0
    which = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(which, weights=probabilities - labels.astype(np.float64), minlength=bins)
    return float(np.abs(gaps).sum() / len(probabilities))
