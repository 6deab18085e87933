"""The neighbour tables that devices would have had at the moments of a test period: as trends.v1 sends them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from cloud_worker.evaluation.test_period import alpha_of, trends_weight_of
from cloud_worker.training import evaluate
from cloud_worker.training.data import Ints
from cloud_worker.training.evaluate import Catalogue, Moments
from cloud_worker.training.metrics import Ranks
from cloud_worker.training.trends import HOUR_MS, OnDone, added_by, newest_before, tables_at
from streams.bundle import Bundle
from streams.neighbours import NeighbourTable

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sent:
    """What devices had been sent by Q moments.

    Attributes
    ----------
    tables
        By ``as_of_ms``.
    as_of_ms
        (Q,) of the table that each moment had; -1: none.
    """

    tables: Mapping[int, NeighbourTable]
    as_of_ms: Ints

    def take(self, rows: Ints) -> Self:
        """What had been sent by some of the moments."""
        return replace(self, as_of_ms=self.as_of_ms[rows])


@dataclass(frozen=True)
class Broadcast(Sent):
    """The same of tables that are sent every so often from the bundle's day on.

    Attributes
    ----------
    begin_ms
        The bundle's day, when the first table was made.
    """

    begin_ms: int

    def of_the_day(self) -> Sent:
        """The same, had nothing come after the table of the bundle's day."""
        return replace(self, as_of_ms=np.full_like(self.as_of_ms, self.begin_ms))

    @property
    def kept(self) -> int:
        """K, neighbours of an item: all tables have as many."""
        return int(self.tables[self.begin_ms].items.shape[1])

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
        See `cloud_worker.training.trends.tables_at`.
    """
    as_of_ms = newest_before(moments, begin_ms, round(every_hours * HOUR_MS))
    tables = tables_at(moments.histories, np.append(as_of_ms, begin_ms), ring=ring, kept=kept, on_done=on_done)
    return Broadcast(tables, as_of_ms, begin_ms)


def served_ranks(
    bundle: Bundle,
    catalogue: Catalogue,
    moments: Moments,
    embeddings: Floats | None,
    staleness: npt.NDArray[np.floating],
    sent: Sent | None,
) -> Ranks:
    """(Q,) ranks of what a device serves, both models fused and the table it had added, by the bundle's α and β.

    Parameters
    ----------
    embeddings
        (Q, d); None: it has none.
    staleness
        (Q,) s; of an embedding that the cloud sends this moment 0, without one 1.
    sent
        By these moments; None: nothing, and nothing is added.
    """
    added = None
    if sent is not None:
        added = added_by(sent.tables, moments, sent.as_of_ms, trends_weight_of(bundle, staleness))
    return evaluate.ranks(catalogue, moments, embeddings, alpha_of(bundle, staleness), added)
