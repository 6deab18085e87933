"""Whether two rankings of the same moments agree: served ones and those that were made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cloud_worker.evaluation.bootstrap import Interval, UserResamples, stacked
from cloud_worker.evaluation.staleness import METRICS
from cloud_worker.training.metrics import Ranks

NEAR: Final = 0.1
"""Of a rank."""


@dataclass(frozen=True)
class Agreement:
    """Two rankings of Q moments.

    Attributes
    ----------
    served, again
        By metric.
    difference
        Again less served, paired, by metric.
    equal, near
        Share of moments with the same rank, and with a rank that is at most a tenth, or one place, away.
    """

    moments: int
    users: int
    served: Mapping[str, Interval]
    again: Mapping[str, Interval]
    difference: Mapping[str, Interval]
    equal: float
    near: float

    def within(self, metric: str) -> bool:
        """Whether the mean made again lies in the interval of the one that was served."""
        served = self.served[metric]
        return served.low <= self.again[metric].mean <= served.high


def agreement(users: npt.NDArray[np.integer], served: Ranks, again: Ranks, seed: int) -> Agreement:
    """Compare ranks (Q,) and (Q,) of the moments of users (Q,); 95 % intervals over users."""
    resamples = UserResamples(users, seed)
    names = list(METRICS)
    before, after = (stacked([METRICS[name](ranks) for name in names]) for ranks in (served, again))
    one, other, both = (
        dict(zip(names, resamples.means(each), strict=True)) for each in (before, after, after - before)
    )
    if not len(served):
        return Agreement(0, 0, one, other, both, float("nan"), float("nan"))
    close = (np.abs(served - again) <= np.maximum(1, NEAR * served)) & ((served > 0) == (again > 0))
    equal = float(np.mean(served == again))
    return Agreement(len(served), resamples.n_users, one, other, both, equal, float(np.mean(close)))


def over_first(users: npt.NDArray[np.integer], first: Ranks, other: Ranks, seed: int) -> dict[str, Interval]:
    """What one arm has over another at the same moments (Q,), by metric; 95 % intervals over users."""
    resamples = UserResamples(users, seed)
    values = stacked([measure(other) - measure(first) for measure in METRICS.values()])
    return dict(zip(METRICS, resamples.means(values), strict=True))
