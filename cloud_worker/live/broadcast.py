"""Tells all devices what people take near what: one table to trends.v1 for every so many hours of event time.

Boundaries are the event times start + k · period, from the start of the bundle's test period. The table of a boundary
holds only what happened before it. It is due once an event at or after the boundary was read, and with it everything
that the topic held `SETTLE_S` later, so that the events of other partitions from before it are in as well; of several
that are due the newest is made. One event dated far ahead of the others passes no boundary.
The first one is due at once.

One worker writes, the one that owns partition 0 of the refresh requests: the group's coordinator sees to it that there
is one, and that another follows it. Two that take themselves for it do no harm, since their tables are about the same
and each part replaces the part of its key.

The live reader's thread takes the interactions out of the index, which it alone may do without the lock. A thread that
lives as long as one table counts and publishes it: a broker that does not answer holds up neither the reader nor the
worker's loop.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from cloud_worker.live.index import Ints, LiveIndex
from cloud_worker.live.neighbour_counts import neighbour_table, neighbours_kept
from streams.bundle import Bundle
from streams.clock import Clock
from streams.errors import DriftlineError
from streams.events import Codec, Trends, cloudevent_headers, trends_key
from streams.log import get_logger
from streams.metrics import CloudMetrics
from streams.records import OutgoingRecord
from streams.topics import Topics
from streams.trends import records_of_table

log = get_logger(__name__)

SETTLE_S: Final = 1.0
"""Wall time from the first event behind a boundary to its table; also the least from one table to the next."""
BATCHES: Final = 8
"""Batches by which it is known where the stream is."""
REST: Final = 9.0
"""A table that took t seconds to count is followed by so many times t of rest: a tenth of a core at most."""
FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 60.0
"""Waits after failures double up to this."""
MOST: Final = 1_000_000
"""Interactions that a table is counted from: half a gigabyte of memory and some seconds."""
CLOSE_S: Final = 0.5
"""How long `close` waits for a table under way; the next leader makes it again."""
HOUR_MS: Final = 3_600_000
EVENT_TYPE: Final = "driftline.trends.v1"
SOURCE: Final = "/driftline/cloud-worker"


class Producer(Protocol):
    """What is asked of a `DurableProducer`."""

    def send_all(self, records: Iterable[OutgoingRecord]) -> None:
        """Hand over records."""

    def flush_or_raise(self) -> None:
        """Wait until they are in the log."""

    def close(self, timeout_s: float) -> None:
        """Let go."""


Start = Callable[[Callable[[], None]], None]
"""Begins a piece of work, on another thread or at once."""


def start_thread(work: Callable[[], None]) -> None:
    """Begin it on a thread that no end of the process waits for."""
    threading.Thread(target=work, name="broadcast", daemon=True).start()


@dataclass
class _Job:
    """A table on its way; the fields below `done` are its thread's until that is set."""

    as_of_ms: int
    begun: float
    done: threading.Event = field(default_factory=threading.Event)
    made_at: float = 0.0
    published_at: float = 0.0
    sent_bytes: int = 0
    error: Exception | None = None


