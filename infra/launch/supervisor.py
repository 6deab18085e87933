"""Starts worker processes, waits until they are ready, starts again what fails, stops them all.

When to start again and when to give up is decided in ``restart_policy``; one process and its guard are in ``child``;
this file ties them to a thread and to its callers.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Self

from prometheus_client import CollectorRegistry

from infra.launch.child import Child, ProcessSpec, last_lines
from infra.launch.events import EventKind, ProcessStatus, State, SupervisorEvent, to_log
from infra.launch.readiness import why_not_ready
from infra.launch.restart_policy import (
    Finished,
    GiveUp,
    Record,
    RestartPolicy,
    StartAgain,
    decide,
    in_words,
    reason,
)
from streams.clock import Clock, SystemClock
from streams.errors import DriftlineError, ProcessFailed
from streams.metrics import SupervisorMetrics

STOP_S = 5.0
"""The promise: all processes are gone this long after a Ctrl-C."""
_PATIENCE = 0.7
"""Of the time to stop, what a process has to end by itself before it is killed: 3.5 s of 5."""
_LOOK_S = 0.05
_ASK_AGAIN_S = 0.1


@dataclass
class _Process:
    spec: ProcessSpec
    state: State = "new"
    child: Child | None = None
    record: Record = field(default_factory=Record)
    starts: int = 0
    restarts: int = 0
    started_at: float = 0.0
    due_at: float = 0.0
    asked_at: float = 0.0
    url: str | None = None
    on_request: bool = False
    left_because: str = ""


class Supervisor:
    """Runs processes until it is stopped. Its methods may be called from any thread.

    Parameters
    ----------
    specs
        Started in this order, stopped in the reverse one.
    clock
        Times the back-off and the readiness time-outs.
    registry
        Where the restarts are counted.
    on_event
        Told what happens, one event at a time and from any thread; without it, it goes to the log ``driftline.launch``.
    policy
        When to start again and when to give up.
    """

    def __init__(
        self,
        specs: Iterable[ProcessSpec] = (),
        *,
        clock: Clock | None = None,
        registry: CollectorRegistry | None = None,
        on_event: Callable[[SupervisorEvent], None] | None = None,
        policy: RestartPolicy | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._metrics = SupervisorMetrics(registry or CollectorRegistry())
        self._on_event = on_event or to_log
        self._policy = policy or RestartPolicy()
        self._lock = threading.RLock()
        self._telling = threading.RLock()
        self._events: deque[SupervisorEvent] = deque()
        self._processes: dict[str, _Process] = {}
        self._failure: Exception | None = None
        self._stopping = threading.Event()
        self._monitor: threading.Thread | None = None
        for spec in specs:
            self.add(spec)

    # -- for its callers

    def start(self) -> None:
        """Start all processes and keep watch over them.

        Raises
        ------
        ProcessFailed
            A process could not even be started.
        """
        with self._lock:
            if self._monitor is not None:
                return
            self._monitor = threading.Thread(target=self._watch, name="driftline-supervisor", daemon=True)
            for process in self._processes.values():
                self._spawn(process)
            self._monitor.start()
        self._tell()

    def add(self, spec: ProcessSpec) -> None:
        """Supervise one more process; it is started at once if the others were.

        Raises
        ------
        ValueError
            The name is taken.
        ProcessFailed
            It could not be started.
        """
        with self._lock:
            if spec.name in self._processes:
                raise ValueError(f"there is already a process {spec.name}")
            process = self._processes[spec.name] = _Process(spec)
            if self._monitor is not None and not self._stopping.is_set():
                self._spawn(process)
        self._tell()

    def remove(self, name: str, timeout_s: float = STOP_S) -> None:
        """Stop one process and forget it; the others go on."""
        with self._lock:
            process = self._processes.pop(name)
        self._end([process], timeout_s)

    def wait_ready(self) -> None:
        """Wait until every process answers that it is ready (or, as a one-shot, has finished).

        Raises
        ------
        ProcessFailed
            One was not ready in its time, or keeps failing.
        """
        while not all(status.state in ("ready", "finished") for status in self.statuses):
            self.check()
            if self._stopping.wait(_LOOK_S):
                return
        self.check()

    def check(self) -> None:
        """Raise ProcessFailed if the run cannot go on: a process keeps failing, or was not ready in its time."""
        failure = self._failure
        if isinstance(failure, DriftlineError):
            raise failure
        if failure is not None:
            raise ProcessFailed(f"the supervisor itself failed: {failure!r}") from failure

    def run_until(self, stop: threading.Event) -> None:
        """Wait for ``stop``, for :meth:`stop`, or for the end of the last one-shot process.

        Raises
        ------
        ProcessFailed
            As :meth:`check` does.
        """
        while not (stop.wait(_LOOK_S) or self._stopping.is_set()):
            self.check()
            states = [status.state for status in self.statuses]
            if states and all(state == "finished" for state in states):
                return
        self.check()

    def stop(self, timeout_s: float = STOP_S) -> None:
        """End all processes: SIGTERM to the last one started first, SIGKILL after 70 % of the time-out.

        A KeyboardInterrupt in the meantime (a second Ctrl-C) kills them at once.
        """
        self._stopping.set()
        with self._lock:
            processes = list(self._processes.values())
        self._end(processes[::-1], timeout_s)
        monitor = self._monitor
        if monitor is not None and monitor.is_alive() and monitor is not threading.current_thread():
            monitor.join(STOP_S)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process, as chaos would; if it ends by it, it is started again and not blamed."""
        with self._lock:
            process = self._processes[name]
            if process.child is not None:
                process.on_request = number not in (signal.SIGSTOP, signal.SIGCONT)
                process.child.send_signal(number)

    @property
    def statuses(self) -> tuple[ProcessStatus, ...]:
        """How each process is, in the order of the specs."""
        with self._lock:
            return tuple(_status(process) for process in self._processes.values())

    def status(self, name: str) -> ProcessStatus:
        """How one process is."""
        with self._lock:
            return _status(self._processes[name])

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:  # Ctrl-C in between, too: what was started is stopped
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- the watch

    def _watch(self) -> None:
        try:
            while self._failure is None and not self._stopping.wait(_LOOK_S):
                with self._lock:
                    processes = list(self._processes.values())
                for process in processes:
                    self._look_after(process)
                    self._ask(process)
                self._tell()
        except Exception as problem:  # noqa: BLE001 - a dead watch must not pass for a quiet one: check() raises it
            self._failure = problem
        self._tell()

    def _look_after(self, process: _Process) -> None:
        with self._lock:
            if self._stopping.is_set() or self._failure or self._processes.get(process.spec.name) is not process:
                return
            if process.state == "waiting" and self._clock.monotonic() >= process.due_at:
                process.restarts += 1
                self._spawn(process)
                self._metrics.restarts.labels(process=process.spec.name, reason=process.left_because).inc()
            elif process.child is not None and (status := process.child.poll()) is not None:
                self._left(process, process.child, status)

    def _left(self, process: _Process, child: Child, status: int) -> None:
        spec, now = process.spec, self._clock.monotonic()
        process.child, process.url = None, None
        process.record, decision = decide(
            self._policy,
            process.record,
            status=status,
            lived_s=now - process.started_at,
            one_shot=spec.one_shot,
            on_request=process.on_request,
        )
        words = f"{spec.name} {'was ended on request' if process.on_request else in_words(status)}"
        match decision:
            case Finished():
                process.state = "finished"
                self._say("finished", process, "", f"{spec.name} has finished", pid=child.pid)
            case StartAgain(delay_s=delay):
                process.state = "waiting"
                process.due_at = now + delay
                process.left_because = reason(status)
                message = f"{words}; it starts again in {delay:g} s (log {child.log_file})"
                self._say("restarting", process, reason(status), message, pid=child.pid, delay_s=delay)
            case GiveUp(failures=failures):
                process.state = "stopped"
                often = f", {failures} times in a row each within {self._policy.quick_s:g} s of its start"
                message = words + (often if failures > 1 else "")
                self._fail(process, child, reason(status), message)

    def _ask(self, process: _Process) -> None:
        """Ask a process that is starting whether it is ready; not under the lock, as it may be slow to answer."""
        with self._lock:
            child, now = process.child, self._clock.monotonic()
            if child is None or process.state != "starting" or self._stopping.is_set():
                return
        if child.status_file is None:
            because, url = "", None
        elif time.monotonic() < process.asked_at + _ASK_AGAIN_S:
            return
        else:
            told = child.status()
            because = why_not_ready(told, status_file=child.status_file)
            url = None if told is None else told.get("url")
            process.asked_at = time.monotonic()
        with self._lock:
            if process.child is not child or self._failure:
                return
            if not because:
                process.state, process.url = "ready", url
                self._say("ready", process, "", f"{process.spec.name} is ready", pid=child.pid)
            elif now - process.started_at > process.spec.ready_timeout_s:
                message = f"{process.spec.name} was not ready after {process.spec.ready_timeout_s:g} s: {because}"
                self._fail(process, child, "not-ready", message)

    def _spawn(self, process: _Process) -> None:
        spec = process.spec
        process.starts += 1
        process.on_request, process.url = False, None
        process.started_at = self._clock.monotonic()
        try:
            process.child = Child(spec, process.starts)
        except OSError as problem:
            raise ProcessFailed(f"{spec.name} could not be started: {problem}; its log is {spec.log_file}") from problem
        process.state = "starting"
        self._say("started", process, "", f"{spec.name} started; log {process.child.log_file}", pid=process.child.pid)

    def _fail(self, process: _Process, child: Child, why: str, message: str) -> None:
        self._failure = ProcessFailed(
            f"{message}\nlast lines of {child.log_file}:\n{last_lines(child.log_file)}",
            remedy=f"read {child.log_file} from its end",
        )
        self._say("failed", process, why, message, pid=child.pid)

    # -- the end

    def _end(self, processes: list[_Process], timeout_s: float) -> None:
        patience = time.monotonic() + _PATIENCE * timeout_s
        with self._lock:
            running = [(process, process.child) for process in processes if process.child is not None]
            for _, child in running:
                child.ask_to_end()
        try:
            for _, child in running:
                child.wait(patience - time.monotonic())
        except KeyboardInterrupt:
            pass  # a second Ctrl-C: no more patience
        finally:
            with self._lock:
                for process, child in running:
                    killed = child.poll() is None
                    if killed:
                        child.kill()
                    process.child, process.url = None, None
                    kind: EventKind = "killed" if killed else "stopped"
                    how = "did not end when asked to and was killed" if killed else "has stopped"
                    self._say(kind, process, "", f"{process.spec.name} {how}", pid=child.pid)
                for process in processes:
                    if process.state != "finished":
                        process.state = "stopped"
        self._tell()

    # -- events: gathered under the lock, told without it, so that a listener may call us and may be slow

    def _say(
        self, kind: EventKind, process: _Process, why: str, message: str, *, pid: int, delay_s: float = 0.0
    ) -> None:
        self._events.append(SupervisorEvent(kind, process.spec.name, why, message, pid, process.restarts, delay_s))

    def _tell(self) -> None:
        with self._telling:
            while self._events:
                self._on_event(self._events.popleft())


def _status(process: _Process) -> ProcessStatus:
    child = process.child
    return ProcessStatus(
        name=process.spec.name,
        state=process.state,
        pid=None if child is None else child.pid,
        url=process.url,
        restarts=process.restarts,
        log_file=process.spec.log_file.absolute(),
    )
