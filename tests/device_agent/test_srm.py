"""The SRM computes what torch's GRU computes, and the same bits for any batch."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.gru4rec import Gru4Rec
from tests.bundles import make_bundle

ITEMS = 120


@cache
def tensors(dim):
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder) / "b", n_items=ITEMS, srm_dim=dim, d=8, text_dim=8)
    rng = np.random.default_rng(dim)
    # make_bundle's weights are small; larger ones use the curved parts of the gates.
    return {name: tensor * rng.uniform(1, 5) for name, tensor in bundle.device.items() if name.startswith("srm.")}


@cache
def srm(dim):
    return Gru4Rec(tensors(dim))


def step(srm, hidden, items):
    """A GRU does not look at the history."""
    nothing = np.zeros((len(items), 0), np.int32)
    return srm.step(hidden, items, nothing, np.zeros(len(items), np.int64))


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([1, 7, 33, 64, 65, 100, 128]),
    st.integers(1, 300),
    st.integers(0, 50),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_a_row_has_the_same_bits_in_any_batch(dim, size, start, in_records, seed):
    rng = np.random.default_rng(seed)
    hidden = rng.uniform(-1, 1, (350, dim)).astype(np.float32)
    items = rng.integers(0, ITEMS, 350)
    whole = step(srm(dim), hidden, items)
    part = hidden[start : start + size]
    if in_records:  # as it lies in device records: rows far apart
        records = np.zeros(size, [("before", "i8"), ("hidden", "f4", (dim,)), ("after", "u1", (8,))])
        records["hidden"] = part
        part = records["hidden"]
    assert step(srm(dim), part, items[start : start + size]).tobytes() == whole[start : start + size].tobytes()
    one = step(srm(dim), hidden[start : start + 1], items[start : start + 1])
    assert one.tobytes() == whole[start : start + 1].tobytes()


def torch_run(torch, weights, dim, items):
    t = {name: torch.from_numpy(np.asarray(each, np.float32)) for name, each in weights.items()}
    gru = torch.nn.GRU(dim, dim, batch_first=True)
    with torch.no_grad():
        for ours in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(gru, f"{ours}_l0").copy_(t[f"srm.gru.{ours}"])
        x = torch.nn.functional.layer_norm(t["srm.item_in"], (dim,), t["srm.norm.weight"], t["srm.norm.bias"])
        return gru(x[torch.from_numpy(items)])[0].numpy()


@pytest.mark.parametrize("dim", [8, 64])
def test_a_run_of_steps_is_torchs_gru(dim):
    torch = pytest.importorskip("torch")
    with tempfile.TemporaryDirectory() as folder:
        weights = make_bundle(Path(folder) / "b", n_items=ITEMS, srm_dim=dim, d=8, text_dim=8).device
    items = np.random.default_rng(3).integers(0, ITEMS, (5, 100))
    theirs = torch_run(torch, weights, dim, items)
    hidden, ours = np.zeros((5, dim), np.float32), Gru4Rec(weights)
    for nth in range(items.shape[1]):
        hidden = step(ours, hidden, items[:, nth])
        assert np.abs(hidden - theirs[:, nth]).max() < 1e-5


@pytest.mark.parametrize("dim", [8, 64])
def test_each_step_is_torchs_gru_where_the_gates_are_nearly_shut(dim):
    # Strong weights make the recurrence amplify rounding, torch's as ours, so each step starts from torch's state.
    torch = pytest.importorskip("torch")
    items = np.random.default_rng(3).integers(0, ITEMS, (5, 40))
    theirs = torch_run(torch, tensors(dim), dim, items)
    for nth in range(1, items.shape[1]):
        hidden = step(srm(dim), np.ascontiguousarray(theirs[:, nth - 1]), items[:, nth])
        assert np.abs(hidden - theirs[:, nth]).max() < 1e-5
