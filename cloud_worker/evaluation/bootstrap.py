"""Intervals of means and of paired differences, by resampling users.

A user's moments resemble each other, so users are drawn, not moments (the cluster bootstrap: Field & Welsh 2007,
"Bootstrapping clustered data", section 3; percentile intervals: Efron & Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

RESAMPLES: Final = 2_000
_BLOCK: Final = 200


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def mean_interval(
    values: npt.NDArray[np.floating], users: npt.NDArray[np.integer], seed: int, level: float = 0.95
) -> Interval:
    """Mean of values (Q,), such as differences of two methods at the same moments, and its interval over users (Q,).

    Returns
    -------
    Interval
        NaN without values; without width where there is one user only.
    """
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"))
    _, inverse = np.unique(users, return_inverse=True)
    sums, counts = np.bincount(inverse, values), np.bincount(inverse).astype(np.float64)
    generator = np.random.default_rng(seed)
    means: list[npt.NDArray[np.float64]] = []
    for _ in range(0, RESAMPLES, _BLOCK):
        drawn = generator.integers(0, len(sums), (_BLOCK, len(sums)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean(values)), float(low), float(high))
