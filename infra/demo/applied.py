"""How many interactions each device has applied, from the newest committed record of each in the changelog."""

from __future__ import annotations

import time
from typing import Final

from kafka import TopicPartition

from device_agent.checkpoint import POSITION_KEY
from device_agent.state import StateLayout
from streams.errors import BrokerError
from streams.kafka_clients import make_consumer
from streams.settings import KafkaSettings
from streams.topics import Topics

READ_TIMEOUT_S: Final = 60.0


def applied_counts(kafka: KafkaSettings, topics: Topics, layout: StateLayout) -> dict[str, int]:
    """Device id to the count in its newest record.

    Raises
    ------
    BrokerError
        The changelog could not be read to its end.
    """
    consumer = make_consumer(kafka, None, read_committed=True)
    try:
        partitions = [TopicPartition(topics.device_state, number) for number in range(topics.partitions)]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        consumer.seek_to_beginning(*partitions)
        newest: dict[bytes, bytes] = {}
        deadline = time.monotonic() + READ_TIMEOUT_S
        while any(consumer.position(each) < end for each, end in ends.items()):
            fetched = consumer.poll(timeout_ms=200, max_records=5000)
            for records in fetched.values():
                newest.update({record.key: record.value for record in records if record.key != POSITION_KEY})
            if fetched:
                deadline = time.monotonic() + READ_TIMEOUT_S
            elif time.monotonic() > deadline:
                raise BrokerError(f"{topics.device_state} could not be read to its end")
    finally:
        consumer.close()
    if not newest:
        return {}
    counts = layout.unpack(list(newest.values()))["count"].tolist()
    return {key.decode(): count for key, count in zip(newest, counts, strict=True)}
