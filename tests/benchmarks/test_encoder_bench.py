"""How much faster the int8 encoder is than torch float32, on one thread and on two, over profiles of ML-100K's users.

Run with ``pytest tests/benchmarks/test_encoder_bench.py --benchmark-only -s``. The encoders take turns, and the figure
is the median of the rounds' ratios: a neighbour slows a whole round.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from cloud_worker.encoder.measure import Measured, measure_encoders
from cloud_worker.encoder.model_folder import find_model_folder
from cloud_worker.encoder.onnx import OnnxEncoder
from cloud_worker.encoder.onnx_int8 import OnnxInt8Encoder
from cloud_worker.encoder.sample_texts import sample_texts
from cloud_worker.encoder.sentence_transformers import SentenceTransformersEncoder
from streams.clock import SystemClock
from streams.datasets import Prepared, Sources, find_dataset, prepare

GOAL = 2.5
FLOOR = 2.0
"""Below it something is broken; between the two it is the machine: one thread gave 2.3 to 2.7 on 90 tokens."""


@pytest.fixture(scope="module")
def prepared(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(find_dataset("ml-100k"), Sources(shared_data), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.mark.parametrize("titles", [6, 10])
@pytest.mark.parametrize("threads", [1, 2])
def test_int8_against_torch_float32(
    benchmark: BenchmarkFixture, prepared: Prepared, exports: Path, threads: int, titles: int
) -> None:
    folder = find_model_folder("")
    profiles, items = sample_texts(prepared, 96, last=titles)
    encoders = {
        "torch float32": SentenceTransformersEncoder(folder, threads=threads, device="cpu"),
        "onnx float32": OnnxEncoder.from_model_folder(folder, exports, threads=threads),
        "onnx int8": OnnxInt8Encoder.from_model_folder(folder, exports, threads=threads),
    }
    tokens = encoders["onnx int8"].encode(profiles).tokens.mean()

    def compare() -> dict[str, Measured]:
        return measure_encoders(encoders, profiles[:48], [*profiles[:48], *items[:48]], SystemClock(), rounds=5)

    found = benchmark.pedantic(compare, rounds=1, iterations=1, warmup_rounds=0)
    print(f"\n{threads} thread(s), {tokens:.0f} tokens a text")
    for name, each in found.items():
        print(
            f"  {name:14} {each.texts_per_s:6.1f} texts/s  x {each.ratio:.2f}  "
            f"cosine mean {each.cosine_mean:.4f} min {each.cosine_min:.4f}"
        )
    int8 = found["onnx int8"]
    print(f"  goal {GOAL} x: {'reached' if int8.ratio >= GOAL else 'missed'}")
    benchmark.extra_info["ratio"] = int8.ratio
    assert int8.ratio > FLOOR
    assert int8.cosine_mean >= 0.99
