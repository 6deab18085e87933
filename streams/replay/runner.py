"""Driving a replay: pace, back-pressure, progress, through a port that takes events and says what is acknowledged."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from streams.clock import Clock, SystemClock
from streams.events import BACKFILL, SCHEMA_VERSION, Headers, Interaction, cloudevent_headers
from streams.metrics import ReplayMetrics
from streams.replay.pacing import Flat, Pace, Pacer
from streams.replay.plan import Schedule

CHUNK: Final = 250
"""Events sent between two looks at lag, stop and progress: about 10 ms of work."""
NAP_S: Final = 0.02
"""The longest wait before looking again."""
PROGRESS_S: Final = 0.1
STOP_S: Final = 3.0
"""How long a run that was stopped waits for what is under way; beyond, the next run looks it up in the log."""
MAX_UNACKNOWLEDGED: Final = 20_000
"""Records under way at most: what memory holds, and what an interruption leaves to be looked up."""
EVENT_TYPE: Final = "driftline.interaction"


class Sink(Protocol):
    """Where events go: an ordered, lossless log with partitions."""

    def send(self, interaction: Interaction, partition: int, headers: Headers) -> None:
        """Hand over one event; it may not wait for the log.

        Raises
        ------
        BrokerError
            An earlier event was refused.
        """
        ...

    def unacknowledged(self) -> int:
        """Events handed over that are not durable yet; raises like `send`."""
        ...


@dataclass(frozen=True)
class ReplayProgress:
    """Where a replay stands."""

    sent: int
    """Events handed over in this run, history included."""
    acknowledged: int
    total: int
    """Events of this run, history included."""
    events_per_s: float
    """Since the start of this run, pauses included."""
    producer_lag: int
    """Sent, not acknowledged."""
    consumer_lag: int | None
    """What the consumers have yet to do, as last asked; None where nobody asks."""
    paused: bool
    """Waiting for the consumers."""
    backfilling: bool
    """Sending history."""


@dataclass(frozen=True)
class ReplayReport:
    """What a replay did in this run."""

    replay_id: str
    dataset: str
    events: int
    """Live events, all acknowledged."""
    backfilled: int
    """Events of history, all acknowledged."""
    devices: int
    """Devices of the whole replay."""
    wall_s: float
    events_per_s: float
    """Live events, over the time that was left for them when history had gone out."""
    paused_s: float
    """Time spent waiting for the consumers."""
    resumed_from: int
    """Events, live and history, that an earlier run had sent."""
    total: int
    """Events of the whole replay, live and history."""
    complete: bool
    """Every event of the replay is in the log; False after a stop."""


class Replay:
    """One run of a replay.

    Parameters
    ----------
    schedule
        What to send.
    sink
        Where to.
    pace
        Of the live events; history is sent as fast as the consumers follow.
    sent
        Rows that an earlier run has sent already.
    lag
        How many events the consumers are behind, or None to send without looking; it may be asked at any time and
        decides itself how often it really looks.
    max_lag
        The replay waits while they are further behind.
    on_progress
        Called about ten times a second, and at the end.
    stop
        Set from another thread, it ends the run within seconds.
    """

    def __init__(
        self,
        schedule: Schedule,
        sink: Sink,
        *,
        pace: Pace | None = None,
        sent: set[int] | None = None,
        lag: Callable[[], int] | None = None,
        max_lag: int = 5000,
        on_progress: Callable[[ReplayProgress], None] | None = None,
        stop: threading.Event | None = None,
        clock: Clock | None = None,
        metrics: ReplayMetrics | None = None,
    ) -> None:
        self._schedule = schedule
        self._sink = sink
        self._positions = schedule.remaining(sent or set())
        self._pace = pace or Flat()
        self._lag = lag
        self._max_lag = max_lag
        self._tell = on_progress
        self._stop = stop or threading.Event()
        self._clock = clock or SystemClock()
        self._metrics = metrics
        self._done = 0
        self._counted = 0
        self._behind: int | None = None
        self._paused = False
        self._paused_s = 0.0
        self._started = 0.0
        self._told = -np.inf

    def run(self) -> ReplayReport:
        """Send everything, or all up to a stop.

        Raises
        ------
        BrokerError
            The log refused an event; run again under the same replay id to go on.
        """
        clock, positions = self._clock, self._positions
        history = int(np.searchsorted(positions, self._schedule.backfilled))
        self._started = clock.monotonic()
        self._send(history, Pacer(np.zeros(history), self._started))
        live, live_since = positions[history:], clock.monotonic()
        due = np.concatenate([np.zeros(history), self._pace.due(self._schedule.times_ms[live])])
        self._send(len(positions), Pacer(due, clock.monotonic()))
        asked_to_stop: float | None = None
        while under_way := self._sink.unacknowledged():
            if self._stop.is_set():
                asked_to_stop = clock.monotonic() if asked_to_stop is None else asked_to_stop
                if clock.monotonic() - asked_to_stop > STOP_S:
                    break
            self._progress()
            clock.sleep(NAP_S / 10)
        self._progress(last=True)
        wall = clock.monotonic() - self._started
        live_s = clock.monotonic() - live_since
        done = self._done - under_way
        return ReplayReport(
            replay_id=self._schedule.plan.replay_id,
            dataset=self._schedule.dataset,
            events=max(0, done - history),
            backfilled=min(done, history),
            devices=len(set(self._schedule.device_ids)),
            wall_s=wall,
            events_per_s=max(0, done - history) / live_s if live_s > 0 else 0.0,
            paused_s=self._paused_s,
            resumed_from=len(self._schedule) - len(positions),
            total=len(self._schedule),
            complete=done == len(positions),
        )

    def _send(self, until: int, pacer: Pacer) -> None:
        clock = self._clock
        while self._done < until and not self._stop.is_set():
            now = clock.monotonic()
            if self._must_wait():
                clock.sleep(NAP_S)
                self._count_pause(clock.monotonic() - now)
                pacer.postpone(self._done, clock.monotonic())
            elif self._sink.unacknowledged() >= MAX_UNACKNOWLEDGED:
                clock.sleep(NAP_S / 10)
            elif (ready := min(pacer.ready(now), until)) > self._done:
                for index in range(self._done, min(ready, self._done + CHUNK)):
                    self._send_one(int(self._positions[index]))
            else:
                clock.sleep(min(NAP_S, max(pacer.wait(self._done, now), 1e-4)))
            self._progress()

    def _must_wait(self) -> bool:
        if self._lag is not None:
            self._behind = self._lag()
            self._paused = self._behind > self._max_lag
        return self._paused

    def _count_pause(self, seconds: float) -> None:
        self._paused_s += seconds
        if self._metrics:
            self._metrics.paused_seconds.inc(seconds)

    def _send_one(self, position: int) -> None:
        schedule = self._schedule
        event_id, time_ms = schedule.event_id(position), int(schedule.times_ms[position])
        interaction = Interaction(
            v=SCHEMA_VERSION[Interaction],
            event_id=event_id,
            device_id=schedule.device_ids[position],
            item_id=schedule.item_ids[position],
            event_time_ms=time_ms,
            kind=BACKFILL if position < schedule.backfilled else schedule.kinds[position],
        )
        headers = cloudevent_headers(event_id=event_id, event_type=EVENT_TYPE, source=schedule.source, time_ms=time_ms)
        self._sink.send(interaction, int(schedule.partitions[position]), headers)
        self._done += 1

    def _progress(self, *, last: bool = False) -> None:
        now = self._clock.monotonic()
        if not last and now - self._told < PROGRESS_S:
            return
        self._told = now
        under_way = self._sink.unacknowledged()
        acknowledged = self._done - under_way
        if self._metrics:
            self._metrics.replayed.inc(acknowledged - self._counted)
            self._counted = acknowledged
        if self._tell is None:
            return
        elapsed = now - self._started
        self._tell(
            ReplayProgress(
                sent=self._done,
                acknowledged=acknowledged,
                total=len(self._positions),
                events_per_s=self._done / elapsed if elapsed > 0 else 0.0,
                producer_lag=under_way,
                consumer_lag=self._behind,
                paused=self._paused and not last,
                backfilling=self._done < len(self._positions)
                and bool(self._positions[self._done] < self._schedule.backfilled),
            )
        )
