"""The cloud's candidates, and how the items that matter are found in a catalogue that is too large to look at whole.

Up to `EXACT_UP_TO` items every item has a score. Beyond, a batch works on a `Shortlist`: what an HNSW graph
(arXiv 1603.09320, the package usearch) finds to score high under ⟨e, v⟩ + b, what the live index names, and a sample of
the others in which each stands for many, so that a softmax over the list has the sum it would have over all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from streams.log import get_logger

log = get_logger(__name__)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

EXACT_UP_TO: Final = 100_000
"""Items. 64 users times so many scores take 26 MB and 60 ms on two cores."""
SAMPLE: Final = 8_192
"""Items of a shortlist that stand for those that are not on it."""
_LINKS: Final = 16
_EFFORT_BUILDING: Final = 64
_EFFORT_SEARCHING: Final = 576
"""HNSW's M, efConstruction and ef: recall of the top 200 is about 0.98; 120,000 items take 10 to 20 s on two cores."""


def top_of(
    scores: Floats, n: int, excluded: Sequence[npt.NDArray[np.integer] | None] | None = None
) -> list[npt.NDArray[np.int32]]:
    """Rank a catalogue by its scores and keep the top.

    Parameters
    ----------
    scores
        (B, N) of each user for each item.
    n
        Items wanted.
    excluded
        For each user the item indexes that must not appear (what the user took already), or None.

    Returns
    -------
    list
        B arrays of at most `n` item indexes, best first; of equal scores the lower index first. Shorter where the
        catalogue has no more.
    """
    found: list[npt.NDArray[np.int32]] = []
    for row, cost in enumerate(-scores):
        if excluded is not None and (seen := excluded[row]) is not None:
            cost[seen] = np.inf
        found.append(_lowest(cost, n))
    return found


def _lowest(costs: Floats, n: int) -> npt.NDArray[np.int32]:
    """Partition, not sort: all that are no worse than the n-th are few, and among those the order is made exact."""
    if n < len(costs):
        bound = np.partition(costs, n - 1)[n - 1]
        within = np.flatnonzero(costs <= bound)
    else:
        within = np.arange(len(costs))
    within = within[np.isfinite(costs[within])]
    return within[np.argsort(costs[within], kind="stable")][:n].astype(np.int32)


@dataclass(frozen=True)
class Shortlist:
    """Some items of a catalogue, ascending, and how many items each stands for.

    Parameters
    ----------
    items
        (S,) indexes.
    stands_for
        (S,) 1 for an item that was chosen, more for one of the sample; N together.
    """

    items: Ints
    stands_for: Floats

    @classmethod
    def of(cls, n_items: int, chosen: Iterable[npt.NDArray[np.integer]], sample: int = SAMPLE) -> Self:
        """Make one of chosen items and an even sample of the others: the same choice gives the same list."""
        weights = np.zeros(n_items, np.float32)
        weights[np.concatenate([np.zeros(0, np.int64), *(each.ravel() for each in chosen)])] = 1.0
        others = np.flatnonzero(weights == 0)
        if len(others):
            picked = others[np.linspace(0, len(others) - 1, min(sample, len(others))).astype(np.int64)]
            weights[picked] = len(others) / len(picked)
        items = np.flatnonzero(weights)
        return cls(items, weights[items])

    def places_of(self, items: npt.NDArray[np.integer]) -> Ints:
        """Where on the list those of (n,) items stand that are on it."""
        places = np.searchsorted(self.items, items)
        places = np.minimum(places, len(self.items) - 1)
        return np.asarray(places[self.items[places] == items], np.int64)


class NearestItems:
    """Finds the items with the highest ⟨e, v_i⟩ + b_i without looking at all of them.

    The largest inner product becomes the smallest distance by one more dimension that makes all items equally long
    (Bachrach et al., RecSys 2014); the bias is a dimension against which every user has 1.

    Parameters
    ----------
    item_vectors, item_bias
        (N, d) and (N,): v and b.
    path
        Where the graph is kept; one that lies there is used if it has N items, so the name must have the bundle's id.
    threads
        Threads of building and searching; 0: all cores.
    """

    def __init__(self, item_vectors: Floats, item_bias: Floats, *, path: Path | None = None, threads: int = 0) -> None:
        self._threads = threads
        graph = None if path is None else _load(path, *item_vectors.shape)
        if graph is None:
            graph = _build(item_vectors, item_bias, threads)
            if path is not None:
                _save(graph, path)
        self._graph = graph

    def top(self, vectors: Floats, n: int) -> Ints:
        """(B, n) items, best first, for users (B, d); nearly those of an exact search: see `recall`."""
        count = len(vectors)
        asked = np.concatenate([vectors, np.ones((count, 1)), np.zeros((count, 1))], axis=1).astype(np.float32)
        found: Any = self._graph.search(asked, n, threads=self._threads)
        return np.asarray(found.keys, np.int64).reshape(count, -1)


def recall(nearest: NearestItems, item_vectors: Floats, item_bias: Floats, vectors: Floats, n: int) -> float:
    """Share of the exact top `n` of ⟨e, v⟩ + b that `nearest` finds, over users (B, d)."""
    exact = top_of(vectors @ item_vectors.T + item_bias, n)
    found = nearest.top(vectors, n)
    return float(np.mean([len(np.intersect1d(one, other)) / len(one) for one, other in zip(exact, found, strict=True)]))


def _graph(d: int) -> Any:
    from usearch.index import Index  # noqa: PLC0415 - only large catalogues need it

    return Index(
        ndim=d + 2,
        metric="l2sq",
        dtype="f32",
        connectivity=_LINKS,
        expansion_add=_EFFORT_BUILDING,
        expansion_search=_EFFORT_SEARCHING,
    )


def _build(item_vectors: Floats, item_bias: Floats, threads: int) -> Any:
    whole = np.concatenate([item_vectors, item_bias[:, None]], axis=1).astype(np.float32)
    lengths = np.square(whole).sum(axis=1)
    fill = np.sqrt(np.maximum(lengths.max() - lengths, 0.0))
    graph = _graph(item_vectors.shape[1])
    graph.add(np.arange(len(whole)), np.concatenate([whole, fill[:, None]], axis=1), threads=threads)
    return graph


def _load(path: Path, n: int, d: int) -> Any:
    if not path.is_file():
        return None
    graph = _graph(d)
    try:
        graph.load(path)
    except (RuntimeError, ValueError, OSError) as exc:
        log.warning("a catalogue's graph cannot be read; it is built again", file=str(path), cause=str(exc))
        return None
    return graph if len(graph) == n and graph.ndim == d + 2 else None


def _save(graph: Any, path: Path) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        graph.save(scratch)
        scratch.replace(path)
    except (RuntimeError, OSError) as exc:
        log.warning("a catalogue's graph cannot be kept; every start builds it", file=str(path), cause=str(exc))
