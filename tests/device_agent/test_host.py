"""What a worker owns changes one step at a time, however a framework asks."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from device_agent.host import DeviceHost
from streams.topics import Topics


class Partition:
    """One that may be open once in a process, as an LMDB environment may."""

    def __init__(self, number: int, opened: set[int]) -> None:
        assert number not in opened, f"partition {number} is already open in this process"
        opened.add(number)
        self.number, self.opened = number, opened
        self.processor = SimpleNamespace(partition=number)

    async def open(self) -> None:
        await asyncio.sleep(0)

    async def checkpoint(self) -> None:
        await asyncio.sleep(0.02)  # a Kafka transaction

    async def close(self) -> None:
        await asyncio.sleep(0.005)
        self.opened.discard(self.number)


def test_a_seek_in_the_middle_of_a_revocation_waits_for_its_end() -> None:
    opened: set[int] = set()

    async def course() -> set[int]:
        host = DeviceHost(
            lambda number: Partition(number, opened),  # type: ignore[arg-type,return-value]
            topics=Topics("", 4),
            checkpoint_events=1,
            interval_s=1.0,
            request_linger_s=0.0,
            metrics=SimpleNamespace(partitions_owned=SimpleNamespace(set=lambda _many: None)),  # type: ignore[arg-type]
            on_failure=lambda exc: None,
        )
        await host.open([0, 1])
        revoked = asyncio.create_task(host.close_all(checkpoint=True))
        await asyncio.sleep(0.03)  # one partition is closed, the other in its last checkpoint
        await host.open([0, 1, 2, 3])
        await revoked
        return host.owned()

    assert asyncio.run(course()) == opened == {0, 1, 2, 3}
