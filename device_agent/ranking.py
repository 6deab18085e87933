"""Ranking items by what the device and the cloud know together.

The device's SRM scores item i with h · o_i + c_i (hidden state h), the cloud's calibrated embedding with
ê · v_i + b_i. The fused score is the score fusion of LSC4Rec (arXiv 2501.05647, collaborative inference)::

    fused = α z(cloud) + (1 - α) z(SRM),      z(x) = (x - mean) / std over the whole catalogue

and without an embedding the SRM ranks alone. Since z is taken over the whole catalogue (seen items and items outside
the candidate list included), the score of an item does not depend on what it is compared with, and the standard
deviations are quadratic forms of ê and h: std² = xᵀ Cov x with x = [ê, 1] and Cov the covariance of the rows
[v_i, b_i], a constant of the bundle. So a fused score is one dot product q · t_i with

    q = [α/σ_cloud · [ê, 1], (1-α)/σ_SRM · [h, 1]]        t_i = [v_i, b_i, o_i, c_i], each column less its mean

which gives the catalogue in one matrix product, and a candidate list in one gather and one product.

Ranks are 1-based among the items that can be ranked, and pessimistic: the number of items that score at least as much
as the target. Rank 0 says that the target could not be ranked: it is no item of the bundle, or no candidate, or the
bundle excludes what was seen and the target was seen before.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from streams.bundle import Bundle

Floats = npt.NDArray[np.float32]
Items = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]
Mode = Literal["catalogue", "candidates"]

_CATALOGUE_BLOCK: Final = 4 << 20
_CANDIDATE_BLOCK: Final = 512 << 10
"""Bytes of scores, and of gathered rows, worked on at a time: so that they stay in the processor's caches."""
_SMALLEST_VARIANCE: Final = np.float32(1e-12)
_LARGEST_VARIANCE: Final = np.float32(1e30)
_SORT_ALL: Final = 128
"""Scores so few that sorting them all is quicker than finding the best ones first."""
_NEVER: Final = np.float32(-np.inf)
_BIT: Final = (1 << np.arange(8)).astype(np.uint8)


class Ranked(NamedTuple):
    """What `Ranker` found for R queries."""

    rank: Items
    """(R,) rank of the target; 0 where it could not be ranked."""
    ranked: Items
    """(R,) number of items that were ranked."""
    top: Items
    """(R, k) best items, best first; -1 where there were fewer."""


