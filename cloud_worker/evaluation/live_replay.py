"""What the live index would have said at moments of the past, the same for a moment whatever others are asked about.

Training asks in batches of moments, so how far its index is behind depends on which moments were drawn. That is good
enough to learn from; what is judged must not depend on it. So here the index moves on by a fixed number of events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from cloud_worker.live.index import LiveIndex, LiveOptions
from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.live import KEPT, SparseScores, stream

EVERY: Final = 64
"""Events by which the index moves on: it is behind by less than so many, and by the user's own none."""


def replay(
    histories: Histories,
    users: Ints,
    positions: Ints,
    options: LiveOptions,
    *,
    exclude_seen: bool,
    on_done: Callable[[int, int], None] = lambda _done, _total: None,
) -> SparseScores:
    """Scores for users (Q,) when their first positions (Q,) interactions are known.

    Parameters
    ----------
    exclude_seen
        Leave out what the user took.
    """
    keys, items, times = stream(histories)
    index = LiveIndex(histories.n_items, options)
    known = histories.order[histories.starts[users] + positions - 1]
    kept = min(KEPT, histories.n_items)
    found = SparseScores(np.zeros((len(users), kept), np.int32), np.zeros((len(users), kept), np.float32))
    by_time = np.argsort(known, kind="stable")
    edges = np.flatnonzero(np.diff((known[by_time] + 1) // EVERY)) + 1
    at = done = 0
    for rows in np.split(by_time, edges) if len(by_time) else ():
        upto = (int(known[rows[0]]) + 1) // EVERY * EVERY
        index.observe(keys[at:upto], items[at:upto], times[at:upto])
        at = upto
        taken = [histories.of(int(u), int(p)) for u, p in zip(users[rows], positions[rows], strict=True)]
        scores = index.scores(taken, users[rows].tolist(), times[known[rows]])
        if exclude_seen:
            for row, items_taken in enumerate(taken):
                scores[row, items_taken] = 0.0
        top = np.argpartition(-scores, kept - 1, axis=1)[:, :kept]
        found.items[rows] = top
        found.values[rows] = np.take_along_axis(scores, top, axis=1)
        done += len(rows)
        on_done(done, len(by_time))
    return found
