"""One supervised process under its guard: started, asked to end, killed; its log and its status file.

The guard (``infra/broker/guard.py``, the one that watches over Kafka) is a process of its own between the supervisor
and the worker. It ends the worker when the supervisor is gone, however that happened: the supervisor's end of a pipe
closes even at a ``kill -9``. Guard and worker live in a session of their own, so a Ctrl-C on the terminal reaches
the supervisor alone, which then ends the workers in good order.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GUARD = Path(__file__).resolve().parent.parent / "broker" / "guard.py"
PARENT_GONE_GRACE_S = 3.5
"""The guard's patience with a worker whose supervisor is gone: the same that the supervisor itself has."""
MAX_LOG_BYTES = 32 * 2**20
"""A longer log is set aside as ``<log>.1`` at the next start, so that years of runs do not fill the disk."""
_TAIL_BYTES = 32_768

# The guard begins its output file anew; a supervised process's log goes on from start to start. exec keeps the
# process id, and with it the system's promise to end the process with its guard.
_APPEND = 'log=$1; shift; exec "$@" >>"$log" 2>&1'


@dataclass(frozen=True)
class ProcessSpec:
    """A process to be supervised.

    Parameters
    ----------
    name
        Short and unique, as it is shown: ``device-1``.
    argv
        Its command: ``(sys.executable, "-m", "infra", "device", …)``.
    log_file
        Where its output goes, appended; its folder is made.
    status_file
        Where it writes ``{"pid": …, "url": …}`` once it serves; None: it counts as ready when it has started.
    env
        Added to the supervisor's own environment.
    ready_timeout_s
        So long after a start it must answer ``/readyz`` with 200.
    one_shot
        Whether it is meant to end by itself.
    """

    name: str
    argv: Sequence[str]
    log_file: Path
    status_file: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    ready_timeout_s: float = 60.0
    one_shot: bool = False


class Child:
    """A running process of a spec. It is used by one thread at a time; the supervisor's lock sees to that."""

    def __init__(self, spec: ProcessSpec, start: int) -> None:
        self.spec = spec
        self.pid = 0
        self.log_file = spec.log_file.absolute()
        self.status_file = None if spec.status_file is None else spec.status_file.absolute()
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if self.log_file.stat().st_size > MAX_LOG_BYTES:
                self.log_file.replace(self.log_file.with_name(self.log_file.name + ".1"))
        if self.status_file is not None:
            self.status_file.parent.mkdir(parents=True, exist_ok=True)
            self.status_file.unlink(missing_ok=True)  # of the process before: nobody is to ask its address
        guard = (sys.executable, "-I", "-S", str(GUARD), os.devnull, str(os.getpid()), str(PARENT_GONE_GRACE_S))
        with self.log_file.open("ab") as log:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            log.write(
                f"--- {stamp} driftline starts {spec.name}{f' again ({start - 1})' if start > 1 else ''}\n".encode()
            )
            log.flush()
            self._guard = subprocess.Popen(
                (*guard, "/bin/sh", "-c", _APPEND, "sh", str(self.log_file), *spec.argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **spec.env},
            )
        assert self._guard.stdout is not None
        line = self._guard.stdout.readline()
        self.pid = int(line) if line.strip().isdigit() else 0  # 0: the guard failed; its end is the process's end

    def poll(self) -> int | None:
        """Return the exit status (128 + n after signal n), or None while it runs.

        Whatever the process left running in its session is killed when it is found to be gone.
        """
        status = self._guard.poll()
        if status is not None:
            self._clear()
        return status

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is gone; False when it is still there after the time-out."""
        try:
            self._guard.wait(max(timeout_s, 0.0))
        except subprocess.TimeoutExpired:
            return False
        self._clear()
        return True

    def ask_to_end(self) -> None:
        """Send SIGTERM through the guard, which knows whether the process is still there."""
        assert self._guard.stdin is not None
        with contextlib.suppress(OSError):  # already gone
            self._guard.stdin.write(b"term\n")
            self._guard.stdin.flush()

    def kill(self) -> None:
        """Kill the process, its guard and whatever else is in its session, on the spot."""
        if self._guard.poll() is None:
            self._signal_session()
        self._guard.wait()
        self._clear()

    def send_signal(self, number: int) -> None:
        """Send a signal to the process itself, not to its guard; nothing where it is gone."""
        if self.pid and self._guard.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def status(self) -> Mapping[str, Any] | None:
        """Return what the process wrote to its status file, or None while there is nothing whole of its own."""
        if self.status_file is None:
            return None
        try:
            told = json.loads(self.status_file.read_bytes())
        except (OSError, ValueError):
            return None
        return told if isinstance(told, dict) and told.get("pid") == self.pid else None

    def _signal_session(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self._guard.pid, signal.SIGKILL)

    def _clear(self) -> None:
        """Kill what the process left behind and close our ends of the pipes."""
        if self._guard.stdin is None or self._guard.stdin.closed:
            return
        self._signal_session()
        with contextlib.suppress(OSError):
            self._guard.stdin.close()
        if self._guard.stdout is not None:
            self._guard.stdout.close()


def last_lines(log_file: Path, count: int = 15) -> str:
    """Return the last lines of a log, for an error message."""
    try:
        with log_file.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError as problem:
        return f"(the log cannot be read: {problem})"
    return "\n".join(f"  {line}" for line in lines[-count:]) or "  (the log is empty)"
