"""The candidate lists that come with an embedding, and how far the device's SRM disagrees with their order.

LSC4Rec (arXiv 2501.05647) asks the cloud for a new list where the two disagree: the mean of |rank by the SRM - rank by
the cloud| over the list, plus a penalty for candidates that cannot be recommended any more. The penalty here is the
largest difference there is, n; the whole is divided by n.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloud_worker.training.bench import Bench
from cloud_worker.training.evaluate import Moments
from cloud_worker.training.snapshots import Pairs

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Block:
    """Some moments served with some embeddings, with the scores of the whole catalogue.

    Attributes
    ----------
    rows
        Which moments of the pairs.
    moments
        The same as moments of serving.
    seen
        (B, N) what may not be recommended now; None: everything may.
    cloud, srm
        (B, N) scores.
    items
        (B, n) candidates, best first.
    listed, valid
        (B, n) the cloud could recommend the candidate when it made the list; and it still can be.
    """

    rows: slice
    moments: Moments
    seen: Bools | None
    cloud: Floats
    srm: Floats
    items: npt.NDArray[np.int64]
    listed: Bools
    valid: Bools


def blocks(bench: Bench, pairs: Pairs, candidates: int) -> Iterator[Block]:
    """Serve fresh snapshots with the embeddings of the stale ones and the lists that came with them."""
    snapshots, embeddings = bench.snapshots, bench.embeddings[pairs.stale]
    moments = bench.moments(pairs.fresh)
    since = snapshots.positions[pairs.stale]
    n = min(candidates, len(bench.catalogue.vectors))
    for rows, part in moments.blocks():
        cloud = embeddings[rows] @ bench.catalogue.vectors.T + bench.catalogue.bias
        srm = part.hidden @ bench.catalogue.srm_out.T + bench.catalogue.srm_bias
        then = Moments(part.histories, part.users, since[rows], part.hidden, part.exclude_seen).seen()
        open_then = cloud if then is None else np.where(then, -np.inf, cloud)
        top = np.argpartition(-open_then, n - 1, axis=1)[:, :n]
        order = np.argsort(-np.take_along_axis(open_then, top, axis=1), axis=1, kind="stable")
        items = np.take_along_axis(top, order, axis=1)
        listed = np.isfinite(np.take_along_axis(open_then, items, axis=1))
        seen = part.seen()
        valid = listed if seen is None else listed & ~np.take_along_axis(seen, items, axis=1)
        yield Block(rows, part, seen, cloud, srm, items, listed, valid)


def disagreement(block: Block) -> npt.NDArray[np.float64]:
    """(B,) how far the SRM orders each list otherwise than the cloud: 0 not at all, at most 1."""
    n = block.items.shape[1]
    scores = np.where(block.listed, np.take_along_axis(block.srm, block.items, axis=1), -np.inf)
    by_srm = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1, kind="stable")
    differences = np.where(block.valid, np.abs(by_srm - np.arange(n)), n)
    listed = block.listed.sum(axis=1)
    return np.asarray((differences * block.listed).sum(axis=1) / np.maximum(listed, 1) / n, np.float64)


def disagreements(bench: Bench, pairs: Pairs, candidates: int) -> npt.NDArray[np.float64]:
    """(P,) of all pairs."""
    return np.concatenate([np.zeros(0), *(disagreement(block) for block in blocks(bench, pairs, candidates))])
