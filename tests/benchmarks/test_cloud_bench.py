"""How near the cloud worker comes to its bare encoder, and what it adds to the latency of a single request."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from kafka import KafkaConsumer, TopicPartition
from pytest_benchmark.fixture import BenchmarkFixture

from cloud_worker.encoder.model_folder import find_model_folder, model_id_of
from cloud_worker.encoder.sentence_transformers import load_model
from cloud_worker.profile_text import profile_text
from infra.broker import Broker
from streams.bundle import Bundle
from streams.clock import SystemClock
from streams.durable_producer import DurableProducer
from streams.events import Codec, Embedding, RefreshRequest, device_key, pack_items, pack_times
from streams.kafka_admin import ensure_topics
from streams.settings import KafkaSettings
from streams.topics import DAY_MS, Topics
from tests.bundles import make_bundle

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[2]
EACH = 128
ROUNDS = 4
SINGLES = 50
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
    encoder_id = model_id_of(find_model_folder(""))
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", n_items=1700, encoder_id=encoder_id)


def made_request(bundle: Bundle, number: int) -> RefreshRequest:
    rng = np.random.default_rng(number)
    now = SystemClock().now_ms()
    return RefreshRequest(
        v=1, request_id=f"r{number}", device_id=f"d{number}", arm="a", bundle_id=bundle.id, as_of=number,
        items=pack_items(rng.integers(0, 1700, 50)), times_ms=pack_times(np.sort(rng.integers(0, 30 * DAY_MS, 50))),
        reason="bench", urgency=0.0, event_time_ms=0, requested_at_ms=now, deadline_ms=now + 600_000,
    )  # fmt: skip


def text_of(bundle: Bundle, number: int) -> str:
    rng = np.random.default_rng(number)
    items, times = rng.integers(0, 1700, 50), np.sort(rng.integers(0, 30 * DAY_MS, 50))
    return profile_text(items, times, bundle.items.titles, bundle.items.categories, last=bundle.manifest.profile_items)


@contextmanager
def worker(bundle: Bundle, kafka: KafkaSettings, directory: Path) -> Iterator[None]:
    status = directory / "status.json"
    environment = os.environ | {
        "DRIFTLINE_HOME": str(directory / "home"),
        "DRIFTLINE_KAFKA__BOOTSTRAP": kafka.bootstrap,
        "DRIFTLINE_KAFKA__TOPIC_PREFIX": kafka.topic_prefix,
    }
    log = directory / "worker.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(bundle.path), str(status)], cwd=ROOT, env=environment, stderr=out
        )
    try:
        deadline = time.monotonic() + 180
        while not status.is_file():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(15)


@pytest.mark.timeout(900)
def test_cloud_worker_over_bare_encoder_and_its_latency(
    benchmark: BenchmarkFixture, kafka: Broker, topic_prefix: str, bundle: Bundle, tmp_path: Path
) -> None:
    topics = Topics(topic_prefix, 4)
    settings = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix)
    ensure_topics(settings, topics.specs())
    encode = Codec(RefreshRequest).encode
    reader = KafkaConsumer(bootstrap_servers=kafka.bootstrap, isolation_level="read_committed")
    parts = [TopicPartition(topics.embeddings, number) for number in range(4)]
    reader.assign(parts)
    reader.seek_to_beginning()

    def read(count: int) -> list[Embedding]:
        found: list[Embedding] = []
        while len(found) < count:
            for records in reader.poll(timeout_ms=200).values():
                found += [Codec(Embedding).decode(record.value) for record in records]
        return found

    with DurableProducer(settings, linger_ms=0) as producer:

        def send(numbers: range) -> None:
            for number in numbers:
                request = made_request(bundle, number)
                producer.send(topics.refresh_requests, device_key(request.device_id), encode(request))
            producer.flush_or_raise()

        model = load_model(find_model_folder(""), device=None)

        def bare(numbers: range) -> float:
            texts = [text_of(bundle, number) for number in numbers]
            started = time.perf_counter()
            model.encode(texts, batch_size=32, normalize_embeddings=True)
            return time.perf_counter() - started

        def through_worker(numbers: range) -> float:
            send(numbers)
            started = time.perf_counter()
            answers = read(len(numbers))
            took = time.perf_counter() - started
            assert {answer.request_id for answer in answers} == {f"r{number}" for number in numbers}
            encoding.append(sum({answer.encode_s for answer in answers}) / took)  # one encode_s a batch
            return took

        def single(number: int) -> float:
            send(range(number, number + 1))
            (answer,) = read(1)
            return SystemClock().now_ms() - answer.requested_at_ms - 1000 * answer.encode_s

        encoding: list[float] = []
        with worker(bundle, settings, tmp_path):
            warm = range(10_000, 10_064)
            through_worker(warm)  # the group has settled, everything is loaded
            bare(warm)
            encoding.clear()
            rounds = [range(turn * EACH, (turn + 1) * EACH) for turn in range(ROUNDS)]
            # In turns, so that whatever else this machine does falls on both.
            pairs = benchmark.pedantic(lambda: [(through_worker(each), bare(each)) for each in rounds], rounds=1)
            overheads = [single(20_000 + turn) for turn in range(SINGLES)]
    reader.close()
    worker_s, bare_s = (sum(each) for each in zip(*pairs, strict=True))
    ratio = bare_s / worker_s
    p50, p99 = np.percentile(overheads, [50, 99])
    benchmark.extra_info |= {"worker_over_bare_encoder": ratio, "overhead_ms_p50": p50, "overhead_ms_p99": p99}
    print(
        f"\ncloud worker {ROUNDS * EACH / worker_s:.1f}/s, bare encoder {ROUNDS * EACH / bare_s:.1f}/s, "
        f"ratio {ratio:.3f} (by round {[round(b / w, 2) for w, b in pairs]}; "
        f"share of the worker's time in its encoder {np.mean(encoding):.3f}); "
        f"request to answer less encode: p50 {p50:.1f} ms, p99 {p99:.1f} ms"
    )
    assert ratio >= 0.9
    assert p50 <= 50
