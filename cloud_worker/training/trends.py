"""The neighbour tables of trends.v1 in training and evaluation, and β, chosen on the validation period.

The tables are made from a dataset, by the function that the cloud makes them with: of each user the last interactions
that the live index would keep, and nothing of a table's own moment or later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from cloud_worker.live.neighbour_counts import neighbour_table, neighbours_kept
from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.evaluate import Added, Catalogue, Moments, ranks_for_weights
from streams.neighbours import NEAR, Int32s, NeighbourTable

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.floating]
OnDone = Callable[[int, int], None]

HOUR_MS: Final = 3_600_000
WEIGHTS: Final = tuple(round(0.1 * step, 1) for step in range(16))
"""β that are tried: 0 to 1.5."""
EVERY_HOURS: Final = 24.0
"""From one table to the next, as the cloud sends them by default: older ones say less than devices will be told."""
MOST_TABLES: Final = 100
"""Tables that β is chosen with: in a longer validation period they are further apart, and each costs four megabytes."""


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


def newest_before(moments: Moments, begin_ms: int, every_ms: int) -> Ints:
    """(Q,) as_of of the newest table at each moment, with tables at `begin_ms` and every so often after it."""
    histories = moments.histories
    times = histories.times_ms[histories.starts[moments.users] + moments.positions]
    return np.asarray(begin_ms + (times - begin_ms) // every_ms * every_ms, np.int64)


def added_by(tables: Mapping[int, NeighbourTable], moments: Moments, as_of_ms: Ints, weights: Doubles) -> Added:
    """β z(t) at moments.

    Parameters
    ----------
    as_of_ms
        (Q,) which of the tables each moment has; -1: none, and nothing is added.
    weights
        (Q,) β.
    """
    last = _last_items(moments)

    def added(rows: slice) -> Floats:
        had, asked = as_of_ms[rows], last[rows]
        found = np.zeros((len(asked), moments.histories.n_items), np.float32)
        for each in np.unique(had[had >= 0]).tolist():
            at = had == each
            found[at] = tables[each].scaled(asked[at])
        found *= weights[rows].astype(np.float32)[:, None]
        return found

    return added


def _last_items(moments: Moments) -> Int32s:
    """(Q, NEAR) what users took last, newest first; -1 behind."""
    back = moments.positions[:, None] - 1 - np.arange(NEAR)
    places = np.maximum(moments.histories.starts[moments.users][:, None] + back, 0)
    return np.where(back >= 0, moments.histories.items[places], -1).astype(np.int32)


class Told:
    """What devices would have been told in the validation period.

    Parameters
    ----------
    begin_ms, end_ms
        The period.
    ring
        See `tables_at`.
    """

    def __init__(self, histories: Histories, begin_ms: int, end_ms: int, *, ring: int, on_done: OnDone) -> None:
        self._begin_ms = begin_ms
        self._every_ms = max(round(EVERY_HOURS * HOUR_MS), -(-(end_ms - begin_ms) // MOST_TABLES))
        every = np.arange(begin_ms, end_ms, self._every_ms)
        kept = neighbours_kept(histories.n_items)
        self._tables = tables_at(histories, every, ring=ring, kept=kept, on_done=on_done)

    def ranks(
        self,
        catalogue: Catalogue,
        moments: Moments,
        embeddings: Floats | None,
        alpha: float | Doubles,
        weights: Sequence[Doubles],
    ) -> npt.NDArray[np.int64]:
        """(len(weights), Q) ranks of the period's moments for each β (Q,)."""
        return ranks_for_weights(catalogue, moments, embeddings, alpha, self.said(moments), weights)

    def said(self, moments: Moments) -> Added:
        """z(t) at moments of the period, by the newest table that each of them had."""
        as_of_ms = newest_before(moments, self._begin_ms, self._every_ms)
        return added_by(self._tables, moments, as_of_ms, np.ones(len(moments)))
