"""The cloud's lists: who disagrees with whom, and the ranks that LSC4Rec's fusion rules give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cloud_worker.evaluation.cloud_lists import disagreement
from cloud_worker.training.cloud_lists import Block, CloudLists
from cloud_worker.training.data import make_histories
from cloud_worker.training.evaluate import Catalogue, Moments
from cloud_worker.training.list_fusion import WEIGHTS, best_weight, list_ranks, mixed, probabilities

N, LISTED = 12, 5


def block(seed: int, rows: int = 20, taken: int = 3, *, agree: bool = False) -> Block:
    """Random scores; each user has taken some items, of which the list may still hold some.

    With ``agree`` the SRM has the cloud's scores, else its own.
    """
    rng = np.random.default_rng(seed)
    items = np.concatenate([rng.permutation(N)[: taken + 1] for _ in range(rows)])
    users = np.repeat(np.arange(rows), taken + 1)
    histories = make_histories(users, items, np.arange(len(items)), N, 10**9)
    moments = Moments(histories, np.arange(rows), np.full(rows, taken), np.zeros((rows, 0), np.float32), True)
    seen = moments.seen()
    cloud, srm = rng.normal(size=(2, rows, N)).astype(np.float32)
    order = np.argsort(-cloud, axis=1)[:, :LISTED]
    listed = np.ones((rows, LISTED), bool)
    valid = ~np.take_along_axis(seen, order, axis=1)
    return Block(slice(0, rows), moments, seen, cloud if agree else srm, order, listed, valid)


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
    same = block(1, taken=0, agree=True)
    opposite = replace(same, srm=-same.srm)
    assert (disagreement(same) == 0).all()
    # |4 - 0| + |3 - 1| + 0 + 2 + 4 over five candidates, as a share of five
    assert disagreement(opposite) == pytest.approx(np.full(20, 12 / 25))


def test_a_candidate_that_was_taken_since_counts_as_the_largest_difference():
    each = block(2, taken=0, agree=True)
    valid = each.valid.copy()
    valid[:, 0] = False
    assert disagreement(replace(each, valid=valid)) == pytest.approx(np.full(20, 1 / LISTED))


def test_an_srm_that_was_trained_on_lists_says_its_probabilities_itself():
    each = block(3)
    logits = np.take_along_axis(each.srm, each.items, axis=1).astype(float)
    assert probabilities(each, trained_on_lists=True) == pytest.approx(1 / (1 + np.exp(-logits)))


@pytest.mark.parametrize("srm_knows", [True, False])
def test_the_weight_that_is_chosen_is_large_where_the_srm_knows_and_small_where_it_does_not(srm_knows):
    """Everybody takes the third of the list; the SRM names it, or one of the others."""
    rows = 200
    rng = np.random.default_rng(0)
    lists = np.stack([rng.permutation(N)[:LISTED] for _ in range(rows)]).astype(np.int32)
    taken = lists[:, 2]
    histories = make_histories(np.arange(rows), taken.astype(np.int64), np.arange(rows), N, 10**9)
    liked = taken if srm_knows else lists[:, 4]
    moments = Moments(histories, np.arange(rows), np.zeros(rows, np.int64), np.eye(N, dtype=np.float32)[liked], True)
    out = 20 * np.eye(N, dtype=np.float32)
    catalogue = Catalogue(out, np.zeros(N, np.float32), out, np.full(N, -10, np.float32))
    found = best_weight(catalogue, moments, CloudLists(lists, np.ones_like(lists, bool)), trained_on_lists=True)
    assert found >= 0.5 if srm_knows else found == WEIGHTS[0]
