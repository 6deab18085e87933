"""Neighbour tables made of histories, what they add to scores, and β, found where it is known."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from cloud_worker.live.neighbour_counts import neighbour_table
from cloud_worker.training import evaluate
from cloud_worker.training.data import make_histories
from cloud_worker.training.evaluate import Catalogue, Moments, ranks_for_weights
from cloud_worker.training.fusion import best_alpha
from cloud_worker.training.trends import HOUR_MS, WEIGHTS, Told, added_by, newest_before, tables_at

RING = 100


@pytest.fixture
def histories():
    """u takes 0, 1, 2 at hours 0, 1, 5; v takes 1, 0 at hours 2, 3 and 3 at hour 6."""
    users, items = ["u", "u", "v", "v", "u", "v"], [0, 1, 1, 0, 2, 3]
    return make_histories(np.array(users), np.array(items), HOUR_MS * np.array([0, 1, 2, 3, 5, 6]), 4, 0)


def same_table(one, other) -> bool:
    return (
        one.as_of_ms == other.as_of_ms
        and np.array_equal(one.items, other.items)
        and np.array_equal(one.weights, other.weights)
    )


@pytest.mark.parametrize(
    ("hour", "ring", "lengths", "items"),
    [
        (0, 9, [0, 0], []),
        (3, 9, [2, 1], [0, 1, 1]),  # what happens at hour 3 is not yet in it
        (9, 9, [3, 3], [0, 1, 2, 1, 0, 3]),
        (9, 2, [2, 2], [1, 2, 0, 3]),
    ],
)
def test_a_table_knows_what_happened_before_it_and_of_each_user_the_last(histories, hour, ring, lengths, items):
    found = tables_at(histories, np.array([hour * HOUR_MS] * 2), ring=ring, kept=3)
    wanted = neighbour_table(np.array(lengths), np.array(items, int), 4, as_of_ms=hour * HOUR_MS, kept=3)
    assert list(found) == [hour * HOUR_MS]
    assert same_table(found[hour * HOUR_MS], wanted)


def test_what_is_added_asks_each_moments_own_table_with_its_last_items(histories):
    moments = Moments.without_states(histories, np.array([0, 0, 1]), np.array([1, 2, 2]), exclude_seen=False)
    tables = tables_at(histories, HOUR_MS * np.array([3, 9]), ring=RING, kept=3)
    as_of_ms, weights = np.array([-1, 3 * HOUR_MS, 9 * HOUR_MS]), np.array([1.0, 2.0, 0.5])
    found = added_by(tables, moments, as_of_ms, weights)(slice(0, 3))
    assert not found[0].any(), "it has none"
    (second,) = tables[3 * HOUR_MS].scaled(np.array([[1, 0]], np.int32))
    (third,) = tables[9 * HOUR_MS].scaled(np.array([[0, 1]], np.int32))
    np.testing.assert_allclose(found[1:], np.stack([2 * second, third / 2]), atol=1e-6)
    np.testing.assert_array_equal(added_by(tables, moments, as_of_ms, weights)(slice(2, 3)), found[2:])


def test_what_is_added_weighs_as_if_the_scores_were_standardised(histories):
    """Of items that the SRM scores 1000, 0, 0, 0 the last is first where as much is added to it as z has at most."""
    catalogue = Catalogue(np.zeros((4, 1), np.float32), np.zeros(4, np.float32), np.zeros((4, 1), np.float32),
                          np.array([1000, 0, 0, 0], np.float32))  # fmt: skip
    moments = Moments(histories, np.array([1]), np.array([2]), np.zeros((1, 1), np.float32), exclude_seen=False)

    def rank(more: float) -> int:
        added = np.array([[0, 0, 0, more]], np.float32)
        return int(evaluate.ranks(catalogue, moments, None, 0.0, lambda rows: added[rows])[0])

    gap = (1 + 1 / 3) * np.sqrt(3)
    assert moments.targets.tolist() == [3]
    assert [rank(0.0), rank(0.1), rank(gap - 0.01), rank(gap + 0.01)] == [4, 2, 2, 1]
    assert evaluate.ranks(catalogue, moments, None, 0.0).tolist() == [4]


def test_several_weights_at_once_are_each_alone(histories):
    rng = np.random.default_rng(0)
    catalogue = Catalogue(*(rng.normal(size=shape).astype(np.float32) for shape in [(4, 3), 4, (4, 2), 4]))
    hidden, embeddings = (rng.normal(size=(3, each)).astype(np.float32) for each in (2, 3))
    moments = Moments(histories, np.array([0, 0, 1]), np.array([1, 2, 2]), hidden, exclude_seen=True)
    told = rng.normal(size=(3, 4)).astype(np.float32)
    weights = [np.zeros(3), np.array([0.0, 3.0, 0.5]), np.full(3, 50.0)]
    alpha = np.array([0.1, 0.5, 0.9])
    found = ranks_for_weights(catalogue, moments, embeddings, alpha, lambda rows: told[rows], weights)
    for weight, ranks in zip(weights, found, strict=True):
        more = (weight[:, None] * told).astype(np.float32)
        alone = evaluate.ranks(catalogue, moments, embeddings, alpha, lambda rows, more=more: more[rows])
        np.testing.assert_array_equal(alone, ranks)
    np.testing.assert_array_equal(evaluate.ranks(catalogue, moments, embeddings, alpha), found[0])


def test_beta_is_large_where_only_the_table_knows_and_small_where_it_misleads():
    """Everybody takes i + 1 after i in the validation period; the SRM says the same, nothing, or something else."""
    n, users = 12, 60
    owners, items = np.repeat(np.arange(users), n), np.tile(np.arange(n), users)
    starts = np.random.default_rng(1).integers(0, n, users)
    items = (items + np.repeat(starts, n)) % n
    times = np.repeat(np.arange(users), n) * HOUR_MS + np.tile(np.arange(n), users) * 1000
    made = make_histories(owners, items, times, n, 0)
    told = Told(made, 0, users * HOUR_MS, ring=RING, on_done=lambda *_: None)
    at = np.arange(users // 2, users)
    positions = np.full(len(at), 6)
    last = made.items[made.starts[at] + 5]

    def chosen(shift: int | None) -> float:
        out = np.zeros((n, n), np.float32) if shift is None else np.roll(np.eye(n, dtype=np.float32), shift, axis=0)
        catalogue = Catalogue(np.zeros((n, 1), np.float32), np.zeros(n, np.float32), out, np.zeros(n, np.float32))
        moments = Moments(made, at, positions, np.eye(n, dtype=np.float32)[last], exclude_seen=True)
        tried = told.ranks(catalogue, moments, None, 0.0, [np.full(len(at), weight) for weight in WEIGHTS])
        return best_alpha(tried, WEIGHTS)

    assert chosen(1) == 0, "it knows already"
    assert chosen(None) > 0
    assert chosen(5) >= 1, "it is wrong"


def test_in_training_devices_are_told_as_often_as_in_service():
    """Once a day of event time, over two months: older tables say less than devices will be told."""
    rng, users, n, day = np.random.default_rng(2), 60, 12, 24 * HOUR_MS
    times = np.sort(rng.integers(0, 60 * day, users * n))
    made = make_histories(np.tile(np.arange(users), n), rng.integers(n, size=users * n), times, n, 0)
    told = Told(made, 0, 60 * day, ring=RING, on_done=lambda *_: None)
    moments = Moments.without_states(made, np.arange(users), np.full(users, n - 2), exclude_seen=False)
    daily = tables_at(made, np.arange(0, 60 * day, day), ring=RING, kept=n)
    wanted = added_by(daily, moments, newest_before(moments, 0, day), np.ones(users))
    rows = slice(0, users)
    np.testing.assert_array_equal(told.said(moments)(rows), wanted(rows))
    assert wanted(rows).any()


def test_a_moment_has_the_newest_table_that_cannot_know_it(histories):
    moments = Moments.without_states(histories, np.array([0, 0, 1]), np.array([0, 2, 2]), exclude_seen=False)
    assert (newest_before(moments, 0, 4 * HOUR_MS) / HOUR_MS).tolist() == [0, 4, 4]  # at hours 0, 5 and 6
