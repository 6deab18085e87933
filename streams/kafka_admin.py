"""Topics and lag: create or verify at start, describe, delete, and how far a consumer group is behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, OffsetSpec
from kafka.errors import (
    GroupIdNotFoundError,
    KafkaError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)
from kafka.protocol.consumer import IsolationLevel

from streams.errors import BrokerError, TopicMismatch
from streams.kafka_clients import client_config
from streams.settings import KafkaSettings
from streams.topics import TopicSpec

METADATA_TIMEOUT_S: Final = 30.0
"""How long new topics may take to have leaders; a busy single broker needs one or two seconds for dozens."""

RETRY_S: Final = 0.1

VERIFIED: Final = ("cleanup.policy", "retention.ms")
"""Configuration that Driftline relies on; other keys are the operator's business."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class TopicInfo:
    """What the cluster says about one topic."""

    name: str
    partitions: int
    replication: int
    config: dict[str, str] = field(default_factory=dict)
    """All configuration, defaults included."""


@contextmanager
def admin_client(kafka: KafkaSettings) -> Iterator[KafkaAdminClient]:
    """Lend an admin client; what Kafka refuses inside the block comes out as `BrokerError`."""
    admin = _connect(kafka)
    try:
        with _translated(kafka):
            yield admin
    finally:
        admin.close()


def _connect(kafka: KafkaSettings) -> KafkaAdminClient:
    with _translated(kafka):
        return KafkaAdminClient(**client_config(kafka))


@contextmanager
def _translated(kafka: KafkaSettings) -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError) as exc:
        raise BrokerError(
            f"the cluster at {kafka.bootstrap} refused or did not answer ({type(exc).__name__}: {exc})",
            remedy="check that the broker runs and that this user may manage topics",
        ) from exc


def ensure_topics(kafka: KafkaSettings, specs: Sequence[TopicSpec]) -> list[str]:
    """Create the topics that are missing, verify those that exist, and wait until all have leaders.

    Several processes may do this at once: the one that comes second verifies what the first one created.

    Returns
    -------
    list
        Names of the topics that this call created.

    Raises
    ------
    TopicMismatch
        A topic exists with another partition count, cleanup.policy or retention.ms; nothing was changed.
    BrokerError
        The cluster refuses or does not answer.
    """
    with admin_client(kafka) as admin:
        names = [spec.name for spec in specs]
        found = _describe(admin, names)
        _verify(specs, found)
        created = _create(admin, [spec for spec in specs if spec.name not in found], kafka.replication)
        # Also those that another process is creating just now.
        admin.wait_for_topics(names, timeout_ms=int(METADATA_TIMEOUT_S * 1000))
        others = [spec for spec in specs if spec.name not in found and spec.name not in created]
        if others:
            _verify(others, _retried(lambda: _described_in_full(admin, [spec.name for spec in others])))
        return created


def describe_topics(kafka: KafkaSettings, names: Iterable[str] | None = None) -> dict[str, TopicInfo]:
    """What the cluster has of these topics (of all but Kafka's own, for None); a missing one is not in the result."""
    with admin_client(kafka) as admin:
        return _describe(admin, None if names is None else list(names))


def delete_topics(kafka: KafkaSettings, names: Iterable[str]) -> list[str]:
    """Delete topics with everything in them; those that do not exist are passed over.

    Returns
    -------
    list
        Names of the topics deleted, once the cluster does not show them any more.
    """
    with admin_client(kafka) as admin:
        present = list(_describe(admin, list(names)))
        if not present:
            return []
        response = admin.delete_topics(present, raise_errors=False)
        for each in response["topics"]:
            error = for_code(each["error_code"])
            if each["error_code"] and error is not UnknownTopicOrPartitionError:
                raise error(f"topic {each['name']} cannot be deleted")
        deadline = time.monotonic() + METADATA_TIMEOUT_S
        while _describe(admin, present) and time.monotonic() < deadline:
            time.sleep(RETRY_S)
        return present


