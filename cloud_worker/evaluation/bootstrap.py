"""Intervals of means, ratios and paired differences, by resampling users.

A user's moments resemble each other, so users are drawn, not moments (the cluster bootstrap: Field & Welsh 2007,
"Bootstrapping clustered data", section 3; percentile intervals: Efron & Tibshirani 1993, chapter 13). Everything that
is compared is seen in the same resamples, so differences are paired. With few users such intervals are too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES: Final = 2_000
LEVEL: Final = 0.95
_BLOCK: Final = 200
"""Resamples at a time."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    @property
    def reach(self) -> tuple[float, float]:
        """How far it goes down and up from the estimate; rounding makes neither negative."""
        return max(0.0, self.mean - self.low), max(0.0, self.high - self.mean)


NOTHING: Final = Interval(float("nan"), float("nan"), float("nan"))


class UserResamples:
    """Resamples of the users of Q moments, drawn once for everything that is measured at these moments.

    Parameters
    ----------
    users
        (Q,) whose moment it is.
    """

    def __init__(self, users: npt.NDArray[np.integer], seed: int, resamples: int = RESAMPLES) -> None:
        self._at: npt.NDArray[np.int64] = np.unique(users, return_inverse=True)[1]
        self.n_users = int(self._at.max(initial=-1)) + 1
        generator = np.random.default_rng(seed)
        count = resamples if self.n_users > 1 else 0  # of one user all would be the same, and no interval comes of it
        draws = np.zeros((count, self.n_users), np.uint8)  # how often; no user is drawn 256 times
        for row in draws:
            row[:] = np.bincount(generator.integers(0, self.n_users, self.n_users), minlength=self.n_users)
        self._draws = draws

    def totals(self, values: npt.NDArray[np.floating] | npt.NDArray[np.bool_]) -> Floats:
        """(resamples, M) sums of values (Q, M) over the moments of the users drawn."""
        of_user = np.zeros((self.n_users, values.shape[1]))
        np.add.at(of_user, self._at, values.astype(np.float64))
        found = np.zeros((len(self._draws), values.shape[1]))
        for at in range(0, len(found), _BLOCK):
            found[at : at + _BLOCK] = self._draws[at : at + _BLOCK].astype(np.float64) @ of_user
        return found

    @property
    def count(self) -> int:
        """How many resamples there are; none of a single user."""
        return len(self._draws)

    def weights(self, nth: int) -> npt.NDArray[np.uint8]:
        """(Q,) how often each moment is in the nth resample."""
        found: npt.NDArray[np.uint8] = self._draws[nth][self._at]
        return found

    def means(self, values: npt.NDArray[np.floating]) -> list[Interval]:
        """Mean and interval of each column of values (Q, M); of a single user's there is no interval."""
        if not len(values):
            return [NOTHING] * values.shape[1]
        totals = self.totals(np.concatenate([values, np.ones((len(values), 1))], axis=1))
        found = totals[:, :-1] / totals[:, -1:]
        return [around(float(mean), each) for mean, each in zip(values.mean(axis=0), found.T, strict=True)]

    def mean(self, values: npt.NDArray[np.floating]) -> Interval:
        """Mean and interval of values (Q,), such as differences of two methods at the same moments."""
        return self.means(values[:, None])[0]


def around(estimate: float, resampled: Floats) -> Interval:
    """Percentile interval of what resamples (R,) gave; those without a value are left out."""
    known = resampled[np.isfinite(resampled)]
    if not len(known):
        return Interval(estimate, float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(estimate, float(low), float(high))


def stacked(columns: Sequence[npt.NDArray[np.floating]]) -> Floats:
    """(Q, M) of M columns (Q,)."""
    return np.column_stack([np.asarray(each, np.float64) for each in columns])
