"""Promises of a running replay: pace, back-pressure, progress, stop. Time is a `ManualClock`, the log a list."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from streams.clock import ManualClock
from streams.datasets import Prepared
from streams.datasets.prepared import Manifest
from streams.errors import BrokerError, SettingsError
from streams.events import BACKFILL, Headers, Interaction
from streams.metrics import ReplayMetrics
from streams.replay import AtMostRate, AtSpeed, Flat, Replay, ReplayPlan, ReplayProgress, Schedule, make_schedule
from streams.replay.pacing import Pacer


class Log:
    """A log that acknowledges after a while, and remembers when each event came."""

    def __init__(self, clock: ManualClock, delay_s: float = 0.0, refuse_after: int | None = None) -> None:
        self.clock, self.delay_s, self.refuse_after = clock, delay_s, refuse_after
        self.events: list[tuple[float, Interaction, int]] = []
        self.headers: list[dict[str, bytes]] = []

    def send(self, interaction: Interaction, partition: int, headers: Headers) -> None:
        self.events.append((self.clock.monotonic(), interaction, partition))
        self.headers.append(dict(headers))

    def unacknowledged(self) -> int:
        if self.refuse_after is not None and len(self.events) > self.refuse_after:
            raise BrokerError("refused")
        return sum(at + self.delay_s > self.clock.monotonic() for at, _, _ in self.events)

    @property
    def times(self) -> list[float]:
        return [at for at, _, _ in self.events]


def schedule(times_ms: list[int], *, start_ms: int | None = None) -> Schedule:
    events = pl.DataFrame(
        {
            "device_id": [f"d{k % 3}" for k in range(len(times_ms))],
            "item_id": [f"i{k}" for k in range(len(times_ms))],
            "event_time_ms": times_ms,
            "kind": ["rating"] * len(times_ms),
        }
    )
    manifest = Manifest(1, "made", "", "", "", "", len(events), 3, 1, 0, 1, False, "cd" * 32, {}, {})
    from pathlib import Path

    return make_schedule(Prepared(Path(), manifest, events, events), ReplayPlan("r", start_ms), 2)


def test_speed_maps_event_time_to_wall_time() -> None:
    clock = ManualClock()
    log = Log(clock)
    report = Replay(schedule([0, 1000, 1000, 61_000, 3_601_000]), log, pace=AtSpeed(60), clock=clock).run()
    assert log.times == pytest.approx([0, 1 / 60, 1 / 60, 61 / 60, 3601 / 60], abs=0.021)
    assert report.complete
    assert report.events == 5
    assert report.wall_s == pytest.approx(60, rel=0.02)


def test_rate_is_even_whatever_the_event_times() -> None:
    clock = ManualClock()
    log = Log(clock)
    report = Replay(schedule(sorted([0] * 50 + [10**9] * 50)), log, pace=AtMostRate(10), clock=clock).run()
    assert log.times == pytest.approx(np.arange(100) / 10, abs=0.021)
    assert report.events_per_s == pytest.approx(10, rel=0.05)


def test_history_goes_first_and_does_not_wait_for_the_pace() -> None:
    clock = ManualClock()
    log = Log(clock)
    plan = schedule([0, 10_000, 20_000, 100_000, 101_000, 102_000], start_ms=100_000)
    report = Replay(plan, log, pace=AtSpeed(1), clock=clock).run()
    assert [event.kind for _, event, _ in log.events] == [BACKFILL] * 3 + ["rating"] * 3
    assert log.times == pytest.approx([0, 0, 0, 0, 1, 2], abs=0.05)
    assert (report.backfilled, report.events, report.devices) == (3, 3, 3)
    assert report.events_per_s == pytest.approx(3 / 2, rel=0.05)


def test_each_event_says_what_it_is() -> None:
    clock = ManualClock()
    log = Log(clock)
    Replay(schedule([0, 86_400_000]), log, clock=clock).run()
    _, event, partition = log.events[1]
    assert event == Interaction(1, "r:1", "d1", "i1", 86_400_000, "rating")
    assert log.headers[1]["ce_id"] == b"r:1"
    assert log.headers[1]["ce_source"] == f"/driftline/replay/made@{'cd' * 8}".encode()
    assert log.headers[1]["ce_time"] == b"1970-01-02T00:00:00.000Z"
    assert partition == schedule([0, 1]).partitions[1]


@given(
    st.lists(st.integers(0, 10_000), min_size=1, max_size=60).map(sorted),
    st.sampled_from([Flat(), AtSpeed(3.0), AtMostRate(7.0)]),
    st.sets(st.integers(0, 59)),
)
def test_no_event_leaves_early_is_lost_or_comes_twice(
    times: list[int], pace: Flat | AtSpeed | AtMostRate, sent: set[int]
) -> None:
    clock = ManualClock()
    log = Log(clock, delay_s=0.03)
    report = Replay(schedule(times), log, pace=pace, sent=sent, clock=clock).run()
    rest = [row for row in range(len(times)) if row not in sent]
    assert [event.event_id for _, event, _ in log.events] == [f"r:{row}" for row in rest]
    assert report.events == len(rest)
    assert report.resumed_from == len(times) - len(rest)
    assert report.complete
    due = pace.due(np.array([times[row] for row in rest], dtype=np.int64))
    assert all(at >= wanted - 1e-9 for at, wanted in zip(log.times, due, strict=True))


def test_it_waits_while_the_consumers_are_behind_and_does_not_burst_afterwards() -> None:
    clock = ManualClock()
    log = Log(clock)

    def lag() -> int:
        return 900 if 2.0 <= clock.monotonic() < 12.0 else 0

    metrics = ReplayMetrics(CollectorRegistry())
    replay = Replay(
        schedule(list(range(0, 5000, 50))), log, pace=AtSpeed(1), lag=lag, max_lag=500, clock=clock, metrics=metrics
    )
    report = replay.run()
    assert not [at for at in log.times if 2.1 < at < 12.0]
    assert report.paused_s == pytest.approx(10, abs=0.1)
    assert report.wall_s == pytest.approx(15, abs=0.3)
    gaps = np.diff([at for at in log.times if at >= 12.0])
    assert gaps.max() < 0.1
    assert gaps.min() > 0.0  # one by one: the ten seconds are not made up for
    assert metrics.paused_seconds._value.get() == pytest.approx(report.paused_s)
    assert metrics.replayed._value.get() == 100


def test_lag_at_the_limit_does_not_hold_it_up() -> None:
    clock = ManualClock()
    assert Replay(schedule([1, 2, 3]), Log(clock), lag=lambda: 5, max_lag=5, clock=clock).run().paused_s == 0


def test_progress_tells_what_is_acknowledged_and_ends_at_the_end() -> None:
    clock = ManualClock()
    told: list[ReplayProgress] = []
    log = Log(clock, delay_s=0.5)
    Replay(
        schedule(list(range(0, 4000, 100))), log, pace=AtSpeed(1), lag=lambda: 7, on_progress=told.append, clock=clock
    ).run()
    assert all(each.sent == each.acknowledged + each.producer_lag for each in told)
    assert [each.acknowledged for each in told] == sorted(each.acknowledged for each in told)
    assert max(each.producer_lag for each in told) > 1
    assert told[-1].acknowledged == told[-1].total == 40
    assert told[-1].consumer_lag == 7
    assert 20 <= len(told) <= 60  # some ten a second of 4.5 s


def test_a_stop_ends_it_and_what_was_sent_is_counted() -> None:
    clock = ManualClock()
    stop = threading.Event()
    log = Log(clock, delay_s=0.2)

    def watch(now: ReplayProgress) -> None:
        if now.sent >= 20:
            stop.set()

    report = Replay(
        schedule(list(range(0, 10_000, 100))), log, pace=AtSpeed(1), on_progress=watch, stop=stop, clock=clock
    ).run()
    assert not report.complete
    assert 20 <= report.events == len(log.events) < 100
    assert report.total == 100


def test_a_stop_does_not_wait_for_a_log_that_is_gone() -> None:
    clock = ManualClock()
    stop = threading.Event()
    log = Log(clock, delay_s=1e9)
    stopper: Callable[[ReplayProgress], None] = lambda now: stop.set() if now.sent >= 3 else None  # noqa: E731
    report = Replay(schedule([1, 2, 3]), log, on_progress=stopper, stop=stop, clock=clock).run()
    assert clock.monotonic() < 5
    assert (report.events, report.complete) == (0, False)


def test_what_is_under_way_is_bounded() -> None:
    from streams.replay import runner

    clock = ManualClock()
    log = Log(clock, delay_s=1.0)
    worst: list[int] = []
    before = runner.MAX_UNACKNOWLEDGED
    runner.MAX_UNACKNOWLEDGED = 300  # type: ignore[misc]
    try:
        replay = Replay(schedule([5] * 1500), log, on_progress=lambda now: worst.append(now.producer_lag), clock=clock)
        assert replay.run().complete
    finally:
        runner.MAX_UNACKNOWLEDGED = before  # type: ignore[misc]
    assert max(worst) <= 300 + runner.CHUNK


def test_a_refusal_ends_the_run() -> None:
    clock = ManualClock()
    with pytest.raises(BrokerError, match="refused"):
        Replay(schedule(list(range(2000))), Log(clock, refuse_after=500), clock=clock).run()


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_pace_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(SettingsError, match="positive"):
        AtSpeed(value)
    with pytest.raises(SettingsError, match="positive"):
        AtMostRate(value)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30).map(sorted), st.floats(0, 200), st.floats(0, 50))
def test_ready_and_wait_agree(due: list[float], now: float, start: float) -> None:
    pacer = Pacer(np.array(due), start)
    ready = pacer.ready(now)
    assert pacer.wait(ready, now) > 0 or ready == len(due)
    if ready:
        assert pacer.wait(ready - 1, now) == pytest.approx(0, abs=1e-6)
