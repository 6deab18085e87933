"""One face for both: a Kafka that runs elsewhere and one of our own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

from infra.broker.probe import reach
from infra.broker.server import Broker


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
    bootstrap
        Its bootstrap servers.
    clients
        More settings for the Kafka clients (TLS, SASL), by kafka-python's names.
    """

    pid: int | None = None
    log_file: Path | None = None

    def __init__(self, bootstrap: str, *, clients: Mapping[str, Any] | None = None) -> None:
        self._bootstrap = bootstrap
        self._clients = clients
        self._version: str | None = None

    @property
    def bootstrap(self) -> str:
        """The bootstrap servers as given."""
        return self._bootstrap

    @property
    def version(self) -> str:
        """The release line that the broker's features are of."""
        if self._version is None:
            self._version = reach(self._bootstrap, clients=self._clients)
        return self._version

    def start(self) -> None:
        """Verify that it answers.

        Raises
        ------
        BrokerError
            It does not.
        """
        self._version = reach(self._bootstrap, clients=self._clients)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Leave it alone: it is not ours."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def broker_for(
    bootstrap: str | None,
    data_dir: Path,
    *,
    port: int | None = None,
    heap_mb: int = 384,
    say: Callable[[str], None] | None = None,
    clients: Mapping[str, Any] | None = None,
) -> Broker | ExternalBroker:
    """Return the Kafka to use, not started yet: the one at ``bootstrap``, or else one of our own in ``data_dir``."""
    if bootstrap:
        return ExternalBroker(bootstrap, clients=clients)
    return Broker(data_dir, port=port, heap_mb=heap_mb, say=say)
