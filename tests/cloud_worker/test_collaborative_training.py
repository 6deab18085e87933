"""LSC4Rec's collaborative training: what a list teaches, what is kept, and that nothing looks ahead."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file, save_file

from cloud_worker.evaluation import collaborative as evaluation
from cloud_worker.evaluation.test_period import load_test_period
from cloud_worker.training import list_training
from cloud_worker.training.cloud_lists import CloudLists
from cloud_worker.training.collaborative import FILE, TRAININGS, load_collaborative
from cloud_worker.training.data import make_histories
from cloud_worker.training.list_training import OTHERS, SERVES, cut, examples, list_loss
from cloud_worker.training.options import TrainOptions
from cloud_worker.training.srm import make_srm
from cloud_worker.training.train import train_bundle
from cloud_worker.training.train_collaborative import CollaborativeOptions, train_collaborative
from streams.bundle import load_bundle
from streams.errors import BundleError
from tests.cloud_worker.evaluation_data import N_ITEMS, OPTIONS, HashEncoder, made_up, prepared_of

QUICK = CollaborativeOptions(lists=120, cooperative_epochs=3, adaptive_epochs=2, train=OPTIONS)
N, WINDOW = 40, 50


@pytest.fixture
def histories():
    """Eight users with thirty interactions each, none twice."""
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(N)[:30] for _ in range(8)])
    return make_histories(np.repeat(np.arange(8), 30), items, np.arange(240), N, 10**9)


def lists_for(stretches, histories, length=12, seed=0):
    """Random lists of what was not taken when each was made."""
    rng = np.random.default_rng(seed)
    rows = []
    for user, position in zip(*stretches.made_at(), strict=True):
        rows.append(rng.permutation(np.setdiff1d(np.arange(N), histories.of(user, position)))[:length])
    items = np.array([np.pad(row, (0, length - len(row))) for row in rows], np.int32)
    return CloudLists(items, np.array([np.arange(length) < len(row) for row in rows]))


@pytest.mark.parametrize("window", [4, 20, 50])
def test_stretches_hold_every_position_once_and_a_list_serves_the_next_ones(window):
    first, end = np.array([1, 5, 3, 7]), np.array([100, 5, 4, 60])
    stretches = cut(first, end, window)
    users, positions, which = stretches.served()
    wanted = [(user, at) for user in range(4) for at in range(first[user], end[user])]
    assert list(zip(users, positions, strict=True)) == wanted
    of_users, made_at = stretches.made_at()
    assert len(made_at) == stretches.lists.sum()
    assert (of_users[which] == users).all()
    assert set(positions - made_at[which]) <= set(range(SERVES))
    assert stretches.counts.max() <= window + 1


def test_an_example_is_what_was_taken_beside_what_the_list_still_offers(histories):
    stretches = cut(np.full(8, 1), np.full(8, 30), WINDOW)
    lists = lists_for(stretches, histories)
    found = examples(histories, stretches, lists, exclude_seen=True)
    for row, (user, position, which) in enumerate(zip(*stretches.served(), strict=True)):
        taken = histories.of(user)[position]
        offered = set(lists.items[which][lists.listed[which]]) - {taken} - set(histories.of(user, position))
        assert found.items[row, 0] == taken
        assert found.valid[row, 0]
        assert set(found.items[row, 1:][found.valid[row, 1:]]) == offered


def test_where_things_are_taken_again_the_list_offers_them_again(histories):
    stretches = cut(np.full(8, 1), np.full(8, 30), WINDOW)
    lists = lists_for(stretches, histories)
    again = examples(histories, stretches, lists, exclude_seen=False)
    once = examples(histories, stretches, lists, exclude_seen=True)
    assert again.valid.sum() > once.valid.sum()
    assert (again.valid | ~once.valid).all()


def test_no_more_than_ninety_nine_others_are_compared():
    many = 300
    histories = make_histories(np.zeros(20, int), np.arange(20), np.arange(20), many, 10**9)
    stretches = cut(np.array([1]), np.array([20]), WINDOW)
    items = np.tile(np.arange(100, 250, dtype=np.int32), (int(stretches.lists.sum()), 1))
    found = examples(histories, stretches, CloudLists(items, np.ones_like(items, bool)), exclude_seen=True)
    assert (found.valid[:, 1:].sum(axis=1) == OTHERS).all()
    assert found.valid[:, 1 : 1 + OTHERS].all(), "the best of the list"


def test_some_examples_are_those_of_their_stretches(histories):
    stretches = cut(np.full(8, 1), np.arange(12, 20), WINDOW)
    whole = examples(histories, stretches, lists_for(stretches, histories), exclude_seen=True)
    some = whole.take(np.array([5, 2]))
    assert (some.items == np.concatenate([whole.items[whole.at[n] : whole.at[n + 1]] for n in (5, 2)])).all()
    assert len(some) == 2


def test_the_loss_of_a_list_is_the_mean_of_what_counts_in_it():
    scores = torch.tensor([[2.0, -1.0, 5.0], [0.0, 0.0, 0.0]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    by_hand = [(np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0))) / 2, np.log(2.0)]
    assert float(list_loss(scores, valid)) == pytest.approx(np.mean(by_hand))


@pytest.fixture
def one_thread():
    """As training has it: the products are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("kind", "dim", "rate"), [("gru4rec", 32, 2e-2), ("sasrec", 32, 2e-2), ("din", 128, 4e-2)])
