"""When a table for all devices is made, of what, by whom; and that trends.v1 then has it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from kafka import TopicPartition
from prometheus_client import CollectorRegistry

from cloud_worker.live import broadcast
from cloud_worker.live.broadcast import FIRST_WAIT_S, HOUR_MS, LONGEST_WAIT_S, REST, SETTLE_S, Broadcaster
from cloud_worker.live.index import LiveIndex
from cloud_worker.live.neighbour_counts import neighbour_table, neighbours_kept
from cloud_worker.live.reader import LiveReader, live_options
from infra.broker import Broker
from streams.bundle import Bundle
from streams.clock import ManualClock, SystemClock
from streams.durable_producer import DurableProducer
from streams.errors import BrokerError
from streams.events import Codec, Interaction, Trends, device_key, trends_key
from streams.kafka_admin import ensure_topics
from streams.kafka_clients import make_consumer
from streams.metrics import CloudMetrics
from streams.neighbours import NeighbourTable
from streams.records import OutgoingRecord
from streams.settings import KafkaSettings
from streams.topics import Topics, partition_of
from streams.trends import TableAssembly
from tests.bundles import make_bundle

N = 30
START = 900  # of the made bundle's test period
NOW_MS = 10**12
"""Wall time, long after the events."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One that knows a user already."""
    made = make_bundle(tmp_path_factory.mktemp("bundle") / "b", n_items=N)
    seed = LiveIndex(N, live_options(made))
    seed.observe(np.full(3, 4711, np.uint64), np.array([0, 1, 2]), np.array([10, 20, 30]))
    return replace(made, live=seed.state())


def seeded(bundle: Bundle) -> LiveIndex:
    return LiveIndex.from_state(N, live_options(bundle), bundle.live)


@dataclass
class Cluster:
    """Takes records, or refuses them."""

    sent: list[OutgoingRecord] = field(default_factory=list)
    refusal: Exception | None = None
    opened: int = 0
    closed: int = 0
    on_send: Callable[[], object] = lambda: None

    def open(self) -> Cluster:
        self.opened += 1
        return self

    def send_all(self, records: Iterable[OutgoingRecord]) -> None:
        self.on_send()
        if self.refusal is not None:
            raise self.refusal
        self.sent += records

    def flush_or_raise(self) -> None:
        pass

    def close(self, timeout_s: float) -> None:
        self.closed += 1


class World:
    """A broadcaster that makes its tables at once, or on `work` where it is told to wait."""

    def __init__(self, bundle: Bundle, hours: float = 1.0) -> None:
        self.bundle = bundle
        self.clock = ManualClock(NOW_MS)
        self.cluster = Cluster()
        self.registry = CollectorRegistry()
        self.index = seeded(bundle)
        self.waiting: list[Callable[[], None]] | None = None
        self.broadcaster = Broadcaster(
            bundle, Topics("t."), CloudMetrics(self.registry), self.clock, self.cluster.open,
            hours=hours, start=self._start,
        )  # fmt: skip

    def _start(self, work: Callable[[], None]) -> None:
        if self.waiting is None:
            work()
        else:
            self.waiting.append(work)

    def lead(self) -> World:
        self.broadcaster.lead(True)
        return self

    def turn(self, after_s: float = 0.0) -> list[float]:
        """One turn, and one that looks at what came of it; the boundaries written so far, in hours."""
        self.clock.advance(after_s)
        self.broadcaster.turn(self.index)
        self.broadcaster.turn(self.index)
        return self.written

    @property
    def tables(self) -> list[NeighbourTable]:
        found = [TableAssembly(self.bundle.id, N).add(Codec(Trends).decode(each.value)) for each in self.cluster.sent]
        return [table for table in found if table is not None]

    @property
    def written(self) -> list[float]:
        return [(table.as_of_ms - START) / HOUR_MS for table in self.tables]

    def event(self, hour: float, *items: int, user: int = 1) -> None:
        times = np.full(len(items) or 1, START + round(hour * HOUR_MS))
        self.index.observe(np.full(len(times), user, np.uint64), np.array(items or (0,)), times)
        for _ in range(2):  # batches: one alone, more than a period ahead, might be a device with a wrong clock
            self.broadcaster.reached(int(times[0]))

    def value(self, name: str) -> float:
        return self.registry.get_sample_value(f"driftline_cloud_trends_{name}") or 0.0


