"""The broadcast of who-took-what-near-what, offline: by hand, without a look ahead, and worth something where others
know more."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch")

from cloud_worker.evaluation import staleness, trends
from cloud_worker.evaluation.broadcast import Broadcast, broadcast
from cloud_worker.evaluation.collaborative import RATIOS
from cloud_worker.evaluation.staleness import CALIBRATED, FRESH, SRM
from cloud_worker.evaluation.test_period import load_test_period
from cloud_worker.evaluation.trends import METHODS, STATIC, TRENDS
from cloud_worker.training.data import make_histories
from cloud_worker.training.evaluate import Moments
from cloud_worker.training.trends import HOUR_MS, added_by
from tests.cloud_worker.evaluation_data import HashEncoder

GAPS = [1, 4]
RING, KEPT = 100, 16


def same_table(one, other) -> bool:
    return (
        one.as_of_ms == other.as_of_ms
        and np.array_equal(one.items, other.items)
        and np.array_equal(one.weights, other.weights)
    )


@pytest.fixture(scope="module")
def period(bundle, data):
    return load_test_period(bundle, data[0], HashEncoder(), moments=10_000, seed=0, gaps=GAPS, nearest=True)


def sent_to(period, histories=None, **options) -> Broadcast:
    moments = period.bench.moments(period.moments)
    if histories is not None:
        moments = dataclasses.replace(moments, histories=histories)
    begin_ms = period.bundle.manifest.test.start_ms
    return broadcast(moments, **{"begin_ms": begin_ms, "every_hours": 1, "ring": RING, "kept": KEPT} | options)


@pytest.fixture(scope="module")
def sent(period):
    return sent_to(period)


def times_of(period) -> np.ndarray:
    at = period.bench.snapshots.take(period.moments)
    return period.histories.times_ms[period.histories.starts[at.users] + at.positions]


@pytest.mark.parametrize("every_hours", [1, 0.3, 5])
def test_each_moment_has_the_newest_table_of_its_time_or_before(period, every_hours):
    sent, times, every_ms = sent_to(period, every_hours=every_hours), times_of(period), round(every_hours * HOUR_MS)
    assert (sent.as_of_ms <= times).all()
    assert (times - sent.as_of_ms < every_ms).all()
    assert not ((sent.as_of_ms - sent.begin_ms) % every_ms).any()
    assert set(sent.tables) == {*sent.as_of_ms.tolist(), sent.begin_ms}
    assert sent.table_bytes == 6 * period.histories.n_items * KEPT


def test_what_happens_after_a_moments_table_changes_nothing_in_it(period, sent):
    """Items of the last third of the test period become others: tables before it stay as they were."""
    histories, times = period.histories, times_of(period)
    since = np.quantile(times, 2 / 3)
    later = histories.times_ms >= since
    changed = dataclasses.replace(histories, items=np.where(later, (histories.items + 13) % 60, histories.items))
    again = sent_to(period, changed)
    same = {as_of_ms: same_table(table, again.tables[as_of_ms]) for as_of_ms, table in sent.tables.items()}
    first = histories.times_ms[later].min()
    assert [each <= first for each in same] == list(same.values()), "and after it they do not"
    assert min(same) == sent.begin_ms
    assert 0 < sum(same.values()) < len(same)


def test_before_the_second_table_a_device_knows_as_much_as_the_bundle(period):
    never = sent_to(period, every_hours=10**6)
    assert list(never.tables) == [never.begin_ms]
    assert (never.as_of_ms == never.begin_ms).all()


@pytest.fixture(scope="module")
def columns(period, sent):
    return trends.columns(period, sent, GAPS, seed=0, on_done=lambda *_: None)


def test_all_methods_are_ranked_at_all_moments_of_every_gap(columns, period):
    for column in columns:
        assert list(column.ranks) == list(METHODS)
        assert all(len(ranks) == len(period.moments) for ranks in column.ranks.values())
    for method in (SRM, FRESH, f"{SRM} + {TRENDS}"):
        assert np.array_equal(columns[0].ranks[method], columns[1].ranks[method]), "no gap concerns it"
    assert not np.array_equal(columns[0].ranks[CALIBRATED], columns[1].ranks[CALIBRATED])


def test_without_weight_nothing_is_added(period, sent):
    device = {**period.bundle.device, "fusion.trends": np.zeros(2, np.float32)}
    silent = dataclasses.replace(period, bundle=dataclasses.replace(period.bundle, device=device))
    (column,) = trends.columns(silent, sent, [4], seed=0, on_done=lambda *_: None)
    for served in (SRM, CALIBRATED, FRESH):
        for added in (STATIC, TRENDS):
            assert np.array_equal(column.ranks[served], column.ranks[f"{served} + {added}"])


def test_refreshes_begin_with_the_repaired_and_end_with_the_fresh(columns, period):
    by_addition = trends.refreshed(period, columns[-1])
    for added in ("", f" + {TRENDS}"):
        found = by_addition[added]
        assert list(found) == list(RATIOS)
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
    moments = Moments.without_states(made, np.arange(12, 20), np.full(8, 8), exclude_seen=False)
    sent = broadcast(moments, begin_ms=int(days[10]), every_hours=24, ring=RING, kept=8)
    last = np.array([[3]], np.int32)
    assert sent.tables[sent.begin_ms].sums(last)[0, 8] == 0
    since = [sent.tables[each].sums(last)[0] for each in np.unique(sent.as_of_ms).tolist()]
    assert all(each[8] > 0 for each in since)
    added = added_by(sent.tables, moments, sent.as_of_ms, np.ones(8))(slice(0, 8))
    static = added_by(sent.tables, moments, np.full(8, sent.begin_ms), np.ones(8))(slice(0, 8))
    assert (added[:, 8] > static[:, 8]).all()
