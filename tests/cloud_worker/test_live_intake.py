"""Which interactions the live index takes in."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest

from cloud_worker.live.intake import REMEMBERED, Intake
from streams.events import BACKFILL, Codec, Interaction, event_hash

START, NOW = 1_000_000, 2_000_000


@dataclass
class Record:
    value: bytes | None
    partition: int = 0


def event(number=0, *, device="d", item="i1", time_ms=START, kind="view", event_id="") -> bytes:
    return Codec(Interaction).encode(
        Interaction(1, event_id or f"e{number}", device, item, event_time_ms=time_ms, kind=kind)
    )


@pytest.fixture
def intake():
    return Intake(["i0", "i1", "i2"], START, future_tolerance_s=10)


def test_what_is_taken_keeps_its_order_and_its_user(intake):
    records = [Record(event(1, item="i2")), Record(event(2, device="x", time_ms=START + 5))]
    taken = intake.take(records, NOW)
    assert taken.keys.tolist() == [event_hash("d"), event_hash("x")]
    assert taken.items.tolist() == [2, 1]
    assert taken.times_ms.tolist() == [START, START + 5]
    assert not taken.skipped


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\xff no record", "undecodable"),
        (None, "undecodable"),
        (msgspec.msgpack.encode([9, "x"]), "unknown-schema"),
        (event(item="elsewhere"), "unknown-item"),
        (event(time_ms=START - 1), "in-bundle"),
        (event(time_ms=START - 1, kind=BACKFILL), "in-bundle"),
        (event(time_ms=-5), "bad-time"),
        (event(time_ms=NOW + 10_001), "future-time"),
    ],
)
def test_what_must_not_be_counted_is_left_out_and_the_rest_goes_on(intake, raw, reason):
    taken = intake.take([Record(event(1)), Record(raw), Record(event(2))], NOW)
    assert len(taken.keys) == 2
    assert taken.skipped == {reason: 1}


def test_a_little_ahead_of_our_clock_is_taken(intake):
    assert len(intake.take([Record(event(time_ms=NOW + 10_000))], NOW).keys) == 1


def test_an_event_delivered_twice_counts_once(intake):
    assert len(intake.take([Record(event(1)), Record(event(1))], NOW).keys) == 1
    assert intake.take([Record(event(1))], NOW).skipped == {"repeated": 1}
    assert len(intake.take([Record(event(1, device="other"))], NOW).keys) == 1, "ids are a device's own"
    intake.forget()
    assert len(intake.take([Record(event(1))], NOW).keys) == 1


def test_what_is_remembered_is_bounded(intake):
    for first in range(0, 5 * REMEMBERED, REMEMBERED):
        intake.take([Record(event(first + n)) for n in range(REMEMBERED)], NOW)
    assert sum(map(len, intake._recent.values())) == REMEMBERED
    assert intake.take([Record(event(5 * REMEMBERED - 1)), Record(event(0))], NOW).skipped == {"repeated": 1}
