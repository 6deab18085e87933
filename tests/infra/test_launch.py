"""What the supervisor promises, with real processes."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from prometheus_client import CollectorRegistry

from infra.launch import ProcessSpec, RestartPolicy, Supervisor, SupervisorEvent
from streams.clock import ManualClock
from streams.errors import ProcessFailed

HURRIED = RestartPolicy(first_delay_s=0.02, max_delay_s=0.1)
LIVE = "import time\nprint('alive', flush=True)\nwhile True: time.sleep(0.1)\n"
SERVE = """
import http.server, json, os, pathlib, sys
answer = int(sys.argv[2])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(answer if self.path == "/readyz" else 404)
        self.end_headers()
        self.wfile.write(b"no partitions yet")
    def log_message(self, *args): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
status = {"pid": os.getpid() + int(sys.argv[3]), "url": f"http://127.0.0.1:{server.server_port}"}
pathlib.Path(sys.argv[1]).write_text(json.dumps(status))
server.serve_forever()
"""


class Listener(list[SupervisorEvent]):
    def kinds(self) -> list[str]:
        return [event.kind for event in self]


@pytest.fixture
def heard() -> Listener:
    return Listener()


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., ProcessSpec]:
    def make(name: str, script: str, *arguments: str, **more) -> ProcessSpec:
        path = tmp_path / f"{name}.py"
        path.write_text(script)
        argv = (sys.executable, str(path), *arguments)
        return ProcessSpec(name=name, argv=argv, log_file=tmp_path / "logs" / f"{name}.log", **more)

    return make


@pytest.fixture
def supervise(heard: Listener) -> Iterator[Callable[..., Supervisor]]:
    made: list[Supervisor] = []

    def make(*specs: ProcessSpec, **more) -> Supervisor:
        made.append(Supervisor(specs, on_event=heard.append, **{"policy": HURRIED, **more}))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.stop()


def until(what: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def failing(times: int, count: Path, code: int = 70) -> str:
    return (
        f"import pathlib, sys\ncount = pathlib.Path({str(count)!r})\n"
        "n = int(count.read_text()) if count.exists() else 0\ncount.write_text(str(n + 1))\n"
        f"print('attempt', n, flush=True)\nif n < {times}: sys.exit({code})\n" + LIVE
    )


def test_a_process_that_crashes_twice_is_started_again_said_and_counted(spec, supervise, heard, tmp_path) -> None:
    registry = CollectorRegistry()
    supervisor = supervise(spec("worker", failing(2, tmp_path / "n")), registry=registry)
    supervisor.start()
    until(lambda: "alive" in (tmp_path / "logs" / "worker.log").read_text())
    status = supervisor.status("worker")
    assert status.restarts == 2
    assert not gone(status.pid)
    assert [e.reason for e in heard if e.kind == "restarting"] == ["checkpoint", "checkpoint"]
    assert "outcome was unknown" in next(e for e in heard if e.kind == "restarting").message
    labels = {"process": "worker", "reason": "checkpoint"}
    assert registry.get_sample_value("driftline_process_restarts_total", labels) == 2
    log = status.log_file.read_text()
    assert [f"attempt {n}" in log for n in range(3)] == [True] * 3, "each start's output is kept"
    supervisor.check()


def test_a_process_that_always_crashes_ends_the_run_with_its_last_words(spec, supervise, heard) -> None:
    script = "import sys\nprint('starting', flush=True)\nsys.exit('the changelog is on fire')\n"
    supervisor = supervise(spec("bad", script), spec("good", LIVE))
    supervisor.start()
    with pytest.raises(ProcessFailed) as failure:
        supervisor.run_until(threading.Event())
    assert "the changelog is on fire" in str(failure.value)
    assert str(supervisor.status("bad").log_file) in str(failure.value)
    assert "bad left with exit code 1, 5 times in a row" in str(failure.value)
    assert heard.kinds().count("restarting") == 4
    good = supervisor.status("good").pid
    supervisor.stop()
    assert gone(good)


def test_an_exit_with_0_that_nobody_asked_for_is_a_failure(spec, supervise, heard) -> None:
    supervisor = supervise(spec("quitter", "print('bye')\n"))
    supervisor.start()
    with pytest.raises(ProcessFailed, match="ended although nobody asked it to"):
        supervisor.run_until(threading.Event())


def test_a_one_shot_process_may_end_and_the_run_with_it(spec, supervise, heard, tmp_path) -> None:
    supervisor = supervise(spec("replay", failing(1, tmp_path / "n", 3).replace(LIVE, ""), one_shot=True))
    supervisor.start()
    supervisor.run_until(threading.Event())
    assert supervisor.status("replay").state == "finished"
    assert supervisor.status("replay").restarts == 1
    supervisor.wait_ready()
    supervisor.stop()
    assert supervisor.status("replay").state == "finished"


def test_the_back_off_is_told_by_the_clock(spec, supervise, heard, tmp_path) -> None:
    clock = ManualClock()
    supervisor = supervise(spec("worker", failing(2, tmp_path / "n", 1)), clock=clock, policy=RestartPolicy())
    supervisor.start()
    for delay in (0.2, 0.4):
        until(lambda: supervisor.status("worker").state == "waiting")
        assert heard[-1].delay_s == delay
        clock.advance(delay - 0.01)
        time.sleep(0.2)
        assert supervisor.status("worker").state == "waiting"
        clock.advance(0.02)
        until(lambda: supervisor.status("worker").state != "waiting")
    until(lambda: supervisor.status("worker").state == "ready")
    assert supervisor.status("worker").restarts == 2


def test_a_process_is_ready_when_it_says_so_over_http(spec, supervise, heard, tmp_path) -> None:
    file = tmp_path / "status.json"
    file.write_text('{"pid": 1, "url": "http://127.0.0.1:9"}')
    supervisor = supervise(spec("web", SERVE, str(file), "200", "0", status_file=file))
    supervisor.start()
    assert supervisor.status("web").url is None
    supervisor.wait_ready()
    assert supervisor.status("web").state == "ready"
    assert supervisor.status("web").url.startswith("http://127.0.0.1:")
    assert heard.kinds() == ["started", "ready"]


@pytest.mark.parametrize(
    ("answers", "why"),
    [(("503", "0"), "/readyz answered 503: no partitions yet"), (("200", "1"), "has not written")],
    ids=["answers 503", "status of another process"],
)
def test_who_is_not_ready_in_time_is_named_with_why_and_with_its_log(answers, why, spec, supervise, tmp_path) -> None:
    file = tmp_path / "status.json"
    script = "print('opening the store', flush=True)\n" + SERVE
    supervisor = supervise(spec("web", script, str(file), *answers, status_file=file, ready_timeout_s=2.0))
    supervisor.start()
    with pytest.raises(ProcessFailed) as failure:
        supervisor.wait_ready()
    assert "web was not ready after 2 s" in str(failure.value)
    assert why in str(failure.value)
    assert "opening the store" in str(failure.value)
    assert str(supervisor.status("web").log_file) in str(failure.value)


def test_a_command_that_does_not_exist_is_said(spec, supervise, tmp_path) -> None:
    supervisor = supervise(ProcessSpec("none", ("/no/such/command",), tmp_path / "none.log"))
    supervisor.start()
    with pytest.raises(ProcessFailed, match="/no/such/command"):
        supervisor.run_until(threading.Event())


def test_a_log_that_cannot_be_written_is_said(tmp_path, supervise) -> None:
    (tmp_path / "file").write_text("")
    supervisor = supervise(ProcessSpec("worker", (sys.executable, "-c", LIVE), tmp_path / "file" / "worker.log"))
    with pytest.raises(ProcessFailed, match="worker could not be started"):
        supervisor.start()


def test_stop_leaves_nobody_and_asks_first(spec, supervise, heard, tmp_path) -> None:
    polite = (
        "import signal, sys, time\ndef end(*_): print('saved', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n" + LIVE
    )
    supervisor = supervise(spec("first", polite), spec("second", polite))
    supervisor.start()
    until(lambda: all("alive" in s.log_file.read_text() for s in supervisor.statuses))
    pids = [s.pid for s in supervisor.statuses]
    supervisor.stop()
    assert all(gone(pid) for pid in pids)
    assert all("saved" in s.log_file.read_text() for s in supervisor.statuses)
    assert [s.pid for s in supervisor.statuses] == [None, None]
    assert [e.process for e in heard if e.kind == "stopped"] == ["second", "first"]
    supervisor.stop()


def test_who_ignores_sigterm_is_killed_within_five_seconds_and_its_children_too(spec, supervise, heard) -> None:
    stubborn = (
        "import signal, subprocess, sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('child', child.pid, flush=True)\n" + LIVE
    )
    supervisor = supervise(spec("stubborn", stubborn))
    supervisor.start()
    log = supervisor.status("stubborn").log_file
    until(lambda: "alive" in log.read_text())
    pids = [supervisor.status("stubborn").pid, int(log.read_text().split("child ")[1].split()[0])]
    before = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - before < 5.0
    until(lambda: all(gone(pid) for pid in pids), 1.0)
    assert heard.kinds()[-1] == "killed"


def test_processes_come_and_go_in_a_running_supervisor(spec, supervise) -> None:
    supervisor = supervise(spec("one", LIVE))
    supervisor.start()
    supervisor.add(spec("two", LIVE))
    supervisor.wait_ready()
    one, two = (supervisor.status(name).pid for name in ("one", "two"))
    with pytest.raises(ValueError, match="two"):
        supervisor.add(spec("two", LIVE))
    supervisor.remove("one")
    assert gone(one)
    assert not gone(two)
    assert [s.name for s in supervisor.statuses] == ["two"]


def test_a_listener_that_fails_does_not_make_a_quiet_supervisor(spec) -> None:
    def broken(event: SupervisorEvent) -> None:
        if event.kind == "restarting":
            raise RuntimeError("no screen")

    failing = Supervisor([spec("worker", "import sys; sys.exit(1)")], on_event=broken, policy=HURRIED)
    with failing as supervisor, pytest.raises(ProcessFailed, match="no screen"):
        supervisor.run_until(threading.Event())


def test_a_listener_may_ask_the_supervisor(spec) -> None:
    seen: list[str] = []
    supervisor = Supervisor([spec("worker", LIVE)], on_event=lambda e: seen.append(supervisor.status(e.process).state))
    with supervisor:
        supervisor.wait_ready()
        until(lambda: len(seen) >= 2)
    assert seen[0] in ("starting", "ready")


def test_a_kill_on_request_is_not_held_against_the_process(spec, supervise, heard) -> None:
    supervisor = supervise(spec("worker", LIVE))
    supervisor.start()
    for n in range(6):
        until(lambda n=n: supervisor.status("worker").restarts == n and supervisor.status("worker").state == "ready")
        supervisor.kill("worker", signal.SIGKILL)
    until(lambda: supervisor.status("worker").restarts == 6)
    supervisor.check()
    assert {e.reason for e in heard if e.kind == "restarting"} == {"signal"}
