"""The fusion rules of LSC4Rec (arXiv 2501.05647): the order of the cloud's list and the device's SRM, in one score.

With j the cloud's rank in the list (from 0), n the list's length and p the SRM's probability that the item is next::

    -(j+1)/n + λ (p - ½)        λ = 0: the cloud's order; 1: equal; 2: SRM×2; learned
    -(1-s)(j+1)/n + s (p - ½)   gated by the staleness s (ours: the paper's gate is not public)

Items outside the list stand behind it, in the SRM's order. p = σ(logit) is meant for an SRM that was trained to tell
what was taken from 99 others (`cloud_worker.training.list_training`). That of a bundle is trained by softmax, whose
logits x are known but for a constant, so its p is taken from the log-odds that such a training ends with,
x_i - logsumexp(x) + log(N/99).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logsumexp

from cloud_worker.training.cloud_lists import Block, CloudLists, blocks
from cloud_worker.training.evaluate import Catalogue, Moments
from cloud_worker.training.fusion import best_alpha
from cloud_worker.training.metrics import Ranks

Floats = npt.NDArray[np.float64]

DRAWN: Final = 99
"""Items that LSC4Rec's SRM is trained against."""
WEIGHTS: Final = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
"""λ to choose from."""
SRM_ONLY, CLOUD_ONLY, LEARNED_RULE = "SRM only", "cloud only", "learned λ"
FIXED: Final = {CLOUD_ONLY: 0.0, "equal (λ = 1)": 1.0, "SRM×2 (λ = 2)": 2.0}
"""λ of the rules that have a fixed one."""
LEARNED: Final = "fusion.lambda"
"""Metric of a bundle: the λ that training chose on the validation period."""


def probabilities(block: Block, *, trained_on_lists: bool = False) -> Floats:
    """(B, n) p of the candidates, by an SRM trained by softmax or on lists."""
    logits = np.take_along_axis(block.srm, block.items, axis=1).astype(np.float64)
    if trained_on_lists:
        return np.asarray(expit(logits), np.float64)
    total = logsumexp(block.srm.astype(np.float64), axis=1, keepdims=True)
    odds: Floats = expit(logits - total + np.log(block.srm.shape[1] / DRAWN))
    return odds


def list_ranks(block: Block, scores: Floats) -> Ranks:
    """(B,) ranks of what was taken: the candidates by their scores (B, n), behind them the others by the SRM.

    Pessimistic as everywhere: equal scores count as better. What may not be recommended has no rank and takes none.
    """
    targets = block.moments.targets
    at = np.arange(len(targets))
    hit = (block.items == targets[:, None]) & block.valid
    own = np.where(hit, scores, np.inf).min(axis=1, keepdims=True)
    in_list = (block.valid & (scores >= own)).sum(axis=1)
    behind = block.srm >= block.srm[at, targets][:, None]
    if block.seen is not None:
        behind &= ~block.seen
    held = np.zeros_like(behind)
    np.put_along_axis(held, block.items, block.valid, axis=1)
    outside = block.valid.sum(axis=1) + (behind & ~held).sum(axis=1)
    ranks: Ranks = np.where(hit.any(axis=1), in_list, outside).astype(np.int64)
    if block.seen is not None:
        ranks[block.seen[at, targets]] = 0
    return ranks


def mixed(block: Block, p: Floats, cloud: float | Floats, srm: float | Floats) -> Floats:
    """(B, n) cloud · -(j+1)/n + srm · (p - ½); each weight one number, or (B, 1)."""
    n = block.items.shape[1]
    order = -(np.arange(n) + 1) / n
    scores: Floats = np.asarray(cloud * order + srm * (p - 0.5), np.float64)
    return scores


def best_weight(catalogue: Catalogue, moments: Moments, lists: CloudLists, *, trained_on_lists: bool = False) -> float:
    """Choose the λ of `WEIGHTS` that ranks best.

    Parameters
    ----------
    catalogue
        Only the SRM's side is looked at.
    moments, lists
        (Q,) moments that the SRM was not trained on, such as the validation period's, and the list of each.
    """
    ranks = [np.zeros((len(WEIGHTS), 0), np.int64)]
    for block in blocks(catalogue, moments, lists):
        p = probabilities(block, trained_on_lists=trained_on_lists)
        ranks.append(np.stack([list_ranks(block, mixed(block, p, 1.0, weight)) for weight in WEIGHTS]))
    return best_alpha(np.concatenate(ranks, axis=1), WEIGHTS)
