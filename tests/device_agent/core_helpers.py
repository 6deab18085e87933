"""Small bundles, random waves and a plain reference for the tests of the core."""

from __future__ import annotations

import math
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from device_agent.agent import DeviceCore, Wave
from device_agent.serving import make_serving
from device_agent.state import digest
from streams.bundle import Bundle
from streams.experiment.arms import parse_arm
from tests.bundles import make_bundle

RUNTIME = ["numpy"]
"""What the models of `make_core` run on, where it is not told."""


@pytest.fixture(params=["numpy", "onnx"], scope="module", autouse=True)
def runtime(request):
    """Imported by a test module, it runs every test of the module with either runtime."""
    if request.param == "onnx":
        pytest.importorskip("onnxruntime")
    RUNTIME[0] = request.param
    yield request.param
    RUNTIME[0] = "numpy"


@cache
def small_bundle(*, exclude_seen: bool = True, n_items: int = 40, seed: int = 0, srm: str = "gru4rec") -> Bundle:
    with tempfile.TemporaryDirectory() as folder:
        return make_bundle(
            Path(folder) / "bundle",
            n_items=n_items,
            d=16,
            srm_dim=8,
            window=6,
            exclude_seen=exclude_seen,
            seed=seed,
            text_dim=8,
            srm=srm,
        )


def make_core(*arms: str, exclude_seen: bool = True, seed: int = 0, **options) -> DeviceCore:
    options = {"list_length": 5, "candidates": 12, "deadline_ms": 1000, "runtime": RUNTIME[0], **options}
    runtime, bundle = options.pop("runtime"), small_bundle(exclude_seen=exclude_seen, seed=seed)
    serving = {name: options[name] for name in ("ranking", "list_length", "candidates") if name in options}
    return DeviceCore(
        bundle,
        [parse_arm(arm) for arm in arms or ("never",)],
        serving=make_serving(bundle, runtime, **serving),
        **options,
    )


def make_wave(items, times_ms, *, first_offset=0, now_ms=0, serve=True, hashes=None, offsets=None, arms_active=None):
    items = np.atleast_1d(np.asarray(items, np.int32))
    n = len(items)
    offsets = np.arange(first_offset, first_offset + n) if offsets is None else np.asarray(offsets)
    return Wave(
        items=items,
        times_ms=np.broadcast_to(np.asarray(times_ms, np.int64), n).copy(),
        hashes=(offsets + 1).astype(np.uint64) if hashes is None else np.asarray(hashes, np.uint64),
        offsets=offsets.astype(np.int64),
        serve=np.broadcast_to(np.asarray(serve), n).copy(),
        now_ms=now_ms,
        arms_active=arms_active,
    )


def assert_waves_do_not_matter(core, n_items, rng, devices):
    """Devices with random histories have the same records, however their events were cut into waves."""
    streams = [rng.integers(-1, n_items, rng.integers(1, 20)) for _ in range(devices)]

    def replay(cut):
        records, done = core.layout.new(devices), np.zeros(devices, np.int64)
        while (left := np.flatnonzero(done < [len(each) for each in streams])).size:
            rows = left if cut is None else cut.permutation(left)[: cut.integers(1, len(left) + 1)]
            items = [streams[row][done[row]] for row in rows]
            wave = make_wave(items, done[rows], offsets=done[rows])
            core.layout.put(records, rows, core.step(core.layout.take(records, rows), wave).records)
            done[rows] += 1
        return digest(records)

    assert replay(None) == replay(rng)


def embed(core, records, vectors, as_of, *, arm=0, event_time_ms=0, requested_at_ms=0, candidates=None, now_ms=0):
    """Apply one embedding to each record; scalars count for all of them."""
    n = len(records)
    if candidates is None:
        candidates = [np.arange(core.layout.candidates)] * n
    return core.apply_embeddings(
        records,
        np.full(n, arm),
        np.broadcast_to(np.asarray(vectors, np.float32), (n, core.bundle.manifest.d)),
        np.broadcast_to(np.asarray(as_of, np.int64), n),
        np.full(n, event_time_ms),
        np.full(n, requested_at_ms),
        candidates,
        now_ms,
    )


