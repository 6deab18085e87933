"""A replay on Kafka: the producer, what the topic already holds of a replay, and how far the devices are behind."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from streams.errors import BrokerError, DatasetError, RecordError, TopicMismatch
from streams.events import Codec, Headers, Interaction, device_key
from streams.kafka_admin import LagProbe, describe_topics
from streams.kafka_clients import close_producer, make_consumer, make_producer, quiet_clients
from streams.replay.plan import Schedule
from streams.settings import KafkaSettings
from streams.topics import Topics

SETTLE_S: Final = 1.0
"""How long a topic must have been quiet, at the end of what a killed run left, before it is believed.

A process that is killed leaves requests in the machine's socket buffers, and the broker still appends those.
"""
LAG_EVERY_S: Final = 0.2
READ_TIMEOUT_S: Final = 60.0


class KafkaSink:
    """The interactions topic. The producer is idempotent: within a partition what is in the log is in order, once.

    Parameters
    ----------
    replay_id
        For the message of an error, which says how to go on.

    Raises
    ------
    BrokerError
        No broker answers.
    TopicMismatch
        The topic does not exist, or has another number of partitions.
    """

    def __init__(self, kafka: KafkaSettings, topics: Topics, replay_id: str) -> None:
        self._topic = topics.interactions
        self._replay_id = replay_id
        self._codec = Codec(Interaction)
        self._pending: deque[Any] = deque()
        found = describe_topics(kafka, [self._topic]).get(self._topic)
        if found is None or found.partitions != topics.partitions:
            has = "does not exist" if found is None else f"has {found.partitions} partitions"
            raise TopicMismatch(
                f"topic {self._topic} {has}, the settings want {topics.partitions} partitions",
                remedy="create it with `driftline topics create`, or set kafka.partitions to what it has",
            )
        self._producer = make_producer(kafka)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, interaction: Interaction, partition: int, headers: Headers) -> None:
        """Hand over one event. Its Kafka time stamp is the present: retention goes by it."""
        try:
            future = self._producer.send(
                self._topic,
                key=device_key(interaction.device_id),
                value=self._codec.encode(interaction),
                headers=headers,
                partition=partition,
            )
        except KafkaError as exc:
            raise self._refused(exc) from exc
        self._pending.append(future)

    def unacknowledged(self) -> int:
        """Events under way. Partitions answer out of step, so this may count some that are durable already."""
        while self._pending and self._pending[0].is_done:
            future = self._pending.popleft()
            if future.failed():
                raise self._refused(future.exception) from future.exception
        return len(self._pending)

    def close(self) -> None:
        """Let go at once: what is under way has been waited for, or its outcome is looked up in the topic."""
        with quiet_clients():  # it complains of each request that it is told to forget
            close_producer(self._producer, 0.0)

    def _refused(self, exc: BaseException) -> BrokerError:
        return BrokerError(
            f"topic {self._topic}: an event was not acknowledged ({type(exc).__name__}: {exc}); "
            f"{len(self._pending)} more were under way",
            remedy=f"once the broker is well, go on with --replay-id {self._replay_id}: nothing is lost or repeated",
        )


class GroupLag:
    """Records of a topic that a consumer group has not committed, really asked five times a second.

    Between two answers what was sent since is not counted: at full speed a few thousand events may be on top. While
    the broker does not answer, the last answer stands.
    """

    def __init__(
        self, kafka: KafkaSettings, group: str, topic: str, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._probe = LagProbe(kafka, group, topic)
        self._monotonic = monotonic
        self._asked: float | None = None
        self._answer = 0

    def __call__(self) -> int:
        """Return the lag, summed over partitions."""
        now = self._monotonic()
        if self._asked is None or now - self._asked >= LAG_EVERY_S:
            try:
                self._answer = self._probe.total()
            except BrokerError:
                if self._asked is None:
                    raise
            self._asked = self._monotonic()
        return self._answer

    def close(self) -> None:
        """Let the connection go."""
        self._probe.close()


def sent_rows(kafka: KafkaSettings, topics: Topics, schedule: Schedule, *, settle_s: float = SETTLE_S) -> set[int]:
    """Rows of a replay that the topic holds already: what an interrupted run has sent, whatever ended it.

    It reads the topic through, about 40,000 records a second; a topic that holds nothing costs nothing. It goes by
    what is there and not by the last row of a partition, so a batch that failed between others is found missing. Two
    runs of one replay at the same time are not seen: the devices drop the second record of an event id.

    Raises
    ------
    BrokerError
        The topic cannot be read.
    DatasetError
        The replay id was used for other data.
    """
    consumer = make_consumer(kafka, None, read_committed=False)
    try:
        partitions = [TopicPartition(topics.interactions, number) for number in range(topics.partitions)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        rows: set[int] = set()
        ends: dict[TopicPartition, int] = {}
        while True:
            newest = consumer.end_offsets(partitions)
            if newest == ends:
                return rows
            ends = newest
            found = _read_to(consumer, ends, schedule, topics.interactions)
            rows |= found
            if not found:
                return rows
            time.sleep(settle_s)
    except KafkaError as exc:
        raise BrokerError(f"topic {topics.interactions} cannot be read ({type(exc).__name__}: {exc})") from exc
    finally:
        consumer.close()


def _read_to(consumer: KafkaConsumer, ends: dict[TopicPartition, int], schedule: Schedule, topic: str) -> set[int]:
    codec = Codec(Interaction)
    front = f"{schedule.plan.replay_id}:"
    rows: set[int] = set()
    deadline = time.monotonic() + READ_TIMEOUT_S
    while any(consumer.position(each) < end for each, end in ends.items()):
        fetched = consumer.poll(timeout_ms=500, max_records=5000)
        if fetched:
            deadline = time.monotonic() + READ_TIMEOUT_S
        elif time.monotonic() > deadline:
            raise BrokerError(f"topic {topic} could not be read to its end within {READ_TIMEOUT_S:g} s")
        for record in (each for records in fetched.values() for each in records):
            try:
                event_id = codec.decode(record.value).event_id
            except RecordError:  # not ours: the devices dead-letter it
                continue
            number = event_id.removeprefix(front)
            if number == event_id or not number.isdecimal():
                continue
            source = dict(record.headers).get("ce_source", b"").decode(errors="replace")
            if source != schedule.source:
                raise DatasetError(
                    f"replay {schedule.plan.replay_id} was made of {source}, not of {schedule.source}",
                    remedy="choose another --replay-id",
                )
            rows.add(int(number))
    return rows
