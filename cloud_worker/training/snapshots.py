"""Which moments of which users the cloud model is asked about, and the pairs (stale, fresh) among them.

A snapshot is a user and a position p: what the cloud would send after p interactions. Those of the training period lie
in chains along a user's history, those of the validation period in stretches, and some earlier ones come with each
stretch; every two of a user make a pair. Encoding a profile is what training costs most, so only some users' are; the
others' are represented by a stand-in (`cloud_worker.training.text.stand_ins`).
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
    judged
        (S,) the same, and models are judged at what comes next; at the others they only make a stale embedding.
    encoded
        (S,) the profile text is really encoded.
    """

    users: Ints
    positions: Ints
    valid: npt.NDArray[np.bool_]
    judged: npt.NDArray[np.bool_]
    encoded: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, users: Ints, positions: Ints) -> Snapshots:
        """Moments of users and positions (Q,), each once; all count as encoded, and are judged."""
        wide = int(positions.max(initial=0)) + 1
        keys = np.unique(users * wide + positions)
        every = np.ones(len(keys), np.bool_)
        return cls(keys // wide, keys % wide, every, every, every)

    def __len__(self) -> int:
        return len(self.users)

    def find(self, users: Ints, positions: Ints) -> Ints:
        """(Q,) rows of users and positions (Q,), which must be there."""
        wide = int(self.positions.max(initial=0)) + 1
        return np.searchsorted(self.users * wide + self.positions, users * wide + positions)

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Snapshots:
        """Some of them."""
        flags = (each[rows] for each in (self.valid, self.judged, self.encoded))
        return Snapshots(self.users[rows], self.positions[rows], *flags)


@dataclass(frozen=True)
class Pairs:
    """A stale and a fresh snapshot of one user: (P,) indexes of snapshots; the gap is the distance of the positions."""

    stale: Ints
    fresh: Ints

    def __len__(self) -> int:
        return len(self.stale)

    def __add__(self, others: Pairs) -> Pairs:
        """These, then the others."""
        return Pairs(np.concatenate([self.stale, others.stale]), np.concatenate([self.fresh, others.fresh]))

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Pairs:
        """Some of them."""
        return Pairs(self.stale[rows], self.fresh[rows])


def choose(
    histories: Histories, options: MomentOptions, characters_each: float, generator: np.random.Generator
) -> Snapshots:
    """Draw users at random and lay stretches and chains along their histories, until there are as many as wanted.

    Chains end in the later half of the training period, where the live index knows as much as it will in service. What
    comes before a stretch is extra.

    Parameters
    ----------
    characters_each
        Mean length of a profile text: as many are encoded as ``options.characters`` allow.
    """
    middle_ms = int(np.median(histories.times_ms))
    early = np.zeros(histories.n_users, np.int64)
    np.add.at(early, histories.owners, histories.times_ms < middle_ms)
    scale = min(1.0, options.characters / (characters_each * (options.encoded_train + options.encoded_valid)))
    judged: set[tuple[int, int]] = set()
    encoded: dict[tuple[int, int], bool] = {}
    many = 0
    for user, before, stretch in _stretches(histories, options.valid, options.valid_stretch, generator):
        judged |= {(user, position) for position in stretch}
        encoded |= dict.fromkeys(((user, each) for each in (*before, *stretch)), many < scale * options.encoded_valid)
        many += len(stretch)
    chains = _chains(histories, np.minimum(early, histories.trained - 1), options.train, generator)
    for index, row in enumerate(chains):
        encoded[row] = encoded.get(row, False) or index < scale * options.encoded_train
    rows = sorted(encoded)
    users, positions = np.array(rows, np.int64).reshape(-1, 2).T
    return Snapshots(
        users,
        positions,
        positions >= histories.trained[users],
        np.array([row in judged for row in rows], np.bool_),
        np.array([encoded[row] for row in rows], np.bool_),
    )


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
) -> list[tuple[int, list[int], range]]:
    """Users in random order, positions `BEFORE` a stretch of the validation period, and all positions of the stretch.

    A choice among the positions would not do: the first one of a visit is harder than those that follow it. What comes
    before mostly lies in the training period: few histories are long enough in the validation period alone for the gaps
    that devices will have.
    """
    chosen: list[tuple[int, list[int], range]] = []
    many = 0
    lengths = histories.lengths
    for user in generator.permutation(np.flatnonzero(lengths > np.maximum(histories.trained, 1))):
        first, end = max(int(histories.trained[user]), 1), int(lengths[user])
        first = int(generator.integers(first, max(first, end - stretch) + 1))
        positions = range(first, min(end, first + stretch))
        chosen.append((int(user), [first - back for back in reversed(BEFORE) if back < first], positions))
        many += len(positions)
        if many >= budget:
            break
    return chosen


def pairs_of(snapshots: Snapshots, largest_gap: int, *, judged: bool) -> Pairs:
    """All pairs with 1 <= gap <= `largest_gap` whose fresh snapshot is judged, or else lies in the training period.

    The stale one of a judged pair may lie in the training period all the same. The networks have been trained on what
    came next to it then, as those that are served have been for embeddings from before the test period.
    """
    stale: list[int] = []
    fresh: list[int] = []
    for index in np.flatnonzero(snapshots.judged if judged else ~snapshots.valid):
        before = index - 1
        while before >= 0 and snapshots.users[before] == snapshots.users[index]:
            gap = snapshots.positions[index] - snapshots.positions[before]
            if gap > largest_gap:
                break
            stale.append(int(before))
            fresh.append(int(index))
            before -= 1
    return Pairs(np.array(stale, np.int64), np.array(fresh, np.int64))
