import contextlib
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter

from streams.errors import EnvironmentProblem
from streams.health import HealthServer, write_status
from streams.settings import HttpSettings


def _get(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode(), answer.headers["content-type"]
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode(), refused.headers["content-type"]


def _well():
    return None


def test_readiness_follows_the_process_and_says_why_not():
    why = ["restoring partition 3"]
    with HealthServer(HttpSettings(), CollectorRegistry(), live=_well, ready=lambda: why[0]) as server:
        url = f"http://127.0.0.1:{server._socket.getsockname()[1]}"
        assert _get(url + "/readyz")[:2] == (503, "restoring partition 3\n")
        assert _get(url + "/livez")[:2] == (200, "ok\n")
        why[0] = None
        assert _get(url + "/readyz")[:2] == (200, "ok\n")
        assert _get(url + "/nothing")[0] == 404


def test_a_check_that_itself_fails_is_no_good_news():
    def broken():
        raise ZeroDivisionError("oops")

    server = HealthServer(HttpSettings(), CollectorRegistry(), live=broken, ready=_well)
    url = server.start()
    try:
        status, text, _ = _get(url + "/livez")
    finally:
        server.stop()
    assert status == 503
    assert "ZeroDivisionError: oops" in text


def test_metrics_are_those_of_the_given_registry_in_prometheus_format():
    registry = CollectorRegistry()
    Counter("driftline_things_total", "Things.", registry=registry).inc(3)
    server = HealthServer(HttpSettings(), registry, live=_well, ready=_well)
    url = server.start()
    try:
        status, text, kind = _get(url + "/metrics")
    finally:
        server.stop()
    assert status == 200
    assert kind.startswith("text/plain")
    assert "driftline_things_total 3.0" in text


def test_two_servers_on_port_0_get_ports_of_their_own():
    one, two = (HealthServer(HttpSettings(), CollectorRegistry(), live=_well, ready=_well) for _ in range(2))
    try:
        assert one.start() != two.start()
    finally:
        one.stop()
        two.stop()


def test_a_port_that_is_taken_is_named_with_the_setting_to_change():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = HealthServer(HttpSettings(port=port), CollectorRegistry(), live=_well, ready=_well)
        with pytest.raises(EnvironmentProblem, match=rf"127\.0\.0\.1:{port}.*DRIFTLINE_HTTP__PORT"):
            server.start()
        server.stop()


def test_stopping_frees_the_port_at_once_even_with_a_connection_open():
    server = HealthServer(HttpSettings(), CollectorRegistry(), live=_well, ready=_well)
    url = server.start()
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as held:
        held.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200" in held.recv(100)
        server.stop()
        server.stop()
    again = HealthServer(HttpSettings(port=port), CollectorRegistry(), live=_well, ready=_well)
    assert again.start() == url
    again.stop()


def test_a_slow_check_does_not_keep_a_process_from_stopping():
    release = threading.Event()
    server = HealthServer(HttpSettings(), CollectorRegistry(), live=_well, ready=lambda: str(release.wait(30)))
    url = server.start()

    def ask():
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url + "/readyz", timeout=60)

    asker = threading.Thread(target=ask)
    asker.start()
    time.sleep(0.2)
    started = time.monotonic()
    server.stop()
    assert time.monotonic() - started < 10  # it would be 30: a bound against hanging, not a timing
    release.set()
    asker.join()


def test_the_status_file_is_never_seen_half_written(tmp_path):
    file = tmp_path / "run" / "device-0.json"
    write_status(file, {"url": "http://127.0.0.1:1"})
    stop = threading.Event()
    seen = []

    def read():
        while not stop.is_set():
            seen.append(json.loads(file.read_text()))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        write_status(file, {"url": "u" * (number * 50), "partitions": [number]})
    stop.set()
    reader.join()
    assert all(each["pid"] == os.getpid() for each in seen)
    assert json.loads(file.read_text())["partitions"] == [199]
    assert [each.name for each in file.parent.iterdir()] == ["device-0.json"]


def test_a_status_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentProblem, match=r"file/status\.json"):
        write_status(tmp_path / "file" / "status.json", {})
