"""The live index follows a real topic: over restarts, damaged files, full disks and topics made anew."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from cloud_worker.live.index import LiveIndex
from cloud_worker.live.reader import LiveReader, live_options
from infra.broker import Broker
from streams.bundle import Bundle
from streams.clock import SystemClock
from streams.durable_producer import DurableProducer
from streams.errors import BundleError
from streams.events import Codec, Interaction, device_key, event_hash
from streams.kafka_admin import delete_topics, ensure_topics
from streams.metrics import CloudMetrics
from streams.settings import KafkaSettings
from streams.topics import Topics
from tests.bundles import make_bundle

pytestmark = pytest.mark.kafka

N = 30
START = 900  # of the made bundle's test period


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One that knows a user already."""
    made = make_bundle(tmp_path_factory.mktemp("bundle") / "b", n_items=N)
    seed = LiveIndex(N, live_options(made))
    seed.observe(np.full(3, 4711, np.uint64), np.array([0, 1, 2]), np.array([10, 20, 30]))
    return replace(made, live=seed.state())


@dataclass
class Reading:
    """A reader that runs, and what it counted."""

    reader: LiveReader
    registry: CollectorRegistry

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"driftline_cloud_live_{name}", labels) or 0.0

    def counts(self) -> list[float]:
        return self.reader.index.index.state()["counts"].round(3).tolist()

    def scores(self) -> np.ndarray:
        return self.reader.index.scores([np.array([item]) for item in range(N)], [1] * N, np.full(N, 10_000))


@dataclass
class World:
    """The topics of one test."""

    kafka: KafkaSettings
    bundle: Bundle
    path: Path
    sent: list[Interaction] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.topics = Topics(self.kafka.topic_prefix, 2)
        self.make_topics()

    def make_topics(self) -> None:
        ensure_topics(self.kafka, self.topics.specs())

    def delete_topics(self) -> None:
        delete_topics(self.kafka, [spec.name for spec in self.topics.specs()])
        self.sent.clear()

    def send(self, count: int, *, raw: tuple[bytes, ...] = (), first: int | None = None) -> None:
        """Events of seven users, each going up the catalogue in steps of his own."""
        first = len(self.sent) if first is None else first
        events = [
            Interaction(1, f"e{n}", f"d{n % 7}", f"i{(n // 7 * (1 + n % 3) + n % 7) % N}", event_time_ms=START + n)
            for n in range(first, first + count)
        ]
        self.sent += events
        with DurableProducer(self.kafka) as producer:
            for event in events:
                producer.send(self.topics.interactions, device_key(event.device_id), Codec(Interaction).encode(event))
            for value in raw:
                producer.send(self.topics.interactions, b"k", value)
            producer.flush_or_raise()

    def expected(self) -> LiveIndex:
        """The index of one who saw everything once."""
        index = LiveIndex.from_state(N, live_options(self.bundle), self.bundle.live)
        index.observe(
            np.array([event_hash(event.device_id) for event in self.sent], np.uint64),
            np.array([int(event.item_id[1:]) for event in self.sent], np.int64),
            np.array([event.event_time_ms for event in self.sent], np.int64),
        )
        return index

    @contextmanager
    def reading(self, checkpoint_s: float = 3600.0) -> Iterator[Reading]:
        registry = CollectorRegistry()
        reader = LiveReader(
            self.kafka, self.topics, self.bundle, self.path, CloudMetrics(registry), SystemClock(),
            checkpoint_s=checkpoint_s, future_tolerance_s=60.0,
        )  # fmt: skip
        reader.start()
        try:
            assert reader.wait_level(30), reader.behind()
            yield Reading(reader, registry)
        finally:
            reader.stop()

    def assert_knows_all(self, reading: Reading) -> None:
        expected = self.expected()
        assert reading.counts() == expected.state()["counts"].round(3).tolist()
        wanted = expected.scores([np.array([item]) for item in range(N)], [1] * N, np.full(N, 10_000))
        np.testing.assert_allclose(reading.scores(), wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture
def world(kafka: Broker, topic_prefix: str, bundle: Bundle, tmp_path: Path) -> World:
    settings = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix, partitions=2)
    return World(settings, bundle, tmp_path / "live" / "w.safetensors")


