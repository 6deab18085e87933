"""The candidate lists that come with embeddings, and serving with them.

A list is the top of the parts' mixture, as the cloud sends it (`cloud_worker.user_model`), and not of ⟨e, v⟩ + b. What
the user had taken when the list was made is not on it; what he took since still is, and cannot be recommended any more.
The serving cloud knows no more of a user than his window and a ring of his last interactions: of a longer history its
lists may hold items that are left out here, and that a device would not show.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cloud_worker.blend import Blend
from cloud_worker.retrieval import top_of
from cloud_worker.training.evaluate import Catalogue, Moments
from cloud_worker.training.networks import Answers, mixtures

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

LENGTH: Final = 100
"""Of LSC4Rec's lists, and of `cloud.candidates` by default."""
_ROWS: Final = 128


@dataclass(frozen=True)
class CloudLists:
    """Q lists of n different items.

    Attributes
    ----------
    items
        (Q, n) best first.
    listed
        (Q, n) the cloud names the item; where it has fewer than n to name, items that it may not name fill the row.
    """

    items: npt.NDArray[np.int32]
    listed: Bools

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_] | slice) -> CloudLists:
        """Some of them."""
        return CloudLists(self.items[rows], self.listed[rows])


@torch.no_grad()
def cloud_lists(
    answers: Answers, moments: Moments, space: tuple[Tensor, Tensor], blend: Blend, length: int = LENGTH
) -> CloudLists:
    """Build the lists that the cloud would send at moments (Q,), from what its parts say there."""
    n = min(length, moments.histories.n_items)
    items, listed = np.zeros((len(moments), n), np.int32), np.zeros((len(moments), n), np.bool_)
    for start in range(0, len(moments), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(moments)))
        scores = mixtures(answers.take(rows), space, blend).cpu().numpy()
        some = moments.take(rows)
        taken = [np.zeros(0, np.int64)] * len(rows)
        if moments.exclude_seen:
            taken = [some.histories.of(user, at) for user, at in zip(some.users, some.positions, strict=True)]
        for row, best, gone in zip(rows, top_of(scores, n, taken), taken, strict=True):
            items[row] = np.concatenate([best, np.unique(gone)])[:n]
            listed[row, : len(best)] = True
    return CloudLists(items, listed)


@dataclass(frozen=True)
class Block:
    """Some moments served with some lists.

    Attributes
    ----------
    rows
        Which of the moments.
    moments
        They.
    seen
        (B, N) what may not be recommended now; None: everything may.
    srm
        (B, N) scores of the device's model.
    items
        (B, n) candidates, best first.
    listed, valid
        (B, n) the cloud named the candidate; and it still can be recommended.
    """

    rows: slice
    moments: Moments
    seen: Bools | None
    srm: Floats
    items: npt.NDArray[np.integer]
    listed: Bools
    valid: Bools


def blocks(catalogue: Catalogue, moments: Moments, lists: CloudLists) -> Iterator[Block]:
    """Serve moments (Q,) with as many lists, of that moment or older."""
    for rows, part in moments.blocks():
        items, listed = lists.items[rows], lists.listed[rows]
        seen = part.seen()
        valid = listed if seen is None else listed & ~np.take_along_axis(seen, items, axis=1)
        srm = part.hidden @ catalogue.srm_out.T + catalogue.srm_bias
        yield Block(rows, part, seen, srm, items, listed, valid)
