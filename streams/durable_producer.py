"""A producer whose flush means: every record sent so far is in the log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Self

from kafka.errors import KafkaError

from streams.errors import BrokerError
from streams.kafka_clients import DELIVERY_TIMEOUT_MS, close_producer, make_producer
from streams.log import get_logger
from streams.records import OutgoingRecord
from streams.settings import KafkaSettings

log = get_logger(__name__)

MAX_UNACKNOWLEDGED: Final = 50_000
"""kafka-python has no limit of its own on what it buffers; beyond this many records `send` waits for the oldest."""


class DurableProducer:
    """A producer whose `flush_or_raise` means: every record sent so far is in the log.

    After a failure it goes on with a new connection: kafka-python's idempotent producer refuses everything once the
    broker has refused one record for good. What the old one still had under way is given up, and reported as such.

    Parameters
    ----------
    max_unacknowledged
        `send` waits for the oldest record while so many are under way.
    """

    def __init__(
        self, kafka: KafkaSettings, *, linger_ms: int = 5, max_unacknowledged: int = MAX_UNACKNOWLEDGED
    ) -> None:
        self._kafka = kafka
        self._linger_ms = linger_ms
        self._producer = make_producer(kafka, linger_ms=linger_ms)
        self._broken = False
        self._pending: deque[tuple[str, Any]] = deque()
        self._limit = max_unacknowledged

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def unacknowledged(self) -> int:
        """Records sent whose outcome was not looked at yet; an upper bound of those under way."""
        return len(self._pending)

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> None:
        """Hand over one record; it is durable only once `flush_or_raise` returned.

        Raises
        ------
        BrokerError
            This record cannot be sent, or an earlier one was not acknowledged.
        """
        while self._pending and (self._pending[0][1].is_done or len(self._pending) >= self._limit):
            self._settle(time.monotonic() + DELIVERY_TIMEOUT_MS / 1000)
        if self._broken:
            self._producer = make_producer(self._kafka, linger_ms=self._linger_ms)
            self._broken = False
        try:
            future = self._producer.send(topic, key=key, value=value, headers=list(headers), partition=partition)
        except (KafkaError, ValueError, TypeError) as exc:
            raise BrokerError(
                f"a record for topic {topic} cannot be sent ({type(exc).__name__}: {exc})",
                remedy="`driftline topics list` shows what the cluster has",
            ) from exc
        self._pending.append((topic, future))

    def send_all(self, records: Iterable[OutgoingRecord]) -> None:
        """Hand over many records; see `send`."""
        for record in records:
            self.send(record.topic, record.key, record.value, record.headers, record.partition)

    def flush_or_raise(self, timeout_s: float = DELIVERY_TIMEOUT_MS / 1000 + 10) -> None:
        """Wait until every record sent so far is acknowledged by all in-sync replicas.

        After an error the outcome of the others is unknown: redo the work that they came from.

        Raises
        ------
        BrokerError
            One was not; names the topic and the cause.
        """
        deadline = time.monotonic() + timeout_s
        try:
            self._producer.flush(timeout_s)
        except KafkaError:
            log.debug("a flush failed; the record that did tells why")
        while self._pending:
            self._settle(deadline)

    def _settle(self, deadline: float) -> None:
        """Take the oldest record off the list once its outcome is known; after a failure everything starts anew."""
        topic, future = self._pending.popleft()
        try:
            future.get(timeout=max(0.0, deadline - time.monotonic()))
        except Exception as exc:  # the library also hands on what its sender thread raised
            lost = len(self._pending) + 1
            self._pending.clear()
            self._end(0.0)
            self._broken = True
            raise BrokerError(
                f"topic {topic}: a record was not acknowledged ({type(exc).__name__}: {exc}); "
                f"{lost} records have an unknown outcome",
                remedy="the work behind them is redone when its input is read again",
            ) from exc

    def close(self, timeout_s: float = 10.0) -> None:
        """Give what is under way a last chance, then let go. Not a substitute for `flush_or_raise`."""
        if not self._broken:
            self._end(timeout_s)
            self._pending.clear()

    def _end(self, timeout_s: float) -> None:
        if not close_producer(self._producer, timeout_s):
            log.warning("a producer was closed with records under way")