def wait_for(done: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_begins_with_the_bundle_reads_what_is_there_and_follows(world: World) -> None:
    world.send(40, raw=(b"no record",))
    with world.reading() as reading:
        assert reading.reader.behind() is None
        world.assert_knows_all(reading)
        assert reading.value("users") == 8, "seven and the bundle's"
        world.send(40)
        wait_for(lambda: reading.value("events_total") == 80)
        world.assert_knows_all(reading)
        assert reading.value("skipped_events_total", reason="undecodable") == 1
        wait_for(lambda: reading.value("lag_seconds") < 2)


def test_an_empty_topic_is_read_at_once(world: World) -> None:
    with world.reading() as reading:
        assert reading.value("users") == 1


def test_a_restart_goes_on_and_counts_nothing_twice(world: World) -> None:
    world.send(50)
    with world.reading():
        pass
    world.send(30)
    with world.reading() as reading:
        assert reading.value("events_total") == 30
        world.assert_knows_all(reading)


def test_a_kill_between_two_checkpoints_counts_nothing_twice(world: World, tmp_path: Path) -> None:
    """What a killed process leaves is the checkpoint before: positions and counts of the same moment."""
    world.send(50)
    with world.reading(checkpoint_s=0.2) as reading:
        wait_for(world.path.exists)
        shutil.copy(world.path, tmp_path / "earlier")
        world.send(30)
        wait_for(lambda: reading.value("events_total") == 80)
    shutil.copy(tmp_path / "earlier", world.path)
    (world.path.parent / ".w.safetensors.123").write_bytes(b"half a checkpoint")
    with world.reading() as reading:
        assert reading.value("events_total") == 30
        world.assert_knows_all(reading)
    assert [each.name for each in world.path.parent.iterdir()] == [world.path.name]


def test_a_damaged_checkpoint_is_dropped_and_everything_read_again(world: World) -> None:
    world.send(50)
    with world.reading():
        pass
    world.path.write_bytes(world.path.read_bytes()[:100])
    with world.reading() as reading:
        assert reading.value("events_total") == 50
        world.assert_knows_all(reading)
    with world.reading() as reading:
        assert reading.value("events_total") == 0, "the new checkpoint is whole"
        world.assert_knows_all(reading)


def test_without_a_place_for_checkpoints_it_goes_on(world: World) -> None:
    world.path.parent.write_text("a file where the folder should be")
    world.send(20)
    with world.reading(checkpoint_s=0.1) as reading:
        wait_for(lambda: reading.value("checkpoint_failures_total") >= 1)
        world.send(20)
        wait_for(lambda: reading.value("events_total") == 40)
        world.assert_knows_all(reading)


def test_another_bundle_begins_anew(world: World, tmp_path: Path) -> None:
    world.send(50)
    with world.reading():
        pass
    world.bundle = make_bundle(tmp_path / "b", n_items=N, seed=1)
    with world.reading() as reading:
        assert reading.value("events_total") == 50
        world.assert_knows_all(reading)


@pytest.mark.parametrize("more", [5, 200])
def test_a_topic_made_anew_while_nobody_reads_is_read_from_its_beginning(world: World, more: int) -> None:
    """Also where it is longer already than the one before was: offsets alone would not tell."""
    world.send(50)
    with world.reading():
        pass
    world.delete_topics()
    world.make_topics()
    world.send(more, first=1000)
    with world.reading() as reading:
        world.assert_knows_all(reading)
        assert reading.value("events_total") == more


@pytest.mark.parametrize("more", [5, 200])
def test_a_topic_made_anew_under_a_reader_is_read_from_its_beginning(world: World, more: int) -> None:
    world.send(50)
    with world.reading(checkpoint_s=0.5) as reading:
        world.delete_topics()
        world.make_topics()
        world.send(more, first=1000)
        wanted = world.expected().state()["counts"].round(3).tolist()
        wait_for(lambda: reading.counts() == wanted, 60)
        world.assert_knows_all(reading)
        assert reading.reader.ended() is None


@pytest.mark.chaos
def test_after_an_outage_of_the_broker_it_reads_on(
    make_broker: Callable[..., Broker], topic_prefix: str, bundle: Bundle, tmp_path: Path
) -> None:
    with socket.socket() as free:  # it must come back where it was
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    broker = make_broker(port=port)
    broker.start()
    kafka = KafkaSettings(bootstrap=broker.bootstrap, topic_prefix=topic_prefix, partitions=2)
    world = World(kafka, bundle, tmp_path / "live" / "w.safetensors")
    world.send(50)
    with world.reading(checkpoint_s=0.5) as reading:
        broker.stop()
        wait_for(lambda: reading.value("lag_seconds") > 4)
        broker.start()
        world.send(30)
        wait_for(lambda: reading.value("events_total") == 80, 90)
        world.assert_knows_all(reading)
        wait_for(lambda: reading.value("lag_seconds") < 2)


def test_a_bundle_whose_live_part_is_none_is_refused(world: World) -> None:
    manifest = world.bundle.manifest
    for broken, words in (
        (replace(world.bundle, live={}), "without its live part"),
        (replace(world.bundle, live={**world.bundle.live, "counts": np.zeros(3)}), "cannot be used"),
        (replace(world.bundle, manifest=msgspec.structs.replace(manifest, live={"magic": 1})), "options"),
    ):
        world.bundle = broken
        with pytest.raises(BundleError, match=words), world.reading():
            pass
