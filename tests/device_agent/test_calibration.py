"""Calibration leaves a fresh embedding alone, and otherwise computes the stated formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.calibration import Calibrator
from streams.bundle import PHI
from tests.device_agent.core_helpers import small_bundle

TENSORS = small_bundle().device
D, H, P = 16, 8, len(PHI)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(0.01, 100))
def test_fresh_embedding_is_left_alone(seed, rows, size):
    rng = np.random.default_rng(seed)
    e, m = (rng.normal(0, size, (rows, D)).astype(np.float32) for _ in range(2))
    phi = rng.normal(0, size, (rows, P)).astype(np.float32)
    h = rng.uniform(-1, 1, (rows, H)).astype(np.float32)
    assert np.array_equal(Calibrator(TENSORS)(e, m, h, phi, np.zeros(rows, np.int64)), e)


@pytest.mark.parametrize("tau", [0.05, 2.5, 40.0])
def test_the_trained_calibrator_computes_the_same_on_the_device(tau):
    torch = pytest.importorskip("torch")
    from cloud_worker.training.calibrator import Calibrator as Trained

    rng, rows = np.random.default_rng(0), 30
    scale = rng.uniform(0.5, 2, P).astype(np.float32)
    mean = rng.normal(0, 1, P).astype(np.float32)
    torch.manual_seed(0)
    model = Trained(D, H, 24, tau=tau)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # to use the curved parts
    e, m = (rng.normal(0, 1, (rows, D)).astype(np.float32) for _ in range(2))
    h, phi = rng.uniform(-1, 1, (rows, H)).astype(np.float32), rng.normal(0, 1, (rows, P)).astype(np.float32)
    gap = np.arange(rows) ** 2  # far beyond the largest τ
    given_to_torch = (e, m, h, (phi - mean) / scale, gap.astype(np.float32))
    with torch.no_grad():
        theirs = model(*(torch.from_numpy(each) for each in given_to_torch)).numpy()
    ours = Calibrator(model.tensors() | {"phi.mean": mean, "phi.scale": scale})(e, m, h, phi, gap)
    assert np.abs(theirs - e)[gap > 0].mean() > 0.1  # it does something
    assert np.abs(ours - theirs).max() < 1e-5