def test_an_srm_overfits_the_lists_of_a_batch(histories, kind, dim, rate):
    """Afterwards what was taken is the likeliest of its list, by the states that a device has.

    A DIN's state is linear in what the items add: it needs more numbers to learn by heart what follows no rule.
    """
    torch.manual_seed(0)
    model = make_srm(kind, N, dim, window=WINDOW, dropout=0.0)
    stretches = cut(np.full(8, 1), np.full(8, 30), WINDOW)
    given = examples(histories, stretches, lists_for(stretches, histories), exclude_seen=True)
    losses = []
    list_training.fit(
        model, histories, given, window=WINDOW, epochs=150, learning_rate=rate, weight_decay=0.0,
        generator=np.random.default_rng(0), after_epoch=lambda _, loss: losses.append(loss),
    )  # fmt: skip
    assert losses[-1] < 0.1 * losses[0]
    users, positions, _ = stretches.served()
    hidden = model.running_states(histories, users, positions)
    scores = np.einsum("qh,qnh->qn", hidden, model.table().detach().numpy()[given.items])
    scores = np.where(given.valid, scores + model.bias.detach().numpy()[given.items], -np.inf)
    assert (scores.argmax(axis=1) == 0).mean() > 0.97


def test_the_first_bias_moves_no_rank_and_makes_the_logits_odds_against_a_list(histories):
    model = make_srm("gru4rec", N, 16, window=WINDOW, dropout=0.0)
    before = model.bias.detach().clone()
    stretches = cut(np.full(8, 1), np.full(8, 30), WINDOW)
    list_training.shift_bias(model, histories, stretches)
    shift = (model.bias.detach() - before).numpy()
    assert shift == pytest.approx(shift[0], abs=1e-5)
    hidden = model.running_states(histories, stretches.users, stretches.begins)
    scores = hidden @ model.table().detach().numpy().T + model.bias.detach().numpy()
    assert np.log(np.exp(scores).sum(axis=1)).mean() == pytest.approx(np.log(N / 99), abs=1e-4)


@pytest.fixture(scope="module")
def trained(bundle, data):
    stages = []
    made, judged = train_collaborative(
        bundle, data[0], HashEncoder(), QUICK, lambda p: stages.append((p.stage, p.done, p.total))
    )
    return made, judged, stages


@pytest.fixture
def another(bundle, tmp_path):
    """A copy of the bundle without the trainings."""
    path = tmp_path / "copy"
    shutil.copytree(bundle.path, path, ignore=shutil.ignore_patterns(FILE))
    return load_bundle(path)


def tensors(bundle):
    return load_file(bundle.path / FILE)


def test_both_variants_are_kept_beside_a_bundle_that_stays_as_it_is(trained, bundle):
    made, judged, stages = trained
    assert load_bundle(bundle.path).id == bundle.id
    found = load_collaborative(bundle.path, bundle.id)
    assert found.weights == made.weights == judged.weights
    for training in ("cooperative", "adaptive"):
        one, other = made.srms[training].tensors(), found.srms[training].tensors()
        assert all(np.array_equal(one[name], other[name]) for name in one)
        assert not np.array_equal(one["srm.item_in"], bundle.device["srm.item_in"])
    assert not list(bundle.path.parent.glob(".b-collaborative*")), "checkpoints are gone"
    for stage in {stage for stage, *_ in stages}:
        last = [(done, total) for each, done, total in stages if each == stage][-1]
        assert last[0] == last[1], stage


def test_every_training_is_judged_at_the_same_moments_of_the_validation_period(trained, data):
    _, judged, _ = trained
    assert list(judged.ndcg) == list(TRAININGS)
    rules = {"SRM only", "cloud only", "equal (λ = 1)", "SRM×2 (λ = 2)", "learned λ"}
    for found in judged.ndcg.values():
        assert set(found) == rules
        assert {len(each) for each in found.values()} == {len(judged.users)}
        assert found["cloud only"].mean() > 0.1
    assert 0 < len(judged.users) <= data[1].valid.interactions


def test_the_table_of_the_test_period_has_all_trainings(trained, bundle, data):
    made, _, _ = trained
    period = load_test_period(bundle, data[0], HashEncoder(), moments=80, seed=0, gaps=[8], nearest=True)
    tables = evaluation.measure(period, candidates=20, seed=0, gap=8, made=made)
    assert {training: table.weight for training, table in tables.items() if training != "independent"} == {
        training: made.weights[training] for training in ("cooperative", "adaptive")
    }
    for table in tables.values():
        assert table.fresh["learned λ"].mean() > 0.1


