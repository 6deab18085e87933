"""A single-node Apache Kafka on loopback: format once, start, ask for readiness, stop by process id."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Self

from infra.broker.config import LOG4J, LOOPBACK, server_properties
from infra.broker.jars import KafkaJars, get_jars
from infra.broker.java import Java, find_java
from infra.broker.probe import wait_until_ready
from streams.errors import BrokerError

READY_TIMEOUT_S = 90.0
"""After a crash a broker is back in 10 to 20 s on two cores; more when they are shared with a test run."""

FORMAT_TIMEOUT_S = 120.0
PARENT_GONE_GRACE_S = 10.0
"""How long the guard lets Kafka shut down cleanly when its parent is gone."""

HANDOVER_S = 20.0
"""How long to wait for a directory whose former owner is gone but whose broker is still shutting down."""

_GUARD = Path(__file__).resolve().parent / "guard.py"


class Broker:
    """A Kafka broker of our own.

    Its data outlives it: a second one on the same directory continues with the topics, offsets and records. The
    ports may differ from run to run (the advertised address follows), ``restart`` keeps them.

    Parameters
    ----------
    data_dir
        Everything it writes lies here; made if missing. One broker at a time.
    port
        The port for clients on 127.0.0.1; a free one by default.
    heap_mb
        Java's heap.
    say
        Told in a sentence about work that takes seconds (fetching Kafka).
    environ
        Where ``JAVA_HOME``, ``KAFKA_HOME`` and ``PATH`` are looked up; the process's own by default.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        heap_mb: int = 384,
        say: Callable[[str], None] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._dir = Path(data_dir).absolute()
        self._wanted_port = port
        self._heap_mb = heap_mb
        self._say = say
        self._environ = os.environ if environ is None else environ
        self._port: int | None = None
        self._jars: KafkaJars | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None

    @property
    def bootstrap(self) -> str:
        """``host:port`` for clients."""
        if self._port is None:
            raise BrokerError("the broker was not started yet, it has no address", remedy="call start() first")
        return f"{LOOPBACK}:{self._port}"

    @property
    def version(self) -> str:
        """Kafka's version."""
        if self._jars is None:
            self._jars = get_jars(self._environ, say=self._say)
        return self._jars.version

    @property
    def pid(self) -> int | None:
        """Kafka's process id while it runs."""
        return self._pid if self.running else None

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._guard is not None and self._guard.poll() is None

    @property
    def log_file(self) -> Path:
        """The server's log."""
        return self._dir / "logs" / "server.log"

    @property
    def output_file(self) -> Path:
        """What Java itself printed: bad options, crashes."""
        return self._dir / "logs" / "server.out"

    def start(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start it and return when it can be used; nothing happens when it runs already.

        Raises
        ------
        EnvironmentProblem
            There is no fit Java, no Kafka and no way to fetch it.
        BrokerError
            The port is taken, another broker uses the directory, or Kafka did not come up; the last lines of its
            log are in the message.
        """
        if self.running:
            return
        java = find_java(self._environ)
        self._jars = get_jars(self._environ, say=self._say)
        with self._own_directory() as lock:
            self._format(java)
            tries = 1 if self._wanted_port else 3  # a free port can be taken by another before Kafka binds it
            for left in range(tries - 1, -1, -1):
                self._port = self._pick_port()
                self._launch(java, self._port, lock)
                try:
                    wait_until_ready(
                        self.bootstrap,
                        deadline=time.monotonic() + timeout_s,
                        still_alive=lambda: self.running,
                    )
                except BrokerError as problem:
                    if not self.running and left and "Address already in use" in self._tail(200):
                        continue
                    self.kill()
                    raise BrokerError(
                        f"{problem.message}; Kafka {self.version}, log {self.log_file}, last lines:\n{self._tail(15)}",
                        remedy="see the log; a data directory of a newer Kafka or a full disk are usual reasons",
                    ) from problem
                except BaseException:  # Ctrl-C while waiting
                    self.kill()
                    raise
                return

    def stop(self, timeout_s: float = 10.0) -> None:
        """Shut it down cleanly; after the time-out it is killed. Nothing happens when it does not run."""
        self._end(b"term\n", timeout_s)

    def kill(self) -> None:
        """Kill it on the spot (SIGKILL), as a crash would."""
        self._end(b"kill\n", 10.0)

    def restart(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Stop it if it runs and start it again at the same address."""
        self.stop()
        wanted, self._wanted_port = self._wanted_port, self._port or self._wanted_port
        try:
            self.start(timeout_s)
        finally:
            self._wanted_port = wanted

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- the directory

    @contextlib.contextmanager
    def _own_directory(self) -> Iterator[IO[str]]:
        """Hold the directory's lock. The guard inherits it, so it is held until Kafka is gone."""
        try:
            (self._dir / "logs").mkdir(parents=True, exist_ok=True)
            lock = (self._dir / "broker.lock").open("a+")
        except OSError as problem:
            raise BrokerError(
                f"the broker's directory {self._dir} cannot be used: {problem}",
                remedy="name a directory that you may write to",
            ) from problem
        with lock:
            deadline = time.monotonic() + HANDOVER_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    owner = self._owner(lock)
                    if owner is None and time.monotonic() < deadline:
                        time.sleep(0.1)
                        continue
                    raise BrokerError(
                        f"another broker uses {self._dir}" + (f" (started by process {owner})" if owner else ""),
                        remedy="stop it first, name another folder with --home, or set kafka.bootstrap",
                    ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield lock

    @staticmethod
    def _owner(lock: IO[str]) -> int | None:
        """Return the process that started the directory's present broker, if it is still there."""
        lock.seek(0)
        text = lock.read().strip()
        if not text.isdigit():
            return None
        try:
            os.kill(int(text), 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return int(text)

    # -- the process

    def _format(self, java: Java) -> None:
        """Prepare the data directory unless that was done before; whole or not at all."""
        data = self._dir / "data"
        if (data / "meta.properties").exists():
            return
        staging = self._dir / "data.new"
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(data, ignore_errors=True)
        properties = self._dir / "format.properties"
        properties.write_text(server_properties(staging.name, 1, 2), encoding="ascii")
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        command = [
            *self._java(java, ["-Xmx128m", "-XX:TieredStopAtLevel=1"], "logs/format.log"),
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={cluster_id}",
            f"--config={properties.name}",
        ]
        try:
            done = subprocess.run(
                command, cwd=self._dir, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=FORMAT_TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as problem:
            raise BrokerError(f"Kafka had not formatted {staging} after {FORMAT_TIMEOUT_S:g} s") from problem
        if done.returncode != 0:
            lines = "\n".join((done.stdout + done.stderr).strip().splitlines()[-10:])
            raise BrokerError(f"Kafka {self.version} could not format {staging}:\n{lines}")
        staging.rename(data)
        properties.unlink()

    def _launch(self, java: Java, port: int, lock: IO[str]) -> None:
        properties = self._dir / "server.properties"
        properties.write_text(server_properties("data", port, free_port(but=port)), encoding="ascii")
        command = [
            *self._java(java, [f"-Xmx{self._heap_mb}m", "-Xms64m", "-XX:+ExitOnOutOfMemoryError"], "logs/server.log"),
            "kafka.Kafka",
            properties.name,
        ]
        guarded = [sys.executable, "-I", "-S", str(_GUARD), str(self.output_file), str(os.getpid())]
        self._guard = subprocess.Popen(
            [*guarded, str(PARENT_GONE_GRACE_S), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(lock.fileno(),),
            start_new_session=True,  # Ctrl-C on the terminal is the parent's to handle: workers leave first
            cwd=self._dir,
        )
        assert self._guard.stdout is not None
        line = self._guard.stdout.readline()
        if not line.strip().isdigit():
            self._guard.wait()
            raise BrokerError(f"Java did not start: {' '.join(command[:1])}; see {self.output_file}")
        self._pid = int(line)

    def _java(self, java: Java, options: list[str], log: str) -> list[str]:
        """Return the front of a command that is to run in the broker's directory.

        All its paths, and those in the properties, are relative: Kafka and log4j take a comma for the end of one.
        """
        assert self._jars is not None
        log4j = self._dir / "log4j2.xml"
        log4j.write_text(LOG4J, encoding="utf-8")
        return [
            str(java.path),
            *options,
            "-XX:+UseSerialGC",
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={log4j.name}",
            f"-Ddriftline.log={log}",
            "-cp",
            f"{self._jars.libs}{os.sep}*",
        ]

    def _end(self, word: bytes, timeout_s: float) -> None:
        guard = self._guard
        if guard is None:
            return
        assert guard.stdin is not None
        assert guard.stdout is not None
        with contextlib.suppress(OSError):
            guard.stdin.write(word)
            guard.stdin.flush()
        try:
            guard.wait(timeout_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                guard.stdin.write(b"kill\n")
                guard.stdin.flush()
            try:
                guard.wait(5.0)
            except subprocess.TimeoutExpired:
                guard.send_signal(signal.SIGKILL)  # the system kills Kafka with it
                guard.wait()
        with contextlib.suppress(OSError):
            guard.stdin.close()
        guard.stdout.close()
        self._guard = None
        self._pid = None

    def _pick_port(self) -> int:
        if self._wanted_port is None:
            return free_port()
        if not port_is_free(self._wanted_port):
            raise BrokerError(
                f"port {self._wanted_port} on {LOOPBACK} is taken",
                remedy="stop what listens there, or leave the port out to have a free one chosen",
            )
        return self._wanted_port

    def _tail(self, count: int) -> str:
        """Return the last lines of the log and of what Java printed, without the stack's."""
        lines: list[str] = []
        for path in (self.log_file, self.output_file):
            with contextlib.suppress(OSError):
                written = path.read_text(encoding="utf-8", errors="replace").splitlines()
                lines += [line for line in written if not line.startswith("\tat ")][-count:]
        return "\n".join(lines) or "(the log is empty)"


def free_port(but: int = 0) -> int:
    """Return a port on loopback that nobody listens on now, and that is not the one named."""
    while True:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            if (port := int(probe.getsockname()[1])) != but:
                return port


def port_is_free(port: int) -> bool:
    """Whether a server could bind this port on loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Kafka does: a port in TIME_WAIT is free
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
