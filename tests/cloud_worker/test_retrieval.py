"""The cloud's candidates are the exact top of the catalogue."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cloud_worker import retrieval
from cloud_worker.retrieval import top_candidates

numbers = st.integers(-3, 3).map(float)  # few values: many ties


@st.composite
def problems(draw):
    n, d, users = draw(st.integers(1, 40)), draw(st.integers(1, 4)), draw(st.integers(0, 5))
    items = draw(hnp.arrays(np.float32, (n, d), elements=numbers))
    bias = draw(hnp.arrays(np.float32, n, elements=numbers))
    vectors = draw(hnp.arrays(np.float32, (users, d), elements=numbers))
    seen = st.one_of(st.none(), st.lists(st.integers(0, n - 1), max_size=50).map(lambda s: np.array(s, np.int32)))
    return vectors, items, bias, draw(st.integers(1, 50)), draw(st.lists(seen, min_size=users, max_size=users))


@given(problems())
@settings(max_examples=300)
def test_candidates_equal_brute_force_with_ties_by_index(problem):
    vectors, items, bias, n, excluded = problem
    found = top_candidates(vectors, items, bias, n, excluded)
    assert len(found) == len(vectors)
    for vector, seen, got in zip(vectors, excluded, found, strict=True):
        allowed = sorted(set(range(len(items))) - set([] if seen is None else seen.tolist()))
        wanted = sorted(allowed, key=lambda i: (-(float(vector @ items[i]) + float(bias[i])), i))[:n]
        assert got.tolist() == wanted
        assert got.dtype == np.int32


def test_a_large_catalogue_is_scored_in_pieces_with_the_same_result(monkeypatch):
    rng = np.random.default_rng(3)
    vectors, items = rng.integers(-9, 9, (7, 8)).astype(np.float32), rng.integers(-9, 9, (500, 8)).astype(np.float32)
    bias = np.zeros(500, np.float32)
    whole = top_candidates(vectors, items, bias, 20)
    monkeypatch.setattr(retrieval, "SCORES_AT_ONCE", 1000)
    for one, other in zip(whole, top_candidates(vectors, items, bias, 20), strict=True):
        np.testing.assert_array_equal(one, other)
