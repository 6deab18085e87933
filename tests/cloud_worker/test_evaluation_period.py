"""Looking at the test period: what is known at a moment, what each table holds, and that nothing looks ahead."""

from __future__ import annotations

import copy
import dataclasses

import msgspec
import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file

from cloud_worker.encoder import EncodedBatch
from cloud_worker.evaluation import collaborative, reliability, staleness
from cloud_worker.evaluation.broadcast import broadcast
from cloud_worker.evaluation.cloud_lists import lists_of
from cloud_worker.evaluation.test_period import load_test_period
from cloud_worker.history import History
from cloud_worker.live.index import LiveIndex, LiveOptions
from cloud_worker.live.reader import live_options
from cloud_worker.live.shared import SharedIndex
from cloud_worker.training.blending import teacher_ranks
from cloud_worker.training.collaborative import TRAININGS, Collaborative
from cloud_worker.training.controls import load_controls
from cloud_worker.training.data import make_histories
from cloud_worker.training.list_fusion import LEARNED, WEIGHTS
from cloud_worker.training.live import scores_at
from cloud_worker.training.live import stream as live_stream
from cloud_worker.training.metrics import ranks_of
from cloud_worker.training.train import train_bundle
from cloud_worker.user_model import BlendedUserModel
from streams.bundle import load_bundle
from streams.clock import SystemClock
from streams.errors import BundleError, DatasetError
from streams.experiment.ranking_metrics import ndcg_at
from tests.cloud_worker.evaluation_data import LENGTH, N_ITEMS, OPTIONS, HashEncoder, made_up, prepared_of

GAPS = (0, 1, 4, 8)


@pytest.fixture(scope="module")
def period(bundle, data):
    return load_test_period(bundle, data[0], HashEncoder(), moments=10_000, seed=0, gaps=GAPS)


@pytest.fixture(scope="module")
def columns(period, bundle):
    return staleness.columns(period, load_controls(bundle.path, bundle.id), GAPS)


def test_moments_are_the_test_periods_interactions_of_users_with_a_history(period, data):
    histories = period.histories
    moments = period.bench.moments(period.moments)
    at = histories.starts[moments.users] + moments.positions
    assert (histories.times_ms[at] >= data[1].test.start_ms).all()
    assert (moments.positions >= 1).all()
    assert len(moments) == data[1].test.interactions


def test_a_pair_of_a_gap_is_of_one_user_and_that_many_interactions_apart(period):
    snapshots = period.bench.snapshots
    for gap in GAPS:
        able, pairs = period.pairs(gap)
        assert (snapshots.users[pairs.stale] == snapshots.users[pairs.fresh]).all()
        assert (snapshots.positions[pairs.fresh] - snapshots.positions[pairs.stale] == gap).all()
        assert (pairs.fresh == period.moments[able]).all()


def test_with_the_nearest_gap_every_moment_is_there(bundle, data):
    found = load_test_period(bundle, data[0], HashEncoder(), moments=10_000, seed=0, gaps=[16], nearest=True)
    able, pairs = found.pairs(16, nearest=True)
    gaps = found.bench.snapshots.positions[pairs.fresh] - found.bench.snapshots.positions[pairs.stale]
    assert len(able) == len(found.moments)
    assert set(gaps[gaps < 16] - found.bench.snapshots.positions[pairs.fresh][gaps < 16]) <= {-1}
    assert gaps.max() == 16
    assert gaps.min() < 16


def test_a_moment_is_ranked_by_what_the_device_and_the_cloud_would_have_said(period, columns, bundle):
    """One row written out, from the bundle's tensors alone."""
    tensors, histories = bundle.device, period.histories
    moments = period.bench.moments(period.moments)
    scores = moments.hidden @ tensors["srm.item_out"].T + tensors["srm.bias_out"]
    taken = [histories.of(int(u), int(p)) for u, p in zip(moments.users, moments.positions, strict=True)]
    for row, items in enumerate(taken):
        scores[row, items] = -np.inf
    assert (columns[0].ranks[staleness.SRM] == ranks_of(scores, moments.targets)).all()
    cloud = period.bench.embeddings[period.moments] @ tensors["item_vectors"].T + tensors["item_bias"]
    for row, items in enumerate(taken):
        cloud[row, items] = -np.inf
    assert (columns[0].ranks["cloud fresh"] == ranks_of(cloud, moments.targets)).all()