@pytest.fixture
def world(bundle: Bundle) -> World:
    return World(bundle)


def neighbours(table: NeighbourTable, item: int) -> set[int]:
    return set(table.items[item].tolist()) - {N}


def test_devices_have_a_table_before_the_first_event(world: World) -> None:
    assert world.lead().turn() == [0]
    assert neighbours(world.tables[0], 0) == {1, 2}, "what the bundle knew"


def test_who_begins_in_the_midst_writes_the_newest_boundary_at_once(world: World) -> None:
    world.event(7.5)
    assert world.lead().turn() == [7]
    assert world.turn(60) == [7], "and it once"


def test_a_table_holds_only_what_happened_before_its_boundary(world: World) -> None:
    world.event(1.9, 10, 11)
    world.event(2.0, 12, user=1)
    world.event(2.1, 13, 14, user=2)
    world.lead().turn()
    [table] = world.tables
    assert table.as_of_ms == START + 2 * HOUR_MS
    assert neighbours(table, 10) == {11}
    assert not {12, 13, 14} & set(table.items.ravel().tolist())


def test_a_table_is_that_of_the_rings_and_says_who_sent_it(world: World) -> None:
    world.event(0.5, 3, 4, 3, 5)
    world.event(1.5, 6)
    world.lead().turn()
    [record] = world.cluster.sent
    lengths, items = world.index.sequences(START + HOUR_MS, 10**6)
    wanted = neighbour_table(lengths, items, N, as_of_ms=START + HOUR_MS, kept=neighbours_kept(N))
    np.testing.assert_array_equal(world.tables[0].items, wanted.items)
    np.testing.assert_array_equal(world.tables[0].weights, wanted.weights)
    assert (record.topic, record.partition, record.key) == ("t.trends.v1", 0, trends_key(0))
    headers = dict(record.headers)
    assert headers["ce_type"] == b"driftline.trends.v1"
    assert headers["ce_id"] == f"{world.bundle.id}-{START + HOUR_MS}-0-trends".encode()
    assert Codec(Trends).decode(record.value).published_at_ms == NOW_MS


def test_a_boundary_waits_for_events_of_other_partitions_from_before_it(world: World) -> None:
    world.lead().turn()
    world.event(1.0, 10, user=1)
    assert world.turn(5) == [0]
    world.event(0.9, 20, 21, user=2)
    assert world.turn(SETTLE_S - 0.01) == [0]
    assert world.turn(0.02) == [0, 1]
    assert neighbours(world.tables[1], 20) == {21}


def test_the_hour_that_nobody_has_passed_is_not_written_however_long_it_takes(world: World) -> None:
    world.event(0.999)
    assert world.lead().turn() == [0]
    assert world.turn(100_000) == [0]


def test_of_boundaries_passed_meanwhile_the_newest_is_written(world: World) -> None:
    world.lead().turn()
    for hour in (1, 2, 3):
        world.event(hour)
        world.turn(0.1)
    assert world.turn(SETTLE_S) == [0, 3]


def test_a_replay_that_passes_ten_boundaries_a_second_still_has_about_one_table_a_second(world: World) -> None:
    world.lead().turn()
    for tenth in range(200):
        world.event(1 + tenth)
        world.turn(0.1)
    hours = world.written
    assert 18 <= len(hours) <= 21
    assert hours == sorted(set(hours))
    assert hours[-1] > 180
    assert len(world.broadcaster._noticed) <= 12, "what was noticed is bounded"


