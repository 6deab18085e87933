"""Which moments of which users the text encoder is asked about, and the pairs (stale, fresh) among them.

A snapshot is a user and a position p: the profile after p interactions. Encoding is what training costs most, so the
snapshots lie in chains along a user's history, where every two of them make a pair with another gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.options import SnapshotOptions

TRAIN_STEPS: Final = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24])
CHAIN: Final = 6
VALID_PATTERN: Final = (0, 1, 5)
"""Of each sixteen positions: a pair of every kind of gap, and one of exactly 16 for every snapshot."""


@dataclass(frozen=True)
class Snapshots:
    """Moments that were encoded.

    Attributes
    ----------
    users, positions
        (S,) by user, then by position.
    valid
        (S,) what comes next lies in the validation period.
    """

    users: Ints
    positions: Ints
    valid: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class Pairs:
    """A stale and a fresh snapshot of one user: (P,) indexes of snapshots; the gap is the distance of the positions."""

    stale: Ints
    fresh: Ints

    def __len__(self) -> int:
        return len(self.stale)

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Pairs:
        """Some of them."""
        return Pairs(self.stale[rows], self.fresh[rows])


def choose(histories: Histories, options: SnapshotOptions, scale: float, generator: np.random.Generator) -> Snapshots:
    """Draw users at random and lay chains along their histories, until the numbers of `options` are reached.

    Parameters
    ----------
    scale
        Share of those numbers that may be spent, in (0, 1].
    """
    chosen: set[tuple[int, int, bool]] = set()
    budget = max(CHAIN, int(options.train * scale))
    usable = np.flatnonzero(histories.trained >= 2)
    while usable.size and sum(1 for _ in chosen) < budget:
        before = len(chosen)
        for user in generator.permutation(usable):
            position = int(generator.integers(1, histories.trained[user]))
            for _ in range(CHAIN):
                if position >= histories.trained[user]:
                    break
                chosen.add((int(user), position, False))
                position += int(generator.choice(TRAIN_STEPS))
            if len(chosen) >= budget:
                break
        if len(chosen) == before:
            break
    wanted = max(len(VALID_PATTERN), int(options.valid * scale)) + len(chosen)
    lengths = histories.lengths
    for user in generator.permutation(np.flatnonzero(lengths > np.maximum(histories.trained, 1))):
        first, end = max(int(histories.trained[user]), 1), int(lengths[user])
        first = int(generator.integers(first, max(first, end - options.valid_stretch) + 1))
        for position in range(first, min(end, first + options.valid_stretch)):
            if (position - first) % 16 in VALID_PATTERN:
                chosen.add((int(user), position, True))
        if len(chosen) >= wanted:
            break
    rows = sorted(chosen)
    users, positions, valid = (np.array(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    return Snapshots(np.asarray(users, np.int64), np.asarray(positions, np.int64), np.asarray(valid, np.bool_))


def pairs_of(snapshots: Snapshots, largest_gap: int, *, valid: bool) -> Pairs:
    """All pairs with 1 <= gap <= `largest_gap` whose fresh snapshot lies in the period that `valid` names."""
    stale: list[int] = []
    fresh: list[int] = []
    for index in np.flatnonzero(snapshots.valid == valid):
        before = index - 1
        while before >= 0 and snapshots.users[before] == snapshots.users[index]:
            gap = snapshots.positions[index] - snapshots.positions[before]
            if gap > largest_gap:
                break
            if snapshots.valid[before] == valid:
                stale.append(int(before))
                fresh.append(int(index))
            before -= 1
    return Pairs(np.array(stale, np.int64), np.array(fresh, np.int64))
