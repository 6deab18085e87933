"""When the cloud worker begins to answer, and when it says that it cannot."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from cloud_worker.worker import LIVE_WAIT_S, CloudWorker
from streams.clock import ManualClock
from streams.metrics import CloudMetrics


@dataclass
class Reading:
    """A live index that is level after so many seconds."""

    clock: ManualClock
    level_after_s: float
    dead: str | None = None

    def wait_level(self, timeout_s: float) -> bool:
        if self.level_after_s > self.clock.monotonic():
            self.clock.advance(timeout_s)
        return self.behind() is None

    def behind(self) -> str | None:
        return "5 interactions to read" if self.level_after_s > self.clock.monotonic() else None

    def ended(self) -> str | None:
        return self.dead


@dataclass
class Requests:
    """A group of which nothing comes; the worker is stopped after its first look."""

    clock: ManualClock
    stop: threading.Event
    joined_at: list[float] = field(default_factory=list)

    def poll_batch(self, *_: object) -> list[object]:
        self.joined_at.append(self.clock.monotonic())
        self.stop.set()
        return []


def run(level_after_s: float, *, stopped: bool = False) -> tuple[CloudWorker, Requests, str | None]:
    clock, stop = ManualClock(), threading.Event()
    requests = Requests(clock, stop)
    worker = CloudWorker(
        requests, None, None, Reading(clock, level_after_s), CloudMetrics(CollectorRegistry()), stop,
        max_batch=8, linger_ms=0, clock=clock,
    )  # fmt: skip
    before = worker.not_ready()
    if stopped:
        stop.set()
    worker.run()
    return worker, requests, before


def test_it_joins_once_the_live_index_knows_what_the_topic_held():
    worker, requests, before = run(10.0)
    assert before == "5 interactions to read"
    assert 10.0 <= requests.joined_at[0] < 11.0
    assert worker.not_ready() is None


def test_a_topic_too_long_to_read_keeps_nobody_waiting_for_ever():
    worker, requests, _ = run(1e9)
    assert LIVE_WAIT_S <= requests.joined_at[0] < LIVE_WAIT_S + 1
    assert worker.not_ready() is None, "it answers, with what it knows so far"


def test_a_stop_does_not_wait_for_the_live_index():
    _, requests, before = run(1e9, stopped=True)
    assert requests.joined_at == []
    assert before == "5 interactions to read"


def test_a_reader_that_ended_by_itself_is_a_reason_to_start_again():
    worker, _, _ = run(0.0)
    assert worker.stuck() is None
    worker._live.dead = "the live index's reader ended"
    assert worker.stuck() == "the live index's reader ended"
