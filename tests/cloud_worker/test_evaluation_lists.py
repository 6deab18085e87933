"""The cloud's lists: who disagrees with whom, and the ranks that LSC4Rec's fusion rules give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cloud_worker.evaluation.cloud_lists import Block, disagreement
from cloud_worker.evaluation.list_fusion import list_ranks, mixed, probabilities
from cloud_worker.training.data import make_histories
from cloud_worker.training.evaluate import Moments

N, LISTED = 12, 5


def block(seed: int, rows: int = 20, taken: int = 3) -> Block:
    """Random scores; each user has taken some items, of which the list may still hold some."""
    rng = np.random.default_rng(seed)
    items = np.concatenate([rng.permutation(N)[: taken + 1] for _ in range(rows)])
    users = np.repeat(np.arange(rows), taken + 1)
    histories = make_histories(users, items, np.arange(len(items)), N, 10**9)
    moments = Moments(histories, np.arange(rows), np.full(rows, taken), np.zeros((rows, 0), np.float32), True)
    seen = moments.seen()
    cloud, srm = rng.normal(size=(2, rows, N)).astype(np.float32)
    order = np.argsort(-cloud, axis=1)[:, :LISTED]
    listed = np.ones((rows, LISTED), bool)
    return Block(slice(0, rows), moments, seen, cloud, srm, order, listed, ~np.take_along_axis(seen, order, axis=1))


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_those_of_the_written_out_rule(seed, weight):
    each = block(seed)
    p = probabilities(each)
    found = list_ranks(each, mixed(each, p, 1.0, weight))
    for row, (target, rank) in enumerate(zip(each.moments.targets, found, strict=True)):
        x = each.srm[row].astype(float)
        odds = x - np.log(np.exp(x).sum()) + np.log(N / 99)
        score = {}
        for item in range(N):
            if each.seen[row, item]:
                continue
            place = np.flatnonzero(each.items[row] == item)
            inside = -(place[0] + 1) / LISTED + weight * (1 / (1 + np.exp(-odds[item])) - 0.5) if len(place) else 0
            score[item] = (1, inside) if len(place) else (0, x[item])
        assert rank == sum(other >= score[target] for other in score.values())


def test_what_was_taken_since_takes_no_place_and_has_no_rank():
    each = block(0)
    seen = each.seen.copy()
    seen[:, each.items[0, 0]] = True
    gone = replace(each, seen=seen, valid=~np.take_along_axis(seen, each.items, axis=1))
    found = list_ranks(gone, mixed(gone, probabilities(gone), 1.0, 1.0))
    targets = each.moments.targets
    assert (found[targets == each.items[0, 0]] == 0).all()
    assert found.max() <= (~seen).sum(axis=1).max()


def test_disagreement_is_nothing_when_the_orders_agree_and_most_when_they_are_opposite():
    each = block(1, taken=0)
    same = replace(each, srm=each.cloud)
    opposite = replace(each, srm=-each.cloud)
    assert (disagreement(same) == 0).all()
    # |4 - 0| + |3 - 1| + 0 + 2 + 4 over five candidates, as a share of five
    assert disagreement(opposite) == pytest.approx(np.full(20, 12 / 25))


def test_a_candidate_that_was_taken_since_counts_as_the_largest_difference():
    each = replace(block(2, taken=0), srm=block(2, taken=0).cloud)
    valid = each.valid.copy()
    valid[:, 0] = False
    assert disagreement(replace(each, valid=valid)) == pytest.approx(np.full(20, 1 / LISTED))
