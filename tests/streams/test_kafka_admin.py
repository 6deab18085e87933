import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from streams.batch_consumer import BatchConsumer
from streams.durable_producer import DurableProducer
from streams.errors import BrokerError, TopicMismatch
from streams.kafka_admin import (
    LagProbe,
    consumer_lag,
    delete_topics,
    describe_topics,
    end_offsets,
    ensure_topics,
    retained_records,
)
from streams.kafka_clients import make_producer
from streams.settings import KafkaSettings
from streams.topics import Topics, TopicSpec

pytestmark = pytest.mark.kafka


@pytest.fixture
def settings(kafka):
    return KafkaSettings(bootstrap=kafka.bootstrap)


def test_all_topics_are_created_once_as_declared_and_verified_afterwards(settings, topic_prefix):
    specs = Topics(topic_prefix, 3).specs()
    names = [spec.name for spec in specs]
    assert sorted(ensure_topics(settings, specs)) == sorted(names)
    assert ensure_topics(settings, specs) == []
    found = describe_topics(settings, names)
    for spec in specs:
        assert found[spec.name].partitions == spec.partitions
        assert found[spec.name].replication == 1
        assert {key: found[spec.name].config[key] for key in spec.config} == spec.config
    assert set(names) <= set(describe_topics(settings))


def test_processes_that_create_at_once_agree_and_each_topic_is_created_by_one(settings, topic_prefix):
    specs = Topics(topic_prefix, 2).specs()
    with ThreadPoolExecutor(4) as pool:
        created = list(pool.map(lambda _: ensure_topics(settings, specs), range(4)))
    assert sorted(name for names in created for name in names) == sorted(spec.name for spec in specs)


@pytest.mark.parametrize(
    ("there", "wanted", "found", "asked"),
    [
        (TopicSpec("t", 2), TopicSpec("t", 3), "has 2 partitions", "want 3"),
        (
            TopicSpec("t", 1, {"cleanup.policy": "delete"}),
            TopicSpec("t", 1, {"cleanup.policy": "compact"}),
            "cleanup.policy=delete",
            "wants cleanup.policy=compact",
        ),
        (
            TopicSpec("t", 1, {"retention.ms": "1000"}),
            TopicSpec("t", 1, {"retention.ms": "2000"}),
            "retention.ms=1000",
            "wants retention.ms=2000",
        ),
    ],
)
def test_a_topic_that_differs_is_named_with_what_is_found_wanted_and_to_do(
    settings, topic_prefix, *, there, wanted, found, asked
):
    there, wanted = (TopicSpec(topic_prefix + spec.name, spec.partitions, spec.config) for spec in (there, wanted))
    ensure_topics(settings, [there])
    new = TopicSpec(f"{topic_prefix}new", 1)
    with pytest.raises(TopicMismatch) as told:
        ensure_topics(settings, [new, wanted])
    assert wanted.name in told.value.message
    assert found in told.value.message
    assert asked in told.value.message
    assert told.value.remedy
    assert new.name not in describe_topics(settings, [new.name]), "nothing is created beside a topic that differs"


def test_configuration_that_driftline_does_not_rely_on_is_the_operators_business(settings, topic_prefix):
    name = f"{topic_prefix}t"
    ensure_topics(settings, [TopicSpec(name, 1, {"segment.ms": "60000", "cleanup.policy": "compact,delete"})])
    assert ensure_topics(settings, [TopicSpec(name, 1, {"cleanup.policy": "delete,compact"})]) == []


def test_a_topic_that_cannot_be_created_says_why(settings, topic_prefix):
    with pytest.raises(BrokerError, match=r"replication|Replication"):
        ensure_topics(settings.model_copy(update={"replication": 3}), [TopicSpec(f"{topic_prefix}t", 1)])


def test_deleted_topics_are_gone_and_missing_ones_do_not_matter(settings, topic_prefix):
    names = [f"{topic_prefix}a", f"{topic_prefix}b"]
    ensure_topics(settings, [TopicSpec(name, 1) for name in names])
    assert delete_topics(settings, [*names, f"{topic_prefix}never-was"]) == names
    assert describe_topics(settings, names) == {}
    assert delete_topics(settings, names) == []


def test_lag_counts_what_a_group_has_not_committed(settings, topic_prefix):
    topic, group = f"{topic_prefix}t", f"{topic_prefix}g"
    ensure_topics(settings, [TopicSpec(topic, 2)])
    with DurableProducer(settings) as producer, LagProbe(settings, group, topic) as probe:
        assert probe.lag() == {0: 0, 1: 0}
        for number in range(9):
            producer.send(topic, b"k", b"v", partition=number % 3 % 2)
        producer.flush_or_raise()
        assert probe.lag() == {0: 6, 1: 3}
        assert end_offsets(settings, topic) == {0: 6, 1: 3}
        with BatchConsumer(settings, group, topic) as consumer:
            done = 0
            while done < 9:
                batch = consumer.poll_batch(9, 5.0)
                done += len(batch)
                assert consumer.commit(batch)
            assert probe.lag() == consumer_lag(settings, group, topic) == {0: 0, 1: 0}
        producer.send(topic, b"k", b"v", partition=1)
        producer.flush_or_raise()
        assert probe.total() == 1
    found = describe_topics(settings, [topic])
    assert retained_records(settings, found.values()) == {topic: 10}


def test_an_open_transaction_is_beyond_the_end_for_readers_of_committed_records(settings, topic_prefix):
    topic = f"{topic_prefix}t"
    ensure_topics(settings, [TopicSpec(topic, 1)])
    producer = make_producer(settings, transactional_id=f"{topic_prefix}tx")
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(topic, b"v", key=b"k", partition=0)
    producer.flush()
    assert end_offsets(settings, topic, read_committed=True) == {0: 0}
    assert end_offsets(settings, topic, read_committed=False) == {0: 1}
    producer.commit_transaction()
    producer.close()
    deadline = time.monotonic() + 20  # the coordinator writes the marker after it answered the producer
    while end_offsets(settings, topic, read_committed=True) != {0: 2}:
        assert time.monotonic() < deadline, "the record and its commit marker"
        time.sleep(0.05)


def test_a_topic_that_does_not_exist_is_said_so(settings, topic_prefix):
    with LagProbe(settings, "g", f"{topic_prefix}nothing") as probe, pytest.raises(BrokerError, match="does not exist"):
        probe.lag()
