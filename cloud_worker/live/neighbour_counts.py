"""From everybody's last interactions to the table of `streams.neighbours`."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import sparse

from streams.neighbours import DECAY, NEAR, NeighbourTable

Ints = npt.NDArray[np.int64]

PAIRS: Final = 400_000
"""Cells of a table, of six bytes each: what one costs, up to a catalogue of 50,000 items."""
MOST_KEPT: Final = 64
LEAST_KEPT: Final = 8
"""Bounds of K: more neighbours say little more, fewer say too little."""


def neighbours_kept(n_items: int) -> int:
    """K for a catalogue of so many items."""
    return min(max(PAIRS // n_items, LEAST_KEPT), MOST_KEPT)


def neighbour_table(lengths: Ints, items: Ints, n_items: int, *, as_of_ms: int, kept: int) -> NeighbourTable:
    """Count which items were taken near each other, and keep each one's nearest.

    Parameters
    ----------
    lengths
        (U,) interactions of each user.
    items
        (E,) theirs, one user after the other, oldest first.
    kept
        K
    """
    places = np.arange(len(items)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    counts = sparse.csr_matrix((n_items, n_items))
    for apart in range(1, NEAR + 1):
        later = np.flatnonzero(places >= apart)
        one, other = items[later], items[later - apart]
        weight = np.full(len(later), DECAY ** (apart - 1))
        counts = counts + sparse.csr_matrix((weight, (one, other)), (n_items, n_items))
    taken = np.bincount(items, minlength=n_items)
    scale = sparse.diags(1 / np.sqrt(np.maximum(taken, 1)))
    both = sparse.coo_matrix(scale @ (counts + counts.T) @ scale)
    return _nearest(both, n_items, as_of_ms, kept)


def _nearest(weights: sparse.coo_matrix, n_items: int, as_of_ms: int, kept: int) -> NeighbourTable:
    others = weights.row != weights.col
    row, column, weight = weights.row[others], weights.col[others], weights.data[others]
    order = np.lexsort((column, -weight, row))  # of equal weights the smaller index: the same counts, the same table
    row, column, weight = row[order], column[order], weight[order]
    many = np.bincount(row, minlength=n_items)
    place = np.arange(len(row)) - np.repeat(np.cumsum(many) - many, many)
    near = place < kept
    found = np.full((n_items, kept), n_items, np.int32)
    how_near = np.zeros((n_items, kept), np.float16)
    found[row[near], place[near]] = column[near]
    how_near[row[near], place[near]] = weight[near]
    return NeighbourTable(as_of_ms, found, how_near)
