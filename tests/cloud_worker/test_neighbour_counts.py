"""Counting who took what near what: against the definition, written out as loops."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_worker.live.neighbour_counts import LEAST_KEPT, MOST_KEPT, PAIRS, neighbour_table, neighbours_kept
from streams.neighbours import DECAY, NEAR, NeighbourTable

N = 8
users = st.lists(st.lists(st.integers(0, N - 1), max_size=NEAR + 8), max_size=5)


def table_of(histories: list[list[int]], n_items: int = N, kept: int = N) -> NeighbourTable:
    items = np.array([item for each in histories for item in each], np.int64)
    lengths = np.array([len(each) for each in histories], np.int64)
    return neighbour_table(lengths, items, n_items, as_of_ms=77, kept=kept)


def rows_of(table: NeighbourTable) -> list[dict[int, float]]:
    """Each item's neighbours, in the table's order."""
    return [
        {item: float(weight) for item, weight in zip(items, weights, strict=True) if item < len(table.items)}
        for items, weights in zip(table.items.tolist(), table.weights.tolist(), strict=True)
    ]


def counted(histories: list[list[int]]) -> tuple[Counter[tuple[int, int]], Counter[int]]:
    pairs: Counter[tuple[int, int]] = Counter()
    for history in histories:
        for later, one in enumerate(history):
            for apart in range(1, min(later, NEAR) + 1):
                other = history[later - apart]
                if one != other:
                    pairs[one, other] += DECAY ** (apart - 1)
                    pairs[other, one] += DECAY ** (apart - 1)
    return pairs, Counter(item for history in histories for item in history)


@given(users, st.integers(1, N))
@settings(max_examples=150, deadline=None)
def test_it_is_what_the_definition_says(histories, kept):
    pairs, taken = counted(histories)
    rows = rows_of(table_of(histories, kept=kept))
    for item, row in enumerate(rows):
        wanted = {j: c / math.sqrt(taken[i] * taken[j]) for (i, j), c in pairs.items() if i == item}
        assert len(row) == min(kept, len(wanted))
        for other, weight in row.items():
            assert weight == pytest.approx(wanted[other], rel=1e-3)
        assert list(row.values()) == pytest.approx(sorted(wanted.values(), reverse=True)[:kept], rel=1e-3)


@given(users)
@settings(max_examples=50, deadline=None)
def test_near_is_mutual_and_nothing_is_near_itself(histories):
    rows = rows_of(table_of(histories))
    for item, row in enumerate(rows):
        assert item not in row
        for other, weight in row.items():
            assert rows[other][item] == weight


def test_what_two_users_took_one_after_the_other_is_no_pair():
    assert rows_of(table_of([[0], [1], [2, 2]])) == [{}] * N


def test_a_pair_weighs_less_the_further_apart_and_nothing_beyond_the_reach():
    histories = [[0, *[7] * (apart - 1), 1] for apart in (1, 2, NEAR, NEAR + 1)]
    weights = [rows_of(table_of([each]))[0].get(1, 0.0) for each in histories]
    assert weights == pytest.approx([1, DECAY, DECAY ** (NEAR - 1), 0], rel=1e-3)


@given(users, st.integers(1, N), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_users_changes_no_bit(histories, kept, random):
    shuffled = random.sample(histories, len(histories))
    one, other = table_of(histories, kept=kept), table_of(shuffled, kept=kept)
    assert one.items.tobytes() + one.weights.tobytes() == other.items.tobytes() + other.weights.tobytes()


def test_of_equal_neighbours_the_smaller_index_is_kept():
    table = table_of([[5, 0], [5, 3], [5, 1], [5, 2]], kept=3)
    assert table.items[5].tolist() == [0, 1, 2]
    assert len(set(table.weights[5].tolist())) == 1


def test_without_interactions_there_are_no_neighbours():
    for histories in ([], [[], []], [[3]]):
        table = table_of(histories, kept=2)
        assert (table.items == N).all()
        assert (table.weights == 0).all()
        assert table.as_of_ms == 77


def test_a_large_catalogue_is_counted_right_to_its_last_item():
    n = 2_000_000
    row = table_of([[n - 1, 0, n - 2]], n, kept=1)
    assert (row.items[n - 1, 0], row.items[0, 0], row.items[n - 2, 0]) == (0, n - 2, 0)
    with pytest.raises(ValueError, match="fewer than"):
        table_of([[0, 1]], 1 << 24)


def test_a_table_has_about_as_many_cells_whatever_the_catalogue():
    assert neighbours_kept(100) == 100, "there are no more"
    assert neighbours_kept(1_000) == MOST_KEPT
    assert neighbours_kept(20_000) * 20_000 == PAIRS
    assert neighbours_kept(1_000_000) == LEAST_KEPT
