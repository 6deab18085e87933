"""Choosing the live formula and the weights of the parts, on the validation period."""

from __future__ import annotations

from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cloud_worker.blend import Blend
from cloud_worker.training import evaluate
from cloud_worker.training.live import SparseScores
from cloud_worker.training.metrics import Ranks, ranks_of
from cloud_worker.training.networks import Answers, mixtures
from streams.experiment.ranking_metrics import ndcg_at, reciprocal_rank

LIVE_WEIGHTS: Final = (0.0, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8)
TEXT_WEIGHTS: Final = (0.05, 0.1, 0.2)
"""Of what the live part leaves. Never nothing: text is what the cloud knows of an item that nobody took yet."""
_ROWS: Final = 128


def worth(ranks: npt.NDArray[np.integer]) -> float:
    """Return the mean of NDCG@10 and MRR: what is chosen by."""
    return float(ndcg_at(ranks).mean() + reciprocal_rank(ranks).mean()) / 2 if len(ranks) else 0.0


def best_live(found: list[SparseScores], moments: evaluate.Moments) -> tuple[int, list[float]]:
    """Which of several formulas ranks best alone, and what each is worth."""
    values = [worth(live_ranks(sparse, moments)) for sparse in found]
    return int(np.argmax(values)), values


def live_ranks(sparse: SparseScores, moments: evaluate.Moments) -> Ranks:
    """(Q,) ranks by the live scores alone."""
    ranks = [np.zeros(0, np.int64)]
    for rows, part in moments.blocks():
        ranks.append(ranks_of(sparse.take(rows).dense(moments.histories.n_items), part.targets, part.seen()))
    return np.concatenate(ranks)


@torch.no_grad()
def teacher_ranks(answers: Answers, moments: evaluate.Moments, space: tuple[Tensor, Tensor], blend: Blend) -> Ranks:
    """(Q,) ranks by the teacher: what the parts say together before it is put into d numbers."""
    ranks = [np.zeros(0, np.int64)]
    for start in range(0, len(moments), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(moments)))
        at = moments.take(rows)
        ranks.append(ranks_of(mixtures(answers.take(rows), space, blend).cpu().numpy(), at.targets, at.seen()))
    return np.concatenate(ranks)


@torch.no_grad()
def best_blend(answers: Answers, moments: evaluate.Moments, space: tuple[Tensor, Tensor]) -> Blend:
    """Choose the weights whose teacher ranks best; of nearly equal ones (within half a percent) the least live."""
    choices = [
        Blend((1 - live) * (1 - text), (1 - live) * text, live) for live, text in product(LIVE_WEIGHTS, TEXT_WEIGHTS)
    ]
    ranks = np.zeros((len(choices), len(moments)), np.int64)
    for start in range(0, len(moments), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(moments)))
        part, at = answers.take(rows), moments.take(rows)
        seen, targets = at.seen(), at.targets
        for index, blend in enumerate(choices):
            ranks[index, rows] = ranks_of(mixtures(part, space, blend).cpu().numpy(), targets, seen)
    values = np.array([worth(each) for each in ranks])
    return choices[int(np.argmax(values >= 0.995 * values.max()))]
