"""The parts of training: each model can overfit, and what they are judged by is right to the digit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from cloud_worker import blend as blending
from cloud_worker.sequence import SequenceModel, gap_buckets
from cloud_worker.training import evaluate, live, next_item, projector, srm, text
from cloud_worker.training.data import make_histories
from cloud_worker.training.metrics import auc, expected_calibration_error, ranks_of, summary
from cloud_worker.training.networks import sequence_embeddings
from cloud_worker.training.options import (
    FitOptions,
    MomentOptions,
    ProjectorOptions,
)
from cloud_worker.training.snapshots import Snapshots, choose, pairs_of
from streams.bundle import device_tensors
from streams.errors import TrainingError


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
    snapshots = choose(histories, MomentOptions(train=60, valid=40), 100.0, np.random.default_rng(1))
    trained = histories.trained[snapshots.users]
    assert (snapshots.positions >= 1).all()
    assert (snapshots.positions[~snapshots.valid] < trained[~snapshots.valid]).all()
    assert (snapshots.positions[snapshots.valid] >= trained[snapshots.valid]).all()
    assert (snapshots.positions < histories.lengths[snapshots.users]).all()
    assert snapshots.valid.any()
    assert (~snapshots.valid).sum() >= 60


def test_pairs_are_of_one_user_and_period_with_a_positive_gap(histories):
    snapshots = choose(histories, MomentOptions(train=60, valid=40), 100.0, np.random.default_rng(1))
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


# --- networks that name the next item


def _overfit(model, rows, gaps=None, steps=200):
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-2)
    gaps = torch.zeros_like(rows) if gaps is None else gaps
    for _ in range(steps):
        optimiser.zero_grad()
        before, _ = model.before_each(rows, gaps, model.table(), None)
        real = rows >= 0
        loss = torch.nn.functional.cross_entropy(before[real] @ model.table().T + model.bias, rows[real])
        loss.backward()
        optimiser.step()
    return float(loss.detach())


ROWS = torch.tensor([[1, 5, 9, 2, 7, 3], [4, 4, 8, 0, 11, -1]])
# The first item has nothing before it: ln 2 for each of two users is the floor.
FLOOR = 2 * np.log(2) / 11


def test_srm_overfits_one_batch():
    torch.manual_seed(0)
    assert _overfit(srm.Gru4Rec(20, 16, dropout=0.0), ROWS) < FLOOR + 0.05


def test_sasrec_overfits_one_batch():
    torch.manual_seed(0)
    assert _overfit(srm.Sasrec(20, 16, 6, dropout=0.0), ROWS) < FLOOR + 0.05


def test_din_overfits_one_batch():
    torch.manual_seed(0)
    assert _overfit(srm.Din(20, 64, dropout=0.0), ROWS) < FLOOR + 0.05


def test_cloud_network_overfits_one_batch():
    torch.manual_seed(0)
    model = SequenceModel(np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32), 16, 24, dropout=0.0)
    assert _overfit(model, ROWS) < FLOOR + 0.05


def test_cloud_network_tells_users_apart_by_their_time_gaps():
    torch.manual_seed(0)
    model = SequenceModel(np.zeros((20, 6), np.float32), 16, 24, dropout=0.0)
    rows, gaps = torch.tensor([[1, 2, 3], [1, 2, 4]]), torch.tensor([[0, 2, 0], [0, 9, 0]])
    assert _overfit(model, rows, gaps) < 0.1


def test_gap_buckets_grow_and_end():
    buckets = gap_buckets(np.array([-5, 0, 5_000, 60_000, 3_600_000, 86_400_000, 10**14]))
    assert buckets[0] == buckets[1] == 0
    assert (np.diff(buckets[1:]) > 0).all()
    assert buckets[-1] == 15


def test_cloud_network_of_a_bundle_says_the_same(histories):
    torch.manual_seed(0)
    model = SequenceModel(np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32), 8, 12).eval()
    again = SequenceModel.from_tensors(model.tensors())
    users, positions = np.arange(6), np.array([0, 1, 5, 9, 3, 7])
    wanted = sequence_embeddings(model, histories, users, positions, 5)
    np.testing.assert_allclose(sequence_embeddings(again, histories, users, positions, 5), wanted, atol=1e-6)
    alone = sequence_embeddings(model, histories, users[3:4], positions[3:4], 5)
    np.testing.assert_allclose(alone[0], wanted[3], atol=1e-6)  # padding has no say


@pytest.mark.parametrize("kind", ["gru4rec", "din"])
def test_running_state_does_not_depend_on_what_comes_later_or_on_padding(kind, histories):
    torch.manual_seed(0)
    model = srm.make_srm(kind, 30, 8, window=6, dropout=0.3)  # which must not be on
    users = np.arange(12)
    states = model.running_states(histories, users, np.minimum(6, histories.lengths[users]))
    alone = model.running_states(histories, users[4:5], np.array([6]))
    with torch.no_grad():
        row = torch.from_numpy(histories.of(4, 6))[None]
        direct = model.before_each(row, row, model.table(), None)[1][0, -1].numpy()
    np.testing.assert_allclose(states[4], direct, atol=1e-6)
    np.testing.assert_allclose(alone[0], direct, atol=1e-6)
    assert not model.running_states(histories, users[:1], np.array([0])).any()


def test_sasrecs_state_is_of_its_window_and_not_of_what_comes_later_or_padding(histories):
    torch.manual_seed(0)
    model = srm.Sasrec(30, 8, window=4)  # its dropout must not be on
    users, positions = np.arange(12), np.minimum(np.arange(12), histories.lengths)
    states = model.running_states(histories, users, positions)
    assert not states[0].any(), "no history, no state"
    for user in range(1, 12):
        row = torch.from_numpy(histories.of(user, positions[user])[-4:])[None]
        with torch.no_grad():
            direct = model.eval().before_each(torch.nn.functional.pad(row, (0, 1)), row, model.table(), None)[0]
            padded = model.after(torch.zeros(1, 8), torch.nn.functional.pad(row, (0, 4 - row.shape[1]), value=-1))
        np.testing.assert_allclose(states[user], direct[0, -1].numpy(), atol=1e-6)
        np.testing.assert_allclose(states[user], padded[0].numpy(), atol=1e-6)
    later = histories.items.copy()
    for user in range(12):
        later[histories.starts[user] + positions[user] : histories.starts[user + 1]] = 7
    changed = dataclasses.replace(histories, items=later)
    assert not np.array_equal(later, histories.items)
    np.testing.assert_array_equal(model.running_states(changed, users, positions), states)


def test_sasrec_in_training_scores_an_item_by_what_came_before_it_only():
    torch.manual_seed(0)
    model = srm.Sasrec(20, 8, window=5).eval()
    rows = torch.tensor([[1, 5, 9, 2, 7, 3]])
    for place in range(6):
        other = rows.clone()
        other[0, place:] = torch.tensor([4, 11, 0, 8, 6, 13])[place:]
        with torch.no_grad():
            one, two = (model.before_each(each, each, model.table(), None)[0] for each in (rows, other))
        assert torch.equal(one[:, : place + 1], two[:, : place + 1])
        assert place == 5 or not torch.allclose(one[:, place + 1 :], two[:, place + 1 :])


@pytest.mark.parametrize("length", [1, 5, 300])
def test_dins_scores_are_its_definition(length):
    """score(i) = Σ_j Σ_c (1 - γ_c) γ_c^age φ_c(j) ψ_c(i) x_j · e_i + b_i, by loops over what came before each item."""
    torch.manual_seed(0)
    model, rows = srm.Din(20, 8).double().eval(), torch.randint(20, (2, length))
    model.bias.data.normal_()
    with torch.no_grad():
        before, _ = model.before_each(rows, rows, model.table(), None)
        scores = before @ model.table().T + model.bias
        e = model.items.weight
        x = model.norm(e)
        taken, candidate = (torch.nn.functional.softplus(unit(x)) for unit in (model.taken, model.candidate))
        decay = torch.sigmoid(model.decay_logit)
        for row, place in ((0, 0), (0, length // 2), (1, length - 1)):
            interest = torch.zeros_like(e)  # of each candidate: (N, k)
            for nth in range(place):
                past = rows[row, nth]
                share = (1 - decay) * decay ** (place - 1 - nth)
                interest += (share * taken[past] * candidate).sum(dim=1, keepdim=True) * x[past]
            torch.testing.assert_close(scores[row, place], (interest * e).sum(dim=1) + model.bias)


def test_din_goes_on_from_a_state_as_if_it_had_never_stopped():
    torch.manual_seed(0)
    model, rows = srm.Din(20, 8).eval(), torch.randint(20, (3, 40))
    with torch.no_grad():
        before, after = model.before_each(rows, rows, model.table(), None)
        _, first = model.before_each(rows[:, :25], rows[:, :25], model.table(), None)
        again, last = model.before_each(rows[:, 25:], rows[:, 25:], model.table(), first[:, -1])
    torch.testing.assert_close(again, before[:, 25:])
    torch.testing.assert_close(last, after[:, 25:])


@pytest.mark.parametrize("place", range(6))
def test_din_in_training_scores_an_item_by_what_came_before_it_only(place):
    torch.manual_seed(0)
    model, rows = srm.Din(20, 8).eval(), torch.tensor([[1, 5, 9, 2, 7, 3]])
    other = rows.clone()
    other[0, place:] = torch.tensor([4, 11, 0, 8, 6, 13])[place:]
    with torch.no_grad():
        one, two = (model.before_each(each, each, model.table(), None)[0] for each in (rows, other))
    assert torch.equal(one[:, : place + 1], two[:, : place + 1])
    assert place == 5 or not torch.allclose(one[:, place + 1 :], two[:, place + 1 :])


def test_din_has_a_gradient_where_it_forgets_at_once_and_where_it_forgets_nothing():
    model, rows = srm.Din(20, 8), torch.randint(20, (2, 200))
    model.decay_logit.data.copy_(torch.tensor([-40.0, 40.0]))
    before, _ = model.before_each(rows, rows, model.table(), torch.ones(2, 8))
    before.sum().backward()
    assert all(torch.isfinite(each.grad).all() for each in model.parameters() if each.grad is not None)


@pytest.mark.parametrize("kind", srm.KINDS)
def test_an_srm_of_a_bundle_is_the_one_that_was_trained(kind, histories):
    torch.manual_seed(0)
    model = srm.make_srm(kind, 30, 8, window=6, dropout=0.1)
    again = srm.srm_from_tensors(model.tensors())
    assert type(again) is srm.KINDS[kind]
    assert model.tensors().keys() == {name for name in device_tensors(kind) if name.startswith("srm.")}
    users, positions = np.arange(6), np.array([0, 1, 5, 9, 3, 7])
    wanted = model.running_states(histories, users, positions)
    np.testing.assert_array_equal(again.running_states(histories, users, positions), wanted)


def test_an_srm_that_there_is_not_is_refused():
    with pytest.raises(TrainingError, match="'caser' is none of gru4rec, sasrec, din"):
        srm.make_srm("caser", 30, 8, window=6, dropout=0.1)
    with pytest.raises(TrainingError, match="state of 9 numbers cannot be cut into 2 parts"):
        srm.make_srm("din", 30, 9, window=6, dropout=0.1)


def test_chunks_hold_every_interaction_once():
    lengths = np.array([0, 3, 50, 7, 16, 33, 1])
    for offsets in (None, np.array([1, 5, 16, 2, 16, 9, 3])):
        chunks = next_item.cut(lengths, 16, offsets)
        assert (chunks.counts <= 16).all()
        assert (chunks.counts >= 1).all()
        held = [
            (user, position)
            for user, begin, count in zip(chunks.users, chunks.begins, chunks.counts, strict=True)
            for position in range(begin, begin + count)
        ]
        assert sorted(held) == [(user, position) for user in range(7) for position in range(lengths[user])]


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("kind", [*srm.KINDS, "cloud"])
def test_fitting_learns_what_follows_what(full, kind):
    """A ring of items: the next one follows from the last."""
    rng = np.random.default_rng(0)
    items = (rng.integers(30, size=(40, 1)) + np.arange(20)) % 30
    histories = make_histories(np.repeat(np.arange(40), 20), items.reshape(-1), np.arange(800), 30, 800)
    torch.manual_seed(0)
    if kind == "cloud":
        model = SequenceModel(np.eye(30, dtype=np.float32), 16, 16, 0.0)
    else:
        model = srm.make_srm(kind, 30, 16, window=7, dropout=0.0)
    options = FitOptions(
        16, 1, 0, 0.0, 8, 1e-2, positions=64, negatives=10, full_softmax_items=100 if full else 5, weight_decay=0.0
    )
    losses = []
    next_item.fit(
        model,
        histories,
        options,
        lengths=histories.trained,
        epochs=25,
        exclude_seen=False,
        generator=rng,
        after_epoch=lambda _, loss: losses.append(loss),
    )
    states = (
        model.running_states(histories, np.arange(40), np.full(40, 10))
        if kind != "cloud"
        else sequence_embeddings(model, histories, np.arange(40), np.full(40, 10), 8)
    )
    with torch.no_grad():
        guess = (torch.from_numpy(states) @ model.table().T + model.bias).argmax(dim=1).numpy()
    assert (guess == items[:, 10]).mean() > 0.9
    assert losses[-1] < losses[0] / 2


def test_what_was_seen_is_left_out_of_the_loss_but_for_the_target(histories):
    gaps = np.zeros(len(histories.items), np.int64)
    chunks = next_item.cut(histories.lengths, 7)
    rows = np.array([0, 2, 5])
    batch = next_item._Batch.of(histories, gaps, chunks, rows, torch.device("cpu"))
    seen = batch.seen(histories).numpy()
    at = 0
    for row in rows:
        for step in range(chunks.counts[row]):
            past = histories.of(chunks.users[row], chunks.begins[row] + step)
            own = histories.of(chunks.users[row])[chunks.begins[row] + step]
            assert set(np.flatnonzero(seen[at])) == set(past.tolist()) - {own}
            at += 1
    assert at == len(seen)


def test_logq_correction_makes_sampled_loss_fair():
    """Items drawn by popularity must not be pushed down for it: expected gradients agree with the full ones."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    popularity = np.linspace(1, 20, 50) / np.linspace(1, 20, 50).sum()
    histories = make_histories(
        np.repeat(np.arange(50), 40), rng.choice(50, 2000, p=popularity), np.arange(2000), 50, 2000
    )
    table, bias = torch.randn(50, 8) * 0.3, torch.zeros(50, requires_grad=True)
    options = FitOptions(8, 1, 0, 0.0, 8, 1e-2, positions=40, negatives=5, full_softmax_items=10)
    sampled = next_item._Negatives(histories, histories.lengths, options, rng, torch.device("cpu"))
    hidden, targets = torch.randn(2000, 8), torch.from_numpy(histories.items)
    torch.nn.functional.cross_entropy(hidden @ table.T + bias, targets).backward()
    full = bias.grad.clone()
    bias.grad = None
    for rows in torch.randperm(2000).repeat(10).split(40):
        (sampled.loss(hidden[rows], targets[rows], table, bias, None) / 500).backward()
    assert torch.nn.functional.cosine_similarity(full, bias.grad, dim=0) > 0.9