def test_at_gap_0_stale_is_fresh_and_calibration_leaves_it_alone(columns):
    ranks = columns[0].ranks
    assert (ranks[staleness.STALE] == ranks[staleness.FRESH]).all()
    assert (ranks["cloud stale"] == ranks["cloud fresh"]).all()
    assert (ranks["calibrated"] == ranks["cloud fresh"]).all()
    assert staleness.recovered(columns[0], "ndcg@10") is None


def test_every_method_ranks_the_same_moments_at_a_gap_and_all_are_there(columns):
    wanted = {"popularity", "item-kNN", "SRM", staleness.SECOND, staleness.HEAD, "cloud stale", "cloud fresh"}
    wanted |= {"calibrated", staleness.STALE, staleness.CALIBRATED, staleness.FRESH}
    for column in columns:
        assert wanted <= set(column.ranks)
        assert {len(each) for each in column.ranks.values()} == {len(column.users)}
        assert all((each >= 1).all() and each.max() <= N_ITEMS for each in column.ranks.values())


def test_without_controls_their_rows_and_differences_are_left_out(period):
    (column,) = staleness.columns(period, None, [4])
    assert not {staleness.SECOND, staleness.HEAD} & set(column.ranks)
    assert all(staleness.SECOND not in pair and staleness.HEAD not in pair for pair in staleness.compared(column))


def test_cells_and_differences_are_means_of_the_metric(columns):
    column = columns[2]
    cell = staleness.cells(column, "ndcg@10")[staleness.FRESH]
    fresh, srm = (ndcg_at(column.ranks[each]) for each in (staleness.FRESH, staleness.SRM))
    assert cell.value.mean == pytest.approx(fresh.mean())
    assert cell.over_srm.mean == pytest.approx((fresh - srm).mean())
    assert cell.value.low <= cell.value.mean <= cell.value.high
    between = staleness.difference(column, staleness.FRESH, staleness.SRM, "ndcg@10")
    assert (between.low, between.high) == (cell.over_srm.low, cell.over_srm.high)


def test_moments_at_the_time_of_the_one_before_are_told_apart(columns):
    share = columns[0].repeated.mean()
    assert 0.1 < share < 0.3  # every fifth step of the made-up data
    parts = [columns[0].only(columns[0].repeated == same) for same in (True, False)]
    assert sum(len(part.users) for part in parts) == len(columns[0].users)


def test_share_recovered_is_that_of_the_means(columns):
    column = next(each for each in columns if staleness.recovered(each, "mrr") is not None)
    measured = column.measured("mrr")
    fresh, stale, repaired = (
        measured[each].mean() for each in (staleness.FRESH, staleness.STALE, staleness.CALIBRATED)
    )
    found = staleness.recovered(column, "mrr")
    assert found.mean == pytest.approx((repaired - stale) / (fresh - stale))


def test_the_same_seed_draws_the_same_moments_and_another_others(bundle, data):
    drawn = [
        load_test_period(bundle, data[0], HashEncoder(), moments=40, seed=seed, gaps=[0]).bench.snapshots
        for seed in (0, 0, 1)
    ]
    assert (drawn[0].users == drawn[1].users).all()
    assert set(drawn[0].users) != set(drawn[2].users)
    assert 40 <= len(drawn[0]) < 40 + LENGTH


def test_what_happens_later_changes_nothing_about_a_moment(bundle, data, period):
    """Items of the second half of the test period are exchanged: moments of its first half are judged as before."""
    prepared, split = data
    middle = (split.test.start_ms + split.test.end_ms) // 2
    rng = np.random.default_rng(1)
    other = pl.Series([f"i{i}" for i in rng.integers(N_ITEMS, size=len(prepared.events))])
    later = pl.col("event_time_ms") >= middle
    changed = prepared.events.with_columns(item_id=pl.when(later).then(other).otherwise("item_id"))
    again = load_test_period(
        bundle, prepared_of(changed, prepared.manifest.hash), HashEncoder(), moments=10_000, seed=0, gaps=GAPS
    )
    histories, moments = period.histories, period.bench.moments(period.moments)
    early = histories.times_ms[histories.starts[moments.users] + moments.positions] < middle
    assert 0 < early.sum() < len(early)
    embeddings = [each.bench.embeddings[each.moments] for each in (period, again)]
    assert np.array_equal(embeddings[0][early], embeddings[1][early])
    assert not np.array_equal(embeddings[0][~early], embeddings[1][~early])
    before, after = (staleness.columns(each, None, [4])[0] for each in (period, again))
    rows = early[period.pairs(4)[0]]
    for method, ranks in before.ranks.items():
        assert np.array_equal(ranks[rows], after.ranks[method][rows]), method


