"""What the broadcast `trends.v1` is worth: which items people took lately near which others, the same for everybody.

A fresh embedding brings two things: what its user did, which the device knows itself, and what others did, which it
does not. The second need not come user by user: every so many hours of event time the cloud sends all devices a table
of each item's nearest others, and a device adds what it says of its user's last items to the scores that it serves by
(`streams.neighbours` has the formula). Here the tables are made from the dataset, by the function that the cloud
makes them with: of each user the last interactions that the live index would keep, and nothing of a table's own moment
or later. The first one is as of the day when the test period begins, so a bundle could carry it; what later ones add to
it is what others did since.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cloud_worker.evaluation.bootstrap import Interval, stacked
from cloud_worker.evaluation.choosing import chosen
from cloud_worker.evaluation.collaborative import RATIOS
from cloud_worker.evaluation.staleness import CALIBRATED, FRESH, SRM, Column, repeated
from cloud_worker.evaluation.test_period import TestPeriod
from cloud_worker.live.neighbour_counts import neighbour_table
from cloud_worker.training import calibrator, evaluate
from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.evaluate import Added, Catalogue, Moments
from cloud_worker.training.metrics import Ranks
from streams.experiment.ranking_metrics import ndcg_at
from streams.neighbours import NEAR, Int32s, NeighbourTable

Floats = npt.NDArray[np.float32]
OnDone = Callable[[int, int], None]

HOUR_MS: Final = 3_600_000

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


@dataclass(frozen=True)
class Broadcast:
    """What devices were sent by Q moments.

    Attributes
    ----------
    begin_ms
        The bundle's day.
    tables
        By ``as_of_ms``: that of the bundle's day, and those below.
    as_of_ms
        (Q,) of the newest table at each moment.
    """

    begin_ms: int
    tables: Mapping[int, NeighbourTable]
    as_of_ms: Ints

    @property
    def table_bytes(self) -> int:
        """Of one table: all have one size."""
        table = self.tables[self.begin_ms]
        return table.items.nbytes + table.weights.nbytes


def broadcast(
    moments: Moments,
    *,
    begin_ms: int,
    every_hours: float,
    ring: int,
    kept: int,
    on_done: OnDone = lambda _done, _total: None,
) -> Broadcast:
    """Make the tables that devices would have had at moments.

    Parameters
    ----------
    begin_ms
        The bundle's day, the first table's ``as_of_ms``; the others follow every so many hours. No moment lies before.
    ring, kept
        See `tables_at`.
    """
    histories, every_ms = moments.histories, round(every_hours * HOUR_MS)
    times = histories.times_ms[histories.starts[moments.users] + moments.positions]
    as_of_ms = begin_ms + (times - begin_ms) // every_ms * every_ms
    tables = tables_at(histories, np.append(as_of_ms, begin_ms), ring=ring, kept=kept, on_done=on_done)
    return Broadcast(begin_ms, tables, as_of_ms)


def tables_at(
    histories: Histories,
    as_of_ms: Ints,
    *,
    ring: int,
    kept: int,
    on_done: OnDone = lambda _done, _total: None,
) -> dict[int, NeighbourTable]:
    """Make the tables as of event times, each once.

    Parameters
    ----------
    histories
        Everybody's; what happened at a table's moment or later is not looked at for it.
    ring
        L, interactions of a user that the live index keeps: of each the last ones count. How many users it keeps, and
        how many interactions the cloud makes a table of, is not looked at.
    kept
        K, neighbours of an item.
    """
    owners, places = histories.owners, histories.places
    every, found = np.unique(as_of_ms).tolist(), {}
    for nth, each in enumerate(every):
        on_done(nth, len(every))
        before = histories.times_ms < each
        known = np.bincount(owners[before], minlength=histories.n_users)
        rows = before & (places >= known[owners] - ring)
        lengths = np.minimum(known, ring)
        found[each] = neighbour_table(lengths, histories.items[rows], histories.n_items, as_of_ms=each, kept=kept)
    on_done(len(every), len(every))
    return found


def added_by(tables: Mapping[int, NeighbourTable], moments: Moments, as_of_ms: Ints, weight: float) -> Added:
    """β z(τ) at moments.

    Parameters
    ----------
    as_of_ms
        (Q,) which of the tables each moment has; -1: none, and nothing is added.
    weight
        β.
    """
    last = _last_items(moments)

    def added(rows: slice) -> Floats:
        had, asked = as_of_ms[rows], last[rows]
        found = np.zeros((len(asked), moments.histories.n_items), np.float32)
        for each in np.unique(had[had >= 0]).tolist():
            at = had == each
            found[at] = np.float32(weight) * tables[each].standardised(asked[at])
        return found

    return added


def _last_items(moments: Moments) -> Int32s:
    """(Q, NEAR) what users took last, newest first; -1 behind."""
    back = moments.positions[:, None] - 1 - np.arange(NEAR)
    places = np.maximum(moments.histories.starts[moments.users][:, None] + back, 0)
    return np.where(back >= 0, moments.histories.items[places], -1).astype(np.int32)


def columns(
    period: TestPeriod, sent: Broadcast, gaps: Sequence[int], *, weight: float, seed: int, on_done: OnDone
) -> list[Column]:
    """Rank every method of `METHODS` at every gap; all columns have all moments.

    Parameters
    ----------
    period
        Loaded for these gaps, with ``nearest``.
    sent
        For the period's moments.
    weight
        β.
    """
    bench = period.bench
    moments = bench.moments(period.moments)
    fresh_alpha = period.alpha(np.zeros(len(moments)))
    independent = _by_addition(SRM, bench.catalogue, moments, None, fresh_alpha, sent, weight)
    independent |= _by_addition(
        FRESH, bench.catalogue, moments, bench.embeddings[period.moments], fresh_alpha, sent, weight
    )
    found = []
    for nth, gap in enumerate(gaps):
        on_done(nth, len(gaps))
        _, pairs = period.pairs(gap, nearest=True)
        data = bench.data(pairs)
        alpha = period.alpha(period.staleness(data.phi))
        repaired = calibrator.apply(period.repair, data)
        ranks = independent | _by_addition(CALIBRATED, bench.catalogue, moments, repaired, alpha, sent, weight)
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
    asking = period.worth(period.bench.data(pairs).phi)
    shares = [chosen(asking, ratio) for ratio in RATIOS]
    found = {}
    for added in ADDED:
        repaired, fresh = (ndcg_at(column.ranks[f"{served}{added}"]) for served in (CALIBRATED, FRESH))
        served = stacked([repaired + share * (fresh - repaired) for share in shares])
        found[added] = dict(zip(RATIOS, column.resamples.means(served), strict=True))
    return found


def _by_addition(
    served: str,
    catalogue: Catalogue,
    moments: Moments,
    embeddings: Floats | None,
    alpha: npt.NDArray[np.floating],
    sent: Broadcast,
    weight: float,
) -> dict[str, Ranks]:
    """Ranks of what is served, alone and with either addition."""
    of_the_day = np.full_like(sent.as_of_ms, sent.begin_ms)
    additions = (None, *(added_by(sent.tables, moments, each, weight) for each in (of_the_day, sent.as_of_ms)))
    return {
        f"{served}{name}": evaluate.ranks(catalogue, moments, embeddings, alpha, added)
        for name, added in zip(ADDED, additions, strict=True)
    }
