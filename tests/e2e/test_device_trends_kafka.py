"""Device workers and trends.v1 on a real Kafka: which table serves, what is done with records that are none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from device_agent.trends import AHEAD, TrendsBoard
from device_agent.trends_reader import TrendsReader
from infra.broker import Broker
from streams.bundle import Bundle
from streams.clock import SystemClock
from streams.durable_producer import DurableProducer
from streams.events import Codec, Trends, trends_key
from streams.metrics import DeviceMetrics
from streams.neighbours import NeighbourTable
from streams.trends import records_of_table
from tests.bundles import make_bundle
from tests.pipeline import START_MS, Pipeline, interactions, pipeline, wait_for

pytestmark = pytest.mark.kafka

N = 60


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", n_items=N)


@pytest.fixture
def made(kafka: Broker, topic_prefix: str, bundle: Bundle, tmp_path: Path) -> Iterator[Pipeline]:
    with pipeline(kafka.bootstrap, topic_prefix, bundle, tmp_path, arms=("never", "drift:rate=0.2")) as each:
        yield each


def table(as_of_ms: int) -> NeighbourTable:
    rng = np.random.default_rng(as_of_ms % 1000)
    items = np.stack([rng.choice(N, 8, replace=False) for _ in range(N)]).astype(np.int32)
    return NeighbourTable(as_of_ms, items, rng.uniform(0.1, 1, items.shape).astype(np.float16))


def publish(made: Pipeline, *records: Trends | bytes) -> None:
    with DurableProducer(made.kafka) as producer:
        for each in records:
            raw = each if isinstance(each, bytes) else Codec(Trends).encode(each)
            part = 0 if isinstance(each, bytes) else each.part
            producer.send(made.topics.trends, trends_key(part), raw, partition=0)
        producer.flush_or_raise()


def test_events_are_served_with_the_table_of_their_time(made: Pipeline, bundle: Bundle) -> None:
    """And one that arrives while the worker runs is taken; the changelog does not know of tables."""
    events = interactions(bundle, 300)
    first, second = START_MS + 1000 * 100, START_MS + 1000 * 200
    publish(made, *records_of_table(table(first), bundle.id, 1))
    made.start_worker()
    wait_for(lambda: "neighbour table read" in made.log_file("w").read_text(), 60, lambda: made.tell(0))
    made.produce_interactions(events[:200])
    made.wait_served(200)
    publish(made, *records_of_table(table(second), bundle.id, 2))
    wait_for(lambda: made.log_file("w").read_text().count("neighbour table read") == 2, 30, lambda: made.tell(0))
    made.produce_interactions(events[200:])
    made.wait_served(300)
    for each in made.recommendations():
        number = int(each.event_id[1:])
        assert each.trends_as_of_ms == (-1 if number < 100 else first if number < 200 else second)
    without = made.digests()
    made.stop_workers()
    with pipeline(made.bootstrap, f"{made.prefix}off.", bundle, made.directory / "off", arms=made.arms) as off:
        off.flags["device.trends"] = False
        off.start_worker()
        off.produce_interactions(events)
        off.wait_served(300)
        assert {each.trends_as_of_ms for each in off.recommendations()} == {-1}
        assert off.digests() == without
        lists = {(each.event_id, each.arm): each.items for each in off.recommendations()}
    changed = {each.event_id for each in made.recommendations() if each.items != lists[each.event_id, each.arm]}
    assert {int(each[1:]) >= 100 for each in changed} == {True}, "a table changes what is served, and only then"


class Reading:
    """A reader that runs in this process."""

    def __init__(self, made: Pipeline, bundle: Bundle) -> None:
        self.board, self.registry = TrendsBoard(), CollectorRegistry()
        self.reader = TrendsReader(
            made.kafka,
            made.topics,
            bundle,
            self.board,
            DeviceMetrics(self.registry),
            SystemClock(),
            future_tolerance_s=60.0,
        )
        self.reader.start()

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"driftline_trends_{name}", labels) or 0.0

    def wait_taken(self, tables: int) -> None:
        wait_for(lambda: self.value("taken_total") >= tables, 30, lambda: f"{self.value('taken_total')} tables")


@pytest.fixture
def reading(made: Pipeline, bundle: Bundle) -> Iterator[Reading]:
    each = Reading(made, bundle)
    yield each
    each.reader.stop()


def test_records_that_are_no_table_are_counted_and_passed_over(
    made: Pipeline, bundle: Bundle, reading: Reading
) -> None:
    (good,) = records_of_table(table(10), bundle.id, 1)
    publish(
        made,
        b"no record",
        Codec(Trends).encode(msgspec.structs.replace(good, v=99)),
        msgspec.structs.replace(good, bundle_id="f" * 16),
        msgspec.structs.replace(good, weights=b"\x00\x7e" * (len(good.weights) // 2)),  # NaN
        msgspec.structs.replace(good, as_of_ms=4_000_000_000_000, parts=6),  # the year 2096
        good,
    )
    reading.wait_taken(1)
    assert reading.value("ignored_records_total", reason="undecodable") == 1
    assert reading.value("ignored_records_total", reason="unknown-schema") == 1
    assert reading.value("ignored_records_total", reason="other-bundle") == 1
    assert reading.value("ignored_records_total", reason="bad-table") == 1
    assert reading.value("ignored_records_total", reason="future-time") == 1
    assert reading.board.shares(np.array([10]))[0].table is not None
    assert reading.value("as_of_timestamp_seconds") == 0.01


def test_tables_wait_in_the_topic_for_devices_that_are_behind(made: Pipeline, bundle: Bundle, reading: Reading) -> None:
    days = range(1, AHEAD + 4)
    publish(made, *(each for day in days for each in records_of_table(table(day * 10), bundle.id, day)))
    reading.wait_taken(AHEAD)
    time.sleep(1.5)
    assert reading.value("taken_total") == AHEAD, "it holds no more of them in memory"
    for day in days:
        reading.wait_taken(min(day + AHEAD - 1, len(days)))
        found = reading.board.shares(np.array([day * 10 + 5]))[0].table
        assert found is not None
        assert found.as_of_ms == day * 10, "none was passed over"
