"""The HTTP side of a process: /metrics, /livez and /readyz, served from a thread of its own."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from streams.errors import EnvironmentProblem
from streams.log import get_logger
from streams.settings import HttpSettings

log = get_logger(__name__)

START_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 1.0

Check = Callable[[], str | None]
"""None when all is well, else why not."""


class HealthServer:
    """Serves /metrics (Prometheus), /livez and /readyz on a daemon thread.

    Parameters
    ----------
    http
        Where to listen; port 0 is a free one.
    registry
        The metrics.
    live
        Why this process should be started again; None while it need not be.
    ready
        Why it cannot take work just now (restoring, no broker); None when it can.

    Examples
    --------
    >>> from prometheus_client import CollectorRegistry
    >>> from streams.settings import HttpSettings
    >>> server = HealthServer(HttpSettings(), CollectorRegistry(), live=lambda: None, ready=lambda: "restoring")
    >>> url = server.start()
    >>> server.stop()
    """

    def __init__(self, http: HttpSettings, registry: CollectorRegistry, *, live: Check, ready: Check) -> None:
        self._http = http
        self._registry = registry
        self._checks = {"/livez": live, "/readyz": ready}
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> str:
        """Listen, and return the base URL.

        Raises
        ------
        EnvironmentProblem
            The port is taken, or this machine has no such address.
        """
        if self._socket is not None:
            raise RuntimeError("this health server runs already")
        self._socket = _listen(self._http.host, self._http.port)
        host, port = self._socket.getsockname()[:2]
        routes = [
            Route("/metrics", self._metrics),
            *(Route(path, _answer(check, path)) for path, check in self._checks.items()),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,  # a scraper that holds its connection must not hold us
        )
        server = uvicorn.Server(config)
        self._server = server
        listening = self._socket
        self._thread = threading.Thread(
            target=lambda: server.run(sockets=[listening]), name="driftline-health", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self.stop()
                raise EnvironmentProblem(f"the HTTP server on {host}:{port} did not start")
            time.sleep(0.005)
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{port}"

    def stop(self) -> None:
        """Stop within a second; nothing happens when it does not run."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT_S * 0.6)
            if self._thread.is_alive() and self._server is not None:
                self._server.force_exit = True
                self._thread.join(STOP_TIMEOUT_S * 0.3)
        if self._socket is not None:
            self._socket.close()
        self._server = self._thread = self._socket = None

    def _metrics(self, request: Request) -> Response:
        """Starlette runs a plain function in a thread pool, so a scrape never holds up a health check."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"content-type": content_type})


def _answer(check: Check, path: str) -> Callable[[Request], Response]:
    def endpoint(_request: Request) -> Response:
        try:
            problem = check()
        except Exception as exc:
            log.exception("a health check failed", path=path)
            problem = f"the check itself failed: {type(exc).__name__}: {exc}"
        return PlainTextResponse("ok\n") if problem is None else PlainTextResponse(problem + "\n", status_code=503)

    return endpoint


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(128)
        except OSError:
            listening.close()
            raise
    except OSError as exc:
        raise EnvironmentProblem(
            f"cannot listen on {host}:{port}: {exc.strerror or exc}",
            remedy="set http.port (DRIFTLINE_HTTP__PORT) to another port, or to 0 for a free one",
        ) from exc
    return listening


def write_status(status_file: Path, status: Mapping[str, Any]) -> None:
    """Write a process's status file, whole or not at all: JSON with its pid, its URL and what else it tells.

    Parameters
    ----------
    status
        For instance ``{"url": …}``; ``pid`` is this process's unless it is given.

    Raises
    ------
    EnvironmentProblem
        The file cannot be written.
    """
    content = json.dumps({"pid": os.getpid(), **status}, default=str)
    scratch: str | None = None
    try:
        status_file.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=f".{status_file.name}.", dir=status_file.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content + "\n")
        Path(scratch).replace(status_file)
    except OSError as exc:
        if scratch is not None:
            Path(scratch).unlink(missing_ok=True)
        raise EnvironmentProblem(f"status file {status_file} cannot be written: {exc.strerror or exc}") from exc
