"""The device worker through Kafka, everything on, against an empty Faust agent on the same topic in the same run.

pytest tests/benchmarks/test_worker_bench.py --benchmark-only -s
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from infra.broker import Broker
from streams.bundle import Bundle
from streams.events import Codec, Interaction, cloudevent_headers, device_key
from streams.kafka_admin import end_offsets
from streams.kafka_clients import make_producer
from streams.topics import partition_of
from tests.bundles import make_bundle
from tests.pipeline import ROOT, Pipeline, interactions, pipeline

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]
EVENTS, DEVICES, ITEMS = 60_000, 1_000, 1_682
THREE = ("never", "every-n:n=20", "drift:rate=0.05")

_EMPTY_AGENT = """
    import os, sys, time
    import faust
    bootstrap, topic, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    app = faust.App("empty-" + topic, broker="kafka://" + bootstrap, store="memory://", web_enabled=False,
                    consumer_auto_offset_reset="earliest", topic_disable_leader=True, datadir=sys.argv[4])
    source = app.topic(topic, key_serializer="raw", value_serializer="raw")
    seen, started = 0, 0.0

    @app.agent(source)
    async def empty(stream):
        global seen, started
        async for _ in stream:
            seen += 1
            if seen == count // 10:
                started = time.perf_counter()
            if seen == count:
                rate = (count - count // 10) / (time.perf_counter() - started)
                os.write(1, f"RATE {rate}\\n".encode())  # Faust turns print into log lines

    sys.argv[1:] = ["worker", "-l", "error", "--without-web"]
    app.main()
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A catalogue of ML-100K's size; what the weights are does not change the work."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", n_items=ITEMS)


@pytest.fixture(scope="module")
def events(bundle: Bundle) -> list[Interaction]:
    return interactions(bundle, EVENTS, devices=DEVICES)


@pytest.mark.parametrize(("arms", "least"), [(("every-n:n=20",), 1.2), (THREE, 0.6)], ids=["one arm", "three arms"])
def test_worker_over_empty_agent(
    benchmark: Any,
    kafka: Broker,
    topic_prefix: str,
    bundle: Bundle,
    events: list[Interaction],
    tmp_path: Path,
    arms: Sequence[str],
    least: float,
) -> None:
    with pipeline(kafka.bootstrap, topic_prefix, bundle, tmp_path, arms=arms) as made:
        _produce(made, events)
        ours: list[float] = []
        empty: list[float] = []
        benchmark.pedantic(lambda: ours.append(_worker_rate(made)), rounds=1)
        empty.append(_empty_rate(made, tmp_path))
    ratio = ours[0] / empty[0]
    benchmark.extra_info.update({"worker": ours[0], "empty agent": empty[0], "ratio": ratio, "goal": least})
    print(f"\nworker {ours[0]:,.0f}/s ÷ empty Faust agent {empty[0]:,.0f}/s = {ratio:.2f} (goal {least})")
    assert ratio > 0


def _produce(made: Pipeline, events: Sequence[Interaction]) -> None:
    """As a replay does: with headers."""
    producer, encode = make_producer(made.kafka, linger_ms=20), Codec(Interaction).encode
    for event in events:
        headers = cloudevent_headers(
            event_id=event.event_id, event_type="driftline.interaction", source="/bench", time_ms=event.event_time_ms
        )
        partition = partition_of(event.device_id, made.partitions)
        key = device_key(event.device_id)
        producer.send(made.topics.interactions, key=key, value=encode(event), headers=headers, partition=partition)
    producer.flush(120)
    producer.close()


def _worker_rate(made: Pipeline) -> float:
    """Events/s of a worker that finds all events waiting, from the first tenth to the last, outputs committed."""
    made.start_worker()
    wanted, start = EVENTS * len(made.arms), 0.0
    deadline = time.monotonic() + 300

    def committed() -> int:
        return sum(end_offsets(made.kafka, made.topics.recommendations).values())

    first = 0
    while (done := committed()) < wanted:
        if not start and done >= wanted // 10:
            start, first = time.perf_counter(), done
        assert time.monotonic() < deadline, made.tell(EVENTS)
        time.sleep(0.1)
    rate = (wanted - first) / len(made.arms) / (time.perf_counter() - start)
    made.stop_workers()
    return rate


def _empty_rate(made: Pipeline, directory: Path) -> float:
    script = directory / "empty_agent.py"
    script.write_text(textwrap.dedent(_EMPTY_AGENT))
    command = [sys.executable, str(script), made.bootstrap, made.topics.interactions, str(EVENTS), str(directory / "f")]
    agent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
    try:
        assert agent.stdout is not None
        for line in agent.stdout:
            if line.startswith("RATE"):
                return float(line.split()[1])
    finally:
        agent.terminate()
        agent.wait(20)
    raise AssertionError("the empty agent ended early")
