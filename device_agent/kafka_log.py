"""One partition's way into Kafka: a transactional producer of its own, and the changelog read back. aiokafka only.

`transactional.id` is the group and the partition: whoever starts it last is the owner, the broker fences
the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from device_agent.checkpoint import StoreAheadOfChangelog
from streams.errors import BrokerError, CheckpointFailed
from streams.events import Headers
from streams.records import OutgoingRecord
from streams.topics import Topics

REQUEST_TIMEOUT_MS: Final = 30_000
"""A broker that is silent for so long makes a checkpoint fail; the process then starts again and waits for it."""
TRANSACTION_TIMEOUT_MS: Final = 20_000
"""A checkpoint takes milliseconds; a dead owner's open transaction would hide later ones from readers this long."""
MAX_BATCH_BYTES: Final = 1 << 19
"""Below the broker's default message.max.bytes of 1 MiB, with room for the batch's own header."""
RESTORE_BATCH: Final = 2_000
"""Changelog records read at once while restoring: bounds the memory of a restore."""


class KafkaLog:
    """`device_agent.checkpoint.TransactionalLog` on a Kafka cluster.

    Parameters
    ----------
    client
        Keyword arguments that every aiokafka client takes: bootstrap_servers and security.
    group
        Front of the transactional id.
    """

    def __init__(self, partition: int, topics: Topics, client: Mapping[str, Any], group: str) -> None:
        self._partition = partition
        self._topics = topics
        self._client = dict(client)
        self._producer = AIOKafkaProducer(
            **self._client,
            transactional_id=f"{topics.group(group)}-{partition}",
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_batch_size=MAX_BATCH_BYTES,
        )
        self._sent: list[tuple[asyncio.Future[Any], int]] = []
        self._last_changelog: tuple[asyncio.Future[Any], int] | None = None
        """The last batch of changelog records, and how many it holds."""

    async def open(self) -> None:
        """Start the producer: the coordinator fences the former owner and aborts what it had open.

        Raises
        ------
        BrokerError
            The cluster cannot be reached or has no transaction coordinator.
        """
        try:
            await self._producer.start()
        except (KafkaError, OSError) as exc:
            raise BrokerError(f"partition {self._partition}: the transactional producer cannot start: {exc!r}") from exc

    async def read_changelog(self, start: int) -> AsyncIterator[tuple[list[tuple[bytes, bytes]], int]]:
        """Committed records from `start` to the end as it is now.

        Raises
        ------
        StoreAheadOfChangelog
            The changelog ends before `start`.
        """
        topic = TopicPartition(self._topics.device_state, self._partition)
        consumer = AIOKafkaConsumer(
            **self._client,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_poll_records=RESTORE_BATCH,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        try:
            await consumer.start()
            consumer.assign([topic])
            end = (await consumer.end_offsets([topic]))[topic]
            if start > end:
                raise StoreAheadOfChangelog(
                    f"{self._topics.device_state} ends at {end}, the store has read up to {start}"
                )
            consumer.seek(topic, start)
            while (position := await consumer.position(topic)) < end:
                fetched = await consumer.getmany(topic, timeout_ms=200)
                records = [(r.key, r.value) for batch in fetched.values() for r in batch if r.key and r.value]
                if records or await consumer.position(topic) > position:
                    yield records, await consumer.position(topic)
        finally:
            await consumer.stop()

    async def begin(self) -> None:
        """Begin a transaction."""
        self._sent, self._last_changelog = [], None
        await self._attempt(self._producer.begin_transaction())

    async def send_outputs(self, outputs: Sequence[OutgoingRecord]) -> None:
        """Send outputs, batched by topic; every one goes to this partition's number."""
        by_topic: dict[str, list[OutgoingRecord]] = {}
        for record in outputs:
            by_topic.setdefault(record.topic, []).append(record)
        for topic, records in by_topic.items():
            await self._send(topic, ((r.key, r.value, r.headers) for r in records))

    async def send_changelog(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        """Send device records, the position last."""
        await self._send(self._topics.device_state, ((key, value, []) for key, value in records))
        self._last_changelog = self._sent[-1]

    async def commit(self) -> int:
        """Commit, and return the offset after the last changelog record."""
        await self._attempt(self._producer.commit_transaction())
        if self._last_changelog is None:
            raise CheckpointFailed(f"partition {self._partition}: a checkpoint without a position was committed")
        batch, records = self._last_changelog
        return int((await batch).offset) + records  # a batch's offset is that of its first record

    async def close(self) -> None:
        """Stop the producer."""
        await self._producer.stop()

    async def _send(self, topic: str, records: Iterable[tuple[bytes | None, bytes | None, Headers]]) -> None:
        # create_batch and send_batch cost a fraction of send(), which makes a future for each record
        batch = self._producer.create_batch()
        for key, value, headers in records:
            if batch.append(key=key, value=value, timestamp=None, headers=headers) is None:
                await self._flush(batch, topic)
                batch = self._producer.create_batch()
                if batch.append(key=key, value=value, timestamp=None, headers=headers) is None:
                    raise CheckpointFailed(f"a record of {topic} is larger than a batch of {MAX_BATCH_BYTES} bytes")
        if batch.record_count():
            await self._flush(batch, topic)

    async def _flush(self, batch: Any, topic: str) -> None:
        sent = await self._attempt(self._producer.send_batch(batch, topic, partition=self._partition))
        self._sent.append((sent, batch.record_count()))

    async def _attempt(self, call: Any) -> Any:
        try:
            return await call
        except (TimeoutError, KafkaError, OSError) as exc:
            raise CheckpointFailed(
                f"partition {self._partition}: {exc!r}; the changelog knows whether it happened",
                remedy="the process ends and its supervisor starts it again",
            ) from exc
