"""What of the published GRU4Rec is chosen on the validation period, and which sequences can be walked together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from cloud_worker.training.data import Ints


@dataclass(frozen=True)
class Gru4RecOptions:
    """The parameters that its authors tune; the names are the package's.

    Attributes
    ----------
    width
        Of the hidden state and of the item embeddings, which are tied.
    batch
        Sessions side by side.
    samples
        Negatives that a batch shares, beside its own other targets.
    sample_alpha
        They are drawn by popularity to this power.
    logq
        Strength of the correction for that (cross-entropy alone).
    """

    loss: str = "cross-entropy"
    width: int = 128
    batch: int = 64
    dropout_embed: float = 0.3
    dropout_hidden: float = 0.3
    learning_rate: float = 0.02
    momentum: float = 0.0
    samples: int = 512
    sample_alpha: float = 0.5
    logq: float = 1.0

    def __str__(self) -> str:
        correction = f", logQ {self.logq:g}" if self.logq else ""
        return (
            f"{self.loss}{correction}, {self.samples} samples by popularity^{self.sample_alpha:g}, h = {self.width}, "
            f"dropout {self.dropout_embed:g} and {self.dropout_hidden:g}, batch {self.batch}, "
            f"Adagrad {self.learning_rate:g}, momentum {self.momentum:g}"
        )


CANDIDATES: Final = (
    Gru4RecOptions(),
    Gru4RecOptions(learning_rate=0.01),
    Gru4RecOptions(learning_rate=0.05, dropout_hidden=0.2),
    Gru4RecOptions(width=256, dropout_embed=0.5),
)
"""What is tried, in this order: the paces and the shares that the authors' own searches go over."""


@dataclass
class Walk:
    """A sequence and those of its beginnings that are asked for too.

    Attributes
    ----------
    rows, lengths
        Which question each is, and how long.
    """

    longest: Ints
    rows: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)


def walks(sequences: Sequence[Ints]) -> list[Walk]:
    """Join sequences that continue the one before them: a recurrent network need not begin anew for these.

    Examples
    --------
    >>> found = walks([np.array([1]), np.array([1, 2, 3]), np.array([4])])
    >>> [(each.longest.tolist(), each.rows, each.lengths) for each in found]
    [([1, 2, 3], [0, 1], [1, 3]), ([4], [2], [1])]
    """
    found: list[Walk] = []
    for row, each in enumerate(sequences):
        before = found[-1].longest if found else None
        if before is None or len(before) > len(each) or not np.array_equal(before, each[: len(before)]):
            found.append(Walk(each))
        found[-1].longest = each
        found[-1].rows.append(row)
        found[-1].lengths.append(len(each))
    return found
