"""A device computes the signals, and the staleness, that the models were trained with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.agent import APPLIED
from device_agent.signals import write_age
from device_agent.staleness import StalenessModel
from device_agent.worth import WorthModel
from streams.bundle import PHI
from tests.device_agent.core_helpers import embed, make_core, make_wave, small_bundle

pytest.importorskip("torch")

from cloud_worker.training.data import Histories
from cloud_worker.training.signal_head import SignalHead
from cloud_worker.training.signals import Spaces, recent_means, signals, unit_vectors

USERS, LENGTH = 5, 12
BUNDLE = small_bundle()
UNIT = unit_vectors(BUNDLE.device["item_vectors"])
SPACES = Spaces.of(*(BUNDLE.device[name] for name in ("item_vectors", "item_bias", "srm.item_out", "srm.bias_out")))


def random_histories(rng):
    n = USERS * LENGTH
    return Histories(
        n_items=BUNDLE.manifest.n_items,
        starts=np.arange(USERS + 1) * LENGTH,
        items=rng.integers(0, BUNDLE.manifest.n_items, n),
        times_ms=np.sort(rng.integers(0, 10**9, (USERS, LENGTH)), axis=1).reshape(-1),
        order=np.arange(n),
        trained=np.full(USERS, LENGTH),
        users=np.array([f"u{each}" for each in range(USERS)]),
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, LENGTH - 1), st.integers(0, 8), st.sampled_from([0.3, 1, 8]))
def test_signals_at_serving_are_those_of_training(seed, fresh, gap, size):
    """The embedding is asked for at position `stale` and arrives at once; position `fresh` is served."""
    rng = np.random.default_rng(seed)
    histories, stale = random_histories(rng), max(1, fresh - gap)
    embeddings = rng.normal(0, size, (USERS, BUNDLE.manifest.d)).astype(np.float16).astype(np.float32)
    core = make_core("never", "never")
    records = core.layout.new(USERS)
    items, times = (each.reshape(USERS, LENGTH) for each in (histories.items, histories.times_ms))
    for position in range(fresh):
        wave = make_wave(
            items[:, position],
            times[:, position],
            offsets=np.full(USERS, position),
            hashes=np.arange(1, USERS + 1) + USERS * position,
        )
        records = core.step(records, wave).records
        if position == stale - 1:
            records, fate = core.apply_embeddings(
                records,
                np.ones(USERS, np.int64),
                embeddings,
                np.full(USERS, stale),
                times[:, position],
                np.zeros(USERS, np.int64),
                np.zeros((USERS, 0), np.int64),
                0,
            )
            assert (fate == APPLIED).all()
    phi = records["arm"]["phi"].copy()
    write_age(phi, times[:, fresh, None] - records["arm"]["embedded_time_ms"])

    users, at_stale, at_fresh = (np.full(USERS, each) for each in (0, stale, fresh))
    users += np.arange(USERS)
    means = recent_means(histories, users, at_stale, at_fresh, UNIT, BUNDLE.manifest.recency_decay)
    want = signals(histories, users, at_stale, at_fresh, embeddings, records["srm_hidden"], means, UNIT, SPACES)
    assert np.abs(phi[:, 1] - want).max() < 1e-4
    assert not phi[:, 0, [i for i in range(len(PHI)) if PHI[i] != "log_age"]].any()  # the arm without an embedding


def test_a_late_embedding_has_them_too():
    """It arrives three interactions after it was asked for: the signals are computed then, not when it was made."""
    rng = np.random.default_rng(0)
    histories, core = random_histories(rng), make_core("never")
    e = rng.normal(0, 1, BUNDLE.manifest.d).astype(np.float16).astype(np.float32)
    records, (items, times) = core.layout.new(1), (each[:LENGTH] for each in (histories.items, histories.times_ms))
    for position in range(6):
        records = core.step(records, make_wave(items[position], times[position], first_offset=position)).records
    records, _ = embed(core, records, e, 3, event_time_ms=times[2])
    one = np.zeros(1, np.int64)
    means = recent_means(histories, one, one + 3, one + 6, UNIT, BUNDLE.manifest.recency_decay)
    want = signals(histories, one, one + 3, one + 6, e[None], records["srm_hidden"], means, UNIT, SPACES)
    phi = records["arm"]["phi"][0].copy()
    write_age(phi, times[6:7] - times[2:3])
    assert np.abs(phi - want).max() < 1e-4


def test_the_trained_heads_say_the_same_on_the_device():
    import torch

    rng = np.random.default_rng(0)
    mean, scale = rng.normal(0, 1, len(PHI)).astype(np.float32), rng.uniform(0.5, 2, len(PHI)).astype(np.float32)
    torch.manual_seed(0)
    head = SignalHead(8)
    head.rescale(4.0, -0.5)
    phi = rng.normal(0, 2, (50, len(PHI))).astype(np.float32)
    values = head.values((phi - mean) / scale)
    tensors = head.tensors("staleness") | head.tensors("worth") | {"phi.mean": mean, "phi.scale": scale}
    want = 1 / (1 + np.exp(-values))
    assert np.ptp(want) > 0.2
    assert np.abs(StalenessModel(tensors)(phi, np.ones(50, np.int64)) - want).max() < 1e-5
    assert np.abs(WorthModel(tensors)(phi, np.ones(50, np.int64)) - values).max() < 1e-5
