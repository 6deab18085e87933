"""The networks of one stage of a training, and what they say at the snapshots.

There are two stages: networks that know the training period only, by which everything is chosen and measured, and the
same after some more epochs over the validation period, which are served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cloud_worker import blend as blending
from cloud_worker.blend import Blend
from cloud_worker.sequence import SequenceModel
from cloud_worker.training import srm as srm_model
from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.live import SparseScores
from cloud_worker.training.projector import Projector

Floats = npt.NDArray[np.float32]
_ROWS: Final = 128
"""Moments at a time: with all scores of 12,000 items they are 6 MB."""


@dataclass(frozen=True)
class Networks:
    """What is trained on next items.

    Attributes
    ----------
    stand_in_projector
        From the stand-ins of profile vectors; `projector` is from real ones.
    """

    srm: srm_model.Srm
    sequence: SequenceModel
    projector: Projector
    stand_in_projector: Projector

    @torch.no_grad()
    def space(self) -> tuple[Tensor, Tensor]:
        """(N, d) item vectors and (N,) biases of the shared space."""
        return self.sequence.table().detach(), self.sequence.bias.detach()


@dataclass(frozen=True)
class Answers:
    """What the parts of the cloud say at S snapshots.

    Attributes
    ----------
    sequence, text
        (S, d) e_seq and e_text.
    live
        Of the live index.
    """

    sequence: Floats
    text: Floats
    live: SparseScores

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_] | slice) -> Answers:
        """Some of them."""
        return Answers(self.sequence[rows], self.text[rows], self.live.take(rows))


@torch.no_grad()
def sequence_embeddings(
    model: SequenceModel, histories: Histories, users: Ints, positions: Ints, window: int
) -> Floats:
    """(Q, d) e_seq of users (Q,) whose first positions (Q,) interactions are known, from a window of them."""
    model.eval()
    table = model.table()
    parts = [np.zeros((0, table.shape[1]), np.float32)]
    ends = histories.starts[users] + positions
    begins = np.maximum(histories.starts[users], ends - window)
    for start in range(0, len(users), 4 * _ROWS):
        edges = list(zip(begins[start : start + 4 * _ROWS], ends[start : start + 4 * _ROWS], strict=True))
        parts.append(
            model.embed(
                [histories.items[begin:end] for begin, end in edges],
                [histories.times_ms[begin:end] for begin, end in edges],
                table,
            )
        )
    return np.concatenate(parts)


def mixtures(answers: Answers, space: tuple[Tensor, Tensor], blend: Blend) -> Tensor:
    """(Q, N) the teacher's distributions; many of them need much memory."""
    table, bias = space
    device = table.device

    def scores(e: Floats) -> Tensor:
        return torch.addmm(bias, torch.from_numpy(e).to(device), table.T)

    return blending.teacher(
        scores(answers.sequence),
        scores(answers.text),
        torch.from_numpy(answers.live.dense(len(bias))).to(device),
        blend,
    )


@torch.no_grad()
def fitted(
    answers: Answers,
    space: tuple[Tensor, Tensor],
    blend: Blend,
    on_done: Callable[[int, int], None] = lambda _done, _total: None,
) -> Floats:
    """(S, d) the embeddings the cloud would send, as the topics carry them: rounded to float16."""
    table, bias = space
    parts = [np.zeros((0, table.shape[1]), np.float32)]
    for start in range(0, len(answers.sequence), _ROWS):
        part = answers.take(slice(start, start + _ROWS))
        target = mixtures(part, space, blend)
        e = blending.fit(target, table, bias, torch.from_numpy(part.sequence).to(table.device))
        parts.append(e.cpu().numpy().astype(np.float16).astype(np.float32))
        on_done(min(start + _ROWS, len(answers.sequence)), len(answers.sequence))
    return np.concatenate(parts)
