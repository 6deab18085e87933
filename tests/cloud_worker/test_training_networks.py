"""The networks that name the next item: overfit one batch, do not look ahead, and learn what follows what."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from cloud_worker.sequence import SequenceModel, gap_buckets
from cloud_worker.training import next_item, srm
from cloud_worker.training.data import make_histories
from cloud_worker.training.networks import sequence_embeddings
from cloud_worker.training.options import FitOptions
from streams.bundle import device_tensors
from streams.errors import TrainingError


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


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("make", [lambda: srm.Sasrec(20, 8, window=5), lambda: srm.Din(20, 8)], ids=["sasrec", "din"])
def test_in_training_an_item_is_scored_by_what_came_before_it_only(make, place):
    torch.manual_seed(0)
    model, rows = make().eval(), torch.tensor([[1, 5, 9, 2, 7, 3]])
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
