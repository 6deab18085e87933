"""Kafka producers and consumers as Driftline uses them: what was acknowledged is durable, what was committed was done.

Everything rests on kafka-python; where a worker uses aiokafka, `aiokafka_config` gives it the same connection.
Every client here outlives a broker that is gone for half a minute and more: sends wait, polls return nothing, commits
are made up for by the next one.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections import deque
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Self

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from kafka.structs import OffsetAndMetadata

from streams.errors import BrokerError
from streams.log import get_logger
from streams.records import OutgoingRecord
from streams.settings import KafkaSettings

log = get_logger(__name__)

BOOTSTRAP_TIMEOUT_MS: Final = 60_000
"""For the first contact: a broker that was killed needs 10 to 20 s to be back on two cores."""

RECONNECT_MAX_MS: Final = 1_000
"""The library's own limit of 30 s would make half a minute without a broker into a whole one."""

DELIVERY_TIMEOUT_MS: Final = 120_000
"""A record that is not acknowledged after this long has failed: four times an outage of 30 s."""

MAX_UNACKNOWLEDGED: Final = 50_000
"""kafka-python has no limit of its own on what it buffers; beyond this many records `send` waits for the oldest."""

COMMIT_TIMEOUT_MS: Final = 5_000
"""A commit is a hint of what need not be done again; waiting longer for one costs more than redoing a batch."""

SESSION_TIMEOUT_MS: Final = 10_000
"""A consumer whose process is silent for so long loses its partitions. Heartbeats come from a thread of their own, so
this bounds how late another takes over after a crash, not how long the work on a batch may take."""

_REBALANCED = (CommitFailedError, RebalanceInProgressError, UnknownMemberIdError, IllegalGenerationError)


def client_config(kafka: KafkaSettings) -> dict[str, Any]:
    """Connection settings of every kafka-python client. They hold the password: never log them."""
    config: dict[str, Any] = {
        "bootstrap_servers": _servers(kafka),
        "client_id": "driftline",
        "security_protocol": kafka.security_protocol,
        "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
        "reconnect_backoff_max_ms": RECONNECT_MAX_MS,
    }
    if "SASL" in kafka.security_protocol:
        config |= _sasl(kafka)
    if "SSL" in kafka.security_protocol.split("_"):
        config |= {
            "ssl_cafile": kafka.ssl_cafile or None,
            "ssl_certfile": kafka.ssl_certfile or None,
            "ssl_keyfile": kafka.ssl_keyfile or None,
        }
    return config


def aiokafka_config(kafka: KafkaSettings) -> dict[str, Any]:
    """Connection settings of an aiokafka client; TLS is an `ssl.SSLContext` there. Never log them either.

    Raises
    ------
    BrokerError
        A certificate or key file cannot be read.
    """
    config: dict[str, Any] = {
        "bootstrap_servers": ",".join(_servers(kafka)),
        "client_id": "driftline",
        "security_protocol": kafka.security_protocol,
    }
    if "SASL" in kafka.security_protocol:
        config |= _sasl(kafka)
    if "SSL" in kafka.security_protocol.split("_"):
        try:
            context = ssl.create_default_context(cafile=kafka.ssl_cafile or None)
            if kafka.ssl_certfile:
                context.load_cert_chain(kafka.ssl_certfile, kafka.ssl_keyfile or None)
        except OSError as exc:  # ssl.SSLError is one
            raise BrokerError(
                f"the TLS files for Kafka cannot be used: {exc}",
                remedy="look at kafka.ssl_cafile, kafka.ssl_certfile and kafka.ssl_keyfile",
            ) from exc
        config["ssl_context"] = context
    return config


def _servers(kafka: KafkaSettings) -> list[str]:
    servers = [each.strip() for each in kafka.bootstrap.split(",") if each.strip()]
    if not servers:
        raise BrokerError(
            "no Kafka broker is named",
            remedy="set kafka.bootstrap (DRIFTLINE_KAFKA__BOOTSTRAP), or let `driftline up` start a broker",
        )
    return servers


def _sasl(kafka: KafkaSettings) -> dict[str, Any]:
    return {
        "sasl_mechanism": kafka.sasl_mechanism,
        "sasl_plain_username": kafka.sasl_username,
        "sasl_plain_password": kafka.sasl_password.get_secret_value(),
    }


def make_producer(kafka: KafkaSettings, *, linger_ms: int = 5, transactional_id: str | None = None) -> KafkaProducer:
    """Build an idempotent kafka-python producer (acks=all, order kept, retries until `DELIVERY_TIMEOUT_MS`).

    Raises
    ------
    BrokerError
        No broker answers.
    """
    try:
        return KafkaProducer(
            **client_config(kafka),
            enable_idempotence=True,
            acks="all",
            max_in_flight_requests_per_connection=5,
            linger_ms=linger_ms,
            batch_size=65_536,
            delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
            max_block_ms=DELIVERY_TIMEOUT_MS,
            transactional_id=transactional_id,
            allow_auto_create_topics=False,
        )
    except (KafkaError, OSError) as exc:
        raise _unreachable(kafka, exc) from exc


