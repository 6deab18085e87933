"""Reading a topic from its beginning to its end as it is now, committed records only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

from kafka import TopicPartition

from streams.errors import BrokerError
from streams.kafka_clients import make_consumer
from streams.settings import KafkaSettings

READ_TIMEOUT_S: Final = 60.0


def records_of(kafka: KafkaSettings, topic: str, partitions: int) -> Iterator[Any]:
    """Yield every record; those of a partition in their order.

    Raises
    ------
    BrokerError
        The topic could not be read to its end.
    """
    consumer = make_consumer(kafka, None, read_committed=True)
    try:
        assigned = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(assigned)
        ends = consumer.end_offsets(assigned)
        consumer.seek_to_beginning(*assigned)
        deadline = time.monotonic() + READ_TIMEOUT_S
        while any(consumer.position(each) < end for each, end in ends.items()):
            fetched = consumer.poll(timeout_ms=200, max_records=5000)
            for records in fetched.values():
                yield from records
            if fetched:
                deadline = time.monotonic() + READ_TIMEOUT_S
            elif time.monotonic() > deadline:
                raise BrokerError(f"{topic} could not be read to its end")
    finally:
        consumer.close()