class Ranker:
    """The tables of a bundle, ready for ranking.

    Parameters
    ----------
    bundle
        Item vectors, SRM outputs, fusion weight, popularity.
    list_length
        k, items in a list.
    candidates
        C, length of the candidate lists.
    """

    def __init__(self, bundle: Bundle, *, list_length: int = 10, candidates: int = 100) -> None:
        tensors = bundle.device
        self.n_items, d = tensors["item_vectors"].shape
        self.list_length = list_length
        self.exclude_seen = bundle.manifest.exclude_seen
        rows = np.concatenate(
            [
                tensors["item_vectors"],
                tensors["item_bias"][:, None],
                tensors["srm.item_out"],
                tensors["srm.bias_out"][:, None],
            ],
            axis=1,
        ).astype(np.float64)
        rows -= rows.mean(axis=0)
        self._split = d + 1
        self._parts = np.array([0, d + 1])
        covariance = rows.T @ rows / len(rows)
        covariance[: d + 1, d + 1 :] = 0
        covariance[d + 1 :, : d + 1] = 0
        self._covariance = covariance.astype(np.float32)
        self._rows = rows.astype(np.float32)
        self._columns = np.ascontiguousarray(self._rows.T)
        alpha = tensors["fusion.alpha"][0]
        self._weights = np.array([alpha, 1 - alpha], np.float32)
        by_popularity = np.argsort(-tensors["popularity"], kind="stable")[:candidates]
        self.popular = np.full(candidates, -1, np.int32)
        """(C,) the most popular items: the candidates of a device without an embedding."""
        self.popular[: len(by_popularity)] = by_popularity

    def queries(self, calibrated: Floats, hidden: Floats, has_embedding: npt.NDArray[np.bool_]) -> Floats:
        """(R, D) query vectors from ê (R, d) and h (R, h); the rows of ê without an embedding are not looked at."""
        q = np.ones((len(hidden), len(self._columns)), np.float32)
        cloud, srm = q[:, : self._split], q[:, self._split :]
        cloud[:, :-1] = calibrated
        srm[:, :-1] = hidden
        if np.count_nonzero(has_embedding) != len(has_embedding):
            cloud[~has_embedding] = 0
        variance = self._variances(q)
        usable = (variance > _SMALLEST_VARIANCE) & (variance < _LARGEST_VARIANCE)
        if np.count_nonzero(usable) == usable.size:
            scale = self._weights / np.sqrt(variance)
        else:
            # Scores that do not differ, or are not numbers, have no say: then the others rank alone.
            cloud[~usable[:, 0]] = 0
            variance = self._variances(q)
            usable = variance > _SMALLEST_VARIANCE
            weights = np.where(usable.all(axis=1, keepdims=True), self._weights, np.float32(1))
            scale = np.where(usable, weights / np.sqrt(np.where(usable, variance, 1)), np.float32(0))
        cloud *= scale[:, :1]
        srm *= scale[:, 1:]
        return q

    def _variances(self, q: Floats) -> Floats:
        """(R, 2) variance, over the catalogue, of the cloud's and of the SRM's scores."""
        terms = q @ self._covariance
        terms *= q
        variances: Floats = np.add.reduceat(terms, self._parts, axis=1)
        return variances

    def catalogue(self, queries: Floats, targets: Items, seen: Bytes) -> Ranked:
        """Rank the whole catalogue.

        Parameters
        ----------
        queries
            (R, D) from `queries`.
        targets
            (R,) item to find the rank of; -1: none.
        seen
            (R, ⌈N/8⌉) bitmaps of what is not to be ranked; not looked at unless the bundle excludes seen items.
        """
        block = max(1, _CATALOGUE_BLOCK // (4 * self.n_items))
        parts = [
            self._catalogue_block(queries[at : at + block], targets[at : at + block], seen[at : at + block])
            for at in range(0, len(queries), block)
        ]
        return _joined(parts, self.list_length)

    def candidates(self, queries: Floats, candidates: Items, targets: Items, seen: Bytes) -> Ranked:
        """Rank candidate lists.

        Parameters
        ----------
        candidates
            (R, C) item indexes, best first by the cloud, each once; -1 where there are fewer.
        queries, targets, seen
            As in `catalogue`.
        """
        block = max(1, _CANDIDATE_BLOCK // (candidates.shape[1] * self._rows.itemsize * self._rows.shape[1]))
        parts = [
            self._candidates_block(
                queries[at : at + block], candidates[at : at + block], targets[at : at + block], seen[at : at + block]
            )
            for at in range(0, len(queries), block)
        ]
        return _joined(parts, self.list_length)

    def _catalogue_block(self, queries: Floats, targets: Items, seen: Bytes) -> Ranked:
        scores: Floats = queries @ self._columns
        n = np.full(len(scores), self.n_items, np.int32)
        if self.exclude_seen:
            hidden = np.unpackbits(seen, axis=1, count=self.n_items, bitorder="little")
            np.putmask(scores, hidden.view(np.bool_), _NEVER)
            n -= np.add.reduce(hidden, axis=1, dtype=np.int32)
        at = np.arange(len(scores))
        target_score = scores[at, targets]
        rankable = (targets >= 0) & (target_score > _NEVER)
        rank = np.add.reduce(scores >= target_score[:, None], axis=1, dtype=np.int32)
        rank *= rankable
        return Ranked(rank, n, self._best(scores, None))

    def _candidates_block(self, queries: Floats, candidates: Items, targets: Items, seen: Bytes) -> Ranked:
        rows = self._rows.take(candidates, axis=0)  # -1 takes the last row, and is masked below
        scores: Floats = np.matmul(rows, queries[:, :, None])[..., 0]
        at = np.arange(len(scores))
        out = candidates < 0
        if self.exclude_seen:
            byte = candidates >> 3
            byte += (at * seen.shape[1])[:, None].astype(np.int32)
            bits = np.ascontiguousarray(seen).reshape(-1).take(byte, mode="clip")
            bits &= _BIT.take(candidates & 7)
            out |= bits > 0
        n = np.full(len(scores), candidates.shape[1], np.int32)
        if np.count_nonzero(out):
            scores[out] = _NEVER
            n -= np.add.reduce(out, axis=1, dtype=np.int32)
        is_target = candidates == targets[:, None]
        is_target &= ~out
        rank = np.zeros(len(scores), np.int32)
        hit, place = np.nonzero(is_target)
        if len(hit):
            rank[hit] = np.add.reduce(scores[hit] >= scores[hit, place][:, None], axis=1, dtype=np.int32)
        return Ranked(rank, n, self._best(scores, candidates))

    def _best(self, scores: Floats, items: Items | None) -> Items:
        """(R, k) the best of `scores` (R, n), best first and of equal ones the first; `items` names the columns."""
        k, n = self.list_length, scores.shape[1]
        at = np.arange(len(scores))[:, None]
        if n <= _SORT_ALL:
            places = (-scores).argsort(axis=1, kind="stable")[:, :k]
            kept = scores[at, places]
        else:
            places = np.argpartition(scores, n - k, axis=1)[:, n - k :]
            places.sort(axis=1)
            kept = scores[at, places]
            order = (-kept).argsort(axis=1, kind="stable")
            places, kept = places[at, order], kept[at, order]
        best = places.astype(np.int32) if items is None else items[at, places]
        if np.count_nonzero(kept == _NEVER):
            best[kept == _NEVER] = -1
        if n >= k:
            return best
        padded = np.full((len(scores), k), -1, np.int32)
        padded[:, :n] = best
        return padded


def _joined(parts: list[Ranked], list_length: int) -> Ranked:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        nothing = np.zeros(0, np.int32)
        return Ranked(nothing, nothing, np.zeros((0, list_length), np.int32))
    return Ranked(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
