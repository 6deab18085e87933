"""What the arms achieved: sums over recommendations, streamed, mergeable, a few numbers a device and arm.

The device is the unit of analysis: its events resemble each other, so differences between arms are judged from sums by
device (`streams.experiment.inference`), never from events as if they were independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from streams.events import Recommendation
from streams.experiment.ranking_metrics import discounts

K: Final = 10
"""The cut-off of the ranking metrics."""

_GAIN: Final = discounts(K)


@dataclass(slots=True)
class DeviceOutcome:
    """Sums over the events of one device in one arm."""

    events: int = 0
    refreshes: int = 0
    ndcg: float = 0.0
    hits: int = 0
    reciprocal: float = 0.0
    first_as_of: int = -1
    """Of the first embedding served with, and its freshness: a later piece of the stream may go on with it."""
    first_freshness_ms: int = -1
    last_as_of: int = -1


@dataclass(frozen=True)
class DeviceSums:
    """Columns over devices, sorted by id: (D,) events and, for each metric, the (D,) sums over them."""

    devices: list[str]
    events: npt.NDArray[np.float64]
    sums: dict[str, npt.NDArray[np.float64]]


@dataclass
class ArmOutcome:
    """One arm's sums. Memory grows with devices, and with the distinct milliseconds of freshness, not with events."""

    arm: str
    policy: str = ""
    events: int = 0
    refreshes: int = 0
    with_embedding: int = 0
    gap_sum: int = 0
    age_ms_sum: int = 0
    staleness_sum: float = 0.0
    freshness_ms: Counter[int] = field(default_factory=Counter)
    """How many embeddings became usable after so many milliseconds."""
    devices: dict[str, DeviceOutcome] = field(default_factory=dict)

    def add(self, record: Recommendation) -> None:
        """Count one recommendation; those of a device come in the order in which they were served."""
        device = self.devices.get(record.device_id)
        if device is None:
            device = self.devices[record.device_id] = DeviceOutcome()
        self.policy = record.policy
        self.events += 1
        device.events += 1
        if record.refreshed:
            self.refreshes += 1
            device.refreshes += 1
        rank = record.rank
        if rank > 0:
            device.reciprocal += 1.0 / rank
            if rank <= K:
                device.ndcg += _GAIN[rank]
                device.hits += 1
        self.staleness_sum += record.staleness
        if record.as_of < 0:
            return
        self.with_embedding += 1
        self.gap_sum += record.gap
        self.age_ms_sum += record.age_ms
        if record.as_of != device.last_as_of:
            if device.first_as_of < 0:
                device.first_as_of, device.first_freshness_ms = record.as_of, record.freshness_ms
            device.last_as_of = record.as_of
            if record.freshness_ms >= 0:
                self.freshness_ms[record.freshness_ms] += 1

    def merge(self, later: ArmOutcome) -> None:
        """Add another piece of the stream: other devices, or what the same devices did after this piece."""
        self.policy = later.policy or self.policy
        self.events += later.events
        self.refreshes += later.refreshes
        self.with_embedding += later.with_embedding
        self.gap_sum += later.gap_sum
        self.age_ms_sum += later.age_ms_sum
        self.staleness_sum += later.staleness_sum
        self.freshness_ms.update(later.freshness_ms)
        for name, theirs in later.devices.items():
            mine = self.devices.setdefault(name, DeviceOutcome())
            mine.events += theirs.events
            mine.refreshes += theirs.refreshes
            mine.ndcg += theirs.ndcg
            mine.hits += theirs.hits
            mine.reciprocal += theirs.reciprocal
            if theirs.first_as_of < 0:
                continue
            if mine.last_as_of == theirs.first_as_of and theirs.first_freshness_ms >= 0:
                self.freshness_ms[theirs.first_freshness_ms] -= 1  # both pieces saw the same embedding
            if mine.first_as_of < 0:
                mine.first_as_of, mine.first_freshness_ms = theirs.first_as_of, theirs.first_freshness_ms
            mine.last_as_of = theirs.last_as_of
        self.freshness_ms = +self.freshness_ms

    @property
    def refresh_rate(self) -> float:
        """Refreshes asked for per event."""
        return self.refreshes / self.events if self.events else 0.0

    @property
    def embedded(self) -> float:
        """Share of the events that were served with an embedding."""
        return self.with_embedding / self.events if self.events else 0.0

    @property
    def gap_mean(self) -> float | None:
        """Mean gap over events that had an embedding; None if none had."""
        return self.gap_sum / self.with_embedding if self.with_embedding else None

    @property
    def age_mean_s(self) -> float | None:
        """Mean age in seconds of event time over events that had an embedding; None if none had."""
        return self.age_ms_sum / self.with_embedding / 1000 if self.with_embedding else None

    @property
    def staleness_mean(self) -> float | None:
        """Mean staleness over all events, 1 where there was no embedding; None without events."""
        return self.staleness_sum / self.events if self.events else None

    def mean(self, metric: str) -> float:
        """Mean of ``"ndcg@10"``, ``"hr@10"`` or ``"mrr"`` over the events; 0 without any."""
        return float(self.table().sums[metric].sum()) / self.events if self.events else 0.0

    def table(self) -> DeviceSums:
        """The sums by device, as columns."""
        names = sorted(self.devices)
        rows = [self.devices[name] for name in names]
        columns = {
            "ndcg@10": [row.ndcg for row in rows],
            "hr@10": [row.hits for row in rows],
            "mrr": [row.reciprocal for row in rows],
            "refresh_rate": [row.refreshes for row in rows],
        }
        return DeviceSums(
            devices=names,
            events=np.array([row.events for row in rows], dtype=np.float64),
            sums={name: np.array(column, dtype=np.float64) for name, column in columns.items()},
        )


class Outcomes:
    """All arms of an experiment.

    Parameters
    ----------
    arms
        In the order in which they are reported; the first is the one that others are compared to. An arm that is met
        in the stream and is not among these comes after them.
    """

    def __init__(self, arms: Iterable[str] = ()) -> None:
        self._arms = {arm: ArmOutcome(arm) for arm in arms}

    def __iter__(self) -> Iterator[ArmOutcome]:
        return iter(self._arms.values())

    def __getitem__(self, arm: str) -> ArmOutcome:
        return self._arms[arm]

    def __len__(self) -> int:
        return len(self._arms)

    def add(self, record: Recommendation) -> None:
        """Count one recommendation."""
        outcome = self._arms.get(record.arm)
        if outcome is None:
            outcome = self._arms[record.arm] = ArmOutcome(record.arm)
        outcome.add(record)

    def merge(self, later: Outcomes) -> None:
        """Add another piece of the stream; see `ArmOutcome.merge`."""
        for outcome in later:
            self._arms.setdefault(outcome.arm, ArmOutcome(outcome.arm)).merge(outcome)

    @property
    def devices(self) -> int:
        """Devices that were served by any arm."""
        return len(set().union(*(outcome.devices for outcome in self)))

    def freshness_ms(self) -> Counter[int]:
        """Freshness over all arms."""
        total: Counter[int] = Counter()
        for outcome in self:
            total.update(outcome.freshness_ms)
        return total


def quantile(counts: Counter[int], q: float) -> float | None:
    """Smallest value that at least a share q of the samples does not exceed; None without samples.

    Examples
    --------
    >>> quantile(Counter({10: 98, 500: 2}), 0.5), quantile(Counter({10: 98, 500: 2}), 0.99)
    (10.0, 500.0)
    """
    total = sum(counts.values())
    if not total:
        return None
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= q * total:
            return float(value)
    return float(max(counts))
