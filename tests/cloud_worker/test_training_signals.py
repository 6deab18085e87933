"""What a bundle serves with beside its networks: signals, calibrator, heads and fusion, each by hand or overfitted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cloud_worker.training import calibrator as calibration
from cloud_worker.training import fusion, reliability, signals
from cloud_worker.training.data import make_histories
from cloud_worker.training.metrics import auc, expected_calibration_error
from cloud_worker.training.options import CalibratorOptions, HeadOptions
from streams.bundle import PHI

# --- signals and calibrator


def test_signals_by_hand():
    histories = make_histories(
        np.zeros(4, int), np.array([0, 1, 2, 0]), np.array([0, 0, 3_600_000, 7_200_000]), 3, valid_start_ms=9_000_000
    )
    unit = np.eye(3, dtype=np.float32)
    e = np.array([[1.0, 1.0, 0.0]] * 2, np.float32)
    users, stale, fresh = np.zeros(2, int), np.array([1, 3]), np.array([3, 3])
    means = signals.recent_means(histories, users, stale, fresh, unit, 0.8)
    np.testing.assert_allclose(means, [[0, 0.8 / 1.8, 1 / 1.8], [0, 0, 0]], atol=1e-6)
    hidden = np.array([[1.0], [2.0]], np.float32)
    srm_out = np.array([[3.0], [1.0], [2.0]], np.float32)
    spaces = signals.Spaces.of(unit, np.zeros(3, np.float32), srm_out, np.zeros(3, np.float32))
    phi = signals.signals(histories, users, stale, fresh, e, hidden, means, unit, spaces)
    cosine = 0.8 / np.sqrt(2) / np.hypot(0.8, 1)
    np.testing.assert_allclose(phi[0, :5], [cosine, 0, np.log(3), np.log(3), 1 - np.hypot(0.8, 1) / 1.8], atol=1e-6)
    np.testing.assert_allclose(phi[1, :5], [1, 0, 0, np.log(2), 0], atol=1e-6)
    cloud, srm_scores = e @ unit.T, hidden @ srm_out.T
    for row in range(2):
        wanted = [
            np.corrcoef(cloud[row], srm_scores[row])[0, 1],
            np.log(cloud[row].std()),
            np.log(srm_scores[row].std()),
            (cloud[row, 2] - cloud[row].mean()) / cloud[row].std(),  # item 2 was the last one
            np.log(4),
        ]
        np.testing.assert_allclose(phi[row, 5:], wanted, atol=1e-5)


def _calibration_data(n: int, d: int, gap: int) -> calibration.CalibrationData:
    rng = np.random.default_rng(0)
    stale, means, fresh = (rng.normal(size=(n, d)).astype(np.float32) for _ in range(3))
    phi = rng.normal(size=(n, len(PHI))).astype(np.float32)
    hidden = rng.normal(size=(n, 4)).astype(np.float32)
    return calibration.CalibrationData(stale, means, hidden, phi, np.full(n, gap), fresh, rng.integers(20, size=n))


def test_calibrator_leaves_a_fresh_embedding_alone():
    data = _calibration_data(7, 6, gap=0)
    np.testing.assert_array_equal(calibration.apply(calibration.Calibrator(6, 4, 8, tau=4.0), data), data.stale)


def _losses_of_fitting(data, n_items, options):
    """Of the first batch, and (S, 2) the steps that were told and the mean losses since the step told before."""
    told = []
    for steps in (1, options.steps):
        torch.manual_seed(0)
        rng = np.random.default_rng(1)
        model, vectors = calibration.Calibrator(6, 4, 32, tau=4.0), rng.normal(size=(n_items, 6)).astype(np.float32)
        bias = np.zeros(n_items, np.float32)
        calibration.fit(model, data, vectors, bias, options, steps, rng, lambda *each: told.append(each))
    return told[0][1], np.array(told[1:])


def test_calibrator_overfits_one_batch_towards_the_fresh_embedding():
    options = CalibratorOptions(steps=400, batch=8, learning_rate=2e-2, next_item_weight=0.0)
    first, told = _losses_of_fitting(_calibration_data(8, 6, gap=30), 20, options)
    assert first > 0.5
    assert told[-1, 1] < 0.01


def test_calibrator_compares_a_sample_of_a_large_catalogue():
    options = CalibratorOptions(steps=200, batch=8, learning_rate=2e-2, negatives=10)
    first, told = _losses_of_fitting(_calibration_data(8, 6, gap=30), 20, options)
    assert told[-1, 1] < 0.5 * first


@pytest.mark.parametrize("rows", [3, 8, 21])
def test_a_calibrator_is_trained_for_as_many_steps_however_few_pairs_there_are(rows):
    options = CalibratorOptions(steps=130, batch=8)
    _, told = _losses_of_fitting(_calibration_data(rows, 6, gap=30), 20, options)
    assert told[:, 0].tolist() == [50, 100, 130]


# --- staleness and fusion


def test_calibrator_of_a_bundle_says_the_same():
    torch.manual_seed(0)
    data = _calibration_data(9, 6, gap=5)
    model = calibration.Calibrator(6, 4, 8, tau=4.0)
    again = calibration.Calibrator.from_tensors(model.tensors())
    np.testing.assert_allclose(calibration.apply(again, data), calibration.apply(model, data), atol=1e-5)


def test_staleness_head_is_calibrated_across_users_and_finds_what_decides():
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(6_000, len(PHI))).astype(np.float32)
    truth = 1 / (1 + np.exp(-(2.0 * phi[:, 2] - 1.5 * phi[:, 0] - 0.7)))
    labels = rng.random(6_000) < truth
    gaps = np.where(np.arange(6_000) % 10 == 0, 0, 3)
    found = reliability.fit(phi, gaps, labels & (gaps > 0), np.arange(6_000) // 20, HeadOptions(epochs=15), seed=0)
    assert not found.predicted[gaps == 0].any()
    found, labels, truth = replace(found, predicted=found.predicted[gaps > 0]), labels[gaps > 0], truth[gaps > 0]
    assert auc(found.predicted, labels) > auc(truth, labels) - 0.02
    assert expected_calibration_error(found.predicted, labels) < 0.03
    tensors = found.head.tensors("staleness")
    hidden = np.tanh(phi @ tensors["staleness.0.weight"].T + tensors["staleness.0.bias"])
    logits = hidden @ tensors["staleness.2.weight"][0] + tensors["staleness.2.bias"]
    np.testing.assert_allclose(logits, found.head.values(phi), atol=1e-5)


def test_staleness_head_survives_a_single_class_and_no_moments():
    phi = np.random.default_rng(0).normal(size=(50, len(PHI))).astype(np.float32)
    found = reliability.fit(phi, np.ones(50, int), np.zeros(50, bool), np.arange(50), HeadOptions(epochs=5), seed=0)
    assert np.isfinite(found.predicted).all()
    nothing = reliability.fit(
        phi[:0], np.zeros(0, int), np.zeros(0, bool), np.zeros(0, int), HeadOptions(epochs=5), seed=0
    )
    assert np.isfinite(nothing.head.values(phi)).all()


def test_a_refresh_pays_where_it_lifts_the_item_clearly():
    stale, fresh = np.array([30, 10, 5, 1000, 3, 0]), np.array([10, 30, 5, 900, 2, 0])
    assert reliability.pays(stale, fresh).tolist() == [True, False, False, False, True, False]


def test_fusion_is_z_scores_and_a_constant_has_no_say():
    z = fusion.standardised(np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]], np.float32))
    np.testing.assert_allclose(z, [[-np.sqrt(1.5), 0, np.sqrt(1.5)], [0, 0, 0]], atol=1e-6)


def test_best_alpha_is_the_one_with_the_best_ranks_around_it():
    lucky = np.array([[50, 50], [50, 50], [1, 2], [50, 50], [50, 50], [3, 4], [2, 3], [3, 4], [4, 5]])
    assert fusion.best_alpha(lucky, tuple(range(9))) == 6
    assert fusion.best_alpha(np.array([[1, 2], [1, 2]]), (0.1, 0.2)) == 0.1
    assert fusion.best_alpha(np.zeros((3, 0), int), (0.2, 0.3, 0.4)) == 0.3


@pytest.mark.parametrize("peak", [0.4, 0.6, 1.4, 3.6, 6.4, 6.6, 7.4])
def test_best_alpha_finds_the_top_of_a_smooth_curve_also_near_its_ends(peak):
    firsts = np.rint(5_000 - 60 * np.square(np.arange(8) - peak)).astype(int)
    ranks = np.where(np.arange(10_000) < firsts[:, None], 1, 10**6)
    assert fusion.best_alpha(ranks, tuple(range(8))) == round(min(peak, 7))


def test_of_weights_as_good_as_the_best_one_the_nearest_to_what_is_wanted():
    weights, users = (0.0, 0.1, 0.2, 0.3), np.arange(8)
    a_little_worse = np.array([2, 1, 2, 1, 2, 1, 2, 2])
    ranks = np.array([np.tile([1, 2], 4), a_little_worse, np.full(8, 9), np.tile([1, 2], 4)])

    def nearest(wanted):
        return fusion.as_good_nearest_to(wanted, 0.0, ranks, users, weights)

    assert nearest(0.1) == 0.1, "its loss is noise"
    assert nearest(0.0) == 0.0
    assert nearest(0.22) == 0.3, "0.2 is clearly worse"
    assert fusion.as_good_nearest_to(1.0, 0.1, ranks[:, :0], users[:0], weights) == 0.1


@pytest.mark.parametrize(("for_the_best", "for_the_other", "taken"), [(5, 3, 1.0), (6, 2, 0.0)])
def test_as_good_is_what_loses_no_more_than_one_standard_error(for_the_best, for_the_other, taken):
    """Of eight equal differences five less three lose 2 / √8 = 0.7 standard errors, six less two 4 / √8 = 1.4."""
    says = np.repeat([1, 2], [for_the_best, for_the_other])
    assert fusion.as_good_nearest_to(1.0, 0.0, np.array([says, 3 - says]), np.arange(8), (0.0, 1.0)) == taken


def test_what_one_user_says_often_counts_once():
    """Sixteen moments that agree are no evidence if they are all of one user."""
    weights, ranks = (0.0, 1.0), np.array([np.full(16, 1), np.full(16, 2)])
    assert fusion.as_good_nearest_to(1.0, 0.0, ranks, np.zeros(16, int), weights) == 1.0
    assert fusion.as_good_nearest_to(1.0, 0.0, ranks, np.arange(16), weights) == 0.0
