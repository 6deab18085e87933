"""The cloud worker as a process on a real Kafka, asking a real HTTP encoder: answers, sharing, kills, outages."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import pytest
from kafka import KafkaConsumer, TopicPartition

from infra.broker import Broker
from streams.bundle import Bundle
from streams.clock import SystemClock
from streams.durable_producer import DurableProducer
from streams.events import (
    Codec,
    Embedding,
    Interaction,
    RefreshRequest,
    device_key,
    embedding_key,
    pack_items,
    pack_times,
    unpack_items,
    unpack_vector,
)
from streams.kafka_admin import consumer_lag, ensure_topics
from streams.settings import KafkaSettings
from streams.topics import Topics, partition_of
from tests.bundles import make_bundle
from tests.encoders import KEY, EmbeddingServer, embedding_server

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[2]
PARTITIONS = 4
WORKER = """
import sys
from pathlib import Path
from cloud_worker.worker import run_cloud_worker
from streams.log import configure_logging
from streams.settings import load_settings
configure_logging("info", "cloud")
run_cloud_worker(load_settings(), Path(sys.argv[1]), status_file=Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", n_items=60, encoder_id="openai-m")


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with embedding_server() as each:
        yield each


@dataclass
class Cloud:
    """Topics of one test, and the cloud workers it started on them."""

    bootstrap: str
    prefix: str
    bundle: Bundle
    server: EmbeddingServer
    directory: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.topics = Topics(self.prefix, PARTITIONS)
        self.kafka = KafkaSettings(bootstrap=self.bootstrap, topic_prefix=self.prefix, partitions=PARTITIONS)
        ensure_topics(self.kafka, self.topics.specs())

    def start(self, name: str = "cloud", **variables: str) -> subprocess.Popen[bytes]:
        status = self.directory / f"{name}.json"
        status.unlink(missing_ok=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("DRIFTLINE_")}
        environment |= {
            "DRIFTLINE_HOME": str(self.directory / "home"),
            "DRIFTLINE_KAFKA__BOOTSTRAP": self.bootstrap,
            "DRIFTLINE_KAFKA__TOPIC_PREFIX": self.prefix,
            "DRIFTLINE_KAFKA__PARTITIONS": str(PARTITIONS),
            "DRIFTLINE_CLOUD__ENCODER": "openai",
            "DRIFTLINE_CLOUD__ENCODER_MODEL": "m",
            "DRIFTLINE_CLOUD__ENCODER_URL": self.server.url,
            "DRIFTLINE_CLOUD__ENCODER_API_KEY": KEY,
            **variables,
        }
        command = [sys.executable, "-c", WORKER, str(self.bundle.path), str(status)]
        with (self.directory / f"{name}.log").open("ab") as log:
            worker = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        self.workers.append(worker)
        wait_for(lambda: status.is_file() or worker.poll() is not None, 60, self.tell)
        assert worker.poll() is None, self.tell()
        url = self.status(name)["url"]
        wait_for(lambda: httpx.get(f"{url}/readyz").status_code == 200, 60, self.tell)
        return worker

    def status(self, name: str = "cloud") -> dict[str, str]:
        return json.loads((self.directory / f"{name}.json").read_text())

    def metrics(self, name: str = "cloud") -> str:
        return httpx.get(f"{self.status(name)['url']}/metrics").text

    def tell(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.directory.glob("*.log")))

    def send(self, requests: list[RefreshRequest], raw: tuple[bytes, ...] = ()) -> None:
        with DurableProducer(self.kafka) as producer:
            for request in requests:
                value = Codec(RefreshRequest).encode(request)
                producer.send(self.topics.refresh_requests, device_key(request.device_id), value)
            for value in raw:
                producer.send(self.topics.refresh_requests, b"k", value)
            producer.flush_or_raise()

    def request(self, number: int, *, device: str = "", items: tuple[int, ...] = (), arm: str = "a") -> RefreshRequest:
        items = items or tuple((number * 7 + i * 11) % 60 for i in range(5))
        now = SystemClock().now_ms()
        return RefreshRequest(
            v=1, request_id=f"r{number}", device_id=device or f"d{number}", arm=arm, bundle_id=self.bundle.id,
            as_of=number, items=pack_items(items), times_ms=pack_times(range(len(items))), reason="every-n",
            urgency=0.0, event_time_ms=5_000 + number, requested_at_ms=now, deadline_ms=now + 300_000,
        )  # fmt: skip

    def read(self, topic: str) -> list:
        consumer = KafkaConsumer(bootstrap_servers=self.bootstrap, isolation_level="read_committed")
        try:
            parts = [TopicPartition(topic, number) for number in range(PARTITIONS)]
            consumer.assign(parts)
            ends = consumer.end_offsets(parts)
            consumer.seek_to_beginning()
            found = []
            while any(consumer.position(part) < ends[part] for part in parts):
                found += [each for records in consumer.poll(timeout_ms=500).values() for each in records]
            return found
        finally:
            consumer.close()

    def answers(self) -> list[Embedding]:
        return [Codec(Embedding).decode(record.value) for record in self.read(self.topics.embeddings)]

    def wait_answered(self, requests: list[RefreshRequest], timeout_s: float = 60) -> None:
        wanted = {request.request_id for request in requests}
        wait_for(lambda: wanted <= {answer.request_id for answer in self.answers()}, timeout_s, self.tell)

    def wait_committed(self) -> None:
        group = f"{self.prefix}driftline-cloud"
        wait_for(lambda: not any(consumer_lag(self.kafka, group, self.topics.refresh_requests).values()), 30, self.tell)


