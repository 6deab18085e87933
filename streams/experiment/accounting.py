"""The books: every event that was replayed has exactly one recommendation of each arm, and was applied exactly once.

Events are known by a 64-bit hash of their id, so that a million of them take megabytes (two of a million share one with
a chance of 3 in 100 million).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from streams.events import event_hash

_CHUNK: Final = 16_384
"""Ids counted at once: numpy looks them up in sorted order."""

EXAMPLES: Final = 5


@dataclass(frozen=True)
class ArmAccount:
    """What became of the expected events in one arm."""

    arm: str
    lost: int
    """Expected events without a recommendation."""
    repeated: int
    """Recommendations beyond the first of an expected event."""
    unexpected: int
    """Recommendations of events that were not expected."""
    lost_rows: list[int]
    """Where the first few lost events stand in the order in which they were given."""
    repeated_rows: list[int]
    """The same for events with more than one recommendation."""
    unexpected_ids: list[str]
    """The first few."""

    @property
    def balanced(self) -> bool:
        """Whether there is nothing to complain about."""
        return not (self.lost or self.repeated or self.unexpected)


class Accounting:
    """Counts recommendations against the events that were to be served.

    Parameters
    ----------
    expected
        Ids of the events that were replayed and are to be served (no backfill); an id that stands there twice is one
        event, as it is for a device.
    arms
        The arms' names.
    arm_of
        In a split experiment: for each expected event, the index of the arm that is to serve it. None: all arms do.
    """

    def __init__(self, expected: Iterable[str], arms: Sequence[str], arm_of: Iterable[int] | None = None) -> None:
        hashes = np.fromiter((event_hash(each) for each in expected), dtype=np.uint64)
        self._hashes, self._rows = np.unique(hashes, return_index=True)
        self._arms = {arm: number for number, arm in enumerate(arms)}
        self._counts = np.zeros((len(self._arms), len(self._hashes)), dtype=np.uint32)
        self._wanted = np.ones(self._counts.shape, dtype=np.bool_)
        if arm_of is not None:
            owner = np.fromiter(arm_of, dtype=np.int64)[self._rows]
            self._wanted = owner[None, :] == np.arange(len(self._arms))[:, None]
        self._unexpected = dict.fromkeys(arms, 0)
        self._unexpected_ids: dict[str, list[str]] = {arm: [] for arm in arms}
        self._waiting: dict[str, list[str]] = {arm: [] for arm in arms}

    @property
    def expected(self) -> int:
        """Distinct events expected."""
        return len(self._hashes)

    def add(self, arm: str, event_id: str) -> None:
        """Count one recommendation, read with read_committed."""
        waiting = self._waiting.get(arm)
        if waiting is None:
            waiting = self._waiting[arm] = []
            self._unexpected[arm] = 0
            self._unexpected_ids[arm] = []
        waiting.append(event_id)
        if len(waiting) >= _CHUNK:
            self._settle(arm)

    def _settle(self, arm: str) -> None:
        ids = self._waiting[arm]
        self._waiting[arm] = []
        if not ids:
            return
        number = self._arms.get(arm)
        if number is None or not len(self._hashes):
            self._surprised(arm, ids)
            return
        hashes = np.fromiter((event_hash(each) for each in ids), dtype=np.uint64, count=len(ids))
        place = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        known = (self._hashes[place] == hashes) & self._wanted[number, place]
        np.add.at(self._counts[number], place[known], 1)
        self._surprised(arm, [ids[i] for i in np.flatnonzero(~known)])

    def _surprised(self, arm: str, ids: list[str]) -> None:
        self._unexpected[arm] += len(ids)
        examples = self._unexpected_ids[arm]
        examples += ids[: EXAMPLES - len(examples)]

    def merge(self, other: Accounting) -> None:
        """Add what another one counted, of the same expected events and arms (another partition's reader).

        Raises
        ------
        ValueError
            The other one expects other events or arms.
        """
        if self._arms != other._arms or not np.array_equal(self._hashes, other._hashes):
            raise ValueError("two accounts of different events or arms cannot be merged")
        for each in (self, other):
            for arm in list(each._waiting):  # noqa: SLF001 -- our own kind
                each._settle(arm)  # noqa: SLF001
        self._counts += other._counts
        for arm, number in other._unexpected.items():
            self._unexpected[arm] = self._unexpected.get(arm, 0) + number
            self._waiting.setdefault(arm, [])
            examples = self._unexpected_ids.setdefault(arm, [])
            examples += other._unexpected_ids[arm][: EXAMPLES - len(examples)]

    def result(self) -> list[ArmAccount]:
        """The account of each arm, in the given order; arms that nobody announced come last, all unexpected."""
        for arm in list(self._waiting):
            self._settle(arm)
        return [self._account(arm) for arm in self._unexpected]

    def _account(self, arm: str) -> ArmAccount:
        surprises = list(self._unexpected_ids[arm])
        number = self._arms.get(arm)
        if number is None:
            return ArmAccount(arm, 0, 0, self._unexpected[arm], [], [], surprises)
        counts = self._counts[number].astype(np.int64)
        lost = self._wanted[number] & (counts == 0)
        return ArmAccount(
            arm=arm,
            lost=int(lost.sum()),
            repeated=int(np.maximum(counts - 1, 0).sum()),
            unexpected=self._unexpected[arm],
            lost_rows=sorted(self._rows[lost].tolist())[:EXAMPLES],
            repeated_rows=sorted(self._rows[counts > 1].tolist())[:EXAMPLES],
            unexpected_ids=surprises,
        )


@dataclass(frozen=True)
class AppliedAccount:
    """Whether the devices' final states counted each event once."""

    double_applied: int = 0
    """Applications beyond those expected, over all devices."""
    lost_applied: int = 0
    """Applications missing, over all devices."""
    devices: list[str] = field(default_factory=list)
    """The first few devices whose count is wrong."""


def applied_exactly_once(applied: Mapping[str, int], expected: Mapping[str, int]) -> AppliedAccount:
    """Compare the devices' own counts of applied interactions with what was replayed for them.

    Parameters
    ----------
    applied
        Device id to the count in its final state.
    expected
        Device id to the distinct events sent to it, backfill included.
    """
    double = lost = 0
    wrong = []
    for device in sorted({*applied, *expected}):
        surplus = applied.get(device, 0) - expected.get(device, 0)
        double += max(0, surplus)
        lost += max(0, -surplus)
        if surplus:
            wrong.append(device)
    return AppliedAccount(double, lost, wrong[:EXAMPLES])
