"""The two oldest rankers, to compare with: recent popularity and item-kNN.

Item-kNN scores an item by its cosine to the user's last items, over who took what before the test period (Sarwar et
al. 2001, "Item-based collaborative filtering recommendation algorithms"); newer items of the user weigh more. Recent
popularity counts the interactions of the last tenth before the test period.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cloud_worker.training import evaluate
from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.metrics import Ranks, ranks_of

LAST: Final = 20
DECAY: Final = 0.85


class ItemNeighbours:
    """Cosines between items over the users who took them before the test period."""

    def __init__(self, histories: Histories) -> None:
        users = histories.owners
        known = histories.places < histories.trained[users]
        shape = (histories.n_users, histories.n_items)
        taken = sparse.csr_matrix((np.ones(int(known.sum())), (users[known], histories.items[known])), shape)
        taken.data[:] = 1.0
        length = np.sqrt(np.maximum(np.asarray(taken.sum(axis=0)).ravel(), 1.0))
        scaled = taken @ sparse.diags(1.0 / length)
        self._cosines = sparse.csr_matrix(scaled.T @ scaled)
        self._cosines.setdiag(0.0)
        self._histories = histories

    def ranks(self, moments: evaluate.Moments) -> Ranks:
        """(Q,) ranks of what was taken."""
        found = [np.zeros(0, np.int64)]
        for _, part in moments.blocks():
            asked = last_items(self._histories, part.users, part.positions, LAST, DECAY)
            scores: npt.NDArray[np.floating] = (asked @ self._cosines).toarray()
            found.append(ranks_of(scores, part.targets, part.seen()))
        return np.concatenate(found)


def last_items(histories: Histories, users: Ints, positions: Ints, last: int, decay: float) -> Any:
    """(Q, N) weights of users' last items when their first positions (Q,) are known: 1, decay, decay², …; sparse."""
    rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    weights: list[npt.NDArray[np.floating]] = [np.zeros(0)]
    for row, (user, position) in enumerate(zip(users, positions, strict=True)):
        items = histories.of(int(user), int(position))[::-1][:last]
        rows.append(np.full(len(items), row))
        columns.append(items)
        weights.append(decay ** np.arange(len(items)))
    shape = (len(users), histories.n_items)
    return sparse.csr_matrix((np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), shape)


def recent_popularity(histories: Histories, moments: evaluate.Moments) -> Ranks:
    """(Q,) ranks by interactions in the last tenth before the test period."""
    return evaluate.constant_ranks(recent_counts(histories), moments)


def recent_counts(histories: Histories) -> npt.NDArray[np.float32]:
    """(N,) interactions in the last tenth before the test period."""
    known = histories.places < histories.trained[histories.owners]
    since = np.quantile(histories.times_ms[known], 0.9)
    late = known & (histories.times_ms >= since)
    return np.bincount(histories.items[late], minlength=histories.n_items).astype(np.float32)