def consumer_lag(kafka: KafkaSettings, group: str, topic: str) -> dict[int, int]:
    """Records of each partition that the group has not committed yet; see `LagProbe.lag`."""
    with LagProbe(kafka, group, topic) as probe:
        return probe.lag()


def end_offsets(kafka: KafkaSettings, topic: str, *, read_committed: bool = True) -> dict[int, int]:
    """Offset after the last record of each partition that a reader can see now.

    Parameters
    ----------
    read_committed
        Stop at the first open transaction (the last stable offset), as a read_committed consumer does. On topics
        written in transactions the offset counts commit markers too, which no reader ever gets; and a transaction
        counts as open until some milliseconds after its commit returned, when the coordinator has written its marker.
    """
    with admin_client(kafka) as admin:
        return _end_offsets(admin, topic, _partitions(admin, topic), read_committed=read_committed)


def retained_records(kafka: KafkaSettings, topics: Iterable[TopicInfo]) -> dict[str, int]:
    """How many offsets of each topic are still there: its records, and what compaction and transactions left."""
    with admin_client(kafka) as admin:
        pairs = [TopicPartition(topic.name, number) for topic in topics for number in range(topic.partitions)]
        total = dict.fromkeys((pair.topic for pair in pairs), 0)
        if not pairs:
            return total
        for spec, sign in ((OffsetSpec.LATEST, 1), (OffsetSpec.EARLIEST, -1)):
            for tp, found in admin.list_partition_offsets(dict.fromkeys(pairs, spec)).items():
                total[tp.topic] += sign * found.offset
        return total


class LagProbe:
    """How far a group is behind on a topic; keeps its connection, so that asking costs two round trips.

    It outlives an absent broker: `lag` raises then, and works again once the broker is back.
    """

    def __init__(self, kafka: KafkaSettings, group: str, topic: str) -> None:
        self._kafka = kafka
        self._group = group
        self._topic = topic
        self._admin = _connect(kafka)
        self._partition_numbers: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def lag(self) -> dict[int, int]:
        """Return, for each partition, the records that the group has not committed yet.

        A partition without a commit lags by everything that is still in it. On a topic written in transactions the
        commit marker after the last record counts as one, so that a group that is done may show 1 there.

        Raises
        ------
        BrokerError
            The cluster refuses or does not answer, or the topic does not exist.
        """
        with _translated(self._kafka):
            if not self._partition_numbers:
                self._partition_numbers = _partitions(self._admin, self._topic)
            numbers = self._partition_numbers
            wanted = [TopicPartition(self._topic, number) for number in numbers]
            ends = _end_offsets(self._admin, self._topic, numbers, read_committed=False)
            try:
                committed = self._admin.list_group_offsets({self._group: wanted}).get(self._group, {})
            except GroupIdNotFoundError:  # it has not started yet
                committed = {}
            done = {tp.partition: found.offset for tp, found in committed.items() if found.offset >= 0}
            if missing := [number for number in numbers if number not in done]:
                done |= _offsets(self._admin, self._topic, missing, OffsetSpec.EARLIEST)
        return {number: max(0, ends[number] - done[number]) for number in numbers}

    def total(self) -> int:
        """Sum of `lag` over the partitions."""
        return sum(self.lag().values())

    def close(self) -> None:
        """Let the connection go."""
        self._admin.close()


def _create(admin: KafkaAdminClient, specs: Sequence[TopicSpec], replication: int) -> list[str]:
    """Create topics; those that another process created meanwhile are left out of the answer."""
    if not specs:
        return []
    wanted = {
        spec.name: {"num_partitions": spec.partitions, "replication_factor": replication, "configs": dict(spec.config)}
        for spec in specs
    }
    created = []
    for each in admin.create_topics(wanted, raise_errors=False)["topics"]:
        error = for_code(each["error_code"])
        if not each["error_code"]:
            created.append(each["name"])
        elif error is not TopicAlreadyExistsError:
            raise error(f"topic {each['name']} cannot be created: {each.get('error_message') or error.__name__}")
    return created


