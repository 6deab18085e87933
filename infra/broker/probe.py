"""Ask a broker whether it can be used, instead of guessing."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import KafkaError

from streams.errors import BrokerError
from streams.kafka_clients import quiet_clients

_PROBE = "driftline-readiness"
_ATTEMPT_MS = 5000


def wait_until_ready(
    bootstrap: str,
    *,
    deadline: float,
    still_alive: Callable[[], bool],
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

    Raises
    ------
    BrokerError
        The deadline passed or the process ended; the message says what the last attempt answered.
    """
    last = "nothing listens"
    while time.monotonic() < deadline and still_alive():
        if _listens(bootstrap):
            answer = _attempt(bootstrap)
            if answer is None:
                return
            last = answer
        time.sleep(0.1)
    what = "did not become ready in time" if still_alive() else "ended before it was ready"
    raise BrokerError(f"the broker at {bootstrap} {what} ({last})")


def _listens(bootstrap: str) -> bool:
    host, _, port = bootstrap.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1.0):
            return True
    except OSError:
        return False


def _attempt(bootstrap: str) -> str | None:
    """Try once; None when all is well, else what is not."""
    common: dict[str, Any] = {
        "bootstrap_servers": [bootstrap],
        "client_id": _PROBE,
        "request_timeout_ms": _ATTEMPT_MS,
    }
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