# --- what the cloud says


def test_a_part_alone_is_the_teacher_when_it_has_all_the_weight():
    torch.manual_seed(0)
    sequence, text_scores, live_scores = torch.randn(3, 20), torch.randn(3, 20), torch.rand(3, 20)
    only = blending.teacher(sequence, text_scores, live_scores, blending.Blend(1.0, 0.0, 0.0))
    torch.testing.assert_close(only, torch.softmax(sequence, dim=1))
    live_scores[1] = 0  # nobody else took what this user did
    mixed = blending.teacher(sequence, text_scores, live_scores, blending.Blend(0.25, 0.25, 0.5))
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(3))
    torch.testing.assert_close(mixed[1], (torch.softmax(sequence[1], 0) + torch.softmax(text_scores[1], 0)) / 2)


@pytest.mark.parametrize("n_items", [500, 20_000])  # the larger one is fitted on a part of its items
def test_fitted_embeddings_come_near_the_teacher(n_items):
    torch.manual_seed(0)
    table, bias = torch.randn(n_items, 64) / 8, torch.randn(n_items) * 0.1
    sequence = torch.randn(6, 64) * 4
    live_scores = torch.zeros(6, n_items)
    for row in range(6):
        live_scores[row, torch.randperm(n_items)[:20]] = torch.rand(20) + 0.2
    target = blending.teacher(sequence @ table.T + bias, None, live_scores, blending.Blend(0.4, 0.0, 0.6))
    fitted = blending.fit(target, table, bias, sequence)

    def divergence(e):
        logged = torch.log_softmax(e @ table.T + bias, 1)
        return float((target * (target.clamp_min(1e-12).log() - logged)).sum(1).mean())

    assert divergence(fitted) < 0.6 * divergence(sequence)


