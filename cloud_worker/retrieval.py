"""The cloud's candidates: the exact top of ⟨e, v_i⟩ + b_i over the whole catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

SCORES_AT_ONCE: Final = 1 << 24
"""Scores held in memory: 64 MiB of float32, whatever the catalogue's size."""


def top_candidates(
    vectors: npt.NDArray[np.float32],
    item_vectors: npt.NDArray[np.float32],
    item_bias: npt.NDArray[np.float32],
    n: int,
    excluded: Sequence[npt.NDArray[np.integer] | None] | None = None,
) -> list[npt.NDArray[np.int32]]:
    """Rank the catalogue for each user and keep the top.

    Parameters
    ----------
    vectors
        (B, d) user embeddings e.
    item_vectors, item_bias
        (N, d) and (N,): v and b.
    n
        Candidates wanted.
    excluded
        For each user the item indexes that must not appear (what the user took already), or None.

    Returns
    -------
    list
        B arrays of at most `n` item indexes, best first; of equal scores the lower index first. Shorter where the
        catalogue has no more.
    """
    step = max(1, SCORES_AT_ONCE // max(1, len(item_bias)))
    found: list[npt.NDArray[np.int32]] = []
    for start in range(0, len(vectors), step):
        costs = -(vectors[start : start + step] @ item_vectors.T + item_bias)
        for row, cost in enumerate(costs):
            seen = excluded[start + row] if excluded is not None else None
            if seen is not None:
                cost[seen] = np.inf
            found.append(_lowest(cost, n))
    return found


def _lowest(costs: npt.NDArray[np.float32], n: int) -> npt.NDArray[np.int32]:
    """Partition, not sort: all that are no worse than the n-th are few, and among those the order is made exact."""
    if n < len(costs):
        bound = np.partition(costs, n - 1)[n - 1]
        within = np.flatnonzero(costs <= bound)
    else:
        within = np.arange(len(costs))
    within = within[np.isfinite(costs[within])]
    return within[np.argsort(costs[within], kind="stable")][:n].astype(np.int32)
