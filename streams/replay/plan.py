"""What a replay sends, and in which order: rows of a prepared dataset, a pure function of the plan.

The order is total: first the history of the devices that take part (kind ``backfill``), then the live events, each by
event time. Event ids follow from the replay's name and the row, so the same plan gives the same records, and what a
topic holds tells which of them are done.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from streams.datasets.prepared import Prepared
from streams.errors import DatasetError, SettingsError
from streams.topics import partition_of

Rows = npt.NDArray[np.int64]

_REPLAY_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class ReplayPlan:
    """Which events of a dataset are replayed.

    Parameters
    ----------
    replay_id
        Names the replay; the same name goes on with it, a new name starts anew.
    start_ms, end_ms
        Half-open stretch of event time; None: from the first, to the last.
    limit
        At most so many live events, the earliest.
    backfill
        Send each device's earlier history first, as history: learnt from, not served.
    """

    replay_id: str
    start_ms: int | None = None
    end_ms: int | None = None
    limit: int | None = None
    backfill: bool = True

    def __post_init__(self) -> None:
        if not _REPLAY_ID.fullmatch(self.replay_id):
            raise SettingsError(
                f"{self.replay_id!r} cannot name a replay", remedy="use letters, digits, dot, dash and underscore"
            )
        if self.limit is not None and self.limit < 1:
            raise SettingsError(f"a replay of {self.limit} events is none", remedy="give --limit 1 or more")


@dataclass(frozen=True)
class Schedule:
    """Every event of a replay in the order of sending; row numbers are those of the prepared events.

    Arrays have one element an event, (n,).
    """

    plan: ReplayPlan
    dataset: str
    dataset_hash: str
    rows: Rows
    device_ids: list[str]
    item_ids: list[str]
    kinds: list[str]
    times_ms: npt.NDArray[np.int64]
    partitions: npt.NDArray[np.int64]
    backfilled: int
    """The first so many are history."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def source(self) -> str:
        """Where the events come from, as CloudEvents' ``source``: it tells one dataset's replay from another's."""
        return f"/driftline/replay/{self.dataset}@{self.dataset_hash[:16]}"

    def event_id(self, position: int) -> str:
        """The id of the event at a position."""
        return f"{self.plan.replay_id}:{self.rows[position]}"

    def remaining(self, sent: set[int]) -> Rows:
        """Positions whose rows are not among those sent already, in order: (m,)."""
        if not sent:
            return np.arange(len(self.rows), dtype=np.int64)
        done = np.fromiter(sent, dtype=np.int64, count=len(sent))
        return np.flatnonzero(~np.isin(self.rows, done))


def _moment(time_ms: int) -> str:
    """As ``--from`` takes it."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")


def make_schedule(prepared: Prepared, plan: ReplayPlan, partitions: int) -> Schedule:
    """Lay out a replay.

    Raises
    ------
    DatasetError
        No event lies in the plan's stretch of time.
    """
    events = prepared.events.with_row_index("row")
    times = events["event_time_ms"].to_numpy()
    first = 0 if plan.start_ms is None else int(np.searchsorted(times, plan.start_ms, side="left"))
    end = len(times) if plan.end_ms is None else int(np.searchsorted(times, plan.end_ms, side="left"))
    if plan.limit is not None:
        end = min(end, first + plan.limit)
    live = events.slice(first, max(0, end - first))
    if live.is_empty():
        manifest = prepared.manifest
        raise DatasetError(
            f"dataset {manifest.name} has no event in the stretch of time to replay",
            remedy=f"its events lie between {_moment(manifest.start_ms)} and {_moment(manifest.end_ms)} "
            f"(`driftline data show {manifest.name}`)",
        )
    history = events.slice(0, first).join(live.select("device_id").unique(), on="device_id", how="semi")
    history = history.sort("row") if plan.backfill else history.clear()
    both = pl.concat([history, live])
    devices = both["device_id"].unique(maintain_order=True).to_list()
    home = {device: partition_of(device, partitions) for device in devices}
    ids = both["device_id"].to_list()
    return Schedule(
        plan=plan,
        dataset=prepared.manifest.name,
        dataset_hash=prepared.manifest.hash,
        rows=both["row"].cast(pl.Int64).to_numpy(),
        device_ids=ids,
        item_ids=both["item_id"].to_list(),
        kinds=both["kind"].to_list(),
        times_ms=both["event_time_ms"].to_numpy(),
        partitions=np.fromiter((home[each] for each in ids), dtype=np.int64, count=len(ids)),
        backfilled=len(history),
    )
