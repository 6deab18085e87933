"""SASRec on the device computes what torch's computes, from the record's ring, and the same bits for any wave."""

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
from device_agent.sasrec import Sasrec
from device_agent.srm import make_srm
from streams.errors import BundleError
from streams.experiment.arms import parse_arm
from tests.bundles import make_bundle
from tests.device_agent.core_helpers import assert_waves_do_not_matter, make_wave

ITEMS = 60
SHAPES = ((8, 6), (64, 50), (33, 9), (100, 70), (16, 1))
"""Dimensions and windows: the usual one, a product that has to be cut for one thread, a window of one."""


@cache
def bundle(dim, window):
    with tempfile.TemporaryDirectory() as folder:
        return make_bundle(
            Path(folder) / "b", n_items=ITEMS, d=8, text_dim=8, srm_dim=dim, window=window, srm="sasrec", seed=dim
        )


@cache
def sasrec(dim, window):
    return Sasrec(bundle(dim, window).device)


def rings(rng, rows, window, longest):
    """(B, W) rings that hold what was taken last, (B,) how much had gone in before it, and the windows themselves."""
    ring, before, windows = np.zeros((rows, window), np.int32), rng.integers(0, longest, rows), []
    for row, many in enumerate(before):
        items = rng.integers(0, ITEMS, many + 1)
        ring[row, np.arange(many + 1) % window] = items
        windows.append(items[-window:])
    return ring, before, windows


def states(dim, window, ring, before):
    return sasrec(dim, window).step(np.zeros((len(ring), dim), np.float32), ring[:, 0], ring, before)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(SHAPES), st.integers(1, 40), st.integers(0, 50), st.integers(1, 130), st.integers(0, 2**32 - 1))
def test_a_device_has_the_same_bits_in_any_wave(shape, size, start, longest, seed):
    rng, (dim, window) = np.random.default_rng(seed), shape
    ring, before, _ = rings(rng, 90, window, longest)
    whole = states(dim, window, ring, before)
    part = slice(start, start + size)
    assert states(dim, window, ring[part], before[part]).tobytes() == whole[part].tobytes()
    order = rng.permutation(90)
    assert states(dim, window, ring[order], before[order]).tobytes() == whole[order].tobytes()
    record = np.zeros(1, [("pad", "u1", (3,)), ("ring", "i4", (window,)), ("more", "u1", (6,))])  # as in a record
    record["ring"] = ring[start]
    assert states(dim, window, record["ring"], before[start : start + 1]).tobytes() == whole[start].tobytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_number_of_threads_has_no_say(shape):
    limits = pytest.importorskip("threadpoolctl").threadpool_limits
    ring, before, _ = rings(np.random.default_rng(1), 70, shape[1], 200)
    with limits(1):
        alone = states(*shape, ring, before)
    with limits(4):
        assert states(*shape, ring, before).tobytes() == alone.tobytes()


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(SHAPES), st.integers(1, 20), st.integers(1, 130), st.integers(0, 2**32 - 1))
def test_the_state_is_torchs(shape, rows, longest, seed):
    torch = pytest.importorskip("torch")
    from cloud_worker.training.srm import Sasrec as Trained

    dim, window = shape
    ring, before, windows = rings(np.random.default_rng(seed), rows, window, longest)
    padded = np.full((rows, window), -1)
    for row, items in zip(padded, windows, strict=True):
        row[: len(items)] = items
    with torch.no_grad():
        model = Trained.from_tensors(bundle(dim, window).device)
        theirs = model.after(torch.zeros(rows, dim), torch.from_numpy(padded)).numpy()
    assert np.abs(states(dim, window, ring, before) - theirs).max() < 1e-4


def test_what_left_the_window_has_no_say_and_the_order_in_it_does():
    dim, window = 64, 50
    items = np.random.default_rng(0).permutation(np.resize(np.arange(ITEMS), 80))
    core = DeviceCore(bundle(dim, window), [parse_arm("never")])

    def after(taken):
        records = core.layout.new(1)
        for nth, item in enumerate(taken):
            records = core.step(records, make_wave([item], nth, first_offset=nth)).records
        return records["srm_hidden"][0].copy()

    own = after(items)
    assert after(np.concatenate([items[:30][::-1], items[30:]])).tobytes() == own.tobytes()
    assert np.abs(after(np.concatenate([items[:30], items[30:][::-1]])) - own).max() > 1e-3


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_a_replay_in_other_waves_gives_the_same_records(seed, devices):
    """Among items of the bundle some that it does not know, which leave the state alone."""
    core = DeviceCore(bundle(8, 6), [parse_arm("never")])
    assert_waves_do_not_matter(core, ITEMS, np.random.default_rng(seed), devices)


def test_weights_with_which_the_state_could_be_no_number_are_refused():
    good = bundle(8, 6)
    for name in ("srm.blocks.0.query.weight", "srm.positions", "srm.blocks.1.feed.2.weight", "srm.last_norm.weight"):
        wild = replace(good, device=dict(good.device) | {name: good.device[name] * np.float32(1e38)})
        with pytest.raises(BundleError, match="overflow"):
            DeviceCore(wild, [parse_arm("never")])
    assert isinstance(make_srm(good), Sasrec)