def test_what_the_live_index_says_of_a_moment_depends_on_no_other_moment(period):
    histories = period.histories
    snapshots = period.bench.snapshots
    (every,) = scores_at(histories, snapshots.users, snapshots.positions, [LiveOptions()], exclude_seen=True)
    rows = np.arange(0, len(snapshots), 7)
    few = (snapshots.users[rows], snapshots.positions[rows])
    (some,) = scores_at(histories, *few, [LiveOptions()], exclude_seen=True)
    np.testing.assert_allclose(every.dense(N_ITEMS)[rows], some.dense(N_ITEMS), rtol=1e-5)


def test_reliability_pairs_gains_and_scores_belong_together(period):
    found = reliability.sample(period, GAPS, sent=None, candidates=20, seed=0)
    assert len(found.gap) == sum(len(period.pairs(gap)[0]) for gap in GAPS)
    assert not found.pays[reliability.STALE][found.gap == 0].any()
    assert (found.gains[found.pays[reliability.CALIBRATED]] >= 0).all()
    assert set(found.scores) >= {
        "random",
        "gap",
        "age",
        "1 - cos(e, m)",
        "disagreement",
        "staleness s",
        "expected gain w",
        "oracle",
    }
    np.testing.assert_array_equal(found.staleness > 0, found.gap > 0)
    np.testing.assert_array_equal(found.scores["expected gain w"] != 0, found.gap > 0)
    assert (found.staleness < 1).all()
    assert (found.scores["1 - cos(e, m)"][found.gap == 0] == found.scores["1 - cos(e, m)"].min()).all()


def test_what_the_broadcast_tells_is_in_what_is_served_before_and_after_a_refresh(period):
    """A table moves ranks, of the fresh and of the stale alike; whether the embedding is stale, it does not touch."""
    moments = period.bench.moments(period.moments)
    start_ms = period.bundle.manifest.test.start_ms
    sent = broadcast(moments, begin_ms=start_ms, every_hours=1, ring=100, kept=N_ITEMS - 1)
    told, untold = (reliability.sample(period, GAPS, sent=each, candidates=20, seed=0) for each in (sent, None))
    assert (told.pays[reliability.STALE] == untold.pays[reliability.STALE]).all()
    assert (told.gains != untold.gains).any()
    for score in ("gap", "age", "1 - cos(e, m)", "staleness s", "expected gain w"):
        assert (told.scores[score] == untold.scores[score]).all()
    of_none = dataclasses.replace(sent, as_of_ms=np.full_like(sent.as_of_ms, -1))
    assert (reliability.sample(period, GAPS, sent=of_none, candidates=20, seed=0).gains == untold.gains).all()


def test_decisions_spend_the_budget_and_nothing_beats_the_oracle(period):
    found = reliability.sample(period, GAPS, sent=None, candidates=20, seed=0)
    made = {(each.score, each.rate): each for each in reliability.decisions(found)}
    aged = found.gap > 0
    assert not aged.all()
    for rate in reliability.RATES:
        best = made["oracle", rate].gain.mean
        assert all(made[score, rate].gain.mean <= best + 1e-9 for score in found.scores)
        assert made["random", rate].gain.mean == pytest.approx(found.gains[aged].mean())
        assert made["random", rate].precision.mean == pytest.approx(found.pays[reliability.CALIBRATED][aged].mean())
        assert made["expected gain w", rate].ours_over.mean == pytest.approx(0)
    assert reliability.curve(found, "expected gain w", [0.0, 1.0]) == pytest.approx([0.0, found.gains[aged].mean()])


def test_the_diagram_holds_every_pair_once(period):
    found = reliability.sample(period, GAPS, sent=None, candidates=20, seed=0)
    bins = reliability.diagram(found, reliability.STALE)
    assert sum(each.pairs for each in bins) == len(found.gap)
    assert [each.predicted for each in bins] == sorted(each.predicted for each in bins)
    mean = sum(each.observed.mean * each.pairs for each in bins) / len(found.gap)
    assert mean == pytest.approx(found.pays[reliability.STALE].mean())


@pytest.fixture(scope="module")
def far(bundle, data):
    return load_test_period(bundle, data[0], HashEncoder(), moments=10_000, seed=0, gaps=[8], nearest=True)


