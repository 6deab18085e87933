"""One live index, fed by one thread and asked by another."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cloud_worker.live.index import Floats, Ints, LiveIndex


class SharedIndex:
    """A live index behind a lock.

    One thread writes (`observe`, `replace`) and it alone may look at `index` without the lock; any thread asks. A
    write takes some milliseconds for a thousand interactions, a question about one for each user.
    """

    def __init__(self, index: LiveIndex) -> None:
        self.index = index
        self._lock = threading.Lock()

    @property
    def users(self) -> int:
        """Users that the index knows."""
        return len(self.index)

    @property
    def items(self) -> int:
        """Items that somebody took."""
        return self.index.items_taken

    def observe(self, keys: npt.NDArray[np.uint64], items: npt.NDArray[np.integer], times_ms: Ints) -> None:
        """Take in interactions (`LiveIndex.observe`)."""
        with self._lock:
            self.index.observe(keys, items, times_ms)

    def replace(self, index: LiveIndex) -> None:
        """Go on with another index."""
        with self._lock:
            self.index = index

    def scores(self, histories: Sequence[npt.NDArray[np.integer]], keys: Sequence[int], now_ms: Ints) -> Floats:
        """(B, N) scores (`LiveIndex.scores`)."""
        with self._lock:
            return self.index.scores(histories, keys, now_ms)

    def taken_before(self, key: int, time_ms: int) -> Ints:
        """What a user took before an event time (`LiveIndex.taken_before`)."""
        with self._lock:
            return self.index.taken_before(key, time_ms)