def wait_for(done: Callable[[], object], timeout_s: float, tell: Callable[[], str]) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, tell()
        time.sleep(0.1)


@pytest.fixture
def cloud(kafka: Broker, topic_prefix: str, bundle: Bundle, server: EmbeddingServer, tmp_path: Path) -> Iterator[Cloud]:
    made = Cloud(kafka.bootstrap, topic_prefix, bundle, server, tmp_path)
    yield made
    for worker in made.workers:
        worker.kill()
        worker.wait()


def test_requests_are_answered_in_their_devices_partition_and_bad_ones_are_set_aside(cloud: Cloud) -> None:
    cloud.start()
    requests = [cloud.request(number) for number in range(40)] + [cloud.request(40, device="d1", arm="b")]
    other = msgspec.structs.replace(cloud.request(99), bundle_id="0" * 16)
    cloud.send([*requests, other], raw=(b"no record",))
    cloud.wait_answered(requests)
    cloud.wait_committed()
    records = cloud.read(cloud.topics.embeddings)
    answers = [Codec(Embedding).decode(record.value) for record in records]
    assert {answer.request_id: answer.as_of for answer in answers} == {r.request_id: r.as_of for r in requests}
    for record, answer in zip(records, answers, strict=True):
        assert record.key == embedding_key(answer.device_id, answer.arm)
        assert record.partition == partition_of(answer.device_id, PARTITIONS)
        assert dict(record.headers)["ce_type"] == b"driftline.embedding.v1"
    letters = cloud.read(cloud.topics.dead_letters(cloud.topics.refresh_requests))
    assert sorted(dict(letter.headers)["dlq.reason"] for letter in letters) == [b"other-bundle", b"undecodable"]
    metrics = cloud.metrics()
    assert f"driftline_cloud_embeddings_total {len(requests)}.0" in metrics
    assert 'reason="other-bundle"' in metrics


def test_sigterm_ends_it_within_seconds_and_nothing_is_left_undone(cloud: Cloud) -> None:
    worker = cloud.start()
    requests = [cloud.request(number) for number in range(30)]
    cloud.server.delay_s = 0.3
    cloud.send(requests)
    time.sleep(0.2)
    worker.terminate()
    started = time.monotonic()
    assert worker.wait(10) == 0, cloud.tell()
    assert time.monotonic() - started < 6
    cloud.start("next")
    cloud.wait_answered(requests)


def test_sigterm_while_the_encoder_hangs_still_ends_it(cloud: Cloud) -> None:
    worker = cloud.start()
    cloud.server.hold = threading.Event()
    before = len(cloud.server.requests)
    cloud.send([cloud.request(1)])
    wait_for(lambda: len(cloud.server.requests) > before, 30, cloud.tell)
    worker.terminate()
    assert worker.wait(8) == 0, cloud.tell()
    cloud.server.hold.set()
    cloud.start("next")
    cloud.wait_answered([cloud.request(1)])


@pytest.mark.chaos
def test_kill_9_in_mid_batch_loses_no_request(cloud: Cloud) -> None:
    worker = cloud.start()
    first = [cloud.request(number) for number in range(20)]
    cloud.send(first)
    cloud.wait_answered(first)
    cloud.server.hold = threading.Event()
    before = len(cloud.server.requests)
    later = [cloud.request(number) for number in range(20, 120)]
    cloud.send(later)
    wait_for(lambda: len(cloud.server.requests) > before, 30, cloud.tell)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert not {r.request_id for r in later} & {a.request_id for a in cloud.answers()}, "it was killed in mid-batch"
    cloud.server.hold.set()
    cloud.start("again")
    cloud.wait_answered([*first, *later])
    cloud.wait_committed()
    answered = Counter(answer.request_id for answer in cloud.answers())
    assert set(answered) == {request.request_id for request in [*first, *later]}


