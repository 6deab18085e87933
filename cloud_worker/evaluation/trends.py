"""What the broadcast `trends.v1` is worth: which items people took lately near which others, the same for everybody.

A fresh embedding brings two things: what its user did, which the device knows itself, and what others did, which it
does not. The second need not come user by user: every so many hours of event time the cloud sends all devices a table
of each item's nearest others, and a device adds what it says of its user's last items to the scores that it serves by
(`streams.neighbours` has the formula). The first table is as of the day when the test period begins, so a bundle could
carry it; what later ones add to it is what others did since.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from cloud_worker.evaluation.bootstrap import Interval, stacked
from cloud_worker.evaluation.broadcast import Broadcast, served_ranks
from cloud_worker.evaluation.choosing import chosen
from cloud_worker.evaluation.collaborative import RATIOS
from cloud_worker.evaluation.staleness import CALIBRATED, FRESH, SRM, Column, repeated
from cloud_worker.evaluation.test_period import TestPeriod
from cloud_worker.training import calibrator
from cloud_worker.training.evaluate import Moments
from cloud_worker.training.metrics import Ranks
from cloud_worker.training.trends import OnDone
from streams.experiment.ranking_metrics import ndcg_at

Floats = npt.NDArray[np.float32]

STATIC, TRENDS = "neighbours of the bundle's day", "trends"
ADDED: Final = ("", f" + {STATIC}", f" + {TRENDS}")
"""The ends of the names of `METHODS`."""
METHODS: Final = tuple(f"{served}{added}" for served in (SRM, CALIBRATED, FRESH) for added in ADDED)
COMPARED: Final = (
    (f"{SRM} + {STATIC}", SRM),
    (FRESH, f"{SRM} + {STATIC}"),
    (f"{FRESH} + {STATIC}", f"{SRM} + {STATIC}"),
    (f"{CALIBRATED} + {TRENDS}", CALIBRATED),
    (f"{CALIBRATED} + {TRENDS}", f"{CALIBRATED} + {STATIC}"),
    (f"{CALIBRATED} + {TRENDS}", FRESH),
    (f"{FRESH} + {TRENDS}", f"{SRM} + {TRENDS}"),
    (f"{FRESH} + {TRENDS}", f"{CALIBRATED} + {TRENDS}"),
)
"""Methods whose paired differences say what each part is worth beside the others."""


def columns(period: TestPeriod, sent: Broadcast, gaps: Sequence[int], *, seed: int, on_done: OnDone) -> list[Column]:
    """Rank every method of `METHODS` at every gap; all columns have all moments.

    Parameters
    ----------
    period
        Loaded for these gaps, with ``nearest``.
    sent
        For the period's moments.
    """
    bench = period.bench
    moments = bench.moments(period.moments)
    none, fresh = np.ones(len(moments)), np.zeros(len(moments))
    independent = _by_addition(SRM, period, moments, None, none, sent)
    independent |= _by_addition(FRESH, period, moments, bench.embeddings[period.moments], fresh, sent)
    found = []
    for nth, gap in enumerate(gaps):
        on_done(nth, len(gaps))
        _, pairs = period.pairs(gap, nearest=True)
        data = bench.data(pairs)
        repaired = calibrator.apply(period.repair, data)
        ranks = independent | _by_addition(CALIBRATED, period, moments, repaired, period.staleness(data), sent)
        found.append(Column(gap, moments.users, repeated(moments), {name: ranks[name] for name in METHODS}, seed))
    on_done(len(gaps), len(gaps))
    return found


def refreshed(period: TestPeriod, column: Column) -> dict[str, dict[float, Interval]]:
    """NDCG@10 where a share of the moments has a fresh embedding, handed out by w.

    Returns
    -------
    dict
        By what is added to the scores, of `ADDED`, then by share, of `RATIOS`.
    """
    _, pairs = period.pairs(column.gap, nearest=True)
    asking = period.worth(period.bench.data(pairs))
    shares = [chosen(asking, ratio) for ratio in RATIOS]
    found = {}
    for added in ADDED:
        repaired, fresh = (ndcg_at(column.ranks[f"{served}{added}"]) for served in (CALIBRATED, FRESH))
        served = stacked([repaired + share * (fresh - repaired) for share in shares])
        found[added] = dict(zip(RATIOS, column.resamples.means(served), strict=True))
    return found


def _by_addition(
    served: str,
    period: TestPeriod,
    moments: Moments,
    embeddings: Floats | None,
    staleness: npt.NDArray[np.floating],
    sent: Broadcast,
) -> dict[str, Ranks]:
    """Ranks of what is served at staleness s (Q,), 1 without embeddings, alone and with either addition."""
    ranks = partial(served_ranks, period.bundle, period.bench.catalogue, moments, embeddings, staleness)
    additions = (None, sent.of_the_day(), sent)
    return {f"{served}{name}": ranks(each) for name, each in zip(ADDED, additions, strict=True)}
