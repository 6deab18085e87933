"""The ports of a partition in memory: for the simulator and for tests that inject faults between two steps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from device_agent.checkpoint import StoreAheadOfChangelog
from device_agent.store import Position
from streams.errors import CheckpointFailed
from streams.records import OutgoingRecord


@dataclass
class MemoryStore:
    """`device_agent.store.Store` in a dictionary."""

    records: dict[bytes, bytes] = field(default_factory=dict)
    at: Position = field(default_factory=Position)
    offset: int = 0

    def position(self) -> Position:
        """Return what the last write said."""
        return self.at

    def changelog_offset(self) -> int:
        """Next offset of the changelog that this store has not seen."""
        return self.offset

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Records of these devices, in the order asked."""
        return [self.records.get(key) for key in keys]

    def write(self, records: Iterable[tuple[bytes, bytes]], position: Position, changelog_offset: int) -> None:
        """Write everything at once."""
        self.records.update(records)
        self.at, self.offset = position, changelog_offset

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        """All records in key order."""
        return sorted(self.records.items())

    def clear(self) -> None:
        """Forget everything."""
        self.records, self.at, self.offset = {}, Position(), 0

    def close(self) -> None:
        """Nothing to make durable."""


@dataclass
class MemoryTopics:
    """What a broker would keep of one partition: committed outputs, the changelog, the present owner."""

    outputs: list[OutgoingRecord] = field(default_factory=list)
    changelog: list[tuple[bytes, bytes]] = field(default_factory=list)
    epoch: int = 0


class MemoryLog:
    """`device_agent.checkpoint.TransactionalLog` over `MemoryTopics`: atomic commits, fencing, injected faults.

    Parameters
    ----------
    fault
        Called before each commit; it may raise to stand for a commit that never arrived, or return True for one that
        arrived but whose acknowledgement was lost.
    """

    def __init__(self, topics: MemoryTopics, fault: Callable[[], bool] | None = None) -> None:
        self._topics = topics
        self._fault = fault
        self._epoch = -1
        self._outputs: list[OutgoingRecord] = []
        self._records: list[tuple[bytes, bytes]] = []

    async def open(self) -> None:
        """Become the owner: whoever was it before can no longer commit."""
        self._topics.epoch += 1
        self._epoch = self._topics.epoch

    async def read_changelog(self, start: int) -> AsyncIterator[tuple[list[tuple[bytes, bytes]], int]]:
        """Everything from `start`, in batches of 100."""
        log = self._topics.changelog
        if start > len(log):
            raise StoreAheadOfChangelog(f"the changelog ends at {len(log)}, the store has read up to {start}")
        for at in range(start, len(log), 100):
            batch = log[at : at + 100]
            yield batch, at + len(batch)

    async def begin(self) -> None:
        """Begin a transaction."""
        self._check_owner()
        self._outputs, self._records = [], []

    async def send_outputs(self, outputs: Sequence[OutgoingRecord]) -> None:
        """Hold outputs back until the commit."""
        self._outputs += outputs

    async def send_changelog(self, records: list[tuple[bytes, bytes]]) -> None:
        """Hold changelog records back until the commit."""
        self._records += records

    async def commit(self) -> int:
        """Append all or nothing."""
        self._check_owner()
        lost = bool(self._fault and self._fault())
        self._topics.outputs += self._outputs
        self._topics.changelog += self._records
        if lost:
            raise CheckpointFailed("the acknowledgement was lost")
        return len(self._topics.changelog)

    def _check_owner(self) -> None:
        if self._epoch != self._topics.epoch:
            raise CheckpointFailed("another worker owns this partition")

    async def close(self) -> None:
        """Nothing to close."""
