"""The signals say what their table says."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.staleness import (
    COS_LAST,
    COS_RECENT,
    LOG_AGE,
    LOG_GAP,
    SPREAD,
    StalenessModel,
    inverse_norms,
    recent_of_window,
    unit_vectors,
    write_age,
    write_signals,
)
from tests.device_agent.core_helpers import small_bundle

BUNDLE = small_bundle()
DIRECTIONS = unit_vectors(BUNDLE.device["item_vectors"])


def signals(e, taken, *, gap=None, age_ms=0, decay=0.8):
    total, norm = np.zeros(DIRECTIONS.shape[1], np.float32), np.float32(0)
    for item in taken:
        total, norm = total * np.float32(decay) + DIRECTIONS[item], norm * np.float32(decay) + np.float32(1)
    phi = np.full((1, 1, 5), np.nan, np.float32)
    e = np.asarray(e, np.float32)[None]
    write_signals(
        phi,
        embedding=e[None],
        inverse_norm=inverse_norms(e)[None],
        mean=(total / max(norm, 1))[None, None].astype(np.float32),
        norm=np.float32(norm).reshape(1, 1),
        last=DIRECTIONS[taken[-1:]] if taken else np.zeros((1, DIRECTIONS.shape[1]), np.float32),
        gap=np.array([[len(taken) if gap is None else gap]]),
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


def test_zero_embedding_and_zero_items_make_no_nan():
    assert np.isfinite(signals(np.zeros(16), [1])).all()
    assert np.isfinite(unit_vectors(np.zeros((2, 4), np.float32))).all()


@given(st.lists(st.floats(-50, 50, width=32), min_size=5, max_size=5))
def test_staleness_is_a_share_and_one_without_an_embedding(values):
    model = StalenessModel(BUNDLE.device)
    s = model(np.array([values, values], np.float32), np.array([True, False]))
    assert np.array_equal(model(np.array([values], np.float32)), s[:1])
    assert 0 <= s[0] <= 1
    assert s[1] == 1


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