def test_a_table_that_takes_long_is_followed_by_nine_times_that_of_rest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*args: object, **kwargs: object) -> NeighbourTable:
        world.clock.advance(2.0)
        return neighbour_table(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(broadcast, "neighbour_table", slow)
    world.lead().turn()
    world.event(1)
    world.turn()
    assert world.turn(2 * REST - 0.1) == [0]
    assert world.turn(0.2) == [0, 1]


def test_waiting_for_the_broker_is_no_reason_to_rest(world: World) -> None:
    world.cluster.on_send = lambda: world.clock.advance(30)
    world.lead().turn()
    world.event(1)
    world.turn()
    assert world.turn(SETTLE_S) == [0, 1]
    assert world.value("seconds_sum") == pytest.approx(60)


def test_only_who_leads_writes_and_who_becomes_leader_writes_the_current_one_again(world: World) -> None:
    world.event(3)
    assert world.turn() == []
    assert world.cluster.opened == 0
    assert world.lead().turn() == [3]
    world.broadcaster.lead(True)  # after each poll
    assert world.turn(60) == [3]
    world.broadcaster.lead(False)
    world.event(4)
    assert world.turn(60) == [3]
    world.turn(60)
    assert world.lead().turn() == [3, 4]
    world.broadcaster.lead(False)
    assert world.turn(60) == [3, 4]
    assert world.lead().turn() == [3, 4, 4]


@pytest.mark.parametrize("refusal", [BrokerError("gone"), MemoryError()])
def test_a_failure_is_counted_and_the_table_made_again_after_waits_that_grow(world: World, refusal: Exception) -> None:
    world.cluster.refusal = refusal
    world.lead().turn()
    assert world.value("failures_total") == 1
    world.turn(FIRST_WAIT_S - 0.1)
    assert world.value("failures_total") == 1, "no busy loop"
    for _ in range(5_000):
        world.turn(0.2)
    growing = 7  # waits of 1, 2, 4 … 64 s, the last one cut
    assert world.value("failures_total") == pytest.approx(growing + 1_000 / LONGEST_WAIT_S, abs=3)
    world.cluster.refusal = None
    assert world.turn(LONGEST_WAIT_S) == [0]
    assert world.value("published_total") == 1
    assert world.value("published_bytes_total") == len(world.cluster.sent[0].value or b"")
    world.cluster.refusal = refusal
    world.event(1)
    world.turn()
    failures = world.value("failures_total")
    world.turn(SETTLE_S)
    assert world.value("failures_total") == failures + 1
    world.cluster.refusal = None
    assert world.turn(FIRST_WAIT_S) == [0, 1], "the waits begin anew"


def test_a_table_that_cannot_even_be_begun_is_a_failure_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The live index's reader calls this: it must go on."""

    def refuse(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(LiveIndex, "sequences", refuse)
        assert world.lead().turn() == []
        world.turn()
        assert world.value("failures_total") == 1
    assert world.turn(LONGEST_WAIT_S) == [0]


def test_a_cluster_that_cannot_be_reached_is_a_failure_too(bundle: Bundle) -> None:
    world = World(bundle)

    def refuse() -> Cluster:
        raise BrokerError("no Kafka broker answers")

    world.broadcaster._make_producer = refuse
    assert world.lead().turn() == []
    assert world.value("failures_total") == 1
    world.broadcaster._make_producer = world.cluster.open
    assert world.turn(LONGEST_WAIT_S) == [0]
    world.event(1)
    world.turn()
    world.turn(SETTLE_S)
    assert world.cluster.opened == 1


def test_a_table_under_way_holds_up_nobody_and_is_alone(world: World) -> None:
    world.waiting = []
    world.lead().turn()
    world.event(1)
    world.turn(10)
    world.turn(10)
    assert len(world.waiting) == 1
    world.waiting.pop()()
    assert world.turn(20 * REST) == [0]
    assert len(world.waiting) == 1, "the next one"


def test_one_event_far_ahead_of_the_stream_ends_no_period(world: World) -> None:
    """A device of today in a replay of years ago."""
    world.lead().turn()
    for hour in (0.2, 0.5, 0.9):
        world.event(hour)
    world.index.observe(np.array([9], np.uint64), np.array([0]), np.array([START + 500 * HOUR_MS]))
    world.broadcaster.reached(START + 500 * HOUR_MS)
    world.turn()
    assert world.turn(60) == [0]
    world.event(1.2)
    world.turn()
    assert world.turn(60) == [0, 1]


def test_where_several_batches_were_wrong_the_stream_goes_on_where_it_was(world: World) -> None:
    world.lead().turn()
    for _ in range(3):
        world.broadcaster.reached(START + 500 * HOUR_MS)
    world.turn()
    assert world.turn(60) == [0, 500]
    for _ in range(4):
        world.event(2.5)
    world.turn()
    assert world.turn(60) == [0, 500, 2]


def test_a_boundary_waits_until_what_the_topic_held_then_is_read(world: World) -> None:
    world.lead().turn()
    world.event(1.5)
    noticed = world.clock.monotonic()
    world.broadcaster.turn(world.index, noticed)
    world.clock.advance(60)
    world.broadcaster.turn(world.index, noticed + SETTLE_S - 0.1)
    assert world.written == [0]
    world.broadcaster.turn(world.index, noticed + SETTLE_S)
    assert world.written == [0, 1]


def test_nought_hours_are_none_at_all(bundle: Bundle) -> None:
    world = World(bundle, hours=0.0)
    world.event(5)
    assert world.lead().turn() == []
    assert world.turn(1e6) == []


def test_after_the_topic_was_made_anew_its_tables_follow_the_new_events(world: World) -> None:
    world.event(9, 20, 21)
    world.event(10)
    assert world.lead().turn() == [10]
    world.index = seeded(world.bundle)
    world.broadcaster.begin_again()
    assert world.turn(60) == [10, 0]
    assert not neighbours(world.tables[1], 20)
    world.event(1)
    world.turn()
    assert world.turn(SETTLE_S) == [10, 0, 1]


def test_a_table_of_the_topic_before_that_is_still_under_way_is_not_taken_for_the_new_one(world: World) -> None:
    world.waiting = []
    world.lead().turn()
    world.broadcaster.begin_again()
    world.waiting.pop()()
    world.turn(SETTLE_S)
    assert len(world.waiting) == 1


def test_a_clock_that_is_ahead_does_not_end_a_period_before_its_time(bundle: Bundle) -> None:
    world = World(bundle)
    now_h = (NOW_MS - START) / HOUR_MS
    world.event(now_h + 20)
    assert world.lead().turn() == [int(now_h)]


def test_the_end_closes_the_producer_unless_a_table_has_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "CLOSE_S", 0.01)
    World(world.bundle).broadcaster.close()
    world.lead().turn()
    world.broadcaster.close()
    assert world.cluster.closed == 1
    other = World(world.bundle)
    other.waiting = []
    other.lead().turn()
    other.broadcaster.close()
    assert other.cluster.closed == 0


def test_by_itself_a_table_is_made_on_another_thread(bundle: Bundle) -> None:
    threads: list[int] = []
    cluster = Cluster(on_send=lambda: threads.append(threading.get_ident()))
    broadcaster = Broadcaster(
        bundle, Topics("t."), CloudMetrics(CollectorRegistry()), SystemClock(), cluster.open, hours=1.0
    )
    broadcaster.lead(True)
    broadcaster.turn(seeded(bundle))
    assert broadcaster._job is not None
    assert broadcaster._job.done.wait(30)
    assert threads != [threading.get_ident()]
    assert len(cluster.sent) == 1


def tables_in(kafka: KafkaSettings, topic: str, bundle: Bundle) -> Iterator[NeighbourTable]:
    """What a device worker makes of the topic, until it has waited half a minute for nothing."""
    assembly = TableAssembly(bundle.id, N)
    consumer = make_consumer(kafka, None, read_committed=True)
    consumer.assign([TopicPartition(topic, 0)])
    deadline = time.monotonic() + 30
    try:
        while time.monotonic() < deadline:
            for records in consumer.poll(timeout_ms=200).values():
                for record in records:
                    table = assembly.add(Codec(Trends).decode(record.value))
                    if table is not None:
                        yield table
                        deadline = time.monotonic() + 30
    finally:
        consumer.close()


def test_events_make_a_table_appear_in_the_topic_with_what_happened_before_its_boundary(
    kafka: Broker, topic_prefix: str, bundle: Bundle, tmp_path: Path
) -> None:
    settings = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix, partitions=2)
    topics = Topics(topic_prefix, 2)
    ensure_topics(settings, topics.specs())

    def send(*events: tuple[str, int, float]) -> None:
        with DurableProducer(settings) as producer:
            for user, item, hour in events:
                at_ms = START + round(hour * HOUR_MS)
                event = Interaction(1, f"{user}-{item}-{hour}", user, f"i{item}", event_time_ms=at_ms)
                producer.send(topics.interactions, device_key(user), Codec(Interaction).encode(event))
            producer.flush_or_raise()

    metrics, clock = CloudMetrics(CollectorRegistry()), SystemClock()
    broadcaster = Broadcaster(bundle, topics, metrics, clock, lambda: DurableProducer(settings), hours=1.0)
    reader = LiveReader(
        settings, topics, bundle, tmp_path / "live" / "w.safetensors", metrics, clock,
        checkpoint_s=3600.0, future_tolerance_s=60.0, broadcaster=broadcaster,
    )  # fmt: skip
    beside = next(name for name in map(str, range(99)) if partition_of(name, 2) == partition_of("a", 2))
    send(*[(beside, 25, 5 * nth / 3_000) for nth in range(3_000)], ("a", 10, 5.2), ("a", 11, 5.3))
    broadcaster.lead(True)
    reader.start()
    try:
        tables = tables_in(settings, topics.trends, bundle)
        first = next(tables)
        assert first.as_of_ms == START + 5 * HOUR_MS, "none of an hour that the topic held only the beginning of"
        assert neighbours(first, 0) == {1, 2}
        assert not neighbours(first, 10)
        send(("a", 12, 5.4), ("b", 20, 5.5), ("b", 21, 6.1))
        send(("c", 13, 5.6), ("c", 14, 5.7), ("d", 22, 6.0), ("d", 23, 6.2))
        second = next(tables)
        assert second.as_of_ms == START + 6 * HOUR_MS
        assert neighbours(second, 10) == {11, 12}
        assert neighbours(second, 13) == {14}
        assert not {20, 21, 22, 23} & set(second.items.ravel().tolist())
        assert reader.ended() is None
    finally:
        reader.stop()
        broadcaster.close()


