"""From everybody's last interactions to the table of `streams.neighbours`.

All sums and orders are made by sorting 64-bit numbers that hold everything there is to know of a pair. Where the
catalogue is large that needs a quarter of the time that sparse matrices do (50,000 items, a million interactions: 6 s
on a shared core). And since each pair's weights are summed in one order, whoever counts the same interactions, in
whatever order of users, gets the same table to the last bit.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from streams.neighbours import DECAY, NEAR, NeighbourTable

Ints = npt.NDArray[np.int64]

PAIRS: Final = 400_000
"""Cells of a table, of six bytes each: what one costs, up to a catalogue of 50,000 items."""
MOST_KEPT: Final = 256
LEAST_KEPT: Final = 8
"""Bounds of K: more neighbours say little more, fewer say too little."""
_INDEX_BITS: Final = 24
_WEIGHT_BITS: Final = 15
"""Of a half-precision number that is not negative: as integers such numbers are in the same order."""


def neighbours_kept(n_items: int) -> int:
    """K for a catalogue of so many items."""
    return min(max(PAIRS // n_items, LEAST_KEPT), MOST_KEPT, n_items)


def neighbour_table(lengths: Ints, items: Ints, n_items: int, *, as_of_ms: int, kept: int) -> NeighbourTable:
    """Count which items were taken near each other, and keep each one's nearest.

    Of neighbours whose weights are equal as they travel, those of smaller index are kept, and come first.

    Parameters
    ----------
    lengths
        (U,) interactions of each user.
    items
        (E,) theirs, one user after the other, oldest first.
    n_items
        N, below 2^24.
    kept
        K

    Raises
    ------
    ValueError
        The catalogue is too large for this way of counting.
    """
    if n_items >> _INDEX_BITS:
        raise ValueError(f"neighbours are counted for fewer than {1 << _INDEX_BITS} items, not {n_items}")
    one, other, counts = _pairs(lengths, items, n_items)
    taken = np.sqrt(np.maximum(np.bincount(items, minlength=n_items), 1))
    weights = (counts / (taken[one] * taken[other])).astype(np.float16)
    return _nearest(one, other, weights, n_items, as_of_ms, kept)


def _pairs(lengths: Ints, items: Ints, n_items: int) -> tuple[Ints, Ints, npt.NDArray[np.float64]]:
    """Each two items i < j that were taken near each other, and C_ij."""
    places = np.arange(len(items)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    found = []
    for apart in range(1, NEAR + 1):
        later = np.flatnonzero(places >= apart)
        one, other = items[later].astype(np.int64), items[later - apart].astype(np.int64)
        pair = np.minimum(one, other) * n_items + np.maximum(one, other)
        found.append(pair[one != other] * NEAR + (apart - 1))
    every = np.concatenate(found)
    every.sort()
    pair, apart_less_1 = np.divmod(every, NEAR)
    first = np.flatnonzero(np.diff(pair, prepend=-1))
    weights = (DECAY ** np.arange(NEAR))[apart_less_1]
    counts = np.add.reduceat(weights, first) if len(first) else np.zeros(0)
    one, other = np.divmod(pair[first], n_items)
    return one, other, counts


def _nearest(
    one: Ints, other: Ints, weights: npt.NDArray[np.float16], n_items: int, as_of_ms: int, kept: int
) -> NeighbourTable:
    lightness = (1 << _WEIGHT_BITS) - 1 - weights.view(np.uint16).astype(np.int64)
    both = np.concatenate([_packed(one, lightness, other), _packed(other, lightness, one)])
    both.sort()
    row = both >> (_WEIGHT_BITS + _INDEX_BITS)
    many = np.bincount(row, minlength=n_items)
    place = np.arange(len(row)) - np.repeat(np.cumsum(many) - many, many)
    near = place < kept
    both, row, place = both[near], row[near], place[near]
    found = np.full((n_items, kept), n_items, np.int32)
    how_near = np.zeros((n_items, kept), np.float16)
    found[row, place] = both & ((1 << _INDEX_BITS) - 1)
    lightness = both >> _INDEX_BITS & ((1 << _WEIGHT_BITS) - 1)
    how_near[row, place] = ((1 << _WEIGHT_BITS) - 1 - lightness).astype(np.uint16).view(np.float16)
    return NeighbourTable(as_of_ms, found, how_near)


def _packed(row: Ints, lightness: Ints, column: Ints) -> Ints:
    """As one number: in order of rows, within a row the heaviest first, of equal ones the smaller column."""
    return row << (_WEIGHT_BITS + _INDEX_BITS) | lightness << _INDEX_BITS | column
