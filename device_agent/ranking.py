"""Ranking items by the fused scores of `device_agent.fusion`, in numpy.

Ranks are 1-based among the items that can be ranked, and pessimistic: the number of items that score at least as much
as the target. Rank 0 says that the target could not be ranked: it is no item of the bundle, or no candidate, or the
bundle excludes what was seen and the target was seen before.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from device_agent.fusion import SMALLEST_VARIANCE, FusionTables

Floats = npt.NDArray[np.float32]
Items = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]
Mode = Literal["catalogue", "candidates"]

_CATALOGUE_BLOCK: Final = 4 << 20
_CANDIDATE_BLOCK: Final = 512 << 10
"""Bytes of scores, and of gathered rows, worked on at a time: so that they stay in the processor's caches."""
_MANY: Final = 8
_SMALL_CATALOGUE: Final = 30
_SMALLEST_VARIANCE: Final = np.array(SMALLEST_VARIANCE, np.float32)
_OFTEN: Final = 1024
"""Queries at once for which a column of ones is kept ready."""
_SORT_ALL: Final = 128
"""Scores so few that sorting them all is quicker than finding the best ones first."""
_NEVER: Final = np.array(-np.inf, np.float32)
_ZERO: Final = np.array(0, np.int32)
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
    tables
        Of the bundle.
    list_length
        k, items in a list.
    exclude_seen
        What was seen is not ranked.
    """

    def __init__(self, tables: FusionTables, *, list_length: int = 10, exclude_seen: bool = True) -> None:
        self.n_items, columns = tables.rows.shape
        self.list_length = list_length
        self.exclude_seen = exclude_seen
        self._split = split = tables.split
        self._parts = np.array([0, split])
        self._part_of_column = np.repeat([0, 1], [split, columns - split])
        self._ones = np.ones((_OFTEN, 1), np.float32)
        self._whole_covariance = tables.covariance.astype(np.float32)
        self._covariance = np.zeros((columns, columns), np.float32)
        self._covariance[:split, :split] = tables.cloud_covariance
        self._covariance[split:, split:] = tables.srm_covariance
        self._rows = tables.rows
        self._columns = np.ascontiguousarray(self._rows.T)
        fresh, stale = tables.alpha
        self._weights = np.array([fresh, 1 - fresh], np.float32)
        self._weights_slope = np.array([stale - fresh, fresh - stale], np.float32)

    def queries(
        self, calibrated: Floats, hidden: Floats, has_embedding: npt.NDArray[np.bool_] | None, staleness: Floats
    ) -> Floats:
        """(R, D) query vectors from ê (R, d) and h (R, h).

        Parameters
        ----------
        has_embedding
            (R,) rows of ê without an embedding are not looked at; None: all have one.
        staleness
            (R,) s of the embeddings, which says how much they weigh.
        """
        n = len(hidden)
        one = self._ones[:n] if n <= len(self._ones) else np.ones((n, 1), np.float32)
        q: Floats = np.concatenate((calibrated, one, hidden, one), axis=1)
        if has_embedding is not None:
            q[~has_embedding, : self._split] = 0
        shares = staleness[:, None] * self._weights_slope
        shares += self._weights
        variance = self._variances(q)
        usable = variance > _SMALLEST_VARIANCE
        if np.count_nonzero(usable) == usable.size:
            scale = shares / np.sqrt(variance)
        else:
            # Scores that do not differ, or are not numbers, have no say: then the others rank alone.
            cloud = q[:, : self._split]
            cloud[~np.isfinite(cloud).all(axis=1)] = 0
            variance = self._variances(q)
            usable = (variance > _SMALLEST_VARIANCE) & np.isfinite(variance)
            cloud[~usable[:, 0]] = 0
            weights = np.where(usable.all(axis=1, keepdims=True), shares, np.float32(1))
            scale = np.where(usable, weights / np.sqrt(np.where(usable, variance, 1)), np.float32(0))
        q *= scale.take(self._part_of_column, axis=1)
        return q

    def _variances(self, q: Floats) -> Floats:
        """(R, 2) variance, over the catalogue, of the cloud's and of the SRM's scores."""
        terms = q @ self._covariance
        terms *= q
        variances: Floats = np.add.reduceat(terms, self._parts, axis=1)
        return variances

    def spread(self, queries: Floats) -> Floats:
        """(R, 1) standard deviation of the fused scores over the catalogue."""
        variance = np.einsum("rd,rd->r", queries @ self._whole_covariance, queries)
        return np.asarray(np.sqrt(np.maximum(variance, 0)), np.float32)[:, None]

    def catalogue(self, queries: Floats, targets: Items, seen: Bytes, added: Floats | None = None) -> Ranked:
        """Rank the whole catalogue.

        Parameters
        ----------
        queries
            (R, D) from `queries`.
        targets
            (R,) item to find the rank of; -1: none.
        seen
            (R, ⌈N/8⌉) bitmaps of what is not to be ranked; not looked at unless the bundle excludes seen items.
        added
            (R, N) what is added to the scores.
        """
        block = max(1, _CATALOGUE_BLOCK // (4 * self.n_items))
        parts = []
        for start in range(0, len(queries), block):
            at = slice(start, start + block)
            more = None if added is None else added[at]
            parts.append(self._catalogue_block(queries[at], targets[at], seen[at], more))
        return _joined(parts, self.list_length)

    def candidates(self, queries: Floats, candidates: Items, targets: Items, added: Floats | None = None) -> Ranked:
        """Rank candidate lists.

        Parameters
        ----------
        candidates
            (R, C) item indexes, each once, and -1 for no candidate; `without_seen` takes out what was seen.
        queries, targets
            As in `catalogue`.
        added
            (R, C) what is added to the scores.
        """
        n, length = candidates.shape
        # The whole catalogue is one matrix product: for many lists of a small catalogue it costs less than to gather.
        dense = n >= _MANY and self.n_items <= _SMALL_CATALOGUE * length
        row_bytes = 4 * (self.n_items if dense else length * self._rows.shape[1])
        block = max(1, (_CATALOGUE_BLOCK if dense else _CANDIDATE_BLOCK) // row_bytes)
        if n <= block:
            return self._candidates_block(queries, candidates, targets, dense, added)
        parts = []
        for start in range(0, n, block):
            at = slice(start, start + block)
            more = None if added is None else added[at]
            parts.append(self._candidates_block(queries[at], candidates[at], targets[at], dense, more))
        return _joined(parts, self.list_length)

    def catalogue_scores(self, queries: Floats, seen: Bytes, added: Floats | None = None) -> Floats:
        """(R, N) fused scores with what is added, -inf for what is not to be ranked."""
        return self._scored(queries, seen, added)[0]

    def candidate_scores(self, queries: Floats, candidates: Items, added: Floats | None = None) -> Floats:
        """(R, C) fused scores with what is added, -inf where there is no candidate."""
        scores: Floats = np.matmul(self._rows.take(candidates, axis=0), queries[:, :, None])[..., 0]
        if added is not None:
            scores += added
        scores[candidates < 0] = _NEVER
        return scores

    def _scored(self, queries: Floats, seen: Bytes, added: Floats | None) -> tuple[Floats, Items]:
        """(R, N) scores, -inf for what is not to be ranked; and (R,) how many items are left."""
        scores = queries @ self._columns
        if added is not None:
            scores += added
        n = np.full(len(scores), self.n_items, np.int32)
        if self.exclude_seen:
            hidden = np.unpackbits(seen, axis=1, count=self.n_items, bitorder="little")
            np.putmask(scores, hidden.view(np.bool_), _NEVER)
            n -= np.add.reduce(hidden, axis=1, dtype=np.int32)
        return scores, n

    def _catalogue_block(self, queries: Floats, targets: Items, seen: Bytes, added: Floats | None) -> Ranked:
        scores, n = self._scored(queries, seen, added)
        at = np.arange(len(scores))
        target_score = scores[at, targets]
        rankable = (targets >= 0) & (target_score > _NEVER)
        rank = np.add.reduce(scores >= target_score[:, None], axis=1, dtype=np.int32)
        rank *= rankable
        return Ranked(rank, n, self._best(scores, None))

    def _candidates_block(
        self, queries: Floats, candidates: Items, targets: Items, dense: bool, added: Floats | None
    ) -> Ranked:
        # An index of -1 takes some score or other; it is masked below.
        if dense:
            scores = queries @ self._columns
            scores = scores.reshape(-1).take(candidates + (np.arange(len(scores)) * self.n_items)[:, None])
        else:
            scores = np.matmul(self._rows.take(candidates, axis=0), queries[:, :, None])[..., 0]
        if added is not None:
            scores += added
        out = candidates < _ZERO
        np.putmask(scores, out, _NEVER)
        n = np.array(candidates.shape[1], np.int32) - np.add.reduce(out, axis=1, dtype=np.int32)
        rank = np.zeros(len(scores), np.int32)
        place = (candidates == targets[:, None]).reshape(-1).nonzero()[0]
        if len(place):
            row = place // candidates.shape[1]
            target_score = scores.reshape(-1)[place]
            at_least = np.add.reduce(scores[row] >= target_score[:, None], axis=1, dtype=np.int32)
            rank[row] = at_least * (target_score > _NEVER)  # a target of -1 is no candidate
        return Ranked(rank, n, self._best(scores, candidates))

    def _best(self, scores: Floats, items: Items | None) -> Items:
        """(R, k) the best of `scores` (R, n), best first; `items` names the columns.

        Equal scores come in an order that follows from the scores alone: the same row gives the same list.
        """
        k, n = self.list_length, scores.shape[1]
        at = np.arange(len(scores))[:, None]
        if n <= _SORT_ALL:
            places = (-scores).argsort(axis=1)[:, :k]
        else:
            places = np.argpartition(scores, n - k, axis=1)[:, n - k :]
            places.sort(axis=1)
            places = places[at, (-scores[at, places]).argsort(axis=1, kind="stable")]
        if items is not None:
            best = items[at, places]  # what is no candidate comes last, and is -1 already
        else:
            best = places.astype(np.int32)
            hidden = scores[at, places] == _NEVER
            if np.count_nonzero(hidden):
                best[hidden] = -1
        if n >= k:
            return best
        padded = np.full((len(scores), k), -1, np.int32)
        padded[:, :n] = best
        return padded


def popular_items(popularity: Floats, candidates: int) -> Items:
    """(C,) the most popular items, filled up with -1: the candidates of a device without an embedding."""
    popular = np.full(candidates, -1, np.int32)
    best = np.argsort(-popularity, kind="stable")[:candidates]
    popular[: len(best)] = best
    return popular


def without_seen(candidates: Items, seen: Bytes) -> Items:
    """A copy of the lists (R, C) with -1 for what the bitmaps `seen` (R, ⌈N/8⌉) hold."""
    bits = np.take_along_axis(seen, candidates >> 3, axis=1) & _BIT.take(candidates & 7)
    return np.where(bits > 0, np.int32(-1), candidates)


def _joined(parts: list[Ranked], list_length: int) -> Ranked:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        nothing = np.zeros(0, np.int32)
        return Ranked(nothing, nothing, np.zeros((0, list_length), np.int32))
    return Ranked(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