def make_consumer(
    kafka: KafkaSettings,
    group: str | None,
    *topics: str,
    read_committed: bool = True,
    auto_offset_reset: str = "earliest",
    session_timeout_ms: int = SESSION_TIMEOUT_MS,
    max_poll_interval_ms: int = 300_000,
    fetch_max_wait_ms: int = 50,
) -> KafkaConsumer:
    """Build a kafka-python consumer that never commits by itself.

    Parameters
    ----------
    group
        Consumer group; None for a plain reader, to which partitions are assigned by hand.
    topics
        Subscribed to; leave out to `assign` partitions.
    max_poll_interval_ms
        How long the work on one batch may take; heartbeats go on meanwhile.
    fetch_max_wait_ms
        How long the broker holds a fetch back while there is nothing new: the price of a quiet topic.

    Raises
    ------
    BrokerError
        No broker answers.
    """
    try:
        return KafkaConsumer(
            *topics,
            **client_config(kafka),
            group_id=group,
            enable_auto_commit=False,
            isolation_level="read_committed" if read_committed else "read_uncommitted",
            auto_offset_reset=auto_offset_reset,
            session_timeout_ms=session_timeout_ms,
            heartbeat_interval_ms=min(3_000, session_timeout_ms // 4),
            max_poll_interval_ms=max_poll_interval_ms,
            fetch_max_wait_ms=fetch_max_wait_ms,
            allow_auto_create_topics=False,
            metadata_max_age_ms=30_000,
        )
    except (KafkaError, OSError) as exc:
        raise _unreachable(kafka, exc) from exc


def wait_for_broker(kafka: KafkaSettings | str, timeout_s: float = 60.0) -> str:
    """Wait until a broker answers, and return its release line, such as ``"4.1"``, as told by its own feature level.

    Parameters
    ----------
    kafka
        How to reach it; a bare bootstrap string means without security.

    Raises
    ------
    BrokerError
        It did not answer in time; the message has its last answer.
    """
    settings = KafkaSettings(bootstrap=kafka) if isinstance(kafka, str) else kafka
    config = client_config(settings)
    deadline = time.monotonic() + timeout_s
    quiet = logging.getLogger("kafka")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)  # failed attempts are expected here, and our error tells the last one
    try:
        while True:
            left = deadline - time.monotonic()
            attempt_ms = max(500, int(min(left, 5.0) * 1000))
            try:
                admin = KafkaAdminClient(
                    **config | {"bootstrap_timeout_ms": attempt_ms}, request_timeout_ms=max(1000, attempt_ms)
                )
                try:
                    if admin.describe_cluster()["brokers"]:
                        return _release(admin)
                    problem: Exception = BrokerError("the cluster has no live broker yet")
                finally:
                    admin.close()
            except (KafkaError, OSError) as exc:
                problem = exc
            if time.monotonic() >= deadline:
                raise _unreachable(settings, problem) from problem
            time.sleep(0.2)
    finally:
        quiet.setLevel(level)


def _release(admin: KafkaAdminClient) -> str:
    """The release line by KIP-584's finalized metadata.version: the protocol does not carry the exact release."""
    level = admin.describe_features().get("metadata.version", {}).get("finalized", (0, 0))[1]
    # First level of each line, from Kafka's MetadataVersion: 4.0-IV0 is 22, 4.1-IV0 is 26, 4.2-IV0 is 28.
    for release, first in (("4.2 or later", 28), ("4.1", 26), ("4.0", 22), ("3.x", 1)):
        if level >= first:
            return release
    return "unknown"


def _unreachable(kafka: KafkaSettings, cause: Exception) -> BrokerError:
    return BrokerError(
        f"no Kafka broker answers at {kafka.bootstrap} ({type(cause).__name__}: {cause})",
        remedy="check kafka.bootstrap and its security settings, and that the broker runs (`driftline doctor`)",
    )


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
            _end(self._producer, 0.0)
            self._broken = True
            raise BrokerError(
                f"topic {topic}: a record was not acknowledged ({type(exc).__name__}: {exc}); "
                f"{lost} records have an unknown outcome",
                remedy="the work behind them is redone when its input is read again",
            ) from exc

    def close(self, timeout_s: float = 10.0) -> None:
        """Give what is under way a last chance, then let go. Not a substitute for `flush_or_raise`."""
        if not self._broken:
            _end(self._producer, timeout_s)
            self._pending.clear()


def _end(producer: KafkaProducer, timeout_s: float) -> None:
    """Close a producer; records that are not acknowledged in time are given up."""
    try:
        producer.close(timeout_s)
    except KafkaError:
        # kafka-python's close raises from its flush and leaves the sender's thread running: it would go on sending
        # records that we have given up, behind the back of whoever sends them again.
        log.warning("a producer was closed with records under way")
        producer._sender.force_close()  # noqa: SLF001
        producer._sender.join(1.0)  # noqa: SLF001


