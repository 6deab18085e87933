"""From a device's refresh request to the use of its embedding, less what the encoder itself takes, in a calm pipeline.

pytest tests/benchmarks/test_freshness_bench.py --benchmark-only -s
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud_worker.encoder.model_folder import find_model_folder, model_id_of
from infra.broker import Broker
from infra.launch import Supervisor
from infra.workers import worker_specs
from streams.events import Codec, Embedding, Interaction, device_key
from streams.experiment.arms import parse_arms
from streams.kafka_clients import make_producer
from streams.settings import load_settings
from streams.topics import partition_of
from tests.bundles import make_bundle
from tests.pipeline import Pipeline, interactions

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]
EVENTS, DEVICES, PER_SECOND = 1_400, 70, 20.0


def test_freshness_less_encoding(benchmark: Any, kafka: Broker, topic_prefix: str, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", n_items=1_682, encoder_id=model_id_of(find_model_folder("")))
    made = Pipeline(kafka.bootstrap, topic_prefix, bundle, tmp_path / "run", arms=("every-n:n=10",))
    flags = {**made.settings_flags, "home": tmp_path / "home"}
    settings = load_settings(flags=flags)
    specs = worker_specs(settings, tmp_path / "run", bundle.path, parse_arms(made.arms), clouds=1, devices=1)
    with Supervisor(specs) as workers:
        workers.wait_ready()
        benchmark.pedantic(lambda: _feed(made), rounds=1)
        made.wait_served(EVENTS)
    encode = {
        (e.device_id, e.as_of): e.encode_s
        for e in (Codec(Embedding).decode(record.value) for record in made.read(made.topics.embeddings))
    }
    total = {(r.device_id, r.as_of): r.freshness_ms / 1000 for r in made.recommendations() if r.as_of > 1}
    less = np.array([seconds - encode[key] for key, seconds in total.items()])
    p50, p99 = np.quantile(less, [0.5, 0.99]) * 1000
    whole = np.quantile(list(total.values()), 0.5) * 1000
    benchmark.extra_info.update({"p50_ms": p50, "p99_ms": p99, "with_encoding_p50_ms": whole, "n": len(less)})
    print(
        f"\nfreshness less encoding: p50 {p50:.0f} ms, p99 {p99:.0f} ms (with it p50 {whole:.0f} ms; n = {len(less)})"
    )
    assert len(less) > DEVICES


def _feed(made: Pipeline) -> None:
    """At a rate that leaves the machine room: what is measured is the path, not a queue."""
    encode = Codec(Interaction).encode
    producer = make_producer(made.kafka, linger_ms=0)
    for event in interactions(made.bundle, EVENTS, devices=DEVICES):
        partition = partition_of(event.device_id, made.partitions)
        producer.send(
            made.topics.interactions, key=device_key(event.device_id), value=encode(event), partition=partition
        )
        time.sleep(1 / PER_SECOND)
    producer.flush(60)
    producer.close()
