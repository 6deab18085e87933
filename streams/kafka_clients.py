"""Kafka producers and consumers as Driftline uses them: what was acknowledged is durable, what was committed was done.

Everything rests on kafka-python; where a worker uses aiokafka, `aiokafka_config` gives it the same connection.
Every client here outlives a broker that is gone for half a minute and more: sends wait, polls return nothing, commits
are made up for by the next one.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError

from streams.errors import BrokerError
from streams.log import get_logger
from streams.settings import KafkaSettings

log = get_logger(__name__)

BOOTSTRAP_TIMEOUT_MS: Final = 60_000
"""For the first contact: a broker that was killed needs 10 to 20 s to be back on two cores."""

RECONNECT_MAX_MS: Final = 1_000
"""The library's own limit of 30 s would make half a minute without a broker into a whole one."""

DELIVERY_TIMEOUT_MS: Final = 120_000
"""A record that is not acknowledged after this long has failed: four times an outage of 30 s."""

SESSION_TIMEOUT_MS: Final = 10_000
"""A consumer whose process is silent for so long loses its partitions. Heartbeats come from a thread of their own, so
this bounds how late another takes over after a crash, not how long the work on a batch may take."""


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


def wait_for_broker(kafka: KafkaSettings, timeout_s: float = 60.0) -> str:
    """Wait until a broker answers, and return its release line, such as ``"4.1"``, as told by its own feature level.

    Parameters
    ----------
    kafka
        How to reach it.

    Raises
    ------
    BrokerError
        It did not answer in time; the message has its last answer.
    """
    config = client_config(kafka)
    deadline = time.monotonic() + timeout_s
    with quiet_clients():
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
                raise _unreachable(kafka, problem) from problem
            time.sleep(0.2)


@contextmanager
def quiet_clients() -> Iterator[None]:
    """Keep kafka-python's own log quiet: a failed attempt is expected here, and an error of ours tells the last one."""
    logger = logging.getLogger("kafka")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def close_producer(producer: KafkaProducer, timeout_s: float) -> bool:
    """Close a producer and its thread; records that are not acknowledged in time are given up.

    Parameters
    ----------
    timeout_s
        How long what is under way may take; 0 lets go at once.

    Returns
    -------
    bool
        Whether everything was acknowledged or had failed before.
    """
    sender = producer._sender  # noqa: SLF001
    try:
        producer.close(timeout_s)
        return True
    except KafkaError:
        # kafka-python's close raises from its flush and leaves the sender's thread running: it would go on sending
        # records that we have given up, behind the back of whoever sends them again.
        sender.force_close()
        return False
    finally:
        sender.join(1.0)


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
        remedy="check kafka.bootstrap and its security settings, and that the broker runs",
    )