def test_collaborative_table_begins_with_the_stale_and_ends_with_the_fresh(far):
    (table,) = collaborative.measure(far, candidates=20, seed=0, gap=8).values()
    assert {"SRM only", "cloud only", "gated by s", "equal (λ = 1)", "SRM×2 (λ = 2)", "z-score"} <= set(table.stale)
    assert (table.stale["SRM only"] == table.fresh["SRM only"]).all()
    for rule in table.stale:
        found = collaborative.cells(table, rule)
        for who, intervals in found.items():
            assert intervals[0].mean == pytest.approx(table.stale[rule].mean())
            assert intervals[-1].mean == pytest.approx(table.fresh[rule].mean())
            assert all(mine.mean <= best.mean + 1e-9 for mine, best in zip(intervals, found["oracle"], strict=True)), (
                who
            )


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_the_learned_rule_has_the_weight_of_the_bundle_and_is_left_out_without_one(bundle, data, weight):
    def table(metrics):
        manifest = msgspec.structs.replace(bundle.manifest, metrics=metrics)
        period = load_test_period(
            dataclasses.replace(bundle, manifest=manifest), data[0], HashEncoder(), moments=60, seed=0, gaps=[8],
            nearest=True,
        )  # fmt: skip
        return collaborative.measure(period, candidates=20, seed=0, gap=8)["independent"]

    assert bundle.manifest.metrics[LEARNED] in WEIGHTS, "training chose one"
    same = {1.0: "equal (λ = 1)", 2.0: "SRM×2 (λ = 2)"}[weight]
    learned = table({LEARNED: weight})
    assert (learned.fresh["learned λ"] == learned.fresh[same]).all()
    assert "learned λ" not in table({}).stale


def test_every_training_serves_the_same_moments_and_lists(far, bundle):
    srm = far.networks.srm
    made = Collaborative({"cooperative": srm, "adaptive": _turned(srm)}, dict.fromkeys(TRAININGS, 2.0))
    tables = collaborative.measure(far, candidates=20, seed=0, gap=8, made=made)
    assert list(tables) == ["independent", "cooperative", "adaptive"]
    own, same, turned = tables.values()
    assert (own.users == turned.users).all()
    assert (own.gaps == turned.gaps).all()
    # Ranks within the list depend on the SRM, the cloud's order does not; what is outside the list does.
    hits = own.fresh["cloud only"] > 0
    assert (own.fresh["cloud only"][hits] == turned.fresh["cloud only"][hits]).all()
    assert (same.fresh["SRM only"] == own.fresh["SRM only"]).all()
    assert (turned.fresh["SRM only"] != own.fresh["SRM only"]).any()
    assert (own.askers[collaborative.RELIABILITY] == turned.askers[collaborative.RELIABILITY]).all()
    assert (own.askers[collaborative.PER_DEVICE] != turned.askers[collaborative.PER_DEVICE]).any()
    assert "z-score, calibrated" in own.stale
    assert "z-score, calibrated" not in turned.stale
    less = collaborative.over_independent(tables, "adaptive", "SRM only", collaborative.PER_DEVICE)
    assert less[0].mean == pytest.approx((turned.fresh["SRM only"] - own.fresh["SRM only"]).mean())


def _turned(srm):
    """An SRM that likes what this one does not."""
    other = copy.deepcopy(srm)
    with torch.no_grad():
        other.bias.copy_(-3 * other.bias)
    return other


def test_offline_lists_are_those_that_the_cloud_sends(far, bundle, data):
    """At every snapshot: the live index is fed with what happened up to it, and the serving model is asked."""
    histories, snapshots = far.histories, far.bench.snapshots
    keys, items, times = live_stream(histories)
    index = LiveIndex(N_ITEMS, live_options(bundle))
    model = BlendedUserModel(bundle, HashEncoder(), SharedIndex(index), SystemClock())
    known = histories.order[histories.starts[snapshots.users] + snapshots.positions - 1]
    found = lists_of(far, 20)
    at, same = 0, []
    for row in np.argsort(known, kind="stable")[:150]:
        upto = int(known[row]) + 1
        index.observe(keys[at:upto], items[at:upto], times[at:upto])
        at = max(at, upto)
        user, position = int(snapshots.users[row]), int(snapshots.positions[row])
        begin = int(histories.starts[user])
        taken = slice(begin, begin + position)
        asked = History(
            histories.items[taken].astype(np.int32), histories.times_ms[taken], user, int(times[known[row]])
        )
        (sent,) = model.embed([asked], 20).candidates
        mine = found.items[row][found.listed[row]]
        assert sorted(mine) == sorted(sent)
        same.append(mine.tolist() == sent.tolist())
    assert np.mean(same) > 0.95, "but for items that are equally likely to a float's last digit"


