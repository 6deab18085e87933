"""Which moments are given a fresh embedding when a budget allows only a share of them."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BATCH: Final = 16
"""Of LSC4Rec's released rule."""


def chosen(scores: npt.NDArray[np.floating], share: float) -> Floats:
    """(Q,) weights in 0..1, ``share`` on average: 1 for the highest scores.

    Equal scores at the edge of the budget share what is left of it, which is what drawing among them at random gives
    on average. So constant scores are random choice, and nothing depends on the order of the moments.
    """
    budget = share * len(scores)
    distinct, at, counts = np.unique(-np.asarray(scores, np.float64), return_inverse=True, return_counts=True)
    if not len(distinct):
        return np.zeros(0)
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.asarray(np.clip((budget - before) / counts, 0.0, 1.0)[at])


def by_batches(scores: npt.NDArray[np.floating], order: npt.NDArray[np.integer], batch: int = BATCH) -> Floats:
    """(Q,) each moment's score is the mean of its batch, so that whole batches are chosen.

    Parameters
    ----------
    order
        (Q,) the order in which moments arrive; each ``batch`` of them are one.
    """
    which = np.empty(len(scores), np.int64)
    which[np.argsort(order, kind="stable")] = np.arange(len(scores)) // batch
    means = np.bincount(which, scores) / np.bincount(which)
    return np.asarray(means[which], np.float64)