class PlainDevice:
    """One device and one arm, written plainly in float64 from the formulas: what the core is compared with."""

    def __init__(self, bundle: Bundle) -> None:
        self.t = {name: tensor.astype(np.float64) for name, tensor in bundle.device.items()}
        self.bundle = bundle
        self.h = np.zeros(bundle.manifest.srm_dim)
        self.items: list[int] = []
        self.since: list[int] = []
        self.count = 0
        self.e = None
        self.as_of = -1
        self.embedded_ms = 0

    def embed(self, vector, event_time_ms) -> None:
        self.e = vector.astype(np.float16).astype(np.float64)
        self.as_of, self.embedded_ms, self.since = self.count, event_time_ms, []

    def unit(self, item):
        v = self.t["item_vectors"][item]
        return v / np.linalg.norm(v)

    def mean(self):
        weights = [self.bundle.manifest.recency_decay**j for j in range(len(self.since))]
        return sum(w * self.unit(i) for w, i in zip(weights, reversed(self.since), strict=True)) / sum(weights)

    def phi(self, now_ms):
        gap, age_h = self.count - self.as_of, max(now_ms - self.embedded_ms, 0) / 3.6e6
        m = self.mean() if self.since else None
        cos = 1.0 if m is None else self.e @ m / np.linalg.norm(self.e) / np.linalg.norm(m)
        last = self.e @ self.unit(self.items[-1]) / np.linalg.norm(self.e) if self.items else 0.0
        spread = 0.0 if m is None else 1 - np.linalg.norm(m)
        cloud = self.t["item_vectors"] @ self.e + self.t["item_bias"]
        srm = self.t["srm.item_out"] @ self.h + self.t["srm.bias_out"]
        surprise = (cloud[self.items[-1]] - cloud.mean()) / cloud.std() if self.items else 0.0
        over_the_catalogue = [np.corrcoef(cloud, srm)[0, 1], math.log(cloud.std()), math.log(srm.std()), surprise]
        return np.array(
            [cos, last, math.log1p(gap), math.log1p(age_h), spread, *over_the_catalogue, math.log1p(self.count)]
        )

    def staleness(self, now_ms):
        t = self.t
        if self.count == self.as_of:
            return 0.0
        phi = (self.phi(now_ms) - t["phi.mean"]) / t["phi.scale"]
        inner = np.tanh(t["staleness.0.weight"] @ phi + t["staleness.0.bias"])
        return 1 / (1 + math.exp(-(t["staleness.2.weight"][0] @ inner + t["staleness.2.bias"][0])))

    def calibrated(self, now_ms):
        t = self.t
        phi = (self.phi(now_ms) - t["phi.mean"]) / t["phi.scale"]
        m = self.mean() if self.since else np.zeros_like(self.e)
        x = np.concatenate([self.e, m, self.h, phi])
        gate = 1 / (1 + np.exp(-(t["calibrator.gate.weight"] @ x + t["calibrator.gate.bias"])))
        z = t["calibrator.mlp.0.weight"] @ x + t["calibrator.mlp.0.bias"]
        gelu = z * 0.5 * (1 + np.array([math.erf(each / math.sqrt(2)) for each in z]))
        mlp = t["calibrator.mlp.2.weight"] @ gelu + t["calibrator.mlp.2.bias"]
        return self.e + (1 - gate) * math.tanh((self.count - self.as_of) / t["calibrator.tau"][0]) * (mlp - self.e)

    def scores(self, now_ms):
        t = self.t

        def z(x):
            return (x - x.mean()) / x.std()

        srm = z(t["srm.item_out"] @ self.h + t["srm.bias_out"])
        if self.e is None:
            return srm
        cloud = z(t["item_vectors"] @ self.calibrated(now_ms) + t["item_bias"])
        s, (fresh, stale) = self.staleness(now_ms), t["fusion.alpha"]
        alpha = (1 - s) * fresh + s * stale
        return alpha * cloud + (1 - alpha) * srm

    def rankable(self):
        seen = set(self.items) if self.bundle.manifest.exclude_seen else set()
        return [i for i in range(self.bundle.manifest.n_items) if i not in seen]

    def rank(self, target, now_ms, among=None):
        """(rank, ranked, scores by item) of the target; rank 0 where it cannot be ranked."""
        scores = self.scores(now_ms)
        pool = [i for i in self.rankable() if among is None or i in among]
        if target not in pool:
            return 0, len(pool), scores
        return sum(scores[i] >= scores[target] for i in pool), len(pool), scores

    def learn(self, item) -> None:
        self.count += 1
        if item < 0:
            return
        t = self.t
        x = t["srm.item_in"][item]
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * t["srm.norm.weight"] + t["srm.norm.bias"]
        gi = t["srm.gru.weight_ih"] @ x + t["srm.gru.bias_ih"]
        gh = t["srm.gru.weight_hh"] @ self.h + t["srm.gru.bias_hh"]
        n = len(self.h)
        r = 1 / (1 + np.exp(-(gi[:n] + gh[:n])))
        u = 1 / (1 + np.exp(-(gi[n : 2 * n] + gh[n : 2 * n])))
        new = np.tanh(gi[2 * n :] + r * gh[2 * n :])
        self.h = (1 - u) * new + u * self.h
        self.items.append(item)
        self.since.append(item)