class Broadcaster:
    """Makes and publishes tables; `turn` is called again and again by the thread that writes the index.

    Parameters
    ----------
    bundle
        Whose catalogue the tables are about, and whose test period they begin with.
    make_producer
        For a producer of this object's own; called with the first table, and may raise `BrokerError`.
    hours
        Event time from one table to the next; 0: none is made.
    start
        How a table is begun.
    """

    def __init__(
        self,
        bundle: Bundle,
        topics: Topics,
        metrics: CloudMetrics,
        clock: Clock,
        make_producer: Callable[[], Producer],
        *,
        hours: float,
        start: Start = start_thread,
    ) -> None:
        self._bundle_id = bundle.id
        self._n_items = bundle.manifest.n_items
        self._start_ms = bundle.manifest.test.start_ms
        self._period_ms = max(1, round(hours * HOUR_MS)) if hours else 0
        self._topic = topics.trends
        self._metrics = metrics
        self._clock = clock
        self._make_producer = make_producer
        self._producer: Producer | None = None
        self._start = start
        self._codec = Codec(Trends)
        self._positions: deque[int] = deque(maxlen=BATCHES)
        self._leads = threading.Event()
        self._write_again = threading.Event()
        self._noticed: deque[tuple[int, float]] = deque()
        """Boundaries and from when on they may be written, oldest first; the first one is the newest that may."""
        self._written: int | None = None
        """Boundary of the last table begun, unless it is to be written again."""
        self._job: _Job | None = None
        self._not_before = -float("inf")
        self._failures = 0

    def lead(self, leads: bool) -> None:
        """Say whether this worker is the one that writes; from the worker's loop, after each poll.

        One that becomes it writes the current table again: whoever led before may have died over it.
        """
        if leads and not self._leads.is_set():
            self._write_again.set()
            self._leads.set()
        elif not leads:
            self._leads.clear()

    def reached(self, event_ms: int) -> None:
        """Say up to which event time a batch goes that the index took in, a few of its events aside."""
        self._positions.append(event_ms)

    def turn(self, index: LiveIndex, complete_at: float = float("inf")) -> None:
        """Look whether a table is due, and begin it if so; takes some tenths of a second then, else nothing.

        Not to be called while the index is still being brought up to date: every table of the past would be sent.

        Parameters
        ----------
        complete_at
            On the monotonic clock: what the topic held then was read.
        """
        if not self._period_ms:
            return
        now = self._clock.monotonic()
        self._notice(self._position(index.newest_ms), now, complete_at)
        if self._job is not None and self._job.done.is_set():
            self._settle(self._job, now)
        if self._write_again.is_set():
            self._write_again.clear()
            self._written = None
        as_of_ms, _ = self._noticed[0]
        ready = self._leads.is_set() and self._job is None and self._not_before <= now
        if ready and as_of_ms != self._written:
            self._begin(index, as_of_ms, now)

    def begin_again(self) -> None:
        """The index began again from the bundle: what was noticed and written says nothing about it."""
        self._noticed.clear()
        self._positions.clear()
        self._written = None

    def close(self) -> None:
        """Let go of the producer; no `turn` may follow. A table under way is given up after `CLOSE_S`."""
        self._leads.clear()
        if self._job is not None and not self._job.done.wait(CLOSE_S):
            log.warning("leaving a table to the next worker", topic=self._topic, as_of_ms=self._job.as_of_ms)
            return  # its thread has the producer, which is not for two
        if self._producer is not None:
            self._producer.close(CLOSE_S)

    def _position(self, newest_ms: int) -> int:
        """Where the stream is: by the last batches, if there were any, but for one that is far ahead of the others."""
        if not self._positions:
            self._positions.append(newest_ms)
        ahead, *others = sorted(self._positions, reverse=True)
        return others[0] if others and ahead - others[0] > self._period_ms else ahead

    def _notice(self, newest_ms: int, now: float, complete_at: float) -> None:
        # A phone whose clock is ahead must not end a period before its time: the table would lack what is yet to come.
        newest_ms = min(newest_ms, self._clock.now_ms())
        passed = max(0, newest_ms - self._start_ms) // self._period_ms
        boundary = self._start_ms + passed * self._period_ms
        if self._noticed and boundary < self._noticed[-1][0] - self._period_ms:
            self._noticed.clear()  # several batches were wrong about it: the stream goes on where it was
        if not self._noticed:
            self._noticed.append((boundary, now))  # everything that was there has been read
        elif boundary > self._noticed[-1][0]:
            self._noticed.append((boundary, now + SETTLE_S))
        while len(self._noticed) > 1 and self._noticed[1][1] <= min(now, complete_at):
            self._noticed.popleft()

    def _begin(self, index: LiveIndex, as_of_ms: int, now: float) -> None:
        self._written = as_of_ms
        job = self._job = _Job(as_of_ms, now)
        try:
            lengths, items = index.sequences(as_of_ms, MOST)
            self._start(lambda: self._work(job, lengths, items))
        except Exception as exc:  # noqa: BLE001 - no memory, no thread: the reader of the live index must go on
            job.made_at, job.error = self._clock.monotonic(), exc
            job.done.set()

    def _work(self, job: _Job, lengths: Ints, items: Ints) -> None:
        """On the table's own thread."""
        try:
            records = self._records(job, lengths, items)
            job.sent_bytes = sum(len(record.value or b"") for record in records)
            if self._producer is None:
                self._producer = self._make_producer()
            self._producer.send_all(records)
            self._producer.flush_or_raise()
            job.published_at = self._clock.monotonic()
        except Exception as exc:  # noqa: BLE001 - handed to the reader's thread, which must not wait for ever
            job.error = exc
        finally:
            job.done.set()

    def _records(self, job: _Job, lengths: Ints, items: Ints) -> list[OutgoingRecord]:
        n, as_of_ms = self._n_items, job.as_of_ms
        try:
            table = neighbour_table(lengths, items, n, as_of_ms=as_of_ms, kept=neighbours_kept(n))
        finally:
            job.made_at = self._clock.monotonic()
        now_ms = self._clock.now_ms()
        return [
            OutgoingRecord(
                topic=self._topic,
                key=trends_key(part.part),
                value=self._codec.encode(part),
                headers=cloudevent_headers(
                    event_id=f"{self._bundle_id}-{as_of_ms}-{part.part}-trends",
                    event_type=EVENT_TYPE,
                    source=SOURCE,
                    time_ms=now_ms,
                ),
                partition=0,
            )
            for part in records_of_table(table, self._bundle_id, now_ms)
        ]

    def _settle(self, job: _Job, now: float) -> None:
        self._job = None
        self._not_before = max(job.begun + SETTLE_S, job.made_at + REST * (job.made_at - job.begun))
        if job.error is None:
            self._failures = 0
            self._metrics.trends_published.inc()
            self._metrics.trends_bytes.inc(job.sent_bytes)
            self._metrics.trends_seconds.observe(job.published_at - job.begun)
            log.info("trends published", topic=self._topic, as_of_ms=job.as_of_ms, bytes=job.sent_bytes)
            return
        self._failures += 1
        self._metrics.trends_failures.inc()
        self._written = None
        wait_s = min(FIRST_WAIT_S * 2.0 ** (self._failures - 1), LONGEST_WAIT_S)
        self._not_before = max(self._not_before, now + wait_s)
        cause = str(job.error) if isinstance(job.error, DriftlineError) else repr(job.error)
        log.warning(
            "a table could not be published", topic=self._topic, as_of_ms=job.as_of_ms, again_s=wait_s, cause=cause
        )