def test_changing_anything_after_the_split_changes_nothing_that_was_learned(trained, another, bundle, data):
    prepared, split = data
    rng = np.random.default_rng(5)
    n = len(prepared.events)
    later = pl.col("event_time_ms") >= split.test.start_ms
    changed = prepared.events.with_columns(
        item_id=pl.when(later).then(pl.Series([f"i{i}" for i in rng.integers(N_ITEMS, size=n)])).otherwise("item_id"),
        device_id=pl.when(later).then(pl.Series([f"u{i}" for i in rng.integers(9, size=n)])).otherwise("device_id"),
        event_time_ms=pl.when(later).then(split.test.start_ms + pl.int_range(n)).otherwise("event_time_ms"),
    )
    assert not changed.equals(prepared.events)
    _, judged = train_collaborative(another, prepared_of(changed, prepared.manifest.hash), HashEncoder(), QUICK)
    mine, theirs = tensors(bundle), tensors(another)
    assert set(mine) == set(theirs)
    for name in mine:
        assert np.array_equal(mine[name], theirs[name]), name
    for training in TRAININGS:
        for rule, worth in trained[1].ndcg[training].items():
            assert np.array_equal(worth, judged.ndcg[training][rule])


def test_an_event_before_the_split_does_change_it(trained, another, bundle, data):
    """Otherwise the test above could not fail."""
    prepared, _ = data
    first = pl.int_range(pl.len()) < 40
    changed = prepared.events.with_columns(item_id=pl.when(first).then(pl.lit("i3")).otherwise("item_id"))
    train_collaborative(another, prepared_of(changed, prepared.manifest.hash), HashEncoder(), QUICK)
    mine, theirs = tensors(bundle), tensors(another)
    assert not np.array_equal(mine["cooperative.srm.item_in"], theirs["cooperative.srm.item_in"])


def test_another_seed_gives_other_networks(trained, another, bundle, data):
    train_collaborative(another, data[0], HashEncoder(), dataclasses.replace(QUICK, seed=1))
    mine, theirs = tensors(bundle), tensors(another)
    assert not np.array_equal(mine["cooperative.srm.item_in"], theirs["cooperative.srm.item_in"])


def test_a_bundle_whose_srm_looks_at_a_window_is_trained_too(data, tmp_path):
    options = dataclasses.replace(OPTIONS, srm_kind="sasrec", window=12, controls=False)
    options = dataclasses.replace(options, srm=dataclasses.replace(options.srm, chunk=13))
    train_bundle(*data, HashEncoder(), tmp_path / "b", options)
    bundle = load_bundle(tmp_path / "b")
    train_collaborative(bundle, data[0], HashEncoder(), dataclasses.replace(QUICK, train=options))
    found = load_collaborative(bundle.path, bundle.id)
    assert type(found.srms["adaptive"]).__name__ == "Sasrec"


def test_without_options_the_srm_before_validation_is_the_bundles_own_kind(another, data, monkeypatch):
    """What `train` does with a bundle of another window: the one of its manifest counts, not the default."""
    import cloud_worker.training.train_collaborative as module

    seen = []
    real = module.make_srm
    monkeypatch.setattr(module, "make_srm", lambda *a, **k: seen.append((a, k)) or real(*a, **k))
    monkeypatch.setattr(module, "TrainOptions", lambda: dataclasses.replace(TrainOptions(), srm=OPTIONS.srm))
    train_collaborative(another, data[0], HashEncoder(), dataclasses.replace(QUICK, train=None))
    manifest = another.manifest
    assert seen[0][0] == (manifest.srm, N_ITEMS, manifest.srm_dim)
    assert seen[0][1]["window"] == manifest.window


def test_trainings_of_another_bundle_are_refused(trained, bundle):
    with pytest.raises(BundleError, match=f"belongs to bundle {bundle.id}, not to {'0' * 16}") as caught:
        load_collaborative(bundle.path, "0" * 16)
    assert "driftline train collaborative" in caught.value.remedy


def test_a_bundle_without_trainings_has_none(another):
    assert load_collaborative(another.path, another.id) is None


@pytest.mark.parametrize("damage", ["cut off", "no safetensors", "a tensor is missing", "not finite"])
def test_a_damaged_file_is_refused(trained, bundle, another, damage):
    whole = (bundle.path / FILE).read_bytes()
    path = another.path / FILE
    if damage == "cut off":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "no safetensors":
        path.write_bytes(b"nothing")
    else:
        kept = dict(tensors(bundle))
        if damage == "a tensor is missing":
            del kept["adaptive.srm.bias_out"]
        else:
            kept["adaptive.srm.bias_out"][0] = np.nan
        save_file(kept, path, {"bundle": another.id})
    with pytest.raises(BundleError, match="cannot be read"):
        load_collaborative(another.path, another.id)


def test_other_data_and_another_encoder_are_refused(bundle, data):
    class Other(HashEncoder):
        model_id = "other"

    with pytest.raises(BundleError, match="was trained on other data"):
        train_collaborative(bundle, made_up(seed=1), HashEncoder(), QUICK)
    with pytest.raises(BundleError, match="with the encoder hash-16"):
        train_collaborative(bundle, data[0], Other(), QUICK)