@pytest.mark.chaos
def test_workers_share_the_load_and_take_over_from_one_that_is_killed(cloud: Cloud) -> None:
    one = cloud.start("one")
    cloud.start("two")
    requests = [cloud.request(number) for number in range(60)]

    def both_worked() -> bool:
        batch = [cloud.request(len(requests) + i) for i in range(20)]
        requests.extend(batch)
        cloud.send(batch)
        cloud.wait_answered(batch)
        return all("driftline_cloud_embeddings_total 0.0" not in cloud.metrics(name) for name in ("one", "two"))

    cloud.send(requests[:60])
    wait_for(both_worked, 60, cloud.tell)
    one.send_signal(signal.SIGKILL)
    more = [cloud.request(number) for number in range(1000, 1060)]
    cloud.send(more)
    cloud.wait_answered([*requests, *more])


def test_an_encoder_that_is_away_is_waited_for(cloud: Cloud) -> None:
    cloud.start()
    cloud.server.troubles = [(503, {})] * 7  # more than the tries of one call: the batch fails and is taken again
    requests = [cloud.request(number) for number in range(5)]
    cloud.send(requests)
    cloud.wait_answered(requests, 90)
    assert "a batch failed and is taken again" in cloud.tell()
    cloud.wait_committed()


def test_another_encoder_than_the_bundles_is_refused_at_the_start(cloud: Cloud) -> None:
    with pytest.raises(AssertionError, match="trained with the encoder openai-m"):
        cloud.start(DRIFTLINE_CLOUD__ENCODER_MODEL="another")


@pytest.mark.chaos
def test_a_broker_that_is_gone_for_30_s_is_waited_for(
    make_broker: Callable[..., Broker], topic_prefix: str, bundle: Bundle, server: EmbeddingServer, tmp_path: Path
) -> None:
    with socket.socket() as free:  # it must come back where it was
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    broker = make_broker(port=port)
    broker.start()
    cloud = Cloud(broker.bootstrap, topic_prefix, bundle, server, tmp_path)
    try:
        worker = cloud.start()
        server.hold = threading.Event()
        first = [cloud.request(number) for number in range(10)]
        before = len(server.requests)
        cloud.send(first)
        wait_for(lambda: len(server.requests) > before, 30, cloud.tell)
        broker.stop()
        server.hold.set()  # its answers meet no broker
        time.sleep(30)
        assert worker.poll() is None, cloud.tell()
        broker.start()
        later = [cloud.request(number) for number in range(10, 20)]
        cloud.send(later)
        cloud.wait_answered([*first, *later], 120)
        cloud.wait_committed()
        assert worker.poll() is None
    finally:
        for each in cloud.workers:
            each.kill()
            each.wait()


def test_what_others_just_did_changes_the_next_embedding_also_after_a_kill(cloud: Cloud) -> None:
    """Nobody asked and nothing was trained anew: the worker read what others took after the user's last item."""

    def asked_again(number: int) -> Embedding:
        request = cloud.request(number, device="me", items=(5, 6, 7))
        cloud.send([request])
        cloud.wait_answered([request])
        return next(answer for answer in cloud.answers() if answer.request_id == request.request_id)

    def others_take(item: int, users: range) -> None:
        with DurableProducer(cloud.kafka) as producer:
            for user in users:
                for nth, each in enumerate((7, item)):
                    name = f"other{user}"
                    event = Interaction(1, f"{name}-{nth}", name, f"i{each}", event_time_ms=2_000 + 10 * user + nth)
                    producer.send(cloud.topics.interactions, device_key(name), Codec(Interaction).encode(event))
            producer.flush_or_raise()

    worker = cloud.start(DRIFTLINE_CLOUD__LIVE_CHECKPOINT_S="0.5")
    before = asked_again(1)
    others_take(42, range(10))
    wait_for(lambda: "driftline_cloud_live_events_total 20.0" in cloud.metrics(), 30, cloud.tell)
    after = asked_again(2)
    assert unpack_items(after.candidates)[0] == 42
    assert after.vector != before.vector
    items, bias = cloud.bundle.device["item_vectors"], cloud.bundle.device["item_bias"]
    ranks = [
        int((items @ unpack_vector(each.vector) + bias > items[42] @ unpack_vector(each.vector) + bias[42]).sum())
        for each in (before, after)
    ]
    assert ranks[1] < min(3, ranks[0]), "the embedding says so too"

    checkpoint = cloud.directory / "home" / "live" / f"{cloud.prefix}cloud.safetensors"
    wait_for(checkpoint.exists, 30, cloud.tell)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    others_take(43, range(10, 16))  # with the ten before, as many as the index keeps of an item
    cloud.start()
    top = unpack_items(asked_again(3).candidates)[:2].tolist()
    assert sorted(top) == [42, 43], "what it knew before, and what was sent while it was away"
    assert "driftline_cloud_live_users 16.0" in cloud.metrics()
