import pytest
from aiokafka.partitioner import DefaultPartitioner as AioPartitioner
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import DefaultPartitioner, murmur2

from streams.events import device_key
from streams.topics import Topics, partition_of

DEVICES = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


class _Cluster:
    """What kafka-python's partitioner asks of a cluster's metadata."""

    def __init__(self, partitions):
        self._partitions = set(range(partitions))

    def topics(self):
        return {"t"}

    def partitions_for_topic(self, _topic):
        return self._partitions

    available_partitions_for_topic = partitions_for_topic


@given(DEVICES, st.integers(1, 64))
def test_a_device_is_where_both_clients_default_partitioners_put_its_key(device, partitions):
    key, everything = device_key(device), list(range(partitions))
    ours = partition_of(device, partitions)
    assert ours == DefaultPartitioner().partition("t", None, key, None, None, _Cluster(partitions))
    assert ours == AioPartitioner()(key, everything, everything)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_the_hash_is_the_java_clients(key, expected):
    """Apache Kafka's own test vectors (UtilsTest.testMurmur2)."""
    found = murmur2(key)
    assert (found - 2**32 if found >= 2**31 else found) == expected


@given(st.sampled_from(["", "demo-7f3a.", "a.b."]), st.integers(1, 64))
def test_everything_keyed_by_device_has_the_same_partition_count(prefix, partitions):
    topics = Topics(prefix, partitions)
    specs = {spec.name: spec for spec in topics.specs()}
    assert len(specs) == len(topics.specs())
    assert all(name.startswith(prefix) for name in specs)
    assert specs.pop(topics.trends).partitions == 1, "a broadcast"
    assert {spec.partitions for spec in specs.values()} == {partitions}
    for readable in (topics.interactions, topics.refresh_requests, topics.embeddings):
        assert Topics.dead_letters(readable) in specs


def test_what_is_state_is_compacted_and_what_is_a_stream_is_kept_by_time():
    topics = Topics()
    policy = {spec.name: spec.config["cleanup.policy"] for spec in topics.specs()}
    assert {name for name, each in policy.items() if each == "compact"} == {
        topics.embeddings,
        topics.device_state,
        topics.trends,
    }
