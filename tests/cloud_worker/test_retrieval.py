"""The cloud's candidates are the exact top of the scores, and a large catalogue's best items are found by a graph."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cloud_worker import retrieval
from cloud_worker.retrieval import NearestItems, Shortlist, recall, top_of

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
    found = top_of(vectors @ items.T + bias, n, excluded)
    assert len(found) == len(vectors)
    for vector, seen, got in zip(vectors, excluded, found, strict=True):
        allowed = sorted(set(range(len(items))) - set([] if seen is None else seen.tolist()))
        wanted = sorted(allowed, key=lambda i: (-(float(vector @ items[i]) + float(bias[i])), i))[:n]
        assert got.tolist() == wanted
        assert got.dtype == np.int32


@pytest.fixture(scope="module")
def large():
    """A catalogue of 120,000 items in clusters, with popular ones, and users near the clusters."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(400, 8)).astype(np.float32)

    def near(count):
        return centres[rng.integers(0, 400, count)] + 0.4 * rng.normal(size=(count, 8)).astype(np.float32)

    return near(120_000), rng.normal(0, 0.5, 120_000).astype(np.float32), near(200)


def test_a_graph_finds_the_best_of_a_large_catalogue_and_is_built_once(large, tmp_path, monkeypatch):
    vectors, bias, users = large
    path = tmp_path / "retrieval" / "b.usearch"
    nearest = NearestItems(vectors, bias, path=path)
    assert recall(nearest, vectors, bias, users, 200) >= 0.95
    assert [each.name for each in path.parent.iterdir()] == ["b.usearch"]

    def never(*_):
        raise AssertionError("built again")

    monkeypatch.setattr(retrieval, "_build", never)
    again = NearestItems(vectors, bias, path=path)
    np.testing.assert_array_equal(again.top(users[:3], 50), nearest.top(users[:3], 50))


def test_a_damaged_graph_or_a_disk_that_takes_none_is_no_trouble(tmp_path):
    rng = np.random.default_rng(1)
    vectors, bias = rng.normal(size=(300, 4)).astype(np.float32), np.zeros(300, np.float32)
    path = tmp_path / "b.usearch"
    path.write_bytes(b"no graph")
    assert recall(NearestItems(vectors, bias, path=path), vectors, bias, vectors[:20], 10) > 0.95
    assert recall(NearestItems(vectors, bias, path=path / "sub"), vectors, bias, vectors[:20], 10) > 0.95
    assert recall(NearestItems(vectors[:50], bias[:50], path=path), vectors[:50], bias[:50], vectors[:9], 5) > 0.95


@given(st.integers(1, 300), st.lists(st.integers(0, 299), max_size=80), st.integers(1, 50))
def test_a_shortlist_stands_for_the_whole_catalogue(n_items, chosen, sample):
    chosen = np.array([each % n_items for each in chosen], np.int64)
    short = Shortlist.of(n_items, [chosen], sample)
    assert np.isin(chosen, short.items).all()
    assert (np.diff(short.items) > 0).all()
    assert len(short.items) <= len(np.unique(chosen)) + sample
    assert (short.stands_for[np.isin(short.items, chosen)] == 1).all()
    np.testing.assert_allclose(short.stands_for.sum(), n_items, rtol=1e-5)
    asked = np.arange(n_items)
    np.testing.assert_array_equal(short.items[short.places_of(asked)], asked[np.isin(asked, short.items)])
