"""What the device step takes and gives: a wave of events, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from device_agent.state import Records

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Wave:
    """B events of B different devices."""

    items: Int32s
    """(B,) item index; -1: not in the bundle."""
    times_ms: Int64s
    """(B,) event times."""
    hashes: npt.NDArray[np.uint64]
    """(B,) `streams.events.event_hash` of the event ids."""
    offsets: Int64s
    """(B,) offsets in the interactions topic."""
    serve: Bools
    """(B,) False: backfill."""
    now_ms: int
    """Wall time, for the debounce."""
    arms_active: Bools | None = None
    """(B, A) which arms a device runs; None: all (a paired experiment)."""

    def take(self, rows: npt.NDArray[np.intp]) -> Wave:
        """The events at `rows`."""
        return Wave(
            self.items[rows],
            self.times_ms[rows],
            self.hashes[rows],
            self.offsets[rows],
            self.serve[rows],
            self.now_ms,
            None if self.arms_active is None else self.arms_active[rows],
        )


class StepResult(NamedTuple):
    """What a step made of a wave. Rows that were dropped, or not served, hold the defaults given in brackets."""

    records: Records
    """(B,) the devices' new records."""
    already_applied: Bools
    """(B,) the device has applied this offset: dropped."""
    duplicate: Bools
    """(B,) the device knows this event id: dropped, but for the offset."""
    out_of_order: Bools
    """(B,) older than the device's newest event; applied all the same."""
    unknown: Bools
    """(B,) an item that the bundle does not know."""
    served: Bools
    """(B,) a list was served: the arrays below mean something, for the arms that are active."""
    rank: Int32s
    """(B, A) 1-based rank of what the user then took; 0: it could not be ranked."""
    ranked: Int32s
    """(B, A) number of items that were ranked (0)."""
    top: Int32s
    """(B, A, k) the list, best first (-1, as where fewer items can be ranked)."""
    staleness: Floats
    """(B, A) s of the embedding served with (1, as without one)."""
    gap: Int64s
    """(B, A) interactions since its as_of (-1, as without one)."""
    age_ms: Int64s
    """(B, A) event time since then, at least 0 (-1, as without one)."""
    as_of: Int64s
    """(B, A) its as_of (-1, as without one)."""
    trends_as_of_ms: Int64s
    """(B,) as_of of the neighbour table that was served with (-1, as without one)."""
    freshness_ms: Int64s
    """(B, A) wall time from its request to its use (-1, as without one)."""
    request: Bools
    """(B, A) ask for a new embedding: as_of is the new record's count, the window is `DeviceCore.history` of it."""
    reason: npt.NDArray[np.uint8]
    """(B, A) why: index into `DeviceCore.reasons` (0, the empty string)."""
    urgency: Floats
    """(B, A) the policy's score where it asks (0)."""

    @property
    def reliability(self) -> Floats:
        """(B, A) 1 - staleness."""
        return np.float32(1) - self.staleness


def nothing_happened(records: Records, already: Bools, duplicate: Bools, arms: int, list_length: int) -> StepResult:
    """The result of a wave in which every row was dropped."""
    shape = (len(records), arms)
    return StepResult(
        records=records,
        already_applied=already.copy(),
        duplicate=duplicate.copy(),
        out_of_order=np.zeros(len(records), np.bool_),
        unknown=np.zeros(len(records), np.bool_),
        served=np.zeros(len(records), np.bool_),
        rank=np.zeros(shape, np.int32),
        ranked=np.zeros(shape, np.int32),
        top=np.full((*shape, list_length), -1, np.int32),
        staleness=np.ones(shape, np.float32),
        gap=np.full(shape, -1, np.int64),
        age_ms=np.full(shape, -1, np.int64),
        as_of=np.full(shape, -1, np.int64),
        trends_as_of_ms=np.full(len(records), -1, np.int64),
        freshness_ms=np.full(shape, -1, np.int64),
        request=np.zeros(shape, np.bool_),
        reason=np.zeros(shape, np.uint8),
        urgency=np.zeros(shape, np.float32),
    )
