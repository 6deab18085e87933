"""A partition under injected faults, deterministic: crashes between any two steps, lost acknowledgements, zombies.

The inputs lie in two in-memory topics; a worker opens the partition, is fed batches of random size, checkpoints when
the schedule says so, and is killed at any step. Whatever happens, a reader of committed outputs must find each event
served once per arm, and each device's record must be what an undisturbed run leaves.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from device_agent.agent import DeviceCore
from device_agent.checkpoint import STEPS, CheckpointedPartition
from device_agent.memory import MemoryLog, MemoryStore, MemoryTopics
from device_agent.processor import PartitionProcessor, ProcessorOptions
from device_agent.state import digest
from device_agent.store import Position
from streams.bundle import Bundle
from streams.clock import ManualClock
from streams.errors import CheckpointFailed, StoreError
from streams.events import (
    Codec,
    Embedding,
    Interaction,
    Recommendation,
    RefreshRequest,
    device_key,
    pack_items,
    pack_vector,
)
from streams.experiment.arms import parse_arms
from streams.metrics import DeviceMetrics
from streams.topics import Topics
from tests.bundles import make_bundle

EVENTS, DEVICES, START_MS = 120, 7, 1_700_000_000_000
EXPERIMENT = parse_arms(["never", "every-n:n=4", "drift:rate=0.2"])
TOPICS = Topics("sim.", 1)


class Killed(Exception):
    """Stands for kill -9: nothing after it runs."""


@dataclass
class Record:
    offset: int
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]] = field(default_factory=list)


@dataclass
class World:
    """What outlives a worker: the topics, and its disk as long as nobody wipes it."""

    bundle: Bundle
    core: DeviceCore
    topics: MemoryTopics = field(default_factory=MemoryTopics)
    store: MemoryStore = field(default_factory=MemoryStore)
    clock: ManualClock = field(default_factory=lambda: ManualClock(START_MS))
    interactions: list[Record] = field(default_factory=list)
    embeddings: list[Record] = field(default_factory=list)
    answered: int = 0

    def partition(self, die_at: str = "", fault: object = None) -> CheckpointedPartition:
        def on_step(step: str) -> None:
            if step == die_at:
                raise Killed(step)

        metrics = DeviceMetrics(CollectorRegistry())
        processor = PartitionProcessor(
            0,
            core=self.core,
            bundle=self.bundle,
            experiment=EXPERIMENT,
            topics=TOPICS,
            store=self.store,
            clock=self.clock,
            metrics=metrics,
            options=ProcessorOptions(cache_devices=3),
        )
        log = MemoryLog(self.topics, fault)  # type: ignore[arg-type]
        return CheckpointedPartition(processor, log, self.store, clock=self.clock, metrics=metrics, on_step=on_step)

    def answer_requests(self) -> None:
        """The cloud: one embedding for each refresh request that became visible."""
        for out in self.topics.outputs[self.answered :]:
            if out.topic == TOPICS.refresh_requests:
                asked = Codec(RefreshRequest).decode(out.value)
                rng = Random(f"{asked.device_id}{asked.as_of}")
                vector = [rng.uniform(-1, 1) for _ in range(self.bundle.manifest.d)]
                answer = Embedding(
                    v=1,
                    request_id=asked.request_id,
                    device_id=asked.device_id,
                    arm=asked.arm,
                    bundle_id=asked.bundle_id,
                    model_id="sim",
                    as_of=asked.as_of,
                    vector=pack_vector(_array(vector)),
                    candidates=pack_items([1, 2, 3]),
                    event_time_ms=asked.event_time_ms,
                    requested_at_ms=asked.requested_at_ms,
                    published_at_ms=self.clock.now_ms(),
                    encode_s=0.0,
                    tokens=1,
                )
                self.embeddings.append(Record(len(self.embeddings), out.key, Codec(Embedding).encode(answer)))
        self.answered = len(self.topics.outputs)

    async def run(self, rng: Random, *, kills: int, wipes: bool) -> None:
        """Workers, one after the other, until all inputs are applied."""
        life = 0
        while True:
            life += 1
            mortal = life <= kills
            die_at = rng.choice([*STEPS, "between"]) if mortal else ""
            dies_after = rng.randrange(1, 12)
            fault = (lambda: True) if mortal and rng.random() < 0.2 else None
            partition = self.partition(fault=fault)
            await partition.open()
            try:
                for turn in range(10_000):
                    at = partition.processor.position
                    if mortal and turn == dies_after:
                        if die_at == "between":
                            raise Killed(die_at)
                        partition._on_step = _dying(die_at)
                    batch = self.interactions[at.interactions : at.interactions + rng.randrange(1, 15)]
                    partition.processor.interactions(batch)
                    partition.processor.embeddings(self.embeddings[at.embeddings :])
                    self.clock.advance(0.01)
                    if rng.random() < 0.5:
                        await partition.checkpoint()
                        self.answer_requests()
                    if not batch:
                        await partition.checkpoint()
                        self.answer_requests()
                        if partition.committed.embeddings == len(self.embeddings):
                            return
            except (Killed, CheckpointFailed):
                self.answer_requests()
                if wipes and rng.random() < 0.5:
                    self.store = MemoryStore()

    def served(self) -> Counter[tuple[str, str]]:
        outputs = [o for o in self.topics.outputs if o.topic == TOPICS.recommendations]
        records = [Codec(Recommendation).decode(o.value) for o in outputs]
        return Counter((record.event_id, record.arm) for record in records)

    def digests(self) -> dict[bytes, str]:
        latest = {k: v for k, v in self.topics.changelog if not k.startswith(b"\x00")}
        records = self.core.layout.unpack(list(latest.values()))
        return dict(zip(latest, digest(records), strict=True))

    def stored(self) -> dict[bytes, bytes]:
        return dict(self.store.items())


def _dying(at: str) -> object:
    def on_step(step: str) -> None:
        if step == at:
            raise Killed(step)

    return on_step


def _array(values: list[float]) -> object:
    import numpy as np

    return np.array(values, np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", n_items=40)


@pytest.fixture(scope="module")
def core(bundle: Bundle) -> DeviceCore:
    return DeviceCore(bundle, EXPERIMENT.arms, candidates=10)


def world(bundle: Bundle, core: DeviceCore, seed: int) -> World:
    rng = Random(seed)
    made = World(bundle, core)
    for offset in range(EVENTS):
        device = f"d{rng.randrange(DEVICES)}"
        event = Interaction(1, f"e{offset}", device, rng.choice(bundle.items.ids), START_MS - 10**6 + 1000 * offset)
        made.interactions.append(Record(offset, device_key(device), Codec(Interaction).encode(event)))
    return made


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), kills=st.integers(1, 6), wipes=st.booleans())
def test_crashes_anywhere_lose_nothing_and_repeat_nothing(
    bundle: Bundle, core: DeviceCore, seed: int, kills: int, wipes: bool
) -> None:
    undisturbed, disturbed = world(bundle, core, seed), world(bundle, core, seed)
    asyncio.run(undisturbed.run(Random(seed), kills=0, wipes=False))
    asyncio.run(disturbed.run(Random(seed + 1), kills=kills, wipes=wipes))
    expected = {(f"e{n}", arm.name): 1 for n in range(EVENTS) for arm in EXPERIMENT.arms}
    assert disturbed.served() == expected
    assert undisturbed.served() == expected
    assert disturbed.digests() == undisturbed.digests()
    latest = {k: v for k, v in disturbed.topics.changelog if not k.startswith(b"\x00")}
    assert disturbed.stored() == latest


@pytest.mark.parametrize("step", STEPS)
def test_a_death_between_two_steps_is_made_up_for(bundle: Bundle, core: DeviceCore, step: str) -> None:
    made = world(bundle, core, 1)

    async def die() -> None:
        partition = made.partition(die_at=step)
        await partition.open()
        partition.processor.interactions(made.interactions[:50])
        await partition.checkpoint()

    with pytest.raises(Killed):
        asyncio.run(die())
    happened = step in ("committed", "stored")
    assert bool(made.topics.changelog) == happened
    assert bool(made.stored()) == (step == "stored"), "the store is never ahead of the changelog"
    asyncio.run(made.run(Random(0), kills=0, wipes=False))
    assert set(made.served().values()) == {1}
    assert len(made.served()) == EVENTS * len(EXPERIMENT.arms)


def test_a_zombie_can_commit_nothing(bundle: Bundle, core: DeviceCore) -> None:
    made = world(bundle, core, 2)

    async def scene() -> None:
        zombie = made.partition()
        await zombie.open()
        zombie.processor.interactions(made.interactions[:60])
        made.store = MemoryStore()  # the new owner is on another machine
        await made.run(Random(3), kills=0, wipes=False)
        before = list(made.topics.outputs)
        with pytest.raises(CheckpointFailed, match="another worker"):
            await zombie.checkpoint()
        assert made.topics.outputs == before

    asyncio.run(scene())


def test_a_store_that_is_ahead_of_a_changelog_made_anew_is_dropped(bundle: Bundle, core: DeviceCore) -> None:
    made = world(bundle, core, 4)
    asyncio.run(made.run(Random(0), kills=0, wipes=False))
    made.topics, made.answered, made.embeddings = MemoryTopics(), 0, []
    asyncio.run(made.run(Random(0), kills=0, wipes=False))
    assert set(made.served().values()) == {1}
    latest = {k: v for k, v in made.topics.changelog if not k.startswith(b"\x00")}
    assert made.stored() == latest


class FullDisk(MemoryStore):
    """A store that takes no write while the disk is full."""

    full = False

    def write(self, records: Iterable[tuple[bytes, bytes]], position: Position, changelog_offset: int) -> None:
        if self.full:
            raise StoreError("device store cannot be written: No space left on device")
        super().write(records, position, changelog_offset)


def test_a_full_disk_stops_nothing_and_what_it_did_not_take_is_written_later(bundle: Bundle, core: DeviceCore) -> None:
    made = world(bundle, core, 5)
    calm = world(bundle, core, 5)
    asyncio.run(calm.run(Random(0), kills=0, wipes=False))
    made.store = disk = FullDisk()

    async def scene() -> None:
        partition = made.partition()
        await partition.open()
        for start in range(0, EVENTS, 10):
            disk.full = 20 <= start < 90
            partition.processor.interactions(made.interactions[start : start + 10])
            partition.processor.embeddings(made.embeddings[partition.processor.position.embeddings :])
            await partition.checkpoint()
            made.answer_requests()
            if start == 80:
                assert disk.position().interactions == 20, "the store is behind, never ahead"
                assert partition.committed.interactions == 90, "and the changelog goes on"
        assert partition._metrics.store_failures._value.get() == 7

    asyncio.run(scene())
    assert set(made.served().values()) == {1}
    assert len(made.served()) == EVENTS * len(EXPERIMENT.arms)
    assert made.stored() == {k: v for k, v in made.topics.changelog if not k.startswith(b"\x00")}
    assert made.digests() == calm.digests()