def test_a_reader_that_begins_again_says_so(bundle: Bundle, tmp_path: Path) -> None:
    world = World(bundle)
    reader = LiveReader(
        KafkaSettings(bootstrap="127.0.0.1:9", partitions=2), Topics("", 2), bundle, tmp_path / "w",
        CloudMetrics(CollectorRegistry()), SystemClock(), checkpoint_s=3600.0, future_tolerance_s=60.0,
        broadcaster=world.broadcaster,
    )  # fmt: skip
    world.event(5)
    world.lead().turn()
    reader._begin_again("the topic was made anew")
    world.index = reader.index.index
    assert world.turn(SETTLE_S) == [5, 0]
    assert not reader._caught_up(), "nothing is sent before the new topic was looked at"


@dataclass
class Group:
    """Requests of which none comes; the partitions that its worker owns after each poll."""

    owned: list[set[int]]
    stop: threading.Event
    assignment: frozenset[tuple[str, int]] = frozenset()

    def poll_batch(self, *_: object) -> list[object]:
        self.assignment = frozenset(("refresh-requests.v1", number) for number in self.owned.pop(0))
        if not self.owned:
            self.stop.set()
        return []


def test_the_worker_that_owns_the_first_partition_leads(bundle: Bundle) -> None:
    from cloud_worker.worker import CloudWorker

    stop, said = threading.Event(), []

    class Told:
        def lead(self, leads: bool) -> None:
            said.append(leads)

    class Level:
        def wait_level(self, timeout_s: float) -> bool:
            return True

    worker = CloudWorker(
        Group([set(), {2, 3}, {0, 1}, {1}], stop), None, None, Level(), CloudMetrics(CollectorRegistry()), stop,
        max_batch=8, linger_ms=0, clock=ManualClock(), broadcaster=Told(),
    )  # fmt: skip
    worker.run()
    assert said == [False, False, True, False]
