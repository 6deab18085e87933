"""A consumer whose contract is: commit only after the work is durable."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from kafka import TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from kafka.structs import OffsetAndMetadata

from streams.errors import BrokerError
from streams.kafka_clients import make_consumer
from streams.log import get_logger
from streams.settings import KafkaSettings

log = get_logger(__name__)

COMMIT_TIMEOUT_MS: Final = 5_000
"""A commit is a hint of what need not be done again; waiting longer for one costs more than redoing a batch."""

_REBALANCED = (CommitFailedError, RebalanceInProgressError, UnknownMemberIdError, IllegalGenerationError)


class BatchConsumer:
    """Batches of records from a consumer group, committed only when their work is durable.

    The contract: `poll_batch`, do the work, make it durable (`DurableProducer.flush_or_raise`, a store's sync), and
    only then `commit(batch)`. A crash or a rebalance in between brings the same records again, to this worker or to
    another: at least once. When the work failed and the process lives on, `rewind(batch)` brings them again here.
    """

    def __init__(self, kafka: KafkaSettings, group: str, *topics: str, read_committed: bool = True) -> None:
        self._consumer = make_consumer(kafka, group, *topics, read_committed=read_committed)
        self._topics = topics
        self._group = group

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def assignment(self) -> frozenset[tuple[str, int]]:
        """The (topic, partition) pairs this consumer owns now; empty before the group has settled."""
        return frozenset((tp.topic, tp.partition) for tp in self._consumer.assignment())

    def poll_batch(self, max_records: int, first_wait_s: float, linger_ms: int = 0) -> list[ConsumerRecord]:
        """Wait for records, then a little longer for the batch to fill.

        Parameters
        ----------
        max_records
            No batch is larger.
        first_wait_s
            How long to wait for the first record.
        linger_ms
            How long a batch that is not full waits for more.

        Returns
        -------
        list
            Each partition's records in their order; empty when nothing came, and while the broker is gone.

        Raises
        ------
        BrokerError
            The broker refuses: no permission, a topic that is not there, a broken record batch.
        """
        batch = self._poll(max_records, first_wait_s * 1000)
        deadline = time.monotonic() + linger_ms / 1000
        while batch and len(batch) < max_records and (left := deadline - time.monotonic()) > 0:
            batch += self._poll(max_records - len(batch), left * 1000)
        return batch

    def _poll(self, max_records: int, timeout_ms: float) -> list[ConsumerRecord]:
        started = time.monotonic()
        try:
            fetched = self._consumer.poll(timeout_ms=timeout_ms, max_records=max_records)
        except _REBALANCED as exc:
            log.info("the consumer group rebalances", group=self._group, cause=str(exc))
            return []
        except (KafkaError, OSError) as exc:
            if isinstance(exc, KafkaError) and not exc.retriable:
                raise BrokerError(
                    f"topics {', '.join(self._topics)} cannot be read ({type(exc).__name__}: {exc})",
                    remedy="`driftline topics list` shows what the cluster has",
                ) from exc
            log.warning("the broker does not answer", group=self._group, cause=f"{type(exc).__name__}: {exc}")
            # No busy loop while it is gone: use up the time the caller had for us.
            time.sleep(max(0.0, min(1.0, timeout_ms / 1000 - (time.monotonic() - started))))
            return []
        return [record for records in fetched.values() for record in records]

    def commit(self, batch: Sequence[ConsumerRecord]) -> bool:
        """Record that `batch` was worked on: each partition's next offset is the one after its last record.

        Returns
        -------
        bool
            False when it could not be recorded, because the group rebalanced or the broker does not answer: the
            records come again (or a later commit covers them), which the work must bear anyhow.

        Raises
        ------
        BrokerError
            The broker refuses for good.
        """
        offsets: dict[TopicPartition, OffsetAndMetadata] = {}
        for record in batch:
            tp = TopicPartition(record.topic, record.partition)
            if tp not in offsets or record.offset + 1 > offsets[tp].offset:
                offsets[tp] = OffsetAndMetadata(record.offset + 1, "", -1)
        if not offsets:
            return True
        try:
            self._consumer.commit(offsets, timeout_ms=COMMIT_TIMEOUT_MS)
        except (KafkaError, OSError) as exc:
            if isinstance(exc, KafkaError) and not exc.retriable and not isinstance(exc, _REBALANCED):
                raise BrokerError(
                    f"group {self._group}: a commit was refused ({type(exc).__name__}: {exc})",
                    remedy="check the group's permissions",
                ) from exc
            log.warning(
                "a commit did not go through; the records come again",
                group=self._group,
                records=len(batch),
                cause=f"{type(exc).__name__}: {exc}",
            )
            return False
        return True

    def rewind(self, batch: Sequence[ConsumerRecord]) -> None:
        """Go back to where `batch` started: its work failed. Partitions that were taken away are left alone."""
        first: dict[TopicPartition, int] = {}
        for record in batch:
            tp = TopicPartition(record.topic, record.partition)
            first[tp] = min(first.get(tp, record.offset), record.offset)
        owned = self._consumer.assignment()
        for tp, offset in first.items():
            if tp in owned:
                self._consumer.seek(tp, offset)

    def close(self, timeout_s: float = 5.0) -> None:
        """Leave the group, so that its other members take over at once; nothing is committed."""
        self._consumer.close(autocommit=False, timeout_ms=int(timeout_s * 1000))
