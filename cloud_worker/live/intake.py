"""Which interactions of the topic the live index takes in: a pure choice, no Kafka in here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from streams.errors import RecordError
from streams.events import Codec, Interaction, event_hash

REMEMBERED: Final = 1_024
"""Events of a partition whose repetition is noticed."""


class RawRecord(Protocol):
    """What a consumed record has."""

    partition: int
    value: bytes | None


@dataclass(frozen=True)
class Taken:
    """Interactions for `LiveIndex.observe`, in the order read, and how many were left out for which reason."""

    keys: npt.NDArray[np.uint64]
    items: npt.NDArray[np.int64]
    times_ms: npt.NDArray[np.int64]
    skipped: Counter[str]


class Intake:
    """Reads records and leaves out what must not be counted.

    ``undecodable``, ``unknown-schema`` and ``bad-time``: the device workers dead-letter them, here they are only
    counted. ``unknown-item``: the bundle has no such item. ``in-bundle``: older than the bundle's test period, so the
    index that came with the bundle has it; replays send such history first. ``future-time``: one event of the year 3000
    would let all counts fade. ``repeated``: an interaction is delivered twice when two replays send it or a producer
    tries again without being idempotent. The last `REMEMBERED` of a partition are known again, until a restart. One
    that slips through costs a place in its user's ring and one count, both of which time takes away.

    Parameters
    ----------
    item_ids
        Of the bundle, in index order.
    start_ms
        Events before it are in the bundle.
    future_tolerance_s
        How far an event may be ahead of the wall clock.
    """

    def __init__(self, item_ids: Sequence[str], start_ms: int, future_tolerance_s: float) -> None:
        self._index_of = {item_id: index for index, item_id in enumerate(item_ids)}
        self._start_ms = start_ms
        self._ahead_ms = int(future_tolerance_s * 1000)
        self._codec = Codec(Interaction)
        self._recent: dict[int, dict[int, None]] = {}

    def take(self, records: Iterable[RawRecord], now_ms: int) -> Taken:
        """Choose among records, in their order.

        Parameters
        ----------
        now_ms
            Wall time.
        """
        keys: list[int] = []
        items: list[int] = []
        times: list[int] = []
        skipped: Counter[str] = Counter()
        for record in records:
            try:
                event = self._codec.decode(record.value)
            except RecordError as exc:
                skipped[exc.reason] += 1
                continue
            if (reason := self._why_not(event, record.partition, now_ms)) is not None:
                skipped[reason] += 1
                continue
            keys.append(event_hash(event.device_id))
            items.append(self._index_of[event.item_id])
            times.append(event.event_time_ms)
        return Taken(np.array(keys, np.uint64), np.array(items, np.int64), np.array(times, np.int64), skipped)

    def forget(self) -> None:
        """The topic is read from its beginning again: nothing there is a repetition."""
        self._recent.clear()

    def _why_not(self, event: Interaction, partition: int, now_ms: int) -> str | None:
        if event.event_time_ms < 0:
            return "bad-time"
        if event.event_time_ms < self._start_ms:
            return "in-bundle"
        if event.event_time_ms > now_ms + self._ahead_ms:
            return "future-time"
        if event.item_id not in self._index_of:
            return "unknown-item"
        recent = self._recent.setdefault(partition, {})
        name = event_hash(f"{event.device_id}\x00{event.event_id}")
        if name in recent:
            return "repeated"
        recent[name] = None
        if len(recent) > REMEMBERED:
            del recent[next(iter(recent))]
        return None
