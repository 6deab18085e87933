"""The live index in training: what it would have said at moments of the past, and which formula suits a dataset.

Events are fed in their order and each moment is asked when the index knows what it knew then: everybody's
interactions up to the user's last one, nothing later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cloud_worker.live.index import LiveIndex, LiveOptions
from cloud_worker.training.data import Histories, Ints

Floats = npt.NDArray[np.float32]

KEPT: Final = 256
"""Scores kept of each moment: the rest would not move an embedding."""
_TELL_EVERY: Final = 64

CHOICES: Final = (
    LiveOptions(neighbours=100, decay=0.85, reach=5.0, backward=1.0, popularity_power=0.0),
    LiveOptions(neighbours=300, last=10, decay=0.8, reach=3.0, backward=0.2, popularity_power=0.3),
    LiveOptions(neighbours=300, last=10, decay=0.65, reach=2.0, backward=0.2, popularity_power=0.3),
    LiveOptions(
        neighbours=300, last=10, decay=0.65, reach=2.0, backward=0.2, popularity_power=0.3, half_life_days=60.0
    ),
    LiveOptions(neighbours=300, last=5, decay=0.4, reach=1.0, backward=0.0, popularity_power=0.2),
)
"""From co-occurrence among like-minded users to near transitions; the validation period chooses."""


@dataclass(frozen=True)
class SparseScores:
    """The largest scores of Q moments: (Q, K) item indexes and (Q, K) scores, 0 behind."""

    items: npt.NDArray[np.int32]
    values: Floats

    def dense(self, n_items: int) -> Floats:
        """(Q, N) scores, 0 where they were not kept."""
        whole = np.zeros((len(self.items), n_items), np.float32)
        np.put_along_axis(whole, self.items, self.values, axis=1)
        return whole

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_] | slice) -> SparseScores:
        """Some moments."""
        return SparseScores(self.items[rows], self.values[rows])


def stream(histories: Histories) -> tuple[npt.NDArray[np.uint64], Ints, Ints]:
    """(E,) users by index, items and times, in the order in which they happened."""
    in_order = np.argsort(histories.order)
    return histories.owners[in_order].astype(np.uint64), histories.items[in_order], histories.times_ms[in_order]


def scores_at(
    histories: Histories,
    users: Ints,
    positions: Ints,
    choices: Sequence[LiveOptions],
    *,
    exclude_seen: bool,
    on_done: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[SparseScores]:
    """For each choice, what the index says of users (Q,) when their first positions (Q,) interactions are known.

    Parameters
    ----------
    choices
        Formulas of equal sizes.
    exclude_seen
        Leave out what the user took.
    """
    keys, items, times = stream(histories)
    index = LiveIndex(histories.n_items, choices[0])
    known = histories.order[histories.starts[users] + positions - 1]
    kept = min(KEPT, histories.n_items)
    found = [
        SparseScores(np.zeros((len(users), kept), np.int32), np.zeros((len(users), kept), np.float32)) for _ in choices
    ]
    at = 0
    by_time = np.argsort(known, kind="stable")
    for done, row in enumerate(by_time, start=1):
        upto = int(known[row]) + 1
        index.observe(keys[at:upto], items[at:upto], times[at:upto])
        at = max(at, upto)
        taken = histories.of(int(users[row]), int(positions[row]))
        for options, sparse in zip(choices, found, strict=True):
            scores = index.asked_with(options).scores([taken], [int(users[row])], times[known[row], None])[0]
            if exclude_seen:
                scores[taken] = 0.0
            top = np.argpartition(-scores, kept - 1)[:kept]
            sparse.items[row] = top
            sparse.values[row] = scores[top]
        if done % _TELL_EVERY == 0 or done == len(by_time):
            on_done(done, len(by_time))
    return found
