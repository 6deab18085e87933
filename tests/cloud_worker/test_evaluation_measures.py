"""The measures, against public implementations of them; and the intervals, against scipy's bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cloud_worker.evaluation import reliability
from cloud_worker.evaluation.bootstrap import Interval, UserResamples, around
from cloud_worker.evaluation.choosing import by_batches, chosen
from cloud_worker.training.metrics import auc, expected_calibration_error, ranks_of
from streams.experiment.ranking_metrics import hit_rate_at, ndcg_at, reciprocal_rank

metrics = pytest.importorskip("sklearn.metrics")
calibration = pytest.importorskip("sklearn.calibration")


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), items=st.integers(11, 60), rows=st.integers(1, 20))
def test_ranking_metrics_are_those_of_scikit_learn(seed, items, rows):
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(items, dtype=np.float64), (rows, 1)), axis=1)
    targets = rng.integers(0, items, rows)
    ranks = ranks_of(scores, targets)
    relevant = np.zeros((rows, items))
    relevant[np.arange(rows), targets] = 1
    assert ndcg_at(ranks).mean() == pytest.approx(metrics.ndcg_score(relevant, scores, k=10))
    assert reciprocal_rank(ranks).mean() == pytest.approx(
        metrics.label_ranking_average_precision_score(relevant, scores)
    )
    hits = metrics.top_k_accuracy_score(targets, scores, k=10, labels=np.arange(items))
    assert hit_rate_at(ranks).mean() == pytest.approx(hits)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(10, 300), levels=st.sampled_from([3, 1000]))
def test_auc_and_ece_are_those_of_scikit_learn(seed, n, levels):
    rng = np.random.default_rng(seed)
    s = rng.integers(0, levels, n) / levels + 1e-9
    labels = rng.random(n) < s
    labels[:2] = [True, False]
    assert auc(s, labels) == pytest.approx(metrics.roc_auc_score(labels, s))
    observed, predicted = calibration.calibration_curve(labels, s, n_bins=10, strategy="uniform")
    counts = np.bincount(np.minimum((s * 10).astype(int), 9), minlength=10)
    expected = (np.abs(observed - predicted) * counts[counts > 0]).sum() / n
    assert expected_calibration_error(s, labels) == pytest.approx(expected)


def test_resampled_auc_is_the_weighted_auc_of_scikit_learn():
    rng = np.random.default_rng(3)
    users, s = rng.integers(0, 12, 200), np.round(rng.random(200), 2)
    labels = rng.random(200) < s
    resamples = UserResamples(users, 0, resamples=25)
    found = reliability._auc_of(resamples, s, labels)
    for row, value in enumerate(found):
        assert value == pytest.approx(metrics.roc_auc_score(labels, s, sample_weight=resamples.weights(row)))


def test_a_single_user_has_a_mean_and_no_interval_and_nothing_is_significant():
    found = UserResamples(np.zeros(5, np.int64), seed=0).mean(np.arange(1.0, 6.0))
    assert found.mean == 3
    assert np.isnan([found.low, found.high]).all()
    assert not found.significant


def test_resampled_ece_is_that_of_the_drawn_users_moments():
    rng = np.random.default_rng(4)
    users, s = rng.integers(0, 12, 200), rng.random(200)
    labels = rng.random(200) < s
    resamples = UserResamples(users, 0, resamples=25)
    for row, value in enumerate(reliability._ece_of(resamples, s, labels)):
        times = resamples.weights(row)
        assert value == pytest.approx(expected_calibration_error(np.repeat(s, times), np.repeat(labels, times)))


def test_interval_of_equally_many_moments_is_scipys_bootstrap_of_the_users_means():
    rng = np.random.default_rng(0)
    of_user = rng.normal(0.1, 1, 60)
    values = (of_user[:, None] + rng.normal(0, 0.3, (60, 5))).reshape(-1)
    found = UserResamples(np.repeat(np.arange(60), 5), 1).mean(values)
    public = stats.bootstrap(
        (values.reshape(60, 5).mean(axis=1),), np.mean, n_resamples=4000, method="percentile", rng=rng
    ).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(public.low, abs=0.03)
    assert found.high == pytest.approx(public.high, abs=0.03)


def test_moments_of_one_user_do_not_narrow_the_interval():
    rng = np.random.default_rng(0)
    values, users = rng.normal(size=40), np.arange(40)
    once = UserResamples(users, 5).mean(values)
    ten_times = UserResamples(np.repeat(users, 10), 5).mean(np.repeat(values, 10))
    assert (ten_times.low, ten_times.high) == pytest.approx((once.low, once.high))


def test_rounding_turns_no_error_bar_around():
    """Resamples may all be one number, a last digit beside the estimate at times: no plot may fail at that."""
    above = np.nextafter(0.0175582258, 1)
    found = Interval(0.0175582258, above, above)
    assert found.reach == (0.0, above - 0.0175582258)
    assert Interval(0.2, float("nan"), float("nan")).reach == (0.0, 0.0)
    assert Interval(0.2, 0.1, 0.4).reach == pytest.approx((0.1, 0.2))
    assert Interval(0.2, 0.1, 0.4).significant
    assert Interval(-0.2, -0.4, -0.1).significant


def test_what_never_differs_has_an_interval_without_width_and_is_not_significant():
    found = UserResamples(np.arange(30), 0).mean(np.zeros(30))
    assert (found.mean, found.low, found.high, found.significant) == (0, 0, 0, False)
    assert UserResamples(np.arange(30), 0).mean(np.full(30, 0.5)).significant


def test_nothing_measured_gives_numbers_that_are_none():
    found = UserResamples(np.zeros(0, np.int64), 0).mean(np.zeros(0))
    assert np.isnan([found.mean, found.low, found.high]).all()
    assert not found.significant
    assert np.isnan(around(1.0, np.full(5, np.nan)).low)


@settings(deadline=None)
@given(
    scores=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    share=st.floats(0, 1),
)
def test_a_budget_is_spent_on_the_highest_scores_and_shared_among_equals(scores, share):
    scores = np.array(scores, np.float64)
    weights = chosen(scores, share)
    assert weights.sum() == pytest.approx(share * len(scores), abs=1e-9)
    assert ((weights >= 0) & (weights <= 1)).all()
    for mine, weight in zip(scores, weights, strict=True):
        assert (weights[scores == mine] == weight).all()
        if weight > 0:
            assert (weights[scores > mine] == 1).all()


def test_released_rule_lets_whole_batches_ask_in_the_order_of_arrival():
    scores = np.array([0.0, 9.0, 1.0, 1.0, 5.0, 0.0])
    arrival = np.array([0, 2, 1, 3, 4, 5])  # batches of two: {0, 2}, {1, 3}, {4, 5}
    assert by_batches(scores, arrival, batch=2).tolist() == [0.5, 5.0, 0.5, 5.0, 2.5, 2.5]
    assert by_batches(scores, arrival, batch=4).tolist() == [2.75, 2.75, 2.75, 2.75, 2.5, 2.5]