def test_live_scores_of_the_past_know_nothing_later():
    """The same moment is asked with and without what happens after it."""
    rng = np.random.default_rng(0)
    users, items, times = rng.integers(20, size=600), rng.integers(25, size=600), np.arange(600) * 60_000
    whole = make_histories(users, items, times, 25, valid_start_ms=600 * 60_000)
    cut = make_histories(users[:400], items[:400], times[:400], 25, valid_start_ms=600 * 60_000)
    at, positions = np.arange(20), cut.lengths - 1
    asked = [live.scores_at(each, at, positions, live.CHOICES[:2], exclude_seen=False) for each in (whole, cut)]
    for one, other in zip(*asked, strict=True):
        np.testing.assert_allclose(one.dense(25), other.dense(25))
        assert one.dense(25).any()


# --- projector


def test_projector_overfits_one_batch():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    table, bias = torch.randn(25, 8), torch.zeros(25)
    model = projector.Projector(12, 16, 8)
    profiles = torch.from_numpy(rng.normal(size=(6, 12)).astype(np.float32))
    targets = torch.arange(6)[:, None]
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(200):
        optimiser.zero_grad()
        loss = projector.loss_of(model, profiles, targets, None, None, table, bias)
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.05


def test_real_profiles_are_folded_in_without_a_new_layer():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    stand_in = rng.normal(size=(300, 12)).astype(np.float32)
    mixing = rng.normal(size=(12, 12))
    profiles = (stand_in @ mixing.T + 0.3).astype(np.float32)
    model = projector.Projector(12, 16, 8)
    wanted = model.embed(stand_in)
    projector.fold_in_real_profiles(model, profiles, stand_in, ridge=1e-6)
    np.testing.assert_allclose(model.embed(profiles), wanted, atol=5e-3)


