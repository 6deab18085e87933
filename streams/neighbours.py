"""What people take near what, as a table of each item's nearest others: what `trends.v1` tells every device.

Let C_ij count, over all users, how often items i and j were taken within `NEAR` interactions of each other, a pair
further apart weighing `DECAY` less with each place, and n_i how often i was taken. The table keeps, for each item, the
K others with the largest C_ij / sqrt(n_i n_j). With it a device adds to the scores that it serves by

    t(i) = Σ_k DECAY^k C[j_k, i] / sqrt(n_(j_k) n_i)        j_0, j_1, …: its user's last items, newest first
    served(i) + β(s) σ z(t)(i)                             σ: standard deviation of what is served, over the catalogue

so both sides weigh as if they were standardised. β follows the staleness s as the weight of the cloud does
(`device_agent.fusion`): a fresh embedding knows what others did, a stale one does not, and without one s is 1. The
formula is that of item-kNN (Sarwar et al. 2001, "Item-based collaborative filtering recommendation algorithms") over
neighbouring interactions instead of whole users; that one record serves all devices, and what it is added to, is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]

NEAR: Final = 10
"""Interactions of a user that count as neighbours, and last items that a device asks with."""
DECAY: Final = 0.8
SMALLEST_DEVIATION: Final = 1e-6
"""Sums that differ less over the catalogue have no say."""


@dataclass(frozen=True)
class NeighbourTable:
    """Each item's nearest others, as of one moment.

    Attributes
    ----------
    as_of_ms
        Event time: what happened then or later is not in it. Nothing that happened before may be served with it.
    items
        (N, K) neighbours; N where an item has fewer.
    weights
        (N, K) C_ij / sqrt(n_i n_j), in half precision since they travel so; 0 where an item has fewer.
    """

    as_of_ms: int
    items: Int32s
    weights: npt.NDArray[np.float16]

    def sums(self, last: Int32s) -> npt.NDArray[np.float64]:
        """(R, N) t of devices whose last items, newest first, are (R, ≤ `NEAR`); -1 for none."""
        return self._sums(last)[:, : len(self.items)]

    def scaled(self, last: Int32s) -> Floats:
        """(R, N) t divided by its standard deviation over the catalogue; 0 where the table says nothing.

        That is z(t) but for a number that is the same for all items of a row, which moves no rank.
        """
        found, n = self._sums(last), len(self.items)
        mean = found.sum(axis=1) / n
        deviation = np.sqrt(np.maximum(np.einsum("rn,rn->r", found, found) / n - mean * mean, 0))
        usable = deviation > SMALLEST_DEVIATION
        scale = np.where(usable, 1 / np.maximum(deviation, SMALLEST_DEVIATION), 0)
        scaled = np.empty((len(last), n), np.float32)
        np.multiply(found[:, :n], scale[:, None], out=scaled, casting="unsafe")
        return scaled

    def _sums(self, last: Int32s) -> npt.NDArray[np.float64]:
        """(R, N + 1) t, and a column of zeros for the neighbours that are none."""
        n, rows = len(self.items), len(last)
        fading = (DECAY ** np.arange(last.shape[1])).astype(np.float32)
        asked = np.where(last >= 0, fading, np.float32(0))
        weights = self._single[last]
        weights *= asked[:, :, None]
        cells = self.items[last] + (np.arange(rows, dtype=np.int64) * (n + 1))[:, None, None]
        found = np.bincount(cells.ravel(), weights.ravel(), rows * (n + 1))
        return np.asarray(found.reshape(rows, n + 1), np.float64)

    @cached_property
    def _single(self) -> Floats:
        """The weights in single precision: converting them at each question would cost as much as the rest of it."""
        return self.weights.astype(np.float32)
