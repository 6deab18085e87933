from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.experiment.ranking_metrics import discounts, hit_rate_at, ndcg_at, reciprocal_rank

RANKS = st.lists(st.integers(0, 5000), max_size=50)


def test_hand_computed_values():
    ranks = [1, 2, 3, 10, 11, 0]
    assert ndcg_at(ranks).tolist() == pytest.approx([1, 0.6309297535714575, 0.5, 0.2890648263178879, 0, 0])
    assert hit_rate_at(ranks).tolist() == [1, 1, 1, 1, 0, 0]
    assert reciprocal_rank(ranks).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 10, 1 / 11, 0])


def _dcg_of_a_whole_list(rank: int, k: int) -> float:
    """NDCG as its definition has it: a list of relevances, discounted, over the ideal list's."""
    relevances = [1.0 if place == rank else 0.0 for place in range(1, k + 1)]
    ideal = sorted([1.0] + [0.0] * (k - 1), reverse=True)
    dcg = sum(relevance / log2(place + 1) for place, relevance in enumerate(relevances, 1))
    return dcg / sum(relevance / log2(place + 1) for place, relevance in enumerate(ideal, 1))


@given(RANKS, st.integers(1, 100))
def test_agrees_with_the_definition_over_whole_lists(ranks, k):
    assert ndcg_at(ranks, k).tolist() == pytest.approx([_dcg_of_a_whole_list(rank, k) for rank in ranks])
    assert hit_rate_at(ranks, k).tolist() == [float(0 < rank <= k) for rank in ranks]
    assert reciprocal_rank(ranks).tolist() == pytest.approx([1 / rank if rank else 0 for rank in ranks])


@given(st.integers(1, 100))
def test_discounts_are_the_same_numbers_one_by_one(k):
    assert list(discounts(k)) == pytest.approx(ndcg_at(np.arange(k + 1), k).tolist())


def test_a_negative_rank_or_an_empty_cut_off_is_refused():
    with pytest.raises(ValueError, match="rank is -1"):
        ndcg_at([3, -1])
    with pytest.raises(ValueError, match="k is 0"):
        hit_rate_at([1], k=0)
