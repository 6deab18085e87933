"""The tables of `trends.v1` that a worker has, and which of them an event is served with.

A table may be used from its as_of on: it counts what happened before, and of that it may know what a device that is
behind has still to take. So an event is served with the newest table whose as_of is not after it. Where the devices
are far behind the cloud, as in a quick replay, tables wait here for their time.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from streams.neighbours import NeighbourTable

Ints = npt.NDArray[np.intp]

AHEAD: Final = 4
"""Tables that may wait for their time: some megabytes each."""


class Share(NamedTuple):
    """Rows that are served with the same table."""

    table: NeighbourTable | None
    rows: Ints | None
    """None: all."""


class TrendsBoard:
    """Holds tables between the thread that reads them and the loop that serves.

    Tables that nothing will be served with any more are let go: all that are older than the one before the newest in
    use. That one is kept for partitions that are a little behind.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tables: tuple[NeighbourTable, ...] = ()
        """Oldest first."""
        self._served_ms = -1
        """Newest event time that was served."""

    @property
    def room(self) -> bool:
        """Whether another table may be offered: few are waiting for their time."""
        return sum(table.as_of_ms > self._served_ms for table in self._tables) < AHEAD

    @property
    def as_of_ms(self) -> int:
        """Of the newest table in use; -1 without one."""
        return max((table.as_of_ms for table in self._tables if table.as_of_ms <= self._served_ms), default=-1)

    def offer(self, table: NeighbourTable) -> None:
        """Take a table; one of the same as_of is replaced."""
        with self._lock:
            others = [each for each in self._tables if each.as_of_ms != table.as_of_ms]
            self._tables = tuple(sorted([*others, table], key=lambda each: each.as_of_ms))

    def shares(self, times_ms: npt.NDArray[np.int64]) -> Sequence[Share]:
        """Say which table each of R events, one at least, is served with."""
        newest, oldest = int(times_ms.max()), int(times_ms.min())
        if newest > self._served_ms:
            self._served_ms = newest
            self._let_go()
        tables = self._tables  # another thread replaces it, and never changes it
        usable = [table for table in tables if table.as_of_ms <= newest]
        if not usable:
            return [Share(None, None)]
        if usable[-1].as_of_ms <= oldest:
            return [Share(usable[-1], None)]
        which = np.searchsorted([table.as_of_ms for table in usable], times_ms, side="right")
        return [Share(usable[at - 1] if at else None, np.flatnonzero(which == at)) for at in np.unique(which).tolist()]

    def _let_go(self) -> None:
        with self._lock:
            used = sum(table.as_of_ms <= self._served_ms for table in self._tables)
            if used > 2:
                self._tables = self._tables[used - 2 :]