def mismatch(spec: TopicSpec, info: TopicInfo) -> TopicMismatch | None:
    """Say how a topic differs from what it must be; None when it is as it must be."""
    if info.partitions != spec.partitions:
        return TopicMismatch(
            f"topic {spec.name} has {info.partitions} partitions, the settings want {spec.partitions}",
            remedy=f"set kafka.partitions to {info.partitions}, use another kafka.topic_prefix, or, if its records "
            "are of no use, delete it with `driftline topics delete`",
        )
    for key in VERIFIED:
        wanted, has = spec.config.get(key), info.config.get(key, "")
        if wanted is not None and _normal(has) != _normal(wanted):
            return TopicMismatch(
                f"topic {spec.name} has {key}={has}, Driftline wants {key}={wanted}",
                remedy=f"alter it (kafka-configs.sh --alter --entity-type topics --entity-name {spec.name} "
                f"--add-config {key}={wanted}), use another kafka.topic_prefix, or delete it with "
                "`driftline topics delete`",
            )
    return None


def _verify(specs: Sequence[TopicSpec], found: dict[str, TopicInfo]) -> None:
    for spec in specs:
        info = found.get(spec.name)
        if info is not None and (problem := mismatch(spec, info)):
            raise problem


def _normal(value: str) -> frozenset[str]:
    """A cleanup.policy is a set: delete,compact is compact,delete."""
    return frozenset(each.strip() for each in value.split(","))


def _describe(admin: KafkaAdminClient, names: list[str] | None) -> dict[str, TopicInfo]:
    return _retried(lambda: _described_once(admin, names))


def _described_once(admin: KafkaAdminClient, names: list[str] | None) -> dict[str, TopicInfo]:
    if names is not None and not names:
        return {}
    present = {}
    for topic in admin.describe_topics(names):
        if topic["error_code"] or (names is None and topic["is_internal"]):
            continue
        present[topic["name"]] = topic["partitions"]
    if not present:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in present]
    configs = admin.describe_configs(resources, config_filter="all").get("topic", {})
    return {
        name: TopicInfo(
            name=name,
            partitions=len(partitions),
            replication=min((len(each["replica_nodes"]) for each in partitions), default=0),
            config={key: entry["value"] or "" for key, entry in configs.get(name, {}).items()},
        )
        for name, partitions in sorted(present.items())
    }


def _described_in_full(admin: KafkaAdminClient, names: list[str]) -> dict[str, TopicInfo]:
    found = _described_once(admin, names)
    if absent := [name for name in names if name not in found or not found[name].config]:
        raise UnknownTopicOrPartitionError(f"topic {absent[0]} is not shown yet")
    return found


def _retried(ask: Callable[[], Result], timeout_s: float = METADATA_TIMEOUT_S) -> Result:
    """Ask again while a topic that is just being created or deleted makes the answers contradict each other."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return ask()
        except KafkaError as exc:
            if not (exc.retriable or isinstance(exc, UnknownTopicOrPartitionError)) or time.monotonic() > deadline:
                raise
        time.sleep(RETRY_S)


def _partitions(admin: KafkaAdminClient, topic: str) -> list[int]:
    for found in admin.describe_topics([topic]):
        if not found["error_code"]:
            return sorted(each["partition_index"] for each in found["partitions"])
    raise BrokerError(f"topic {topic} does not exist", remedy="create it with `driftline topics create`")


def _end_offsets(admin: KafkaAdminClient, topic: str, numbers: list[int], *, read_committed: bool) -> dict[int, int]:
    return _offsets(admin, topic, numbers, OffsetSpec.LATEST, read_committed=read_committed)


def _offsets(
    admin: KafkaAdminClient, topic: str, numbers: list[int], spec: Any, *, read_committed: bool = False
) -> dict[int, int]:
    level = IsolationLevel.READ_COMMITTED if read_committed else IsolationLevel.READ_UNCOMMITTED
    found = admin.list_partition_offsets({TopicPartition(topic, n): spec for n in numbers}, isolation_level=level)
    return {tp.partition: result.offset for tp, result in found.items()}
