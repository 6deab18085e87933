"""Promises of the order of a replay: complete, by time, history first, the same again from any interruption."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.datasets import Prepared, RawData, Sources, prepare
from streams.datasets.prepared import Manifest
from streams.errors import DatasetError, SettingsError
from streams.replay import ReplayPlan, Schedule, make_schedule
from streams.replay.moments import parse_moment
from streams.topics import partition_of

PARTITIONS = 3
EVENTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), min_size=1, max_size=60)


def dataset(events: list[tuple[int, int]]) -> Prepared:
    """(device, time) pairs as a prepared dataset; items are the positions."""
    ordered = sorted(events, key=lambda event: event[1])
    frame = pl.DataFrame(
        {
            "device_id": [f"d{device}" for device, _ in ordered],
            "item_id": [f"i{row}" for row in range(len(ordered))],
            "event_time_ms": [time for _, time in ordered],
            "kind": ["view"] * len(ordered),
        }
    )
    manifest = Manifest(1, "made", "", "", "", "", len(frame), 1, 1, 0, 1, False, "ab" * 32, {}, {})
    return Prepared(Path(), manifest, frame, pl.DataFrame())


def rows_of(schedule: Schedule) -> list[int]:
    return [int(row) for row in schedule.rows]


@given(EVENTS)
def test_without_limits_every_event_is_sent_once_in_time_order(events: list[tuple[int, int]]) -> None:
    schedule = make_schedule(dataset(events), ReplayPlan("r"), PARTITIONS)
    assert rows_of(schedule) == list(range(len(events)))
    assert schedule.backfilled == 0
    assert (np.diff(schedule.times_ms) >= 0).all()
    for device, partition in zip(schedule.device_ids, schedule.partitions, strict=True):
        assert partition == partition_of(device, PARTITIONS)


@given(EVENTS, st.integers(0, 30), st.integers(0, 31), st.one_of(st.none(), st.integers(1, 20)))
def test_a_device_that_takes_part_starts_with_its_whole_history(
    events: list[tuple[int, int]], start: int, end: int, limit: int | None
) -> None:
    prepared = dataset(events)
    times, devices = prepared.events["event_time_ms"], prepared.events["device_id"]
    wanted = [row for row in range(len(times)) if start <= times[row] < end][:limit]
    plan = ReplayPlan("r", start, end, limit)
    if not wanted:
        with pytest.raises(DatasetError, match="no event"):
            make_schedule(prepared, plan, PARTITIONS)
        return
    schedule = make_schedule(prepared, plan, PARTITIONS)
    taking_part = {devices[row] for row in wanted}
    history = [row for row in range(wanted[0]) if devices[row] in taking_part]
    assert rows_of(schedule) == history + wanted
    assert schedule.backfilled == len(history)
    bare = make_schedule(prepared, ReplayPlan("r", start, end, limit, backfill=False), PARTITIONS)
    assert rows_of(bare) == wanted
    # For each device, history and then the live events are one stretch in order.
    for device in taking_part:
        own = [row for row, name in zip(rows_of(schedule), schedule.device_ids, strict=True) if name == device]
        assert own == sorted(own)


@given(EVENTS, st.integers(0, 30), st.data())
def test_whatever_an_interrupted_run_has_sent_the_next_sends_the_rest_in_order(
    events: list[tuple[int, int]], start: int, data: st.DataObject
) -> None:
    prepared = dataset(events)
    if start > prepared.events["event_time_ms"].max():
        start = 0
    schedule = make_schedule(prepared, ReplayPlan("r", start), PARTITIONS)
    # Each partition holds a piece of its own order: from the front, or with a hole where a batch failed.
    sent = {row for row in rows_of(schedule) if data.draw(st.booleans())}
    rest = [int(schedule.rows[position]) for position in schedule.remaining(sent)]
    assert sorted([*rest, *sent]) == sorted(rows_of(schedule))
    assert [row for row in rows_of(schedule) if row in rest] == rest


def test_event_ids_are_unique_and_the_same_every_time() -> None:
    prepared = dataset([(device, time) for device in range(4) for time in range(10)])
    plan = ReplayPlan("night-3", start_ms=5)
    one, two = (make_schedule(prepared, plan, PARTITIONS) for _ in range(2))
    ids = [one.event_id(position) for position in range(len(one))]
    assert len(set(ids)) == len(ids) == 40
    assert ids == [two.event_id(position) for position in range(len(two))]
    assert ids[0] == "night-3:0"
    assert one.source == two.source == f"/driftline/replay/made@{'ab' * 8}"


@pytest.mark.parametrize("name", ["", "a b", "a:b", "-x", "x" * 101])
def test_a_name_that_could_not_be_told_from_a_row_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="cannot name a replay"):
        ReplayPlan(name)


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match="0 events"):
        ReplayPlan("r", limit=0)


@pytest.mark.parametrize(
    ("text", "edge", "moment"),
    [
        ("1970-01-01", "from", 0),
        ("1970-01-01T00:00:07", "from", 7_000),
        ("1970-01-01T01:00:07+01:00", "to", 7_000),
        ("0.25", "from", 25_000),
        ("1", "to", 99_001),
        ("0", "from", 0),
        ("test", "from", 90_000),
        ("test", "to", 99_001),
        ("valid", "from", 80_000),
        ("valid", "to", 90_000),
        ("train", "to", 80_000),
    ],
)
def test_a_moment_is_a_date_a_fraction_or_a_period(text: str, edge: str, moment: int) -> None:
    events = pl.DataFrame({"event_time_ms": [1000 * k for k in range(100)]})
    assert parse_moment(text, events, edge) == moment  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["soon", "1.5", "-0.1", "nan", "1998-13-01"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--from"):
        parse_moment(text, pl.DataFrame({"event_time_ms": [1, 2, 3]}), "from")


def test_rows_are_those_of_the_prepared_dataset(tmp_path: Path) -> None:
    class Two:
        name, title, terms, repeats = "two", "", "", None

        def load(self, sources: Sources) -> RawData:
            events = {"device_id": ["b", "a"], "item_id": ["late", "early"], "event_time_ms": [9, 3], "kind": ["v"] * 2}
            items = {"item_id": ["late"], "title": [""], "categories": [""]}
            return RawData(pl.DataFrame(events), pl.DataFrame(items), "here")

    prepared = prepare(Two(), Sources(), tmp_path)
    schedule = make_schedule(prepared, ReplayPlan("r"), 1)
    assert schedule.item_ids == ["early", "late"]
    assert datetime.fromtimestamp(schedule.times_ms[0] / 1000, UTC).year == 1970
