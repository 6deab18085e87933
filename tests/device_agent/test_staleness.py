"""The signals say what their table says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.signals import SignalWriter, inverse_norms, recent_of_window, unit_vectors, write_age
from device_agent.staleness import (
    AGREEMENT,
    CLOUD_DEVIATION,
    COS_LAST,
    COS_RECENT,
    LOG_AGE,
    LOG_COUNT,
    LOG_GAP,
    SPREAD,
    SRM_DEVIATION,
    SURPRISE,
    StalenessModel,
)
from streams.bundle import PHI
from streams.errors import BundleError
from tests.device_agent.core_helpers import small_bundle

BUNDLE = small_bundle()
DIRECTIONS = unit_vectors(BUNDLE.device["item_vectors"])
WRITER = SignalWriter(BUNDLE)


def signals(e, taken, *, gap=None, age_ms=0, decay=0.8, hidden=None):
    total, norm = np.zeros(DIRECTIONS.shape[1], np.float32), np.float32(0)
    for item in taken:
        total, norm = total * np.float32(decay) + DIRECTIONS[item], norm * np.float32(decay) + np.float32(1)
    phi = np.full((1, 1, len(PHI)), np.nan, np.float32)
    e = np.asarray(e, np.float32)[None]
    WRITER.write_embedded(phi[:, 0], e)
    WRITER.write(
        phi,
        embedding=e[None],
        inverse_norm=inverse_norms(e)[None],
        mean=(total / max(norm, 1))[None, None].astype(np.float32),
        norm=np.float32(norm).reshape(1, 1),
        gap=np.array([[len(taken) if gap is None else gap]]),
        last_item=np.array(taken[-1:] or [-1], np.int32),
        hidden=np.zeros((1, 8), np.float32) if hidden is None else np.asarray(hidden, np.float32)[None],
        count=np.array([len(taken)]),
    )
    write_age(phi, np.array([[age_ms]]))
    return phi[0, 0]


def test_fresh_embedding_has_no_drift_no_gap_no_spread():
    phi = signals(DIRECTIONS[3] * 5, [])
    assert phi[[COS_RECENT, COS_LAST, LOG_GAP, LOG_AGE, SPREAD]].tolist() == [1, 0, 0, 0, 0]


def test_taking_what_the_embedding_points_at_is_no_drift():
    phi = signals(DIRECTIONS[3] * 5, [3, 3])
    assert np.allclose(phi[[COS_RECENT, COS_LAST, SPREAD]], [1, 1, 0], atol=1e-6)
    assert np.isclose(phi[LOG_GAP], np.log(3))


def test_newer_interactions_weigh_more():
    toward, away = signals(DIRECTIONS[3], [9, 3]), signals(DIRECTIONS[3], [3, 9])
    assert toward[COS_RECENT] > away[COS_RECENT]
    assert toward[SPREAD] > 0


def test_age_is_in_hours():
    assert np.isclose(signals(DIRECTIONS[0], [1], age_ms=3_600_000)[LOG_AGE], np.log(2))


def test_signals_over_the_catalogue_are_those_of_all_its_scores():
    rng, t = np.random.default_rng(1), {name: each.astype(np.float64) for name, each in BUNDLE.device.items()}
    for taken in ([3], [5, 9], [8, 1, 30]):
        e, h = rng.normal(0, 1, 16).astype(np.float32), rng.uniform(-1, 1, 8).astype(np.float32)
        phi = signals(e, taken, hidden=h)
        cloud, srm = t["item_vectors"] @ e + t["item_bias"], t["srm.item_out"] @ h + t["srm.bias_out"]
        assert np.isclose(phi[AGREEMENT], np.corrcoef(cloud, srm)[0, 1], atol=1e-5)
        assert np.allclose(phi[[CLOUD_DEVIATION, SRM_DEVIATION]], np.log([cloud.std(), srm.std()]), atol=1e-5)
        assert np.isclose(phi[SURPRISE], (cloud[taken[-1]] - cloud.mean()) / cloud.std(), atol=1e-5)
        assert np.isclose(phi[LOG_COUNT], np.log(1 + len(taken)))


def test_nothing_surprises_on_a_device_without_a_history():
    assert signals(DIRECTIONS[3], [])[SURPRISE] == 0


@pytest.mark.parametrize("tensor", ["item_vectors", "item_bias", "srm.item_out", "srm.bias_out"])
def test_a_bundle_whose_signals_would_overflow_is_refused(tensor):
    huge = replace(BUNDLE, device={**BUNDLE.device, tensor: BUNDLE.device[tensor] * np.float32(1e30)})
    with pytest.raises(BundleError, match=r"so large that scores would overflow"):
        SignalWriter(huge)


def test_a_bundle_with_a_scale_of_zero_is_refused():
    scale = np.array([1] * (len(PHI) - 1) + [0], np.float32)
    with pytest.raises(BundleError, match=r"phi\.scale"):
        SignalWriter(replace(BUNDLE, device={**BUNDLE.device, "phi.scale": scale}))


def test_scores_that_do_not_differ_make_no_nan():
    flat = {name: np.full_like(BUNDLE.device[name], 0.25) for name in ("item_vectors", "item_bias", "srm.item_out")}
    writer = SignalWriter(replace(BUNDLE, device={**BUNDLE.device, **flat, "srm.bias_out": np.zeros(40, np.float32)}))
    phi, e = np.zeros((1, 1, len(PHI)), np.float32), np.ones((1, 16), np.float32)
    writer.write_embedded(phi[:, 0], e)
    one = np.ones(1, np.int64)
    told = {"gap": one[:, None], "last_item": one.astype(np.int32), "hidden": np.ones((1, 8), np.float32), "count": one}
    norm = np.ones((1, 1), np.float32)
    writer.write(phi, embedding=e[None], inverse_norm=norm / 4, mean=e[None] / 4, norm=norm, **told)
    assert np.isfinite(phi).all()
    assert np.allclose(phi[0, 0, [CLOUD_DEVIATION, SRM_DEVIATION]], np.log(1e-6))


def test_zero_embedding_and_zero_items_make_no_nan():
    assert np.isfinite(signals(np.zeros(16), [1])).all()
    assert np.isfinite(unit_vectors(np.zeros((2, 4), np.float32))).all()


@given(st.lists(st.floats(-50, 50, width=32), min_size=len(PHI), max_size=len(PHI)))
def test_staleness_is_a_share_none_of_a_fresh_embedding_and_one_without(values):
    model = StalenessModel(BUNDLE.device)
    s = model(np.array([values] * 3, np.float32), np.array([1, 0, -1]))
    assert s.dtype == np.float32
    assert np.array_equal(model(np.array([values], np.float32), np.array([1])), s[:1])
    assert 0 <= s[0] <= 1
    assert s[1:].tolist() == [0, 1]


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_mean_from_the_window_is_that_of_one_by_one(length, gap, seed):
    window = 6
    items = np.random.default_rng(seed).integers(0, 40, length)
    ring = np.zeros((1, window), np.int32)
    for position, item in enumerate(items):
        ring[0, position % window] = item
    mean, norm = recent_of_window(ring, np.array([length]), np.array([gap]), DIRECTIONS, 0.8)
    kept = items[max(0, length - min(gap, window)) :]
    want, weight = np.zeros(16), 0.0
    for item in kept:
        want, weight = want * 0.8 + DIRECTIONS[item], weight * 0.8 + 1
    assert np.allclose(mean[0], want / max(weight, 1), atol=1e-6)
    assert np.isclose(norm[0], weight, atol=1e-6)
