"""Which moments of which users the cloud model is asked about, and the pairs (stale, fresh) among them.

A snapshot is a user and a position p: what the cloud would send after p interactions. Snapshots lie in chains along a
user's history, where every two of them make a pair with another gap. Encoding a profile is what training costs most,
so only some users' are; the others' are represented by a stand-in (`cloud_worker.training.text.stand_ins`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.options import MomentOptions

TRAIN_STEPS: Final = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24])
CHAIN: Final = 6
BEFORE: Final = (4, 16, 48)
"""Positions before a stretch of the validation period, at which a stale embedding may have been made."""


@dataclass(frozen=True)
class Snapshots:
    """Moments at which the cloud's answer is known.

    Attributes
    ----------
    users, positions
        (S,) by user, then by position.
    valid
        (S,) what comes next lies in the validation period.
    encoded
        (S,) the profile text is really encoded.
    """

    users: Ints
    positions: Ints
    valid: npt.NDArray[np.bool_]
    encoded: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, users: Ints, positions: Ints) -> Snapshots:
        """Moments of users and positions (Q,), each once; all count as encoded and as of the later period."""
        wide = int(positions.max(initial=0)) + 1
        keys = np.unique(users * wide + positions)
        every = np.ones(len(keys), np.bool_)
        return cls(keys // wide, keys % wide, every, every)

    def __len__(self) -> int:
        return len(self.users)

    def find(self, users: Ints, positions: Ints) -> Ints:
        """(Q,) rows of users and positions (Q,), which must be there."""
        wide = int(self.positions.max(initial=0)) + 1
        return np.searchsorted(self.users * wide + self.positions, users * wide + positions)

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Snapshots:
        """Some of them."""
        return Snapshots(self.users[rows], self.positions[rows], self.valid[rows], self.encoded[rows])


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


def choose(
    histories: Histories, options: MomentOptions, characters_each: float, generator: np.random.Generator
) -> Snapshots:
    """Draw users at random and lay chains along their histories, until the numbers of `options` are reached.

    Those of the training period end in the later half of it, where the live index knows as much as it will in service.

    Parameters
    ----------
    characters_each
        Mean length of a profile text: as many are encoded as ``options.characters`` allow.
    """
    middle_ms = int(np.median(histories.times_ms))
    early = np.zeros(histories.n_users, np.int64)
    np.add.at(early, histories.owners, histories.times_ms < middle_ms)
    scale = min(1.0, options.characters / (characters_each * (options.encoded_train + options.encoded_valid)))
    valid = _stretches(histories, options.valid, options.valid_stretch, generator)
    train = _chains(histories, np.minimum(early, histories.trained - 1), options.train, generator)
    encoded: dict[tuple[int, int], bool] = {}
    for drawn, most in ((train, options.encoded_train), (valid, options.encoded_valid)):
        for index, row in enumerate(drawn):
            encoded[row] = encoded.get(row, False) or index < scale * most
    rows = sorted(encoded)
    users, positions = np.array(rows, np.int64).reshape(-1, 2).T
    later = positions >= histories.trained[users]
    return Snapshots(users, positions, later, np.array([encoded[row] for row in rows], np.bool_))


def _chains(histories: Histories, earliest: Ints, budget: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    """(user, position) in the training period, chain by chain in random order; a few users may have several chains.

    A chain ends at a position from `earliest` on and goes back from there: also of short histories it makes pairs.
    """
    usable = np.flatnonzero(histories.trained >= 2)
    chosen: dict[tuple[int, int], None] = {}
    while usable.size and len(chosen) < budget:
        before = len(chosen)
        for user in generator.permutation(usable):
            position = int(generator.integers(max(1, earliest[user]), histories.trained[user]))
            chosen[int(user), position] = None
            for step in generator.choice(TRAIN_STEPS, CHAIN - 1):
                position = max(1, position - int(step))
                chosen[int(user), position] = None
            if len(chosen) >= budget:
                break
        if len(chosen) == before:
            break
    return list(chosen)


def _stretches(
    histories: Histories, budget: int, stretch: int, generator: np.random.Generator
) -> list[tuple[int, int]]:
    """(user, position) in the validation period, user by user in random order: every position of a stretch.

    A choice among the positions would not do: the first one of a visit is harder than those that follow it. With each
    stretch come positions `BEFORE` it, which mostly lie in the training period: few histories are long enough in the
    validation period alone for the gaps that devices will have. They do not count towards the budget.
    """
    chosen: list[tuple[int, int]] = []
    drawn = 0
    lengths = histories.lengths
    for user in generator.permutation(np.flatnonzero(lengths > np.maximum(histories.trained, 1))):
        first, end = max(int(histories.trained[user]), 1), int(lengths[user])
        first = int(generator.integers(first, max(first, end - stretch) + 1))
        end = min(end, first + stretch)
        before = [first - back for back in reversed(BEFORE) if back < first]
        chosen += [(int(user), position) for position in (*before, *range(first, end))]
        drawn += end - first
        if drawn >= budget:
            break
    return chosen


def pairs_of(snapshots: Snapshots, largest_gap: int, *, valid: bool) -> Pairs:
    """All pairs with 1 <= gap <= `largest_gap` whose fresh snapshot lies in the period that `valid` names.

    The stale one may lie in the training period all the same: then the networks have been trained on what came next,
    as those that are served have been on everything before the test period.
    """
    stale: list[int] = []
    fresh: list[int] = []
    for index in np.flatnonzero(snapshots.valid == valid):
        before = index - 1
        while before >= 0 and snapshots.users[before] == snapshots.users[index]:
            gap = snapshots.positions[index] - snapshots.positions[before]
            if gap > largest_gap:
                break
            stale.append(int(before))
            fresh.append(int(index))
            before -= 1
    return Pairs(np.array(stale, np.int64), np.array(fresh, np.int64))
