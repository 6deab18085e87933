"""The teacher and what is fitted to it, live scores of the past, the projector."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cloud_worker import blend as blending
from cloud_worker.training import live, projector, text
from cloud_worker.training.data import make_histories
from cloud_worker.training.options import ProjectorOptions

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
