"""Calibration leaves a fresh embedding alone, and otherwise computes the stated formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.calibration import Calibrator
from tests.device_agent.core_helpers import small_bundle

TENSORS = small_bundle().device
D = 16


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(0.01, 100))
def test_fresh_embedding_is_left_alone(seed, rows, size):
    rng = np.random.default_rng(seed)
    e, m = (rng.normal(0, size, (rows, D)).astype(np.float32) for _ in range(2))
    phi = rng.normal(0, size, (rows, 5)).astype(np.float32)
    assert np.array_equal(Calibrator(TENSORS)(e, m, phi, np.zeros(rows, np.int64)), e)


def test_same_as_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    tensors = {name: (each * 3 if name.startswith("calibrator") else each) for name, each in TENSORS.items()}
    tensors["phi.scale"] = rng.uniform(0.5, 2, 5).astype(np.float32)
    e, m = (rng.normal(0, 1, (30, D)).astype(np.float32) for _ in range(2))
    phi, gap = rng.normal(0, 1, (30, 5)).astype(np.float32), np.arange(30)
    t = {name: torch.from_numpy(np.asarray(each, np.float32)) for name, each in tensors.items()}
    standard = (torch.from_numpy(phi) - t["phi.mean"]) / t["phi.scale"]
    x = torch.cat([torch.from_numpy(e), torch.from_numpy(m), standard], dim=1)
    gate = torch.sigmoid(x @ t["calibrator.gate.weight"].T + t["calibrator.gate.bias"])
    mlp = torch.nn.functional.gelu(x @ t["calibrator.mlp.0.weight"].T + t["calibrator.mlp.0.bias"])
    mlp = mlp @ t["calibrator.mlp.2.weight"].T + t["calibrator.mlp.2.bias"]
    closing = (1 - gate) * torch.tanh(torch.from_numpy(gap) / 4)[:, None]
    theirs = torch.from_numpy(e) + closing * (mlp - torch.from_numpy(e))
    assert np.abs(Calibrator(tensors)(e, m, phi, gap) - theirs.numpy()).max() < 1e-5
