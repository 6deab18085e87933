"""What training reads: histories, snapshots and pairs of them, metrics."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cloud_worker.training import evaluate
from cloud_worker.training.data import make_histories
from cloud_worker.training.metrics import auc, expected_calibration_error, ranks_of, summary
from cloud_worker.training.options import (
    MomentOptions,
)
from cloud_worker.training.snapshots import BEFORE, Snapshots, _chains, _stretches, choose, pairs_of

# --- data


def test_histories_keep_time_order_and_know_where_training_ends():
    histories = make_histories(
        np.array([7, 3, 7, 3, 7]), np.array([0, 1, 2, 3, 0]), np.array([1, 2, 3, 4, 5]), 5, valid_start_ms=4
    )
    assert [histories.of(u).tolist() for u in range(2)] == [[1, 3], [0, 2, 0]]
    assert histories.trained.tolist() == [1, 2]
    assert histories.popularity(valid=False).tolist() == [1, 1, 1, 0, 0]
    assert histories.popularity(valid=True).tolist() == [2, 1, 1, 1, 0]


def test_moments_drawn_of_the_validation_period_have_an_interaction_before_them(histories):
    users, positions = histories.draw_valid(30, np.random.default_rng(0))
    assert len(users) == 30
    assert (positions >= np.maximum(histories.trained[users], 1)).all()
    assert len(set(zip(users, positions, strict=True))) == 30
    assert len(histories.draw_valid(10_000, np.random.default_rng(0))[0]) == 80
    all_trained = dataclasses.replace(histories, trained=histories.lengths)
    assert not len(all_trained.draw_valid(30, np.random.default_rng(0))[0])


# --- snapshots


def test_moments_asked_for_are_looked_at_once_and_found_again():
    users, positions = np.array([2, 0, 2, 0, 2]), np.array([5, 9, 1, 9, 5])
    snapshots = Snapshots.of(users, positions)
    assert list(zip(snapshots.users.tolist(), snapshots.positions.tolist(), strict=True)) == [(0, 9), (2, 1), (2, 5)]
    assert snapshots.find(users, positions).tolist() == [2, 0, 1, 0, 2]
    nothing = np.zeros(0, np.int64)
    assert not len(Snapshots.of(nothing, nothing))
    assert not len(snapshots.find(nothing, nothing))


def test_snapshots_never_look_past_their_period(histories):
    options = MomentOptions(train=60, valid=40)
    snapshots = choose(histories, options, 100.0, np.random.default_rng(1))
    trained = histories.trained[snapshots.users]
    assert (snapshots.positions >= 1).all()
    assert (snapshots.positions < histories.lengths[snapshots.users]).all()
    np.testing.assert_array_equal(snapshots.valid, snapshots.positions >= trained)
    assert (~snapshots.valid).sum() >= 60
    stretches = _stretches(histories, options.valid, options.valid_stretch, np.random.default_rng(1))
    wanted = sorted((user, position) for user, _, stretch in stretches for position in stretch)
    at = np.flatnonzero(snapshots.judged)
    assert list(zip(snapshots.users[at].tolist(), snapshots.positions[at].tolist(), strict=True)) == wanted
    assert snapshots.valid[at].all()


def test_chains_stay_in_the_training_period(histories):
    chains = np.array(_chains(histories, histories.trained - 1, 60, np.random.default_rng(1)))
    assert len(chains) >= 60
    assert (chains[:, 1] >= 1).all()
    assert (chains[:, 1] < histories.trained[chains[:, 0]]).all()


def test_what_is_judged_does_not_depend_on_how_much_is_trained_on(histories):
    few, many = (
        choose(histories, MomentOptions(train=train, valid=40), 100.0, np.random.default_rng(1)) for train in (10, 90)
    )
    assert len(many) > len(few)
    np.testing.assert_array_equal(many.users[many.judged], few.users[few.judged])
    np.testing.assert_array_equal(many.positions[many.judged], few.positions[few.judged])


def test_as_many_of_each_period_are_encoded_as_wanted(histories):
    options = MomentOptions(train=60, valid=60, valid_stretch=4, encoded_train=20, encoded_valid=10)
    snapshots = choose(histories, options, 100.0, np.random.default_rng(1))
    assert 10 <= (snapshots.encoded & snapshots.judged).sum() < 14, "whole stretches"
    assert 20 <= (snapshots.encoded & ~snapshots.judged).sum() < 40, "and what comes before them"
    poor = choose(histories, dataclasses.replace(options, characters=1_000), 100.0, np.random.default_rng(1))
    assert poor.encoded.sum() < snapshots.encoded.sum() / 2


def test_pairs_are_of_one_user_with_a_positive_gap_and_their_moment_is_in_the_period(histories):
    snapshots = choose(histories, MomentOptions(train=60, valid=40), 100.0, np.random.default_rng(1))
    for judged in (False, True):
        pairs = pairs_of(snapshots, 20, judged=judged)
        gap = snapshots.positions[pairs.fresh] - snapshots.positions[pairs.stale]
        assert len(pairs)
        assert (snapshots.users[pairs.fresh] == snapshots.users[pairs.stale]).all()
        assert ((gap >= 1) & (gap <= 20)).all()
        assert (snapshots.judged[pairs.fresh] == judged).all()
        assert judged or not (snapshots.valid[pairs.fresh] | snapshots.valid[pairs.stale]).any()


def test_short_histories_make_pairs_too():
    """Four interactions each: wherever a chain ends, it goes back as far as there is something."""
    users, times = np.tile(np.arange(40), 4), np.repeat(np.arange(4), 40) * 60_000
    histories = make_histories(users, np.zeros(160, int), times, 30, valid_start_ms=4 * 60_000)
    snapshots = choose(histories, MomentOptions(train=40, valid=0), 100.0, np.random.default_rng(1))
    pairs = pairs_of(snapshots, 96, judged=False)
    assert len(np.unique(snapshots.users[pairs.fresh])) >= 15


def test_stale_embeddings_of_the_validation_period_are_as_old_as_devices_will_have_them():
    """Users with one interaction there had 63 before it: all gaps come from the training period."""
    users, times = np.tile(np.arange(12), 64), np.repeat(np.arange(64), 12) * 60_000
    histories = make_histories(users, np.zeros(768, int), times, 30, valid_start_ms=63 * 60_000)
    snapshots = choose(histories, MomentOptions(train=1, valid=12), 100.0, np.random.default_rng(1))
    assert snapshots.judged.sum() == 12
    pairs = pairs_of(snapshots, 96, judged=True)
    gaps = snapshots.positions[pairs.fresh] - snapshots.positions[pairs.stale]
    of_most = [user for user in range(12) if ((snapshots.users == user) & ~snapshots.valid).sum() == len(BEFORE)]
    assert len(of_most) >= 6
    for user in of_most:
        assert gaps[snapshots.users[pairs.fresh] == user].tolist() == list(BEFORE)


# --- metrics


def test_ranks_are_counted_by_hand():
    scores = np.array([[0.9, 0.5, 0.5, 0.1], [0.0, 0.0, 0.0, 0.0]], np.float32)
    assert ranks_of(scores, np.array([0, 1])).tolist() == [1, 4]  # equal scores do not flatter
    assert ranks_of(scores, np.array([2, 1])).tolist() == [3, 4]


def test_seen_items_are_not_ranked():
    scores = np.array([[0.9, 0.5, 0.3, 0.1]] * 2, np.float32)
    seen = np.array([[True, True, False, False], [False, False, True, False]])
    assert ranks_of(scores, np.array([3, 2]), seen).tolist() == [2, 0]


def test_summary_of_hand_counted_ranks():
    measured = summary("x", np.array([1, 3, 20, 0]))
    assert measured["x.ndcg@10"] == pytest.approx((1 + 0.5) / 4)
    assert measured["x.hr@10"] == pytest.approx(2 / 4)
    assert measured["x.mrr"] == pytest.approx((1 + 1 / 3 + 1 / 20) / 4)
    assert summary("x", np.zeros(0, np.int64)) == {}


def test_auc_and_ece_by_hand():
    p, y = np.array([0.9, 0.8, 0.3, 0.3]), np.array([True, False, True, False])
    assert auc(p, y) == pytest.approx((2 + 0.5) / 4)  # of 4 pairs two are right, one is a tie
    assert auc(p, np.ones(4, bool)) == 0.5
    assert expected_calibration_error(np.array([0.25, 0.25, 0.25, 0.25]), np.array([1, 0, 0, 0], bool)) == 0
    assert expected_calibration_error(np.array([1.0, 1.0]), np.array([0, 1], bool)) == pytest.approx(0.5)


def test_evaluation_excludes_seen_items_in_full_catalogue(histories):
    users, positions = np.array([0, 1, 2]), np.array([5, 9, 3])
    moments = evaluate.Moments(histories, users, positions, np.zeros((3, 4), np.float32), exclude_seen=True)
    seen = moments.seen()
    for row in range(3):
        assert set(np.flatnonzero(seen[row])) == set(histories.of(users[row], positions[row]).tolist())
    ranks = evaluate.constant_ranks(np.arange(30, dtype=np.float32), moments)
    for row, target in enumerate(moments.targets):
        better = [i for i in range(target, 30) if not seen[row, i]]
        assert ranks[row] == (0 if seen[row, target] else len(better))
