"""What a worker owns changes one step at a time, however a framework asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

from device_agent.host import DeviceHost
from device_agent.store import Position
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


def host_of(make: Callable[[int], Partition], *, interval_s: float = 1.0, linger_s: float = 0.0) -> DeviceHost:
    return DeviceHost(
        make,  # type: ignore[arg-type]
        topics=Topics("", 4),
        checkpoint_events=1_000,
        interval_s=interval_s,
        request_linger_s=linger_s,
        metrics=SimpleNamespace(partitions_owned=SimpleNamespace(set=lambda _many: None)),  # type: ignore[arg-type]
        on_failure=lambda exc: None,
    )


def test_a_seek_in_the_middle_of_a_revocation_waits_for_its_end() -> None:
    opened: set[int] = set()

    async def course() -> set[int]:
        host = host_of(lambda number: Partition(number, opened))
        await host.open([0, 1])
        revoked = asyncio.create_task(host.close_all(checkpoint=True))
        await asyncio.sleep(0.03)  # one partition is closed, the other in its last checkpoint
        await host.open([0, 1, 2, 3])
        await revoked
        return host.owned()

    assert asyncio.run(course()) == opened == {0, 1, 2, 3}


class Asking(Partition):
    """Every record asks for a refresh, and the next checkpoint takes the request along; notes when each begins."""

    def __init__(self, number: int, opened: set[int], begun: list[float]) -> None:
        super().__init__(number, opened)
        self.begun, self.committed = begun, Position(0, 0)
        self.processor = SimpleNamespace(
            partition=number, position=Position(0, 0), requests_waiting=False, interactions=self._apply
        )

    def _apply(self, _records: object) -> None:
        self.processor.requests_waiting = True

    async def checkpoint(self) -> None:
        if self.processor.requests_waiting:
            self.begun.append(asyncio.get_running_loop().time())
        self.processor.requests_waiting = False


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.005)


def test_a_request_leaves_at_once_in_a_calm_stream_and_the_next_one_waits() -> None:
    begun: list[float] = []

    async def course() -> None:
        host = host_of(lambda number: Asking(number, set(), begun), interval_s=60.0, linger_s=60.0)
        await host.open([0])
        forever = asyncio.create_task(host.checkpoint_forever())
        await host.deliver("interactions.v1", 0, [])
        await until(lambda: len(begun) == 1)
        await host.deliver("interactions.v1", 0, [])
        await asyncio.sleep(0.1)
        forever.cancel()

    asyncio.run(course())
    assert len(begun) == 1


def test_requests_soon_after_a_checkpoint_share_the_next_one() -> None:
    begun: list[float] = []

    async def course() -> None:
        host = host_of(lambda number: Asking(number, set(), begun), interval_s=60.0, linger_s=0.05)
        await host.open([0])
        forever = asyncio.create_task(host.checkpoint_forever())
        await host.deliver("interactions.v1", 0, [])
        await until(lambda: len(begun) == 1)
        for _ in range(5):
            await host.deliver("interactions.v1", 0, [])
        await until(lambda: len(begun) == 2)
        await asyncio.sleep(0.1)
        forever.cancel()

    asyncio.run(course())
    assert len(begun) == 2
    assert begun[1] - begun[0] >= 0.05
