"""Driving the real pipeline from a test: workers as processes, inputs produced, outputs and state read back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from device_agent.agent import DeviceCore
from device_agent.checkpoint import POSITION_KEY
from device_agent.state import digest
from streams.bundle import Bundle
from streams.events import (
    Codec,
    Embedding,
    Interaction,
    Recommendation,
    RefreshRequest,
    device_key,
    embedding_key,
    pack_items,
    pack_vector,
)
from streams.experiment.arms import Experiment, parse_arms
from streams.kafka_admin import ensure_topics
from streams.settings import KafkaSettings, load_settings
from streams.topics import Topics, partition_of

ROOT = Path(__file__).parents[1]
START_MS = 1_600_000_000_000
ARMS = ("never", "every-n:n=5", "drift:rate=0.2")


@dataclass
class Pipeline:
    """One run's topics on a broker, and the device workers that a test started on them."""

    bootstrap: str
    prefix: str
    bundle: Bundle
    directory: Path
    partitions: int = 2
    arms: Sequence[str] = ARMS
    flags: dict[str, Any] = field(default_factory=dict)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.topics = Topics(self.prefix, self.partitions)
        self.kafka = KafkaSettings(bootstrap=self.bootstrap, topic_prefix=self.prefix, partitions=self.partitions)
        ensure_topics(self.kafka, self.topics.specs())

    @property
    def experiment(self) -> Experiment:
        return parse_arms(self.arms)

    @property
    def settings_flags(self) -> dict[str, Any]:
        return {
            "kafka.bootstrap": self.bootstrap,
            "kafka.topic_prefix": self.prefix,
            "kafka.partitions": self.partitions,
            "device.session_timeout_ms": 6000,
            "device.map_size_gb": 0.25,
            **self.flags,
        }

    def start_worker(self, name: str = "w", *, die_at: str = "", die_on: int = 1) -> subprocess.Popen[bytes]:
        """Start a device worker with a state folder of its own name; it may kill itself at a checkpoint's step."""
        self.directory.mkdir(parents=True, exist_ok=True)
        given = {
            "flags": self.settings_flags,
            "bundle": str(self.bundle.path),
            "arms": list(self.arms),
            "state_dir": str(self.state_dir(name)),
            "die_at": die_at,
            "die_on": die_on,
            "status_file": str(self.directory / f"{name}.json"),
        }
        with self.log_file(name).open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "device_worker_main.py"), json.dumps(given)],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
            )
        self.workers.append(worker)
        return worker

    def state_dir(self, name: str) -> Path:
        return self.directory / f"state-{name}"

    def log_file(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def stop_workers(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        for worker in self.workers:
            try:
                worker.wait(20)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        self.workers.clear()

    def produce(self, topic: str, records: Sequence[tuple[str, bytes, bytes | None]]) -> None:
        """Send (device id, key, value) to each device's partition, and wait for the acknowledgements."""
        producer = KafkaProducer(bootstrap_servers=self.bootstrap, acks="all", linger_ms=5)
        sent = [
            producer.send(topic, key=key, value=value, partition=partition_of(device, self.partitions))
            for device, key, value in records
        ]
        for future in sent:
            future.get(60)
        producer.close()

    def produce_interactions(self, events: Sequence[Interaction]) -> None:
        encode = Codec(Interaction).encode
        self.produce(self.topics.interactions, [(e.device_id, device_key(e.device_id), encode(e)) for e in events])

    def produce_embeddings(self, embeddings: Sequence[Embedding]) -> None:
        encode = Codec(Embedding).encode
        self.produce(
            self.topics.embeddings, [(e.device_id, embedding_key(e.device_id, e.arm), encode(e)) for e in embeddings]
        )

    def read(self, topic: str) -> list[Any]:
        """All committed records of a topic, partition by partition."""
        consumer = KafkaConsumer(
            bootstrap_servers=self.bootstrap,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        try:
            parts = [TopicPartition(topic, number) for number in range(self.partitions)]
            consumer.assign(parts)
            ends = consumer.end_offsets(parts)
            consumer.seek_to_beginning(*parts)
            records: list[Any] = []
            deadline = time.monotonic() + 60
            while any(consumer.position(part) < ends[part] for part in parts):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{topic}: could not read up to {ends}")
                for batch in consumer.poll(timeout_ms=200).values():
                    records += batch
            return records
        finally:
            consumer.close()

    def recommendations(self) -> list[Recommendation]:
        return [Codec(Recommendation).decode(r.value) for r in self.read(self.topics.recommendations)]

    def served(self) -> Counter[tuple[str, str]]:
        """How often each (event, arm) was served."""
        return Counter((r.event_id, r.arm) for r in self.recommendations())

    def requests(self) -> list[RefreshRequest]:
        return [Codec(RefreshRequest).decode(r.value) for r in self.read(self.topics.refresh_requests)]

    def changelog(self) -> dict[bytes, bytes]:
        """The newest device record of each device."""
        return {r.key: r.value for r in self.read(self.topics.device_state) if r.key != POSITION_KEY}

    def digests(self) -> dict[bytes, str]:
        """Digest of each device of what follows from its interactions alone."""
        core = DeviceCore(self.bundle, self.experiment.arms)
        latest = self.changelog()
        records = core.layout.unpack(list(latest.values())) if latest else []
        return dict(zip(latest, digest(records), strict=True)) if latest else {}

    def wait_served(self, events: int, timeout_s: float = 90) -> None:
        """Wait until so many events were served for every arm."""
        wanted = events * len(self.arms)
        wait_for(lambda: sum(self.served().values()) >= wanted, timeout_s, lambda: self.tell(wanted))

    def tell(self, wanted: int) -> str:
        logs = "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.directory.glob("*.log")))
        return f"served {sum(self.served().values())} of {wanted}\n{logs}"


@contextmanager
def pipeline(bootstrap: str, prefix: str, bundle: Bundle, directory: Path, **more: Any) -> Iterator[Pipeline]:
    """A pipeline whose workers are ended with the test."""
    made = Pipeline(bootstrap, prefix, bundle, directory, **more)
    try:
        yield made
    finally:
        made.stop_workers()


def wait_for(condition: Callable[[], bool], timeout_s: float, tell: Callable[[], str] = lambda: "") -> None:
    """Wait for a condition, or fail with what `tell` says."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {tell()}")
        time.sleep(0.3)


def interactions(bundle: Bundle, count: int, *, devices: int = 20, seed: int = 0, start: int = 0) -> list[Interaction]:
    """Random interactions of some devices in event-time order; ids and content follow from seed and number."""
    rng = Random(seed)
    made = [
        Interaction(1, f"e{n}", f"device-{rng.randrange(devices)}", rng.choice(bundle.items.ids), START_MS + 1000 * n)
        for n in range(start + count)
    ]
    return made[start:]


def answer(request: RefreshRequest, bundle: Bundle, **changes: Any) -> Embedding:
    """An embedding for a request, its vector drawn from the request's id."""
    import numpy as np

    rng = np.random.default_rng(zlib.crc32(request.request_id.encode()))
    fields: dict[str, Any] = {
        "v": 1,
        "request_id": request.request_id,
        "device_id": request.device_id,
        "arm": request.arm,
        "bundle_id": bundle.id,
        "model_id": "test",
        "as_of": request.as_of,
        "vector": pack_vector(rng.standard_normal(bundle.manifest.d).astype(np.float32)),
        "candidates": pack_items(np.arange(min(10, bundle.manifest.n_items))),
        "event_time_ms": request.event_time_ms,
        "requested_at_ms": request.requested_at_ms,
        "published_at_ms": request.requested_at_ms + 1,
        "encode_s": 0.0,
        "tokens": 1,
    }
    return Embedding(**{**fields, **changes})


def settings_of(made: Pipeline) -> Any:
    """The settings with which the pipeline's workers run."""
    return load_settings(flags=made.settings_flags, environ={})
