"""Ranks and lists against a plain reference; nothing seen is served, and nothing that is no number decides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.fusion import FusionTables
from device_agent.ranking import Ranker, popular_items, without_seen
from tests.device_agent.core_helpers import small_bundle

N, D, H = 40, 16, 8


def bitmaps(seen):
    bits = np.zeros((len(seen), N), np.uint8)
    for row, items in enumerate(seen):
        bits[row, list(items)] = 1
    return np.packbits(bits, axis=1, bitorder="little")


def plain_scores(bundle, e, h, s):
    t = {name: tensor.astype(np.float64) for name, tensor in bundle.device.items()}
    srm = t["srm.item_out"] @ h + t["srm.bias_out"]
    srm = (srm - srm.mean()) / srm.std()
    if e is None:
        return srm
    cloud = t["item_vectors"] @ e + t["item_bias"]
    fresh, stale = t["fusion.alpha"]
    alpha = (1 - s) * fresh + s * stale
    return alpha * (cloud - cloud.mean()) / cloud.std() + (1 - alpha) * srm


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 30),
    st.booleans(),
    st.sampled_from([1, 5, 40, 60]),
    st.booleans(),
)
def test_ranks_and_lists_are_those_of_the_plain_reference(seed, rows, exclude_seen, length, whole_catalogue):
    bundle = small_bundle(exclude_seen=exclude_seen)
    rng = np.random.default_rng(seed)
    ranker = Ranker(FusionTables.of(bundle), list_length=length, exclude_seen=exclude_seen)
    e = rng.normal(0, 1, (rows, D)).astype(np.float32)
    h = rng.uniform(-1, 1, (rows, H)).astype(np.float32)
    has = rng.random(rows) < 0.7
    seen = [set(rng.integers(0, N, rng.integers(0, 30)).tolist()) for _ in range(rows)]
    targets = rng.integers(-1, N, rows).astype(np.int32)
    lists = np.full((rows, 12), -1, np.int32)
    for row in range(rows):
        kept = rng.permutation(N)[: rng.integers(0, 13)]
        lists[row, : len(kept)] = kept
    staleness = rng.random(rows).astype(np.float32)
    queries = ranker.queries(e, h, has, staleness)
    bits = bitmaps(seen) if exclude_seen else np.zeros((rows, 0), np.uint8)
    if whole_catalogue:
        found = ranker.catalogue(queries, targets, bits)
    else:
        found = ranker.candidates(queries, without_seen(lists, bits) if exclude_seen else lists, targets)
    for row in range(rows):
        scores = plain_scores(bundle, e[row] if has[row] else None, h[row], staleness[row])
        pool = [i for i in (range(N) if whole_catalogue else lists[row].tolist()) if i >= 0]
        if exclude_seen:
            pool = [i for i in pool if i not in seen[row]]
        target = int(targets[row])
        assert found.ranked[row] == len(pool)
        if target not in pool:
            assert found.rank[row] == 0
        else:
            surely = sum(scores[i] > scores[target] + 1e-5 for i in pool if i != target)
            perhaps = sum(scores[i] > scores[target] - 1e-5 for i in pool if i != target)
            assert 1 + surely <= found.rank[row] <= 1 + perhaps
        top = [i for i in found.top[row].tolist() if i >= 0]
        assert found.top.shape == (rows, length)
        assert len(top) == min(length, len(pool))
        assert found.top[row].tolist() == top + [-1] * (length - len(top))
        assert set(top) <= set(pool)
        assert len(set(top)) == len(top)
        best = sorted((scores[i] for i in pool), reverse=True)[:length]
        assert np.allclose([scores[i] for i in top], best, atol=1e-5)


@pytest.mark.parametrize("mode", ["catalogue", "candidates"])
def test_long_waves_are_ranked_as_their_parts(mode):
    bundle = small_bundle()
    ranker, rng, rows = Ranker(FusionTables.of(bundle)), np.random.default_rng(0), 1000  # several blocks
    queries = ranker.queries(
        rng.normal(0, 1, (rows, D)).astype(np.float32),
        rng.uniform(-1, 1, (rows, H)).astype(np.float32),
        np.ones(rows, bool),
        rng.random(rows).astype(np.float32),
    )
    targets, seen = rng.integers(0, N, rows).astype(np.int32), bitmaps([set(range(3))] * rows)
    lists = np.array([rng.permutation(N) for _ in range(rows)], np.int32)

    def run(at):
        if mode == "catalogue":
            return ranker.catalogue(queries[at], targets[at], seen[at])
        return ranker.candidates(queries[at], without_seen(lists[at], seen[at]), targets[at])

    whole = run(slice(None))
    for row in range(0, rows, 37):
        one = run(slice(row, row + 1))
        assert abs(int(one.rank[0]) - int(whole.rank[row])) <= 1
        assert one.ranked[0] == whole.ranked[row]
    assert run(slice(0, 0)).top.shape == (0, 10)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_an_embedding_that_is_no_number_leaves_the_srm_alone_to_rank(bad):
    bundle = small_bundle()
    ranker, h = Ranker(FusionTables.of(bundle)), np.random.default_rng(0).uniform(-1, 1, (1, H)).astype(np.float32)
    with np.errstate(all="ignore"):
        broken = ranker.queries(np.full((1, D), bad, np.float32), h, np.array([True]), np.zeros(1, np.float32))
    alone = ranker.queries(np.zeros((1, D), np.float32), h, np.array([False]), np.ones(1, np.float32))
    assert np.isfinite(broken).all()
    ranks = [ranker.catalogue(q, np.array([7], np.int32), bitmaps([{1, 2}])) for q in (broken, alone)]
    assert all(np.array_equal(*pair) for pair in zip(*ranks, strict=True))


def test_equal_scores_count_against_the_target():
    bundle = small_bundle(exclude_seen=False)
    ranker = Ranker(FusionTables.of(bundle), list_length=3, exclude_seen=False)
    nothing = np.zeros((1, ranker._columns.shape[0]), np.float32)  # every item scores 0
    found = ranker.catalogue(nothing, np.array([7], np.int32), np.zeros((1, 0), np.uint8))
    assert found.rank[0] == N
    lists = np.arange(12, dtype=np.int32)[None]
    found = ranker.candidates(nothing, lists, np.array([7], np.int32))
    assert found.rank[0] == 12


def test_popular_items_come_first_before_the_first_embedding():
    bundle = small_bundle()
    popularity = bundle.device["popularity"]
    popular = popular_items(popularity, 60)
    assert (np.diff(popularity[popular[:N]]) <= 0).all()
    assert (popular[N:] == -1).all()
