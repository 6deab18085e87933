"""The tables of `trends.v1` that a worker has, and which of them an event is served with.

A table may be used from its as_of on: it counts what happened before, and of that it may know what a device that is
behind has still to take. So an event is served with the newest table whose as_of is not after it. Where the devices
are far behind the cloud, as in a quick replay, tables wait here for their time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from streams.neighbours import NeighbourTable

Ints = npt.NDArray[np.intp]

AHEAD: Final = 4
"""Tables that may wait for their time: some megabytes each."""
HELD: Final = AHEAD + 2
"""Tables that are kept: besides those, the one in use, and the one before it for partitions that are behind."""


class Share(NamedTuple):
    """Rows that are served with the same table."""

    table: NeighbourTable | None
    rows: Ints | None
    """None: all."""


class TrendsBoard:
    """Holds tables between the thread that reads them and the loop that serves.

    The last `HELD` that were offered are kept, whatever they are as of: so no single event, dated far ahead, makes it
    let go of what the others are served with.
    """

    def __init__(self) -> None:
        self._offered: tuple[NeighbourTable, ...] = ()
        """In the order in which they came."""
        self._reached_ms = -1
        """Oldest event time of the last wave that was served."""
        self.as_of_ms = -1
        """Of the newest table that the last wave was served with; -1 without one."""

    @property
    def room(self) -> bool:
        """Whether another table may be offered: few are waiting for their time."""
        return sum(table.as_of_ms > self._reached_ms for table in self._offered) < AHEAD

    def offer(self, table: NeighbourTable) -> None:
        """Take a table; one of the same as_of is replaced. Only one thread may offer."""
        others = [each for each in self._offered if each.as_of_ms != table.as_of_ms]
        self._offered = (*others, table)[-HELD:]

    def shares(self, times_ms: npt.NDArray[np.int64]) -> Sequence[Share]:
        """Say which table each of R events, one at least, is served with."""
        newest, oldest = int(times_ms.max()), int(times_ms.min())
        self._reached_ms = oldest
        # The tuple is replaced by another thread, and never changed: it is looked at once.
        usable = sorted((table for table in self._offered if table.as_of_ms <= newest), key=lambda each: each.as_of_ms)
        self.as_of_ms = usable[-1].as_of_ms if usable else -1
        if not usable:
            return [Share(None, None)]
        if usable[-1].as_of_ms <= oldest:
            return [Share(usable[-1], None)]
        which = np.searchsorted([table.as_of_ms for table in usable], times_ms, side="right")
        return [Share(usable[at - 1] if at else None, np.flatnonzero(which == at)) for at in np.unique(which).tolist()]
