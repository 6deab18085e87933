"""Everything that is Faust: one app, one consumer group, records delivered in batches, where reading starts.

Faust hands over one event at a time, commits offsets by acknowledgements and keeps state in Tables; none of these is
exactly-once over a crash (shared/FAUST.md measured it). So this file overrides three methods of its Kafka consumer and
leaves the rest to `device_agent.host.DeviceHost`. The overridden names are private to faust-streaming 0.15: the version
is pinned, and tests/chaos would notice a change.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import faust
from faust.transport.drivers.aiokafka import Consumer as FaustConsumer
from faust.types import TP

from device_agent.host import DeviceHost
from streams.kafka_clients import aiokafka_config
from streams.settings import KafkaSettings

MAX_POLL_RECORDS: Final = 1_000
"""Records of one fetch: bounds for how long the event loop is in one batch."""
STREAM_BUFFER: Final = 8
"""Batches waiting for the agent: more would only make embeddings wait behind interactions."""
MAX_POLL_INTERVAL_S: Final = 60.0
COMMIT_INTERVAL_S: Final = 1.0


def make_app(
    host: DeviceHost, *, kafka: KafkaSettings, group: str, session_timeout_s: float, data_dir: Path
) -> faust.App:
    """Build the Faust app of a device worker; nothing runs before ``app.start()``.

    The topics must exist. ``data_dir`` is Faust's own scratch folder; no state lies there.
    """
    inputs = [host.topics.interactions, host.topics.embeddings]

    class Consumer(FaustConsumer):
        """Faust's consumer, reading from where the changelog says and handing over what it fetched at once."""

        _opened_generation: int | None = None
        _seek_lock: asyncio.Lock | None = None
        _handed_over: dict[TP, int]

        async def perform_seek(self) -> None:
            """Open the assigned partitions, then read on at their positions; awaited before the flow resumes."""
            if self._seek_lock is None:
                self._seek_lock = asyncio.Lock()
            async with self._seek_lock:  # getmany() may call this too, in the middle of a rebalance
                generation = self.app.consumer_generation_id
                assigned = {topic: {tp.partition for tp in self.assignment() if tp.topic == topic} for topic in inputs}
                numbers = assigned[inputs[0]]
                if numbers != assigned[inputs[1]]:
                    raise RuntimeError(f"interactions and embeddings are not assigned together: {assigned}")
                if generation != self._opened_generation or numbers != host.owned():
                    await host.open(numbers)
                    self._opened_generation = generation
                await super().perform_seek()
                self._handed_over = {}
                at = {
                    TP(topic, number): offset
                    for number, position in host.read_positions().items()
                    for topic, offset in zip(inputs, (position.interactions, position.embeddings), strict=True)
                }
                if at:
                    await self.seek_wait(at)
                    # None, not 0, is Faust's word for "nothing read yet": with 0 it would skip the first record
                    self._read_offset.update({tp: offset or None for tp, offset in at.items()})
                    self._committed_offset.update({tp: offset or None for tp, offset in at.items()})

        async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
            """Yield one message for everything that was fetched of a partition."""
            records, active = await self._wait_next_records(timeout)
            generation = self.app.consumer_generation_id
            if not records or self.should_stop:
                return
            # embeddings first: they are few, and each batch of interactions is better served with them
            for tp in sorted(records, key=lambda each: each.topic != inputs[1]):
                if not self.flow_active or generation != self.app.consumer_generation_id:
                    break
                batch = records[tp]
                if batch and (active is None or tp in active or tp in self._buffered_partitions):
                    message = self._to_message(tp, batch[-1])
                    message.value = (list(batch), self._handed_over.get(tp))
                    self._handed_over[tp] = batch[-1].offset + 1
                    yield tp, message

        async def _add_gap(self, *_: Any) -> None:
            """Ignore the offsets between two batches: nothing is committed by acknowledgement."""

        async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:  # noqa: ARG002
            """Commit what the checkpoints made durable, and nothing else."""
            assigned = self.assignment()
            due = {
                tp: offset
                for (topic, number), offset in host.positions().items()
                if (tp := TP(topic, number)) in assigned and self._committed_offset[tp] != offset
            }
            return bool(await self._commit_offsets(due)) if due else False

    app = faust.App(
        group,
        broker=[f"kafka://{each.strip()}" for each in kafka.bootstrap.split(",")],
        broker_credentials=_credentials(kafka),
        store="memory://",
        datadir=str(data_dir),
        autodiscover=False,
        web_enabled=False,
        processing_guarantee="at_least_once",
        topic_partitions=kafka.partitions,
        topic_replication_factor=kafka.replication,
        topic_disable_leader=True,
        # With standby replicas Faust uses its own assignor, which gives a worker the same partition numbers of both
        # topics; without, aiokafka's round robin, which does not.
        table_standby_replicas=1,
        consumer_auto_offset_reset="earliest",
        broker_session_timeout=session_timeout_s,
        broker_heartbeat_interval=min(1.0, session_timeout_s / 3),
        broker_commit_interval=COMMIT_INTERVAL_S,
        broker_max_poll_interval=MAX_POLL_INTERVAL_S,
        broker_max_poll_records=MAX_POLL_RECORDS,
        stream_wait_empty=False,
        stream_buffer_maxsize=STREAM_BUFFER,
    )
    app.transport.Consumer = Consumer
    source = app.topic(*inputs, key_serializer="raw", value_serializer="raw", partitions=kafka.partitions)

    @app.agent(source)
    async def devices(stream: Any) -> None:
        async for event in stream.noack().events():
            message = event.message
            if message.generation_id == app.consumer_generation_id:
                records, after = event.value
                await host.deliver(message.topic, message.partition, records, after=after)

    @app.task
    async def checkpoints() -> None:
        await host.checkpoint_forever()

    @app.on_partitions_revoked.connect
    async def revoked(_app: Any, partitions: Any, **_: Any) -> None:  # noqa: ARG001
        # still the owner here; if not, the transaction is fenced and the process ends
        await host.close_all(checkpoint=True)

    @app.on_before_shutdown.connect
    async def before_shutdown(_app: Any, **_: Any) -> None:
        await host.checkpoint_all()

    return app


def _credentials(kafka: KafkaSettings) -> Any:
    context = aiokafka_config(kafka).get("ssl_context")
    if kafka.security_protocol == "PLAINTEXT":
        return None
    if kafka.security_protocol == "SSL":
        return faust.SSLCredentials(context)
    return faust.SASLCredentials(
        username=kafka.sasl_username,
        password=kafka.sasl_password.get_secret_value(),
        ssl_context=context,
        mechanism=kafka.sasl_mechanism,
    )