def test_candidates_longer_than_the_catalogue_rank_it_all(bundle, data):
    period = load_test_period(bundle, data[0], HashEncoder(), moments=60, seed=0, gaps=[8], nearest=True)
    table = collaborative.measure(period, candidates=10 * N_ITEMS, seed=0, gap=8)["independent"]
    at = period.bench.moments(period.moments)
    teacher = teacher_ranks(period.answers.take(period.moments), at, period.networks.space(), period.blend)
    assert table.fresh["cloud only"] == pytest.approx(ndcg_at(teacher))


def test_a_bundle_of_other_data_is_refused(bundle):
    with pytest.raises(BundleError, match="was trained on other data") as caught:
        load_test_period(bundle, made_up(seed=1), HashEncoder(), moments=10, seed=0)
    assert "driftline train" in caught.value.remedy


def test_another_encoder_is_refused(bundle, data):
    class Other(HashEncoder):
        model_id = "other"

        def encode(self, texts) -> EncodedBatch:
            raise AssertionError("it must not be asked")

    with pytest.raises(BundleError, match="with the encoder hash-16"):
        load_test_period(bundle, data[0], Other(), moments=10, seed=0)


def test_a_gap_longer_than_any_history_is_refused_and_says_how_long_one_can_be(bundle, data):
    with pytest.raises(DatasetError, match=rf"a gap of 500 is longer than any history.*{LENGTH - 2} at most"):
        load_test_period(bundle, data[0], HashEncoder(), moments=10_000, seed=0, gaps=[500])


def test_gaps_that_only_some_histories_bear_are_measured_and_the_others_left_out(bundle, data):
    period = load_test_period(bundle, data[0], HashEncoder(), moments=50, seed=0, gaps=[4, 500])
    assert [column.gap for column in staleness.columns(period, None, [4, 500])] == [4]


def test_a_test_period_of_new_users_alone_is_refused(bundle, data):
    prepared, split = data
    later = pl.col("event_time_ms") >= split.test.start_ms
    first = prepared.events.filter(later).unique("device_id", keep="first", maintain_order=True)
    strangers = first.with_columns(device_id=pl.lit("new-") + pl.col("device_id"))
    events = pl.concat([prepared.events.filter(~later), strangers])
    with pytest.raises(DatasetError, match="no user of the test period has an interaction before it"):
        load_test_period(bundle, prepared_of(events, prepared.manifest.hash), HashEncoder(), moments=10, seed=0)


def test_changing_anything_after_the_split_changes_no_trained_tensor(bundle, data, tmp_path):
    """Items, users, and times within the test period: not one byte of what was learned may move."""
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
    train_bundle(prepared_of(changed, prepared.manifest.hash), split, HashEncoder(), tmp_path / "x", OPTIONS)
    other = load_bundle(tmp_path / "x")
    for part in ("device", "cloud", "live"):
        mine, theirs = getattr(bundle, part), getattr(other, part)
        assert set(mine) == set(theirs)
        for name in mine:
            assert np.array_equal(mine[name], theirs[name]), name
    controls = [load_file(each.path / "controls.safetensors") for each in (bundle, other)]
    assert set(controls[0]) == set(controls[1])
    assert all(np.array_equal(controls[0][name], controls[1][name]) for name in controls[0])
    without_time = lambda metrics: {k: v for k, v in metrics.items() if k != "seconds"}  # noqa: E731
    assert without_time(bundle.manifest.metrics) == without_time(other.manifest.metrics)


def test_an_event_before_the_split_does_change_them(bundle, data, tmp_path):
    """Otherwise the test above could not fail."""
    prepared, split = data
    first = pl.int_range(pl.len()) < 40
    changed = prepared.events.with_columns(item_id=pl.when(first).then(pl.lit("i3")).otherwise("item_id"))
    train_bundle(prepared_of(changed, prepared.manifest.hash), split, HashEncoder(), tmp_path / "x", OPTIONS)
    other = load_bundle(tmp_path / "x")
    assert not np.array_equal(bundle.device["srm.item_in"], other.device["srm.item_in"])


def test_histories_know_when_each_period_begins(period, data):
    prepared, split = data
    index = {item: row for row, item in enumerate(prepared.items["item_id"])}
    items = np.array([index[item] for item in prepared.events["item_id"]])
    times = prepared.events["event_time_ms"].to_numpy()
    made = make_histories(prepared.events["device_id"].to_numpy(), items, times, N_ITEMS, split.test.start_ms)
    assert (period.histories.trained == made.trained).all()
    assert (period.histories.items == made.items).all()
