"""The partitions that a worker owns right now: what a stream framework must call, and when.

A framework has to do five things: `open` the partitions it was assigned before it lets records flow, `deliver` them,
run `checkpoint_forever` beside them, commit `positions` as the group's offsets, and `close_all` on revocation.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import structlog

from device_agent.checkpoint import CheckpointedPartition
from device_agent.processor import InputRecord
from device_agent.store import Position
from streams.errors import CheckpointFailed
from streams.metrics import DeviceMetrics
from streams.topics import Topics

CATCH_UP: Final = 4
"""A partition with so many times the checkpoint size in memory waits for its checkpoint: it bounds the memory."""


class DeviceHost:
    """Owns `CheckpointedPartition`s and decides when they checkpoint.

    Parameters
    ----------
    make
        Builds the partition with this number, not yet open.
    checkpoint_events
        A partition checkpoints after so many inputs...
    interval_s
        ...or this time...
    request_linger_s
        ...or when a refresh request was decided, but not sooner than so long after the last checkpoint: in a calm
        stream a request leaves at once, in a busy one they share checkpoints.
    on_failure
        Called with the error when a checkpoint's outcome is unknown; must end the process.
    """

    def __init__(
        self,
        make: Callable[[int], CheckpointedPartition],
        *,
        topics: Topics,
        checkpoint_events: int,
        interval_s: float,
        request_linger_s: float,
        metrics: DeviceMetrics,
        on_failure: Callable[[CheckpointFailed], None],
    ) -> None:
        self.topics = topics
        self.ready = False
        """Partitions are open and records flow."""
        self._make = make
        self._events = checkpoint_events
        self._interval_s = interval_s
        self._linger_s = request_linger_s
        self._metrics = metrics
        self._on_failure = on_failure
        self._partitions: dict[int, CheckpointedPartition] = {}
        self._wake = asyncio.Event()
        self._ended_s = -math.inf
        """When the last round of checkpoints ended."""
        self._changing = asyncio.Lock()
        """Of what is owned: a framework may seek while a revocation still waits for its last checkpoint."""
        self._log = structlog.get_logger("host")

    async def open(self, partitions: Iterable[int]) -> None:
        """Own exactly these partitions, each restored; `read_positions` says where they are to be read on.

        Records that were applied and not checkpointed are forgotten: they will be delivered again.
        """
        async with self._changing:
            await self._close_all(checkpoint=False)
            for number in sorted(partitions):
                partition = self._make(number)
                await partition.open()
                self._partitions[number] = partition
            self._metrics.partitions_owned.set(len(self._partitions))
            self.ready = True
        self._log.info("partitions open", partitions=sorted(self._partitions))

    def read_positions(self) -> Mapping[int, Position]:
        """Next offsets that each open partition wants to be given."""
        return {number: each.processor.position for number, each in self._partitions.items()}

    def owned(self) -> set[int]:
        """Partitions that are open."""
        return set(self._partitions)

    async def deliver(
        self, topic: str, partition: int, records: Sequence[InputRecord], *, after: int | None = None
    ) -> None:
        """Apply records of one input topic, in offset order. Records of a partition that is not open are dropped.

        Parameters
        ----------
        after
            Offset up to which the framework has handed records over before these, since it last read
            `read_positions`; None for the first ones. If not all of them arrived, going on would lose them for good, so
            the process ends and begins again at the last checkpoint.
        """
        owned = self._partitions.get(partition)
        if owned is None:
            return
        at = owned.processor.position
        if after is not None and after > (at.interactions if topic == self.topics.interactions else at.embeddings):
            self._on_failure(
                CheckpointFailed(f"{topic}[{partition}]: records before offset {after} were never delivered")
            )
            return
        try:
            if topic == self.topics.interactions:
                owned.processor.interactions(records)
            else:
                owned.processor.embeddings(records)
        except Exception as exc:  # noqa: BLE001 - half a batch may be applied: only the last checkpoint is to be trusted
            self._log.error("a batch could not be applied", topic=topic, partition=partition, exc_info=True)
            self._on_failure(CheckpointFailed(f"{topic}[{partition}]: a batch could not be applied: {exc!r}"))
            return
        if owned.processor.requests_waiting:
            self._wake.set()
        applied = owned.processor.position.interactions - owned.committed.interactions
        if applied >= self._events:
            self._wake.set()
        if applied >= CATCH_UP * self._events:
            await self._checkpoint(owned)

    async def checkpoint_forever(self) -> None:
        """Checkpoint all partitions each interval, and sooner when a refresh request waits to leave."""
        while True:
            try:
                await asyncio.wait_for(self._wake.wait(), self._interval_s)
            except TimeoutError:
                pass
            else:
                await asyncio.sleep(self._ended_s + self._linger_s - asyncio.get_running_loop().time())
            self._wake.clear()
            await self.checkpoint_all()

    async def checkpoint_all(self) -> None:
        """Checkpoint every partition that has something new."""
        await asyncio.gather(*(self._checkpoint(each) for each in list(self._partitions.values())))
        self._ended_s = asyncio.get_running_loop().time()

    def positions(self) -> dict[tuple[str, int], int]:
        """Next offset of each input partition, as far as it is durable: what the group may commit."""
        return {
            key: offset
            for number, each in self._partitions.items()
            for key, offset in (
                ((self.topics.interactions, number), each.committed.interactions),
                ((self.topics.embeddings, number), each.committed.embeddings),
            )
            if offset > 0
        }

    async def close_all(self, *, checkpoint: bool) -> None:
        """Give up every partition, after a last checkpoint if we are still its owner."""
        async with self._changing:
            await self._close_all(checkpoint=checkpoint)

    async def _close_all(self, *, checkpoint: bool) -> None:
        self.ready = False
        while self._partitions:
            _, partition = self._partitions.popitem()
            if checkpoint:
                await self._checkpoint(partition)
            await partition.close()
        self._metrics.partitions_owned.set(0)

    async def _checkpoint(self, partition: CheckpointedPartition) -> None:
        try:
            await partition.checkpoint()
        except CheckpointFailed as exc:
            self._log.error("checkpoint failed", partition=partition.processor.partition, error=str(exc))
            self._on_failure(exc)
