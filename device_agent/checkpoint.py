"""A partition's checkpoint: what it is and in which order, whoever delivers the records.

The truth of a partition is its changelog: device records and the partition's position, written in one Kafka
transaction with the outputs that follow from them. The store is a copy that is never ahead of it.

Opening a partition
    1. Start the transactional producer. That fences the former owner: from here on it can commit nothing.
    2. Bring the store up to the end of the changelog, reading only the tail that it lacks.
    3. Start reading the inputs at the position found there, and only now let events flow.

A checkpoint
    1. *taken*: the changed records, the outputs and the position are set aside; new events go on meanwhile.
    2. *outputs-sent*: the outputs are sent in a Kafka transaction,
    3. *changelog-sent*: and the changed records and the position in the same one.
    4. *committed*: the transaction is committed. Now it has happened, and readers of committed records see it.
    5. *stored*: the store gets the same records and the position, in one transaction of its own.
    6. The group's offset is committed, some time later (`DeviceHost.positions`). It is only a hint.

A crash before 4 leaves nothing behind: the inputs are read and applied again, and what follows from interactions
alone comes out the same. A crash after 4 leaves a store that lacks a tail, which step 2 of opening brings. When the
outcome of 4 is unknown (`CheckpointFailed`) the process must end and start again: the changelog knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, Protocol

import msgspec
import structlog

from device_agent.processor import PartitionProcessor
from device_agent.store import Position, Store
from streams.clock import Clock
from streams.errors import SettingsError, StoreError
from streams.metrics import DeviceMetrics
from streams.records import OutgoingRecord

POSITION_KEY: Final = b"\x00position"
"""Key of the position in the changelog: compaction keeps the newest, and no device id begins with NUL."""

STEPS: Final = ("taken", "outputs-sent", "changelog-sent", "committed", "stored")

ChangelogRecords = list[tuple[bytes, bytes]]


class StoreAheadOfChangelog(Exception):
    """The store has seen more than the changelog holds: the topic was deleted and made anew since."""


class TransactionalLog(Protocol):
    """One partition's way into Kafka. Every method but `open` raises CheckpointFailed when its outcome is unknown."""

    async def open(self) -> None:
        """Become the partition's only writer."""
        ...

    def read_changelog(self, start: int) -> AsyncIterator[tuple[ChangelogRecords, int]]:
        """Committed changelog records from offset `start` to the end as it is now, each batch with its next offset."""
        ...

    async def begin(self) -> None:
        """Begin a transaction."""
        ...

    async def send_outputs(self, outputs: Sequence[OutgoingRecord]) -> None:
        """Send outputs in the transaction."""
        ...

    async def send_changelog(self, records: ChangelogRecords) -> None:
        """Send changelog records in the transaction."""
        ...

    async def commit(self) -> int:
        """Commit; returns the offset after the last changelog record."""
        ...

    async def close(self) -> None:
        """Give up the connection."""
        ...


