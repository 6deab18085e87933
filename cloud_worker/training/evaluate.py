"""What the models are worth at moments of the validation period, ranked as the device ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.fusion import fused, standardised
from cloud_worker.training.metrics import Ranks, ranks_of

Floats = npt.NDArray[np.float32]
Added = Callable[[slice], Floats]
"""What is added to the standardised scores of a slice of the moments: (rows, N)."""
_BLOCK = 1 << 22
"""Scores at a time."""


@dataclass(frozen=True)
class Catalogue:
    """Both models' item sides.

    Attributes
    ----------
    vectors, bias
        (N, d) and (N,) of the shared space.
    srm_out, srm_bias
        (N, h) and (N,) of the SRM.
    """

    vectors: Floats
    bias: Floats
    srm_out: Floats
    srm_bias: Floats


@dataclass(frozen=True)
class Moments:
    """Q moments of serving: users and positions (Q,), and the SRM's state there (Q, h)."""

    histories: Histories
    users: Ints
    positions: Ints
    hidden: Floats
    exclude_seen: bool

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def without_states(cls, histories: Histories, users: Ints, positions: Ints, *, exclude_seen: bool) -> Self:
        """Moments that no SRM is asked about."""
        return cls(histories, users, positions, np.zeros((len(users), 0), np.float32), exclude_seen)

    @property
    def targets(self) -> Ints:
        """(Q,) what was taken then."""
        return np.asarray(self.histories.items[self.histories.starts[self.users] + self.positions])

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Moments:
        """Some of them."""
        return Moments(self.histories, self.users[rows], self.positions[rows], self.hidden[rows], self.exclude_seen)

    def seen(self) -> npt.NDArray[np.bool_] | None:
        """(Q, N) what may not be recommended; None where everything may."""
        if not self.exclude_seen:
            return None
        taken = np.zeros((len(self), self.histories.n_items), np.bool_)
        for row, (user, position) in enumerate(zip(self.users, self.positions, strict=True)):
            taken[row, self.histories.of(user, position)] = True
        return taken

    def blocks(self) -> Iterator[tuple[slice, Moments]]:
        """Cut so that the scores of a block fit into memory."""
        size = max(1, _BLOCK // self.histories.n_items)
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            part = Moments(self.histories, self.users[rows], self.positions[rows], self.hidden[rows], self.exclude_seen)
            yield rows, part


def constant_ranks(scores: Floats, moments: Moments) -> Ranks:
    """(Q,) ranks by one score an item (N,), the same for everybody."""
    parts = [np.zeros(0, np.int64)]
    for _, part in moments.blocks():
        parts.append(ranks_of(np.broadcast_to(scores, (len(part), len(scores))), part.targets, part.seen()))
    return np.concatenate(parts)


def ranks(
    catalogue: Catalogue,
    moments: Moments,
    embeddings: Floats | None,
    alpha: float | npt.NDArray[np.floating],
    added: Added | None = None,
) -> Ranks:
    """(Q,) ranks by the fused scores; without embeddings (Q, d) the SRM's alone, with α = 1 the cloud's alone.

    Parameters
    ----------
    alpha
        Of all moments, or (Q,) of each.
    added
        None: nothing is.
    """
    if added is None:
        return np.asarray(ranks_for_alphas(catalogue, moments, embeddings, (alpha,))[0])
    return np.asarray(ranks_for_weights(catalogue, moments, embeddings, alpha, added, (np.ones(len(moments)),))[0])


def ranks_for_weights(
    catalogue: Catalogue,
    moments: Moments,
    embeddings: Floats | None,
    alpha: float | npt.NDArray[np.floating],
    added: Added,
    weights: Sequence[npt.NDArray[np.floating]],
) -> npt.NDArray[np.int64]:
    """(len(weights), Q) ranks with so many times what is added, (Q,) each; the scores are computed once."""
    found = np.zeros((len(weights), len(moments)), np.int64)
    alphas = np.broadcast_to(np.asarray(alpha, np.float32), (len(moments),))
    for rows, part in moments.blocks():
        srm, cloud = _both(catalogue, part, embeddings, rows)
        scores = srm if cloud is None else standardised(fused(cloud, srm, alphas[rows]))
        more, seen, targets = added(rows), part.seen(), part.targets
        for index, weight in enumerate(weights):
            found[index, rows] = ranks_of(scores + weight[rows].astype(np.float32)[:, None] * more, targets, seen)
    return found


def ranks_for_alphas(
    catalogue: Catalogue,
    moments: Moments,
    embeddings: Floats | None,
    alphas: Sequence[float | npt.NDArray[np.floating]],
) -> npt.NDArray[np.int64]:
    """(len(alphas), Q) ranks for each α; the scores are computed once."""
    found = np.zeros((len(alphas), len(moments)), np.int64)
    for rows, part in moments.blocks():
        srm, cloud = _both(catalogue, part, embeddings, rows)
        seen, targets = part.seen(), part.targets
        for index, alpha in enumerate(alphas):
            each = np.broadcast_to(np.asarray(alpha, np.float32), (len(moments),))[rows]
            scores = srm if cloud is None else fused(cloud, srm, each)
            found[index, rows] = ranks_of(scores, targets, seen)
    return found


def _both(catalogue: Catalogue, part: Moments, embeddings: Floats | None, rows: slice) -> tuple[Floats, Floats | None]:
    """(R, N) standardised scores of the SRM, and of the cloud where there are embeddings, at a block of moments."""
    srm = standardised(part.hidden @ catalogue.srm_out.T + catalogue.srm_bias)
    if embeddings is None:
        return srm, None
    return srm, standardised(embeddings[rows] @ catalogue.vectors.T + catalogue.bias)
