"""NDCG@k, HR@k and MRR of lists with one relevant item each: what the user then took.

A rank is 1-based among everything that was ranked; 0 says that the item could not be ranked, which is a miss. With one
relevant item the ideal DCG is 1, so NDCG@k is the discount of its rank (Järvelin & Kekäläinen 2002, with the log2 of
Burges et al. 2005 that recommender papers use): 1 / log2(1 + rank) for a rank within k, else 0. The reciprocal rank is
not cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

import numpy as np
import numpy.typing as npt

Ranks = npt.NDArray[np.integer] | Sequence[int]
Floats = npt.NDArray[np.float64]


def ndcg_at(ranks: Ranks, k: int = 10) -> Floats:
    """(B,) NDCG@k of (B,) ranks.

    Examples
    --------
    >>> ndcg_at([1, 3, 11, 0]).tolist()
    [1.0, 0.5, 0.0, 0.0]
    """
    rank = _checked(ranks, k)
    hit = (rank >= 1) & (rank <= k)
    return np.where(hit, 1.0 / np.log2(1.0 + np.where(hit, rank, 1)), 0.0)


def hit_rate_at(ranks: Ranks, k: int = 10) -> Floats:
    """(B,) 1 where the item is among the first k, else 0."""
    rank = _checked(ranks, k)
    return ((rank >= 1) & (rank <= k)).astype(np.float64)


def reciprocal_rank(ranks: Ranks) -> Floats:
    """(B,) 1 / rank; 0 for a miss."""
    rank = _checked(ranks, 1)
    return np.where(rank >= 1, 1.0 / np.maximum(rank, 1), 0.0)


def discounts(k: int = 10) -> tuple[float, ...]:
    """NDCG@k by rank, from rank 0 (a miss) to rank k: for loops that see one rank at a time."""
    return (0.0, *(1.0 / log2(1 + rank) for rank in range(1, k + 1)))


def _checked(ranks: Ranks, k: int) -> npt.NDArray[np.int64]:
    rank = np.asarray(ranks, dtype=np.int64)
    if k < 1:
        raise ValueError(f"k is {k}, wants 1 or more")
    if rank.size and rank.min() < 0:
        raise ValueError(f"a rank is {rank.min()}, wants 1 or more, or 0 for a miss")
    return rank
