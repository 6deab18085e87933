"""Histories: every user's interactions in order, and which of them each period may know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Histories:
    """Interactions grouped by user (compressed rows), oldest first, nothing at or after the test period.

    A position p of a user counts interactions: ``items[start + p]`` is what is taken when p interactions are known.

    Attributes
    ----------
    n_items
        N, the whole catalogue.
    starts
        (U + 1,) where each user's interactions begin.
    items, times_ms
        (E,) item indexes and event times.
    order
        (E,) the place of each interaction in the stream of all users' interactions.
    trained
        (U,) interactions of each user that lie in the training period; the others lie in the validation period.
    users
        (U,) the users' ids.
    """

    n_items: int
    starts: Ints
    items: Ints
    times_ms: Ints
    order: Ints
    trained: Ints
    users: npt.NDArray[np.str_]

    @property
    def n_users(self) -> int:
        """U."""
        return len(self.starts) - 1

    @property
    def lengths(self) -> Ints:
        """(U,) interactions of each user, both periods."""
        return np.diff(self.starts)

    @property
    def owners(self) -> Ints:
        """(E,) whose each interaction is."""
        return np.repeat(np.arange(self.n_users), self.lengths)

    @property
    def places(self) -> Ints:
        """(E,) position of each interaction in its user's history."""
        return np.arange(len(self.items)) - np.repeat(self.starts[:-1], self.lengths)

    def of(self, user: int, until: int | None = None) -> Ints:
        """Item indexes of a user's first `until` interactions; None: all."""
        start, end = self.starts[user], self.starts[user + 1]
        return self.items[start : end if until is None else start + until]

    def draw_valid(self, most: int, generator: np.random.Generator) -> tuple[Ints, Ints]:
        """Users and positions of some moments of the validation period, fewer than `most` where there are no more."""
        users, positions = self.owners, self.places
        rows = np.flatnonzero((positions >= self.trained[users]) & (positions > 0))
        rows = np.sort(generator.choice(rows, min(most, len(rows)), replace=False)) if len(rows) else rows
        return users[rows], positions[rows]

    def popularity(self, *, valid: bool) -> Ints:
        """(N,) interactions of each item in the training period, with ``valid`` in both."""
        counted = self.items if valid else self.items[self.places < self.trained[self.owners]]
        return np.bincount(counted, minlength=self.n_items)


def make_histories(
    users: npt.NDArray[Any], items: Ints, times_ms: Ints, n_items: int, valid_start_ms: int
) -> Histories:
    """Group interactions by user.

    Parameters
    ----------
    users, items, times_ms
        (E,) in event-time order, all before the test period; equal times keep this order.
    n_items
        N.
    valid_start_ms
        First moment of the validation period.
    """
    ids, user = np.unique(users, return_inverse=True)
    order = np.argsort(user, kind="stable")
    counts = np.bincount(user)
    trained = np.bincount(user, weights=(times_ms < valid_start_ms).astype(np.float64)).astype(np.int64)
    return Histories(
        n_items=n_items,
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        items=items[order].astype(np.int64),
        times_ms=times_ms[order].astype(np.int64),
        order=order.astype(np.int64),
        trained=trained,
        users=ids,
    )


def histories_of_events(events: pl.DataFrame, item_ids: Sequence[str], trained_until_ms: int) -> Histories:
    """Group a dataset's events by user; ``trained`` counts those before an event time.

    Parameters
    ----------
    item_ids
        (N,) the catalogue, in the order of its indexes.
    """
    index = {item: row for row, item in enumerate(item_ids)}
    items = np.array([index[item] for item in events["item_id"]], np.int64)
    times = events["event_time_ms"].to_numpy()
    return make_histories(events["device_id"].to_numpy(), items, times, len(index), trained_until_ms)
