"""The parts of training: each model can overfit, and what they are judged by is right to the digit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cloud_worker.training import calibrator as calibration
from cloud_worker.training import cloud_model, evaluate, fusion, signals, srm, staleness, text
from cloud_worker.training.data import make_histories
from cloud_worker.training.metrics import auc, expected_calibration_error, ranks_of, summary
from cloud_worker.training.options import CalibratorOptions, CloudOptions, SnapshotOptions
from cloud_worker.training.snapshots import choose, pairs_of
from streams.bundle import PHI


@pytest.fixture
def histories():
    rng = np.random.default_rng(0)
    users = rng.integers(12, size=400)
    return make_histories(users, rng.integers(30, size=400), np.arange(400) * 60_000, 30, valid_start_ms=320 * 60_000)


# --- data


def test_histories_keep_time_order_and_know_where_training_ends():
    histories = make_histories(
        np.array([7, 3, 7, 3, 7]), np.array([0, 1, 2, 3, 0]), np.array([1, 2, 3, 4, 5]), 5, valid_start_ms=4
    )
    assert [histories.of(u).tolist() for u in range(2)] == [[1, 3], [0, 2, 0]]
    assert histories.trained.tolist() == [1, 2]
    assert histories.popularity(valid=False).tolist() == [1, 1, 1, 0, 0]
    assert histories.popularity(valid=True).tolist() == [2, 1, 1, 1, 0]


# --- snapshots


def test_snapshots_never_look_past_their_period(histories):
    snapshots = choose(histories, SnapshotOptions(train=60, valid=40), 1.0, np.random.default_rng(1))
    trained = histories.trained[snapshots.users]
    assert (snapshots.positions >= 1).all()
    assert (snapshots.positions[~snapshots.valid] < trained[~snapshots.valid]).all()
    assert (snapshots.positions[snapshots.valid] >= trained[snapshots.valid]).all()
    assert (snapshots.positions < histories.lengths[snapshots.users]).all()
    assert snapshots.valid.any()
    assert (~snapshots.valid).sum() >= 60


def test_pairs_are_of_one_user_and_period_with_a_positive_gap(histories):
    snapshots = choose(histories, SnapshotOptions(train=60, valid=40), 1.0, np.random.default_rng(1))
    for valid in (False, True):
        pairs = pairs_of(snapshots, 20, valid=valid)
        gap = snapshots.positions[pairs.fresh] - snapshots.positions[pairs.stale]
        assert len(pairs)
        assert (snapshots.users[pairs.fresh] == snapshots.users[pairs.stale]).all()
        assert ((gap >= 1) & (gap <= 20)).all()
        assert (snapshots.valid[pairs.fresh] == valid).all()
        assert (snapshots.valid[pairs.stale] == valid).all()


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


# --- SRM


def test_srm_overfits_one_batch():
    torch.manual_seed(0)
    model = srm.Gru4Rec(20, 16, dropout=0.0)
    rows = torch.tensor([[1, 5, 9, 2, 7, 3], [4, 4, 8, 0, 11, -1]])
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(150):
        optimiser.zero_grad()
        loss = srm.loss_of(model, rows)
        loss.backward()
        optimiser.step()
    # The first item has nothing before it: ln 2 for each of two users is the floor.
    assert float(loss.detach()) < 2 * np.log(2) / 11 + 0.05


def test_running_state_does_not_depend_on_what_comes_later_or_on_padding(histories):
    torch.manual_seed(0)
    model = srm.Gru4Rec(30, 8)
    users = np.arange(12)
    states = srm.running_states(model, histories, users, np.minimum(6, histories.lengths[users]))
    alone = srm.running_states(model, histories, users[4:5], np.array([6]))
    with torch.no_grad():
        direct = model.states(torch.from_numpy(histories.of(4, 6))[None])[0, -1].numpy()
    np.testing.assert_allclose(states[4], direct, atol=1e-6)
    np.testing.assert_allclose(alone[0], direct, atol=1e-6)
    assert not srm.running_states(model, histories, users[:1], np.array([0])).any()


def test_seen_before_holds_each_positions_past():
    rows = np.array([[2, 0, 2], [1, -1, -1]])
    assert srm.seen_before(rows, 3).tolist() == [
        [False, False, False],
        [False, False, True],
        [True, False, True],
        [False, False, False],
    ]


def test_batches_hold_every_user_once_within_the_bound():
    lengths = np.array([0, 3, 50, 7, 9, 200, 1])
    batches = list(srm.batches(lengths, 60, np.random.default_rng(0)))
    assert sorted(np.concatenate(batches).tolist()) == [1, 2, 3, 4, 5, 6]
    assert all(len(b) == 1 or lengths[b].max() * len(b) <= 60 for b in batches)


def test_logq_correction_makes_sampled_loss_fair():
    """Negatives drawn by popularity must not push popular items down: expected gradients agree with the full ones."""
    torch.manual_seed(0)
    model = srm.Gru4Rec(50, 8, dropout=0.0)
    rows = torch.randint(0, 50, (8, 10))
    proposal = np.linspace(1, 20, 50)
    proposal /= proposal.sum()
    srm.loss_of(model, rows).backward()
    full = model.bias.grad.clone()
    model.zero_grad()
    rng, n = np.random.default_rng(0), 4000
    for _ in range(20):
        drawn = torch.from_numpy(rng.choice(50, n, p=proposal))
        expected = torch.from_numpy(np.log(n * proposal)).float()
        (srm.loss_of(model, rows, drawn, expected) / 20).backward()
    assert torch.nn.functional.cosine_similarity(full, model.bias.grad, dim=0) > 0.97


# --- shared space


def test_projector_overfits_one_batch():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(25, 12)).astype(np.float32)
    model = cloud_model.CloudModel(vectors, np.ones(25, np.int64), d=8, hidden=16)
    profiles = torch.from_numpy(rng.normal(size=(6, 12)).astype(np.float32))
    targets = torch.arange(6)[:, None]
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(200):
        optimiser.zero_grad()
        loss = cloud_model.loss_of(model, profiles, targets, None, None)
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.05


def test_rescaling_leaves_scores_alone():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    profiles = rng.normal(size=(40, 12)).astype(np.float32)
    model = cloud_model.CloudModel(rng.normal(size=(25, 12)).astype(np.float32), np.ones(25, np.int64), 8, 16)

    def scores():
        with torch.no_grad():
            return (model.project(torch.from_numpy(profiles)) @ model.vectors().T).numpy()

    before = scores()
    model.rescale(profiles)
    np.testing.assert_allclose(scores(), before, rtol=1e-4, atol=1e-5)
    assert np.linalg.norm(model.embed(profiles), axis=1).mean() == pytest.approx(1.0, abs=0.01)


def test_real_profiles_are_folded_in_without_a_new_layer():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    stand_in = rng.normal(size=(300, 12)).astype(np.float32)
    mixing = rng.normal(size=(12, 12))
    profiles = (stand_in @ mixing.T + 0.3).astype(np.float32)
    model = cloud_model.CloudModel(rng.normal(size=(25, 12)).astype(np.float32), np.ones(25, np.int64), 8, 16)
    wanted = model.embed(stand_in)
    cloud_model.fold_in_real_profiles(model, profiles, stand_in, ridge=1e-6)
    np.testing.assert_allclose(model.embed(profiles), wanted, atol=5e-3)


def test_targets_and_seen_items_lie_on_their_side_of_the_position(histories):
    users, positions = np.array([0, 3]), np.array([4, 2])
    ends = np.array([6, histories.lengths[3]])
    ahead = cloud_model.next_items(histories, users, positions, ends, 5)
    assert ahead[0].tolist() == [*histories.of(0)[4:6].tolist(), -1, -1, -1]
    assert ahead[1].tolist() == histories.of(3)[2:7].tolist()
    behind = cloud_model.seen_items(histories, users, positions)
    assert behind[0].tolist() == histories.of(0)[:4][::-1].tolist()
    assert behind[1].tolist() == [*histories.of(3)[:2][::-1].tolist(), -1, -1]


def test_stand_in_is_the_decayed_mean_of_the_last_items(histories):
    vectors = np.eye(30, dtype=np.float32)
    got = text.stand_ins(histories, np.array([2]), np.array([3]), vectors, last=2, decay=0.5)[0]
    items = histories.of(2)
    wanted = vectors[items[2]] + 0.5 * vectors[items[1]]
    np.testing.assert_allclose(got, wanted / np.linalg.norm(wanted), atol=1e-6)


def test_shared_space_training_lowers_the_loss(histories):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 12)).astype(np.float32)
    model = cloud_model.CloudModel(vectors, histories.popularity(valid=False), 8, 16)
    options = CloudOptions(stand_in_positions=4000, batch=64, learning_rate=1e-2)
    losses = []
    cloud_model.train_on_stand_ins(
        model,
        histories,
        options,
        last=5,
        exclude_seen=False,
        generator=rng,
        after=lambda done, total, loss: losses.append(loss),
    )
    assert losses[-1] < losses[0]


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
    phi = signals.signals(histories, users, stale, fresh, e, means, unit)
    cosine = 0.8 / np.sqrt(2) / np.hypot(0.8, 1)
    np.testing.assert_allclose(phi[0], [cosine, 0, np.log(3), np.log(3), 1 - np.hypot(0.8, 1) / 1.8], atol=1e-6)
    np.testing.assert_allclose(phi[1], [1, 0, 0, np.log(2), 0], atol=1e-6)


def _calibration_data(n: int, d: int, gap: int) -> calibration.CalibrationData:
    rng = np.random.default_rng(0)
    stale, means, fresh = (rng.normal(size=(n, d)).astype(np.float32) for _ in range(3))
    phi = rng.normal(size=(n, len(PHI))).astype(np.float32)
    return calibration.CalibrationData(stale, means, phi, np.full(n, gap), fresh, rng.integers(20, size=n))


def test_calibrator_leaves_a_fresh_embedding_alone():
    data = _calibration_data(7, 6, gap=0)
    np.testing.assert_array_equal(calibration.Calibrator(6, 8).apply_to(data), data.stale)


def test_calibrator_overfits_one_batch_towards_the_fresh_embedding():
    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    data = _calibration_data(8, 6, gap=30)
    model = calibration.Calibrator(6, 32)
    losses = []
    options = CalibratorOptions(epochs=400, batch=8, learning_rate=2e-2, next_item_weight=0.0)
    vectors, bias = rng.normal(size=(20, 6)).astype(np.float32), np.zeros(20, np.float32)
    calibration.fit(model, data, vectors, bias, options, rng, lambda epoch, loss: losses.append(loss))
    assert losses[0] > 0.5
    assert losses[-1] < 0.01


def test_calibrator_compares_a_sample_of_a_large_catalogue():
    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    data = _calibration_data(8, 6, gap=30)
    losses = []
    options = CalibratorOptions(epochs=200, batch=8, learning_rate=2e-2, negatives=10)
    vectors, bias = rng.normal(size=(20, 6)).astype(np.float32), np.zeros(20, np.float32)
    calibration.fit(
        calibration.Calibrator(6, 32), data, vectors, bias, options, rng, lambda _, loss: losses.append(loss)
    )
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])


# --- staleness and fusion


def test_staleness_head_recovers_the_probabilities_it_was_made_from():
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(20_000, 5))
    weight, bias = np.array([1.0, -0.5, 0.8, 0.0, 0.2]), -0.7
    labels = rng.random(20_000) < staleness.predict(phi, weight, bias)
    got_weight, got_bias = staleness.fit(phi, labels)
    np.testing.assert_allclose(got_weight, weight, atol=0.08)
    assert got_bias == pytest.approx(bias, abs=0.08)


def test_staleness_head_survives_a_single_class():
    weight, bias = staleness.fit(np.random.default_rng(0).normal(size=(50, 5)), np.zeros(50, bool))
    assert np.isfinite(weight).all()
    assert np.isfinite(bias)
    assert bias < -2


def test_fusion_is_z_scores_and_a_constant_has_no_say():
    z = fusion.standardised(np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]], np.float32))
    np.testing.assert_allclose(z, [[-np.sqrt(1.5), 0, np.sqrt(1.5)], [0, 0, 0]], atol=1e-6)


def test_best_alpha_is_the_one_with_the_best_ranks_around_it():
    lucky = np.array([[50, 50], [1, 2], [50, 50], [3, 4], [2, 3], [3, 4]])
    assert fusion.best_alpha(lucky, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)) == 0.5
    assert fusion.best_alpha(np.array([[1, 2], [1, 2]]), (0.1, 0.2)) == 0.1
    assert fusion.best_alpha(np.zeros((2, 0), int), (0.2, 0.4)) == pytest.approx(0.3)