class BatchConsumer:
    """Batches of records from a consumer group, committed only when their work is durable.

    The contract: `poll_batch`, do the work, make it durable (`DurableProducer.flush_or_raise`, a store's sync), and
    only then `commit(batch)`. A crash or a rebalance in between brings the same records again, to this worker or to
    another: at least once. When the work failed and the process lives on, `rewind(batch)` brings them again here.
    """

    def __init__(self, kafka: KafkaSettings, group: str, *topics: str, read_committed: bool = True) -> None:
        self._consumer = make_consumer(kafka, group, *topics, read_committed=read_committed)
        self._topics = topics
        self._group = group

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def assignment(self) -> frozenset[tuple[str, int]]:
        """The (topic, partition) pairs this consumer owns now; empty before the group has settled."""
        return frozenset((tp.topic, tp.partition) for tp in self._consumer.assignment())

    def poll_batch(self, max_records: int, first_wait_s: float, linger_ms: int = 0) -> list[ConsumerRecord]:
        """Wait for records, then a little longer for the batch to fill.

        Parameters
        ----------
        max_records
            No batch is larger.
        first_wait_s
            How long to wait for the first record.
        linger_ms
            How long a batch that is not full waits for more.

        Returns
        -------
        list
            Each partition's records in their order; empty when nothing came, and while the broker is gone.

        Raises
        ------
        BrokerError
            The broker refuses: no permission, a topic that is not there, a broken record batch.
        """
        batch = self._poll(max_records, first_wait_s * 1000)
        deadline = time.monotonic() + linger_ms / 1000
        while batch and len(batch) < max_records and (left := deadline - time.monotonic()) > 0:
            batch += self._poll(max_records - len(batch), left * 1000)
        return batch

    def _poll(self, max_records: int, timeout_ms: float) -> list[ConsumerRecord]:
        started = time.monotonic()
        try:
            fetched = self._consumer.poll(timeout_ms=timeout_ms, max_records=max_records)
        except _REBALANCED as exc:
            log.info("the consumer group rebalances", group=self._group, cause=str(exc))
            return []
        except (KafkaError, OSError) as exc:
            if isinstance(exc, KafkaError) and not exc.retriable:
                raise BrokerError(
                    f"topics {', '.join(self._topics)} cannot be read ({type(exc).__name__}: {exc})",
                    remedy="`driftline topics list` shows what the cluster has",
                ) from exc
            log.warning("the broker does not answer", group=self._group, cause=f"{type(exc).__name__}: {exc}")
            # No busy loop while it is gone: use up the time the caller had for us.
            time.sleep(max(0.0, min(1.0, timeout_ms / 1000 - (time.monotonic() - started))))
            return []
        return [record for records in fetched.values() for record in records]

    def commit(self, batch: Sequence[ConsumerRecord]) -> bool:
        """Record that `batch` was worked on: each partition's next offset is the one after its last record.

        Returns
        -------
        bool
            False when it could not be recorded, because the group rebalanced or the broker does not answer: the
            records come again (or a later commit covers them), which the work must bear anyhow.

        Raises
        ------
        BrokerError
            The broker refuses for good.
        """
        offsets: dict[TopicPartition, OffsetAndMetadata] = {}
        for record in batch:
            tp = TopicPartition(record.topic, record.partition)
            if tp not in offsets or record.offset + 1 > offsets[tp].offset:
                offsets[tp] = OffsetAndMetadata(record.offset + 1, "", -1)
        if not offsets:
            return True
        try:
            self._consumer.commit(offsets, timeout_ms=COMMIT_TIMEOUT_MS)
        except (KafkaError, OSError) as exc:
            if isinstance(exc, KafkaError) and not exc.retriable and not isinstance(exc, _REBALANCED):
                raise BrokerError(
                    f"group {self._group}: a commit was refused ({type(exc).__name__}: {exc})",
                    remedy="check the group's permissions",
                ) from exc
            log.warning(
                "a commit did not go through; the records come again",
                group=self._group,
                records=len(batch),
                cause=f"{type(exc).__name__}: {exc}",
            )
            return False
        return True

    def rewind(self, batch: Sequence[ConsumerRecord]) -> None:
        """Go back to where `batch` started: its work failed. Partitions that were taken away are left alone."""
        first: dict[TopicPartition, int] = {}
        for record in batch:
            tp = TopicPartition(record.topic, record.partition)
            first[tp] = min(first.get(tp, record.offset), record.offset)
        owned = self._consumer.assignment()
        for tp, offset in first.items():
            if tp in owned:
                self._consumer.seek(tp, offset)

    def close(self, timeout_s: float = 5.0) -> None:
        """Leave the group, so that its other members take over at once; nothing is committed."""
        self._consumer.close(autocommit=False, timeout_ms=int(timeout_s * 1000))
