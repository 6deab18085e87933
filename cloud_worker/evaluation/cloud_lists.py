"""The cloud's lists in the test period, and how far the device's SRM disagrees with their order.

LSC4Rec (arXiv 2501.05647) asks the cloud for a new list where the two disagree: the mean of |rank by the SRM - rank by
the cloud| over the list, plus a penalty for candidates that cannot be recommended any more. The penalty here is the
largest difference there is, n; the whole is divided by n.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloud_worker.evaluation.test_period import TestPeriod
from cloud_worker.training.cloud_lists import Block, CloudLists, blocks, cloud_lists
from cloud_worker.training.snapshots import Pairs

Floats = npt.NDArray[np.float64]


def lists_of(period: TestPeriod, length: int) -> CloudLists:
    """(S, length) what the cloud would list at the period's snapshots."""
    every = period.bench.moments(np.arange(len(period.bench.snapshots)))
    return cloud_lists(period.answers, every, period.networks.space(), period.blend, length)


def disagreement(block: Block) -> Floats:
    """(B,) how far the SRM orders each list otherwise than the cloud: 0 not at all, at most 1."""
    n = block.items.shape[1]
    scores = np.where(block.listed, np.take_along_axis(block.srm, block.items, axis=1), -np.inf)
    by_srm = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1, kind="stable")
    differences = np.where(block.valid, np.abs(by_srm - np.arange(n)), n)
    listed = block.listed.sum(axis=1)
    return np.asarray((differences * block.listed).sum(axis=1) / np.maximum(listed, 1) / n, np.float64)


def disagreements(period: TestPeriod, pairs: Pairs, lists: CloudLists) -> Floats:
    """(P,) of all pairs, each with the list that came with its stale embedding.

    Parameters
    ----------
    lists
        From `lists_of`.
    """
    bench = period.bench
    served = blocks(bench.catalogue, bench.moments(pairs.fresh), lists.take(pairs.stale))
    return np.concatenate([np.zeros(0), *(disagreement(block) for block in served)])
