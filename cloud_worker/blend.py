"""What the parts of the cloud model say together, and the one vector that says it to a device.

Each part is a distribution over what comes next; the **teacher** is their mixture::

    q = w_seq · softmax(⟨e_seq, v⟩ + b)  +  w_text · softmax(⟨e_text, v⟩ + b)  +  w_live · live^p / Σ live^p

A part that has nothing to say about a user (nobody else took what he did) leaves its weight to the others. The teacher
has N numbers and a device gets d, so the embedding is **fitted**: e = argmin KL(q ‖ softmax(⟨e, v⟩ + b)), by some
steps of gradient descent from the sequence part's e. That is ours; a projection on principal directions or a weighted
sum of item vectors lost several times as much of what the live part knows.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float32]

FIT_STEPS: Final = 30
_RATE: Final = 0.35
_SHRINK: Final = 1e-3
_FIRST, _SECOND = 0.8, 0.9
_MOST_ITEMS: Final = 16_384
"""Catalogues above this are fitted on the items that matter to a batch and a sample of the others."""
_TOP: Final = 128
_SAMPLE: Final = 8_192


class Blend(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Weights of the parts, at least 0 and 1 together; chosen in training on the validation period."""

    sequence: float
    text: float
    live: float
    live_power: float = 2.0
    """p: what stands out in the live scores counts more."""


def teacher(sequence: Tensor, text: Tensor | None, live: Tensor | None, blend: Blend) -> Tensor:
    """(B, N) the mixture q.

    Parameters
    ----------
    sequence, text
        (B, N) scores; None: the part was not asked, its weight goes to the sequence.
    live
        (B, N) scores, at least 0; rows of zeros say nothing.
    """
    parts = [(blend.sequence, torch.softmax(sequence, dim=1))]
    if text is not None and blend.text:
        parts.append((blend.text, torch.softmax(text, dim=1)))
    model_weight = sum(weight for weight, _ in parts)
    if model_weight:
        mixed = torch.stack([share * (weight / model_weight) for weight, share in parts]).sum(dim=0)
    else:  # the live part alone; where it knows nothing, the sequence is what is left
        mixed = parts[0][1]
    if live is None or not blend.live:
        return mixed
    top = live.amax(dim=1, keepdim=True)
    raised = (live / top.clamp_min(1e-30)) ** blend.live_power
    share = blend.live / (blend.live + model_weight)
    weight = torch.where(top > 0, share, 0.0)
    return (1 - weight) * mixed + weight * raised / raised.sum(dim=1, keepdim=True).clamp_min(1e-30)


def fit(target: Tensor, table: Tensor, bias: Tensor, start: Tensor, steps: int = FIT_STEPS) -> Tensor:
    """(B, d) embeddings whose scores come nearest to the teacher.

    Parameters
    ----------
    target
        (B, N) distributions.
    table, bias
        (N, d) item vectors and (N,) biases.
    start
        (B, d) embeddings to begin with.
    """
    if len(table) > _MOST_ITEMS:
        items = _items_that_matter(target)
        target, table, bias = target[:, items], table[items], bias[items]
        target = target / target.sum(dim=1, keepdim=True).clamp_min(1e-30)
    wanted = target @ table
    e = start.clone()
    first = torch.zeros_like(e)
    second = torch.zeros_like(e[:, :1])
    for step in range(steps):
        gradient = torch.softmax(torch.addmm(bias, e, table.T), dim=1) @ table - wanted + _SHRINK * e
        first = _FIRST * first + (1 - _FIRST) * gradient
        second = _SECOND * second + (1 - _SECOND) * gradient.square().mean(dim=1, keepdim=True)
        pace = (second / (1 - _SECOND ** (step + 1))).sqrt() + 1e-8
        e = e - _RATE * (1 - step / steps) * (first / (1 - _FIRST ** (step + 1))) / pace
    return e


def _items_that_matter(target: Tensor) -> Tensor:
    """Indexes: each row's most probable items, and every so-many-th of all, so that the rest is kept down too."""
    top = torch.topk(target, _TOP, dim=1).indices.reshape(-1)
    spread = torch.linspace(0, target.shape[1] - 1, _SAMPLE, device=target.device).long()
    items: Tensor = torch.unique(torch.cat([top, spread]))
    return items
