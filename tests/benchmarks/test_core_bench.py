"""How fast the device core is: devices a second in waves, and the latency of a single step.

Run with ``pytest tests/benchmarks/test_core_bench.py --benchmark-only``. One core, one BLAS thread. The figures are
those of the quietest rounds where throughput is meant (a busy neighbour only ever slows a round down), and of all
rounds where a percentile is.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from device_agent.agent import DeviceCore, StepResult, Wave
from device_agent.ranking import Mode
from device_agent.serving import Runtime, make_serving
from streams.bundle import load_bundle
from streams.experiment.arms import parse_arm
from tests.bundles import make_bundle

ITEMS = 1682  # as ML-100K
CANDIDATES = 100
WARM_UP = 60  # events each device has behind it: a full history window
STEPS_PER_SECOND = 30_000
SINGLE_P50_S = 150e-6
SINGLE_P99_S = 1e-3


@pytest.fixture(autouse=True)
def one_blas_thread() -> Iterator[None]:
    limits = pytest.importorskip("threadpoolctl", reason="threadpoolctl holds BLAS to one thread")
    with limits.threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "b"
    make_bundle(path, n_items=ITEMS)
    return path


class Stream:
    """Devices with a history and embeddings some events old, and waves for them."""

    def __init__(self, path: Path, devices: int, arms: tuple[str, ...], ranking: Mode, runtime: Runtime) -> None:
        self.rng, self.devices, self.offsets = np.random.default_rng(0), devices, count()
        bundle = load_bundle(path)
        serving = make_serving(bundle, runtime, ranking=ranking)
        self.core = DeviceCore(bundle, [parse_arm(arm) for arm in arms], serving=serving)
        self.records = self.core.layout.new(devices)
        for event in range(WARM_UP):
            self.records = self.core.step(self.records, self.wave()).records
            if event == WARM_UP - 5:
                for arm in range(len(arms)):
                    self._embed(arm)

    def wave(self) -> Wave:
        n, offset = self.devices, next(self.offsets)
        return Wave(
            items=self.rng.integers(0, ITEMS, n).astype(np.int32),
            times_ms=np.full(n, offset * 60_000),
            hashes=self.rng.integers(1, 2**63, n).astype(np.uint64),
            offsets=np.full(n, offset),
            serve=np.ones(n, np.bool_),
            now_ms=offset,
        )

    def step(self, wave: Wave) -> StepResult:
        result = self.core.step(self.records, wave)
        self.records = result.records
        return result

    def _embed(self, arm: int) -> None:
        n, d = self.devices, self.core.bundle.manifest.d
        vectors = self.rng.normal(0, 1, (n, d)).astype(np.float32)
        candidates = [self.rng.permutation(ITEMS)[:CANDIDATES] for _ in range(n)]
        as_of = self.records["count"].copy()
        times, asked = self.records["last_time_ms"].copy(), np.zeros(n, np.int64)
        self.records, fate = self.core.apply_embeddings(
            self.records, np.full(n, arm), vectors, as_of, times, asked, candidates, 0
        )
        assert not fate.any()


def run(benchmark: BenchmarkFixture, stream: Stream, rounds: int) -> np.ndarray:
    """Seconds of each round, one step a round."""
    result = benchmark.pedantic(
        stream.step, setup=lambda: ((stream.wave(),), {}), rounds=rounds, iterations=1, warmup_rounds=20
    )
    assert result.served.all()
    assert (result.staleness < 1).all()
    return np.array(benchmark.stats.stats.data)


@pytest.mark.parametrize("runtime", ["onnx", "numpy"])
@pytest.mark.parametrize(
    ("ranking", "arms"),
    [
        ("candidates", ("every-n:n=10",)),
        ("catalogue", ("every-n:n=10",)),
        ("catalogue", ("never:initial=true", "every-n:n=10", "drift:rate=0.1")),
    ],
    ids=["candidates-1-arm", "catalogue-1-arm", "catalogue-3-arms"],
)
def test_waves_of_256(
    benchmark: BenchmarkFixture, bundle_path: Path, ranking: Mode, arms: tuple[str, ...], runtime: Runtime
) -> None:
    seconds = run(benchmark, Stream(bundle_path, 256, arms, ranking, runtime), rounds=100)
    rate = 256 / np.quantile(seconds, 0.1)
    benchmark.extra_info["device_steps_per_s"] = round(rate)
    if len(arms) == 1 and ranking == "candidates":
        assert rate >= STEPS_PER_SECOND


@pytest.mark.parametrize("runtime", ["onnx", "numpy"])
def test_single_step(benchmark: BenchmarkFixture, bundle_path: Path, runtime: Runtime) -> None:
    seconds = run(benchmark, Stream(bundle_path, 1, ("every-n:n=10",), "candidates", runtime), rounds=3000)
    p50, p99 = np.quantile(seconds, [0.5, 0.99])
    benchmark.extra_info |= {
        "min_us": round(seconds.min() * 1e6, 1),
        "p50_us": round(p50 * 1e6, 1),
        "p99_us": round(p99 * 1e6, 1),
    }
    if runtime == "onnx":
        assert p50 <= SINGLE_P50_S
        assert p99 < SINGLE_P99_S
