"""Reads `trends.v1` for all partitions of a worker, on a thread of its own.

The topic is a broadcast: every worker reads it whole, from the beginning, with a consumer outside any group, and again
after each failure. Compaction keeps that to some tables.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Final

import structlog
from kafka import KafkaConsumer, TopicPartition

from device_agent.trends import TrendsBoard
from streams.bundle import Bundle
from streams.clock import Clock
from streams.errors import RecordError
from streams.events import Codec, Trends
from streams.kafka_clients import make_consumer
from streams.metrics import DeviceMetrics
from streams.settings import KafkaSettings
from streams.topics import Topics
from streams.trends import TableAssembly

POLL_MS: Final = 500
AT_ONCE: Final = 1
"""Records of a poll: each is some 400 kB, and after each there may be no room for another table."""
FIRST_WAIT_S: Final = 0.2
LONGEST_WAIT_S: Final = 5.0
"""Waits after failures double up to this."""
STOP_S: Final = 1.0


class TrendsReader:
    """Puts the tables of this bundle on `board`, between `start` and `stop`.

    A record that cannot be used is counted and left where it is: every worker reads it, and a dead-letter topic would
    get as many copies.

    Parameters
    ----------
    future_tolerance_s
        A table further than this ahead of the wall clock is not used.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        topics: Topics,
        bundle: Bundle,
        board: TrendsBoard,
        metrics: DeviceMetrics,
        clock: Clock,
        *,
        future_tolerance_s: float,
    ) -> None:
        self._kafka = kafka
        self._partition = TopicPartition(topics.trends, 0)
        self._board = board
        self._clock = clock
        self._ahead_ms = int(future_tolerance_s * 1000)
        self._metrics = metrics
        self._codec = Codec(Trends)
        self._assembly = TableAssembly(bundle.id, bundle.manifest.n_items)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trends-reader", daemon=True)
        self._log = structlog.get_logger("trends")
        metrics.trends_as_of.set_function(lambda: max(board.as_of_ms, 0) / 1000)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End; returns after `STOP_S` even if the broker holds it up."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def ended(self) -> str | None:
        """Why this process should be started again: the thread ended by itself. None while it lives."""
        lost = self._thread.ident is not None and not self._thread.is_alive() and not self._stop.is_set()
        return "the reader of trends ended" if lost else None

    def _run(self) -> None:
        wait_s = FIRST_WAIT_S
        while not self._stop.is_set():
            try:
                with contextlib.closing(make_consumer(self._kafka, None, read_committed=True)) as consumer:
                    consumer.assign([self._partition])
                    consumer.seek_to_beginning(self._partition)
                    while not self._stop.is_set():
                        self._turn(consumer)
                        wait_s = FIRST_WAIT_S
            except Exception as exc:  # noqa: BLE001 - without this thread the tables would grow old unnoticed
                self._log.warning("trends cannot be read; the last table stays", cause=f"{type(exc).__name__}: {exc}")
                self._stop.wait(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _turn(self, consumer: KafkaConsumer) -> None:
        if not self._board.room:
            self._stop.wait(POLL_MS / 1000)
            return
        for records in consumer.poll(timeout_ms=POLL_MS, max_records=AT_ONCE).values():
            for record in records:
                self._take(record.value, record.offset)

    def _take(self, value: bytes | None, offset: int) -> None:
        try:
            table = self._assembly.add(self._codec.decode(value), self._clock.now_ms() + self._ahead_ms)
        except RecordError as error:
            self._metrics.trends_ignored.labels(error.reason).inc()
            self._log.warning("a record of trends cannot be used", offset=offset, reason=error.reason, cause=str(error))
            return
        if table is not None:
            self._board.offer(table)
            self._metrics.trends_taken.inc()
            self._log.info("neighbour table read", as_of_ms=table.as_of_ms, kept=table.items.shape[1])
