"""A broadcast of who-took-what-near-what: by hand, without a look ahead, and worth something where others know more."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch")

from scipy import sparse

from cloud_worker.evaluation import staleness, trends
from cloud_worker.evaluation.staleness import CALIBRATED, FRESH, SRM
from cloud_worker.evaluation.test_period import load_test_period
from cloud_worker.evaluation.trends import (
    HOUR_MS,
    METHODS,
    STATIC,
    TRENDS,
    Broadcast,
    NeighbourCounts,
    Neighbours,
    broadcast,
    heaviest,
)
from cloud_worker.training.data import make_histories
from tests.cloud_worker.evaluation_data import HashEncoder

GAPS = [1, 4]


@pytest.fixture
def histories():
    """u takes 0, 1, 2 at hours 0, 1, 5; v takes 1, 0 at hours 2, 3 and 3 at hour 6."""
    users, items = ["u", "u", "v", "v", "u", "v"], [0, 1, 1, 0, 2, 3]
    return make_histories(np.array(users), np.array(items), HOUR_MS * np.array([0, 1, 2, 3, 5, 6]), 4, 0)


def test_neighbours_are_counted_by_the_time_of_the_later_one_and_those_further_apart_less(histories):
    counts = NeighbourCounts(histories)
    assert counts.between(0, 2 * HOUR_MS).toarray().tolist() == [[0, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4]
    every = counts.between(0, 10 * HOUR_MS).toarray()
    wanted = {(0, 1): 2.0, (1, 2): 1.0, (0, 2): 0.8, (0, 3): 1.0, (1, 3): 0.8}
    assert {(i, j): every[i, j] for i, j in zip(*np.nonzero(every), strict=True)} == pytest.approx(wanted)
    two = counts.between(0, 3 * HOUR_MS) + counts.between(3 * HOUR_MS, 10 * HOUR_MS)
    np.testing.assert_allclose(two.toarray(), every)
    assert counts.taken(3 * HOUR_MS).tolist() == [1, 2, 0, 0]


def test_scores_by_hand(histories):
    pairs = sparse.csr_matrix(np.array([[0, 2, 1, 0], [2, 0, 0, 3], [1, 0, 0, 0], [0, 3, 0, 0]], float))
    known = Neighbours(pairs, np.array([4.0, 1.0, 9.0, 0.0]))
    (found,) = known.scores(histories, np.array([0]), np.array([2])).toarray()  # 1 was the last one, 0 before it
    assert found == pytest.approx([2 / 2, 0.8 * 2 / 2, 0.8 * 1 / (2 * 3), 0])


def test_a_record_of_bounded_size_has_the_heaviest_pairs():
    counts = sparse.csr_matrix(np.array([[0, 5, 1], [0, 0, 3], [0, 0, 0]], float))
    assert heaviest(counts, 2).toarray().tolist() == [[0, 5, 0], [0, 0, 3], [0, 0, 0]]
    assert heaviest(counts, 3) is counts


@pytest.fixture(scope="module")
def period(bundle, data):
    return load_test_period(bundle, data[0], HashEncoder(), moments=10_000, seed=0, gaps=GAPS, nearest=True)


def sent_to(period, prepared_histories=None, **options) -> Broadcast:
    at = period.bench.snapshots.take(period.moments)
    begin_ms = period.bundle.manifest.test.start_ms
    whole = {"begin_ms": begin_ms, "every_hours": 1, "most": 10_000} | options
    return broadcast(prepared_histories or period.histories, at.users, at.positions, **whole)


@pytest.fixture(scope="module")
def sent(period):
    return sent_to(period)


def test_what_happens_after_a_moments_record_changes_nothing_in_it(period, sent):
    """Items of the last third of the test period become others: records before it stay as they were."""
    histories = period.histories
    at = period.bench.snapshots.take(period.moments)
    times = histories.times_ms[histories.starts[at.users] + at.positions]
    since = np.quantile(times, 2 / 3)
    later = histories.times_ms >= since
    changed = dataclasses.replace(histories, items=np.where(later, (histories.items + 13) % 60, histories.items))
    again = sent_to(period, changed)
    before = np.flatnonzero(times < since)
    assert len(before) > 10
    np.testing.assert_array_equal(again.trends[before].toarray(), sent.trends[before].toarray())
    np.testing.assert_array_equal(again.static[before].toarray(), sent.static[before].toarray())
    after = np.flatnonzero(times >= since + HOUR_MS)
    assert (again.trends[after] != sent.trends[after]).nnz, "and after it they do not"


def test_before_the_first_record_the_bundle_knows_as_much(period):
    never = sent_to(period, every_hours=10**6)
    np.testing.assert_allclose(never.trends.toarray(), never.static.toarray())
    assert never.records == [0]


def test_records_grow_and_are_bounded(sent, period):
    assert list(sent.records) == sorted(sent.records)
    assert max(sent_to(period, most=7).records) == 7


@pytest.fixture(scope="module")
def columns(period, sent):
    return trends.columns(period, sent, GAPS, weight=0.5, seed=0, on_done=lambda *_: None)


def test_all_methods_are_ranked_at_all_moments_of_every_gap(columns, period):
    for column in columns:
        assert list(column.ranks) == list(METHODS)
        assert all(len(ranks) == len(period.moments) for ranks in column.ranks.values())
    for method in (SRM, FRESH, f"{SRM} + {TRENDS}"):
        assert np.array_equal(columns[0].ranks[method], columns[1].ranks[method]), "no gap concerns it"
    assert not np.array_equal(columns[0].ranks[CALIBRATED], columns[1].ranks[CALIBRATED])


def test_without_weight_nothing_is_added(period, sent):
    (column,) = trends.columns(period, sent, [4], weight=0.0, seed=0, on_done=lambda *_: None)
    for served in (SRM, CALIBRATED, FRESH):
        for added in (STATIC, TRENDS):
            assert np.array_equal(column.ranks[served], column.ranks[f"{served} + {added}"])


def test_refreshes_begin_with_the_repaired_and_end_with_the_fresh(columns, period):
    by_addition = trends.refreshed(period, columns[-1])
    for added in ("", f" + {TRENDS}"):
        found = by_addition[added]
        assert list(found) == list(trends.RATIOS)
        ends = [columns[-1].measured("ndcg@10")[f"{served}{added}"].mean() for served in (CALIBRATED, FRESH)]
        assert [found[0.0].mean, found[1.0].mean] == pytest.approx(ends)


def test_what_is_served_without_an_addition_is_ranked_as_by_evaluate_staleness(columns, period):
    for column in columns:
        able, _ = period.pairs(column.gap)
        (wanted,) = staleness.columns(period, None, [column.gap])
        assert np.array_equal(column.users[able], wanted.users)
        for method in (SRM, CALIBRATED, FRESH):
            np.testing.assert_array_equal(column.ranks[method][able], wanted.ranks[method])


def test_a_device_gains_what_others_did_since_the_bundle_was_made():
    """Since that day everybody takes 8 after 3, which nobody had done before."""
    rng = np.random.default_rng(0)
    days = 24 * HOUR_MS * np.arange(60)
    users, items, times = [], [], []
    for user in range(20):
        order = rng.permutation(8)
        taken = order if user < 10 else np.array([*order[order != 3], 3, 8])
        users += [user] * len(taken)
        items += taken.tolist()
        times += (days[user] + HOUR_MS * np.arange(len(taken))).tolist()
    made = make_histories(np.array(users), np.array(items), np.array(times), 9, 0)
    asking = np.arange(12, 20)
    found = broadcast(made, asking, np.full(8, 8), begin_ms=int(days[10]), every_hours=24, most=100)
    assert not found.static[:, 8].toarray().any()
    assert (found.trends[:, 8].toarray() > 0).all()
    assert found.bytes_of(100) == 1_000 + 2 * 9
