"""The embedded broker keeps its promises on a real Kafka."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from infra.broker import Broker, ExternalBroker, broker_for, external, free_port, pinned_version
from streams.errors import BrokerError
from streams.settings import KafkaSettings

ROOT = Path(__file__).resolve().parents[2]
MakeBroker = Callable[..., Broker]


def write(bootstrap: str, topic: str, values: list[bytes]) -> None:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    if topic not in admin.list_topics():
        admin.create_topics([NewTopic(topic, 1, 1)])
    admin.close()
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
    for value in values:
        producer.send(topic, value)
    producer.flush()
    producer.close()


def read(bootstrap: str, topic: str, count: int) -> list[bytes]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, consumer_timeout_ms=20_000)
    consumer.assign([TopicPartition(topic, 0)])
    consumer.seek_to_beginning()
    values: list[bytes] = []
    for record in consumer:
        values.append(record.value)
        if len(values) == count:
            break
    consumer.close()
    return values


def gone(pid: int, within_s: float = 30.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def start_in_a_child(data_dir: Path) -> tuple[subprocess.Popen[str], int, str]:
    """Start a broker in another process; that process, Kafka's id, and the address."""
    program = (
        "import sys, time; from pathlib import Path; from infra.broker import Broker; "
        "b = Broker(Path(sys.argv[1])); b.start(); print(b.pid, b.bootstrap, flush=True); time.sleep(600)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(data_dir)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert child.stdout is not None
    pid, bootstrap = child.stdout.readline().split()
    return child, int(pid), bootstrap


def test_what_is_written_can_be_read(kafka: Broker, topic_prefix: str) -> None:
    write(kafka.bootstrap, topic_prefix + "x", [b"a", b"b"])
    assert read(kafka.bootstrap, topic_prefix + "x", 2) == [b"a", b"b"]


def test_the_broker_listens_on_loopback_alone(kafka: Broker) -> None:
    assert kafka.pid is not None
    listening = [c for c in psutil.Process(kafka.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert listening
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}


def test_the_real_version_is_named(kafka: Broker) -> None:
    if "KAFKA_HOME" not in os.environ:
        assert kafka.version == pinned_version()
    assert int(kafka.version.split(".")[0]) >= 4


def test_a_second_run_on_the_same_directory_finds_the_data(make_broker: MakeBroker) -> None:
    first = make_broker("a dir with spaces, % and ü")
    first.start()
    write(first.bootstrap, "kept", [b"1", b"2", b"3"])
    cluster = KafkaAdminClient(bootstrap_servers=first.bootstrap).describe_cluster()["cluster_id"]
    first.stop()
    assert not first.running

    second = make_broker("a dir with spaces, % and ü", port=free_port())
    second.start()
    assert read(second.bootstrap, "kept", 3) == [b"1", b"2", b"3"]
    assert KafkaAdminClient(bootstrap_servers=second.bootstrap).describe_cluster()["cluster_id"] == cluster


def test_a_killed_broker_comes_back_at_the_same_address_with_all_it_acknowledged(make_broker: MakeBroker) -> None:
    broker = make_broker()
    broker.start()
    values = [b"%d" % n for n in range(500)]
    write(broker.bootstrap, "kept", values)
    address, pid = broker.bootstrap, broker.pid
    assert pid is not None
    broker.kill()
    assert broker.pid is None
    assert gone(pid)
    broker.restart()
    assert broker.bootstrap == address
    assert broker.pid not in (None, pid)
    assert read(address, "kept", 500) == values


def test_killing_the_parent_ends_the_broker_and_frees_its_directory(kafka_installed: None, tmp_path: Path) -> None:
    child, pid, bootstrap = start_in_a_child(tmp_path / "kafka")
    try:
        write(bootstrap, "kept", [b"1"])
        child.send_signal(signal.SIGKILL)
        child.wait()
        with Broker(tmp_path / "kafka") as heir:  # even while the former broker is still shutting down
            assert gone(pid)
            assert read(heir.bootstrap, "kept", 1) == [b"1"]
    finally:
        child.kill()
        child.wait()


def test_killing_the_guard_ends_the_broker(make_broker: MakeBroker) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux ends a process with its parent")
    broker = make_broker()
    broker.start()
    pid = broker.pid
    assert pid is not None
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    assert gone(pid)
    broker.stop()
    assert not broker.running


def test_two_brokers_on_one_directory_are_refused(kafka: Broker) -> None:
    with pytest.raises(BrokerError, match="another broker uses"):
        Broker(kafka.log_file.parents[1]).start()
    assert kafka.running


def test_a_taken_port_is_refused_by_name(make_broker: MakeBroker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BrokerError, match=f"port {port} on 127.0.0.1 is taken"):
            make_broker(port=port).start()


def test_a_broker_that_cannot_start_names_its_log_with_the_last_lines(make_broker: MakeBroker) -> None:
    broker = make_broker()
    broker.start()
    broker.stop()
    meta = broker.log_file.parents[1] / "data" / "meta.properties"
    meta.write_text(meta.read_text().replace("node.id=1", "node.id=7"))
    with pytest.raises(BrokerError) as caught:
        broker.start()
    assert str(broker.log_file) in str(caught.value)
    assert "node id" in str(caught.value)
    assert not broker.running


def test_stopping_twice_or_before_starting_does_nothing(make_broker: MakeBroker) -> None:
    broker = make_broker()
    broker.stop()
    broker.kill()
    with pytest.raises(BrokerError, match="not started"):
        _ = broker.bootstrap


def test_a_broker_that_runs_elsewhere_is_verified_and_left_alone(kafka: Broker, tmp_path: Path) -> None:
    with broker_for(KafkaSettings(bootstrap=kafka.bootstrap), tmp_path) as elsewhere:
        assert isinstance(elsewhere, ExternalBroker)
        assert elsewhere.bootstrap == kafka.bootstrap
        assert elsewhere.version.startswith("4.")
    assert kafka.running
    assert list(tmp_path.iterdir()) == []


def test_a_broker_elsewhere_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setattr(external, "WAIT_S", 1.0)
    with pytest.raises(BrokerError, match=address):
        broker_for(KafkaSettings(bootstrap=address), tmp_path).start()