def test_targets_and_seen_items_lie_on_their_side_of_the_position(histories):
    users, positions = np.array([0, 3]), np.array([4, 2])
    ends = np.array([6, histories.lengths[3]])
    ahead = projector.next_items(histories, users, positions, ends, 5)
    assert ahead[0].tolist() == [*histories.of(0)[4:6].tolist(), -1, -1, -1]
    assert ahead[1].tolist() == histories.of(3)[2:7].tolist()
    behind = projector.seen_items(histories, users, positions)
    assert behind[0].tolist() == histories.of(0)[:4][::-1].tolist()
    assert behind[1].tolist() == [*histories.of(3)[:2][::-1].tolist(), -1, -1]


def test_stand_in_is_the_decayed_mean_of_the_last_items(histories):
    vectors = np.eye(30, dtype=np.float32)
    got = text.stand_ins(histories, np.array([2]), np.array([3]), vectors, last=2, decay=0.5)[0]
    items = histories.of(2)
    wanted = vectors[items[2]] + 0.5 * vectors[items[1]]
    np.testing.assert_allclose(got, wanted / np.linalg.norm(wanted), atol=1e-6)


def test_projector_training_lowers_the_loss(histories):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 12)).astype(np.float32)
    options = ProjectorOptions(stand_in_positions=4000, batch=64, learning_rate=1e-2)
    losses = []
    projector.train_on_stand_ins(
        projector.Projector(12, 16, 8),
        (torch.randn(30, 8), torch.zeros(30)),
        vectors,
        histories,
        options,
        last=5,
        exclude_seen=False,
        generator=rng,
        after=lambda done, total, loss: losses.append(loss),
    )
    assert losses[-1] < losses[0]
