"""Ask a broker whether it can be used, instead of guessing."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import KafkaError

from streams.errors import BrokerError

_PROBE = "driftline-readiness"
_ATTEMPT_MS = 5000


def wait_until_ready(
    bootstrap: str,
    *,
    deadline: float,
    still_alive: Callable[[], bool],
    clients: Mapping[str, Any] | None = None,
) -> None:
    """Return when the broker answers, can serve a consumer group and can carry a transaction.

    Parameters
    ----------
    bootstrap
        ``host:port``.
    deadline
        On the monotonic clock.
    still_alive
        Whether the broker's process is there; no use in waiting for one that has ended.
    clients
        More settings for the Kafka clients (TLS, SASL).

    Raises
    ------
    BrokerError
        The deadline passed or the process ended; the message says what the last attempt answered.
    """
    last = "nothing listens"
    while time.monotonic() < deadline and still_alive():
        if _listens(bootstrap):
            answer = _attempt(bootstrap, dict(clients or {}))
            if answer is None:
                return
            last = answer
        time.sleep(0.1)
    what = "did not become ready in time" if still_alive() else "ended before it was ready"
    raise BrokerError(f"the broker at {bootstrap} {what} ({last})")


def reach(bootstrap: str, *, timeout_s: float = 15.0, clients: Mapping[str, Any] | None = None) -> str:
    """Verify that a broker that runs elsewhere answers, and return the version it says it has.

    The protocol does not carry the exact release; what is returned is the newest release line whose features the
    broker has, such as ``"4.1"``.

    Raises
    ------
    BrokerError
        It does not answer.
    """
    settings = {"client_id": _PROBE, **(clients or {})}
    try:
        with quiet_clients():
            admin = KafkaAdminClient(
                bootstrap_servers=bootstrap.split(","),
                bootstrap_timeout_ms=int(timeout_s * 1000),
                request_timeout_ms=int(timeout_s * 1000),
                **settings,
            )
            try:
                admin.describe_cluster()
                return _release(admin)
            finally:
                admin.close()
    except (KafkaError, OSError) as problem:
        raise BrokerError(
            f"no Kafka answers at {bootstrap} ({type(problem).__name__}: {problem})",
            remedy="check the bootstrap servers and that the broker runs; leave them out to have one started here",
        ) from problem


def _release(admin: KafkaAdminClient) -> str:
    levels = admin.describe_features()
    level = levels.get("metadata.version", {}).get("finalized", (0, 0))[1]
    # metadata.version 25 is 4.0-IV3, 27 is 4.1-IV1: KIP-584's levels, one line per release.
    for release, lowest in (("4.2 or later", 28), ("4.1", 26), ("4.0", 22), ("3.x", 1)):
        if level >= lowest:
            return release
    return "unknown"


def _listens(bootstrap: str) -> bool:
    host, _, port = bootstrap.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1.0):
            return True
    except OSError:
        return False


def _attempt(bootstrap: str, settings: dict[str, Any]) -> str | None:
    """Try once; None when all is well, else what is not."""
    common = {"bootstrap_servers": [bootstrap], "client_id": _PROBE, "request_timeout_ms": _ATTEMPT_MS, **settings}
    with quiet_clients():
        try:
            admin = KafkaAdminClient(bootstrap_timeout_ms=_ATTEMPT_MS, **common)
            try:
                if not admin.describe_cluster()["brokers"]:
                    return "the cluster has no live broker yet"
                admin.list_group_offsets({_PROBE: None})  # the group coordinator has loaded
            finally:
                admin.close()
            producer = KafkaProducer(transactional_id=_PROBE, **common)
            try:
                producer.init_transactions()  # the transaction coordinator has loaded and can write
            finally:
                producer.close(timeout=1)
        except (KafkaError, OSError) as problem:
            return f"{type(problem).__name__}: {problem}"
    return None


@contextlib.contextmanager
def quiet_clients() -> Iterator[None]:
    """Keep the Kafka client's own log quiet: a failed attempt is expected here and is told by our error."""
    logger = logging.getLogger("kafka")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
