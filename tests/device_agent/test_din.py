"""DIN on the device: its states are what the definition says, and torch's, and the same bits for any wave."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.agent import DeviceCore
from device_agent.din import Din
from device_agent.srm import largest_state, make_srm
from streams.bundle import DIN_PARTS
from streams.errors import BundleError
from streams.experiment.arms import parse_arm
from tests.bundles import din_parts, make_bundle
from tests.device_agent.core_helpers import assert_waves_do_not_matter

ITEMS = 60
DIMS = (2, 8, 64, 100)


@cache
def bundle(dim):
    with tempfile.TemporaryDirectory() as folder:
        return make_bundle(
            Path(folder) / "b", n_items=ITEMS, d=8, text_dim=8, srm_dim=dim, window=6, srm="din", seed=dim
        )


def step(dim, hidden, items):
    """A DIN does not look at the history."""
    nothing = np.zeros((len(items), 0), np.int32)
    return Din(bundle(dim).device).step(hidden, items, nothing, np.zeros(len(items), np.int64))


def run(dim, items):
    """(B, L, h) states after each of items (B, L)."""
    states = [np.zeros((len(items), dim), np.float32)]
    for column in items.T:
        states.append(step(dim, states[-1], column))
    return np.stack(states[1:], axis=1)


@pytest.mark.parametrize("dim", DIMS)
def test_scores_are_attention_over_the_history_given_the_candidate(dim):
    """Σ over the history of a(j, i) x_j · e_i, interaction by interaction and candidate by candidate."""
    tensors = {name: each.astype(np.float64) for name, each in bundle(dim).device.items()}
    x, taken, candidate = din_parts(tensors)
    decays = tensors["srm.decay"].reshape(DIN_PARTS, -1)[:, 0]
    history = np.random.default_rng(dim).integers(0, ITEMS, 25)
    state = run(dim, history[None])[0, -1]
    scores = tensors["srm.item_out"] @ state + tensors["srm.bias_out"]
    for one in range(ITEMS):
        interest = np.zeros(dim // DIN_PARTS)
        for age, item in enumerate(history[::-1]):
            share = (1 - decays) * decays**age
            interest += (share * taken[item] * candidate[one]).sum() * x[item]
        wanted = interest @ tensors["srm.items"][one] + tensors["srm.bias_out"][one]
        assert scores[one] == pytest.approx(wanted, abs=1e-5)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(DIMS), st.integers(1, 60), st.integers(0, 50), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_row_has_the_same_bits_in_any_batch(dim, size, start, in_records, seed):
    rng = np.random.default_rng(seed)
    hidden, items = rng.normal(0, 1, (120, dim)).astype(np.float32), rng.integers(0, ITEMS, 120)
    whole, some = step(dim, hidden, items), slice(start, start + size)
    part = hidden[some]
    if in_records:  # as it lies in device records: rows far apart
        records = np.zeros(size, [("before", "i8"), ("hidden", "f4", (dim,)), ("after", "u1", (3,))])
        records["hidden"] = part
        part = records["hidden"]
    assert step(dim, part, items[some]).tobytes() == whole[some].tobytes()
    order = rng.permutation(120)
    assert step(dim, hidden[order], items[order]).tobytes() == whole[order].tobytes()


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(DIMS), st.integers(1, 20), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_the_states_are_torchs(dim, rows, longest, seed):
    """Whether torch has the whole history at once or an item and the state before it."""
    torch = pytest.importorskip("torch")
    from cloud_worker.training.srm import Din as Trained

    items = np.random.default_rng(seed).integers(0, ITEMS, (rows, longest))
    model, ours, taken = Trained.from_tensors(bundle(dim).device), run(dim, items), torch.from_numpy(items)
    with torch.no_grad():
        theirs = model.before_each(taken, taken, model.table(), None)[1].numpy()
        before = torch.from_numpy(ours[:, -2] if longest > 1 else np.zeros((rows, dim), np.float32))
        one = model.after(before, taken[:, -6:]).numpy()
        table = model.table().numpy()
    assert np.abs(ours - theirs).max() < 1e-4
    assert np.abs(ours[:, -1] - one).max() < 1e-5
    assert np.abs(table - bundle(dim).device["srm.item_out"]).max() < 1e-5


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_a_replay_in_other_waves_gives_the_same_records(seed, devices):
    """Among items of the bundle some that it does not know, which leave the state alone."""
    core = DeviceCore(bundle(8), [parse_arm("never")])
    assert_waves_do_not_matter(core, ITEMS, np.random.default_rng(seed), devices)


def test_no_history_leads_out_of_the_bound_that_the_graph_is_checked_with():
    items = np.repeat(np.arange(ITEMS)[:, None], 400, axis=1)  # the same item again and again: as far as it gets
    assert np.abs(run(8, items)).max() <= largest_state(bundle(8)) * 1.0001


def test_a_decay_with_which_the_state_would_grow_is_refused():
    good = bundle(8)
    for wrong in (1.001, -0.1):
        decay = good.device["srm.decay"].copy()
        decay[3] = wrong
        with pytest.raises(BundleError, match="grow"):
            DeviceCore(replace(good, device=dict(good.device) | {"srm.decay": decay}), [parse_arm("never")])
    assert isinstance(make_srm(good), Din)
