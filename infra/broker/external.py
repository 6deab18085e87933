"""One face for both: a Kafka that runs elsewhere and one of our own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, Self

from infra.broker.server import Broker
from streams.kafka_clients import wait_for_broker
from streams.settings import KafkaSettings

WAIT_S: Final = 15.0
"""How long a Kafka that runs elsewhere may take to answer."""


class RunningKafka(Protocol):
    """What the launcher needs of a Kafka, wherever it runs."""

    @property
    def bootstrap(self) -> str:
        """``host:port[,host:port…]`` for clients."""

    @property
    def version(self) -> str:
        """Kafka's version, as exactly as it can be known."""

    @property
    def pid(self) -> int | None:
        """Its process id, where the process is ours."""

    @property
    def log_file(self) -> Path | None:
        """Its log, where it is ours."""

    def start(self) -> None:
        """Start it, or verify that it answers."""

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop it, where it is ours."""


class ExternalBroker:
    """A Kafka that somebody else runs: it is verified, never started or stopped.

    Parameters
    ----------
    kafka
        How to reach it.
    """

    pid: int | None = None
    log_file: Path | None = None

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._version: str | None = None

    @property
    def bootstrap(self) -> str:
        """The bootstrap servers as given."""
        return self._kafka.bootstrap

    @property
    def version(self) -> str:
        """The release line that the broker's features are of."""
        if self._version is None:
            self.start()
        assert self._version is not None
        return self._version

    def start(self) -> None:
        """Verify that it answers.

        Raises
        ------
        BrokerError
            It does not.
        """
        self._version = wait_for_broker(self._kafka, WAIT_S)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Leave it alone: it is not ours."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def broker_for(
    kafka: KafkaSettings,
    data_dir: Path,
    *,
    port: int | None = None,
    heap_mb: int = 384,
    say: Callable[[str], None] | None = None,
) -> Broker | ExternalBroker:
    """Return the Kafka to use, not started yet: the one that is named, or else one of our own in ``data_dir``."""
    if kafka.bootstrap:
        return ExternalBroker(kafka)
    return Broker(data_dir, port=port, heap_mb=heap_mb, say=say)
