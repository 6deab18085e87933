"""No orphan, whatever happens to the supervisor: it runs here as a process of its own and is ended in every way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.chaos

WORKER = """
import signal, sys, time
def end(*_):
    print('said goodbye', flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[1] == 'stubborn' else end)
print('alive', flush=True)
while True: time.sleep(0.05)
"""

SUPERVISOR = """
import json, pathlib, signal, sys, threading
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where the tests run under nohup it would be ignored
from infra.launch import ProcessSpec, Supervisor, like_ctrl_c
home = pathlib.Path(sys.argv[1])
specs = [
    ProcessSpec(name, (sys.executable, str(home / 'worker.py'), name), home / f'{name}.log')
    for name in ('polite', 'stubborn')
]
try:
    with like_ctrl_c(), Supervisor(specs) as supervisor:
        supervisor.wait_ready()
        (home / 'new.json').write_text(json.dumps([status.pid for status in supervisor.statuses]))
        (home / 'new.json').rename(home / 'pids.json')
        supervisor.run_until(threading.Event())
except KeyboardInterrupt:
    sys.exit(130)
"""


class Running:
    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "worker.py").write_text(WORKER)
        (home / "supervisor.py").write_text(SUPERVISOR)
        root = str(Path(__file__).parents[2])
        self.process = subprocess.Popen(
            [sys.executable, str(home / "supervisor.py"), str(home)],
            env={**os.environ, "PYTHONPATH": root},
            start_new_session=True,  # a terminal's Ctrl-C goes to a whole foreground group: this is its stand-in
        )
        self.until((home / "pids.json").exists)
        self.until(lambda: all("alive" in self.log(name) for name in ("polite", "stubborn")))
        self.workers = [psutil.Process(pid) for pid in json.loads((home / "pids.json").read_text())]
        self.all = set(psutil.Process(self.process.pid).children(recursive=True))

    def log(self, name: str) -> str:
        file = self.home / f"{name}.log"
        return file.read_text() if file.exists() else ""

    def until(self, what, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert self.process.poll() in (None, -9), "the supervisor ended too early"
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.02)

    def left(self) -> list[psutil.Process]:
        return [process for process in self.all if not _gone(process)]


def _gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    it = Running(tmp_path)
    yield it
    it.process.kill()
    it.process.wait()
    for process in it.left():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_a_kill_9_of_the_supervisor_leaves_no_orphan(running: Running) -> None:
    assert len(running.left()) == 4, "two workers, each with its guard"
    running.process.kill()
    running.process.wait()
    running.until(lambda: not running.left(), 6.0)
    assert "said goodbye" in running.log("polite")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_supervisor_stops_all_within_five_seconds(running: Running, number: signal.Signals) -> None:
    # To the whole group, as a terminal does: the workers must hear of it from the supervisor alone.
    os.killpg(running.process.pid, number)
    assert running.process.wait(5.0) == 130
    assert running.left() == []
    assert "said goodbye" in running.log("polite")


def test_a_second_ctrl_c_waits_for_nobody(running: Running) -> None:
    running.process.send_signal(signal.SIGINT)
    running.until(lambda: "said goodbye" in running.log("polite"))
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(3.0) == 130
    assert running.left() == []


def test_a_kill_9_of_a_guard_takes_its_worker_along_and_both_come_back(running: Running) -> None:
    worker = running.workers[0]
    guard = worker.parent()
    guard.kill()
    running.until(lambda: worker not in running.left())
    running.until(lambda: running.log("polite").count("alive") == 2)
    running.all |= set(psutil.Process(running.process.pid).children(recursive=True))


def test_a_stopped_supervisor_and_a_stopped_worker_leave_no_orphan(running: Running) -> None:
    for process in running.workers:
        process.suspend()
    running.process.send_signal(signal.SIGSTOP)
    running.process.kill()
    running.process.wait()
    running.until(lambda: not running.left(), 6.0)
