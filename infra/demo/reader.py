"""Reading recommendations back from Kafka while they are made: the outcomes and the books, from committed records."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Final, Self

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from infra.demo.record import ServedLog
from streams.errors import BrokerError, RecordError
from streams.events import Codec, Recommendation
from streams.experiment.accounting import Accounting
from streams.experiment.outcomes import Outcomes
from streams.kafka_clients import make_consumer
from streams.settings import KafkaSettings
from streams.topics import Topics

READ_TIMEOUT_S: Final = 60.0
LET_GO_S: Final = 1.0
"""What a reader that is not needed any more has to leave before the broker goes; a poll takes 0.2 s."""


class RecommendationReader:
    """Follows recommendations.v1 on a thread of its own, between enter and exit. Only what was committed is seen.

    Parameters
    ----------
    outcomes, accounting, served
        Filled while reading; take `lock` to look at them.
    """

    def __init__(
        self, kafka: KafkaSettings, topics: Topics, outcomes: Outcomes, accounting: Accounting, served: ServedLog
    ) -> None:
        self.outcomes = outcomes
        self.lock = threading.Lock()
        self.read = 0
        """Recommendations read."""
        self.last_read = time.monotonic()
        """When the newest of them was read, on the monotonic clock."""
        self._accounting = accounting
        self._served = served
        self._kafka = kafka
        self._partitions = [TopicPartition(topics.recommendations, number) for number in range(topics.partitions)]
        self._codec = Codec(Recommendation)
        self._stop = threading.Event()
        self._abandoned = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._follow, name="recommendation-reader", daemon=True)

    def __enter__(self) -> Self:
        """Begin to read, from the beginning."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go; without a `finish` before, what is left is not read.

        A consumer that outlived its broker would fill the terminal with its complaints.
        """
        self._abandoned = True
        self._stop.set()
        self._thread.join(LET_GO_S)

    def check(self) -> None:
        """Raise what ended the reading, if anything did.

        Raises
        ------
        BrokerError
            The topic could not be read.
        """
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Read to the end as it is now, then stop.

        Raises
        ------
        BrokerError
            The topic could not be read to its end.
        """
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _follow(self) -> None:
        try:
            consumer = make_consumer(self._kafka, None, read_committed=True)
            try:
                consumer.assign(self._partitions)
                consumer.seek_to_beginning(*self._partitions)
                while not self._stop.is_set():
                    self._poll(consumer)
                if self._abandoned:
                    return
                ends = consumer.end_offsets(self._partitions)
                deadline = time.monotonic() + READ_TIMEOUT_S
                while not self._abandoned and any(consumer.position(each) < end for each, end in ends.items()):
                    if self._poll(consumer):
                        deadline = time.monotonic() + READ_TIMEOUT_S
                    elif time.monotonic() > deadline:
                        raise BrokerError("recommendations could not be read to their end")
            finally:
                consumer.close()
        except (KafkaError, BrokerError, RecordError) as exc:
            self._failure = exc if isinstance(exc, BrokerError) else BrokerError(f"reading recommendations: {exc!r}")

    def _poll(self, consumer: KafkaConsumer) -> int:
        fetched = consumer.poll(timeout_ms=200, max_records=5000)
        count = 0
        for records in fetched.values():
            decoded = [self._codec.decode(record.value) for record in records]
            count += len(decoded)
            with self.lock:
                for each in decoded:
                    self.outcomes.add(each)
                    self._accounting.add(each.arm, each.event_id)
                    self._served.add(each)
        if count:
            self.last_read = time.monotonic()
            self.read += count
        return count