class CheckpointedPartition:
    """One owned partition, from its assignment to its revocation.

    Parameters
    ----------
    on_step
        Called with each name of `STEPS` when that step is done; tests die there.
    """

    def __init__(
        self,
        processor: PartitionProcessor,
        log: TransactionalLog,
        store: Store,
        *,
        clock: Clock,
        metrics: DeviceMetrics,
        on_step: Callable[[str], None] | None = None,
    ) -> None:
        self.processor = processor
        self.committed = Position()
        """Position of the last checkpoint."""
        self._log = log
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._on_step = on_step or (lambda _step: None)
        self._lock = asyncio.Lock()
        self._changelog_offset = 0
        self._open = False
        self._logger = structlog.get_logger("checkpoint", partition=processor.partition)

    async def open(self) -> Position:
        """Own the partition and restore it; returns where to read on.

        Raises
        ------
        SettingsError
            The state was written with another bundle or other arms.
        StoreError
            The store cannot be written.
        """
        started = self._clock.monotonic()
        await self._log.open()
        try:
            position, restored = await self._restore()
        except StoreAheadOfChangelog as exc:
            self._logger.warning("store dropped", reason=str(exc))
            self._store.clear()
            position, restored = await self._restore()
        self._check_fingerprint(position)
        self.committed = position
        self.processor.start_at(position)
        self._open = True
        self._metrics.restored_records.inc(restored)
        self._metrics.restore_seconds.observe(self._clock.monotonic() - started)
        self._logger.info(
            "restored", records=restored, interactions=position.interactions, changelog=self._changelog_offset
        )
        return position

    async def _restore(self) -> tuple[Position, int]:
        """Copy the changelog's tail into the store, a bounded batch at a time; returns position and records read."""
        position, restored = self._store.position(), 0
        self._changelog_offset = self._store.changelog_offset()
        async for batch, next_offset in self._log.read_changelog(self._changelog_offset):
            records = {key: value for key, value in batch if key != POSITION_KEY}
            positions = [value for key, value in batch if key == POSITION_KEY]
            if positions:
                position = msgspec.msgpack.decode(positions[-1], type=Position)
            self._store.write(records.items(), position, next_offset)
            self._changelog_offset, restored = next_offset, restored + len(batch)
        return position, restored

    async def checkpoint(self) -> bool:
        """Make everything applied so far durable; False when there was nothing.

        Raises
        ------
        CheckpointFailed
            The outcome is unknown: the process must end.
        """
        async with self._lock:
            if not self._open or not self._moved():
                return False
            started = self._clock.monotonic()
            taken = self.processor.take()
            try:
                self._on_step("taken")
                await self._log.begin()
                await self._log.send_outputs(taken.outputs)
                self._on_step("outputs-sent")
                await self._log.send_changelog([*taken.changed, (POSITION_KEY, msgspec.msgpack.encode(taken.position))])
                self._on_step("changelog-sent")
                self._changelog_offset = await self._log.commit()
            except BaseException:
                self._open = False  # what was taken is gone: a later checkpoint would pass it over
                raise
            self.committed = taken.position
            self._on_step("committed")
            self._save(taken.changed)
            self._on_step("stored")
            self._metrics.checkpoint_seconds.observe(self._clock.monotonic() - started)
            self._metrics.checkpoint_records.inc(len(taken.changed))
            return True

    def _moved(self) -> bool:
        at, then = self.processor.position, self.committed
        return (at.interactions, at.embeddings) != (then.interactions, then.embeddings)

    async def close(self) -> None:
        """Stop being the owner. What was not checkpointed is left to the next one."""
        async with self._lock:
            if self._open:
                self._open = False
                try:
                    await self._log.close()
                finally:
                    self._close_store()

    def _close_store(self) -> None:
        try:
            self._store.close()
        except StoreError as exc:
            self._logger.warning("store not closed cleanly", error=str(exc))

    def _save(self, changed: ChangelogRecords) -> None:
        """Copy into the store. A full disk must not stop the stream: the changelog has it, we keep it and try again."""
        unsaved = self.processor.cache.hold_unsaved(changed)
        try:
            self._store.write(unsaved.items(), self.committed, self._changelog_offset)
        except StoreError as exc:
            self._metrics.store_failures.inc()
            self._logger.error("store write failed, trying again", unsaved=len(unsaved), error=str(exc))
        else:
            self.processor.cache.saved()

    def _check_fingerprint(self, position: Position) -> None:
        ours = self.processor.fingerprint
        if position.fingerprint not in ("", ours):
            raise SettingsError(
                f"the state of partition {self.processor.partition} was written with bundle and arms "
                f"{position.fingerprint!r}, this worker has {ours!r}",
                remedy="start with the same bundle and arms, or give this run topics of its own: put "
                "DRIFTLINE_KAFKA__TOPIC_PREFIX=other. before the command, and before its replay",
            )
