"""What a broadcast to all devices would save: which items people took lately near which others, the same for everybody.

A fresh embedding brings two things: what its user did, which the device knows itself, and what others did, which it
does not. The second need not come user by user. Let C_ij count, over all users, how often items i and j were taken
within `NEAR` interactions of each other, those further apart less, and n_i how often i was taken. A device adds to the
scores that it serves by

    τ(i) = Σ_k γ^k C[j_k, i] / sqrt(n_(j_k) n_i)        j_0, j_1, …: the user's last items, newest first
    served(i) + β · z(τ)(i)

where the scores served and τ are both standardised. The counts of the day when the test period begins can lie in the
bundle; a record that all devices are sent every so often brings what came since that day: the heaviest pairs, and how
often each item was taken. The formula is that of item-kNN (Sarwar et al. 2001) over neighbouring interactions instead
of whole users; the broadcast is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cloud_worker.evaluation.bootstrap import Interval, stacked
from cloud_worker.evaluation.choosing import chosen
from cloud_worker.evaluation.collaborative import RATIOS
from cloud_worker.evaluation.neighbours import last_items
from cloud_worker.evaluation.staleness import CALIBRATED, FRESH, SRM, Column, repeated
from cloud_worker.evaluation.test_period import TestPeriod
from cloud_worker.training import calibrator
from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.evaluate import Catalogue, Moments
from cloud_worker.training.fusion import fused, standardised
from cloud_worker.training.metrics import Ranks, ranks_of
from streams.experiment.ranking_metrics import ndcg_at

Floats = npt.NDArray[np.float64]
OnDone = Callable[[int, int], None]

NEAR: Final = 10
"""Interactions of a user that count as neighbours."""
DECAY: Final = 0.8
"""γ, and of a pair's weight from one place further apart to the next."""
HOUR_MS: Final = 3_600_000
PAIR_BYTES: Final = 10
"""Two indexes of 4 bytes and a half-precision count."""
ITEM_BYTES: Final = 2
"""How often an item was taken."""

STATIC, TRENDS = "neighbours of the bundle's day", "trends"
ADDED: Final = ("", f" + {STATIC}", f" + {TRENDS}")
"""The ends of the names of `METHODS`."""
METHODS: Final = tuple(f"{served}{added}" for served in (SRM, CALIBRATED, FRESH) for added in ADDED)
COMPARED: Final = (
    (f"{SRM} + {STATIC}", SRM),
    (FRESH, f"{SRM} + {STATIC}"),
    (f"{FRESH} + {STATIC}", f"{SRM} + {STATIC}"),
    (f"{CALIBRATED} + {TRENDS}", CALIBRATED),
    (f"{CALIBRATED} + {TRENDS}", f"{CALIBRATED} + {STATIC}"),
    (f"{CALIBRATED} + {TRENDS}", FRESH),
    (f"{FRESH} + {TRENDS}", f"{SRM} + {TRENDS}"),
    (f"{FRESH} + {TRENDS}", f"{CALIBRATED} + {TRENDS}"),
)
"""Methods whose paired differences say what each part is worth beside the others."""


@dataclass(frozen=True)
class Neighbours:
    """C (N, N), symmetric, and n (N,), as of one moment."""

    pairs: Any
    taken: Floats

    def scores(self, histories: Histories, users: Ints, positions: Ints) -> Any:
        """(Q, N) τ of users who have made their first positions (Q,) interactions; sparse."""
        scale = sparse.diags(np.where(self.taken > 0, 1.0 / np.sqrt(np.maximum(self.taken, 1.0)), 0.0))
        asked = last_items(histories, users, positions, NEAR, DECAY)
        return sparse.csr_matrix(asked @ scale @ self.pairs @ scale)


class NeighbourCounts:
    """Every two neighbouring interactions of everybody, and when the later of them was made."""

    def __init__(self, histories: Histories) -> None:
        self._histories = histories
        later = [np.flatnonzero(histories.places >= apart) for apart in range(1, NEAR + 1)]
        self._second = np.concatenate(later)
        self._first = np.concatenate([rows - apart for apart, rows in enumerate(later, start=1)])
        self._weight = np.repeat(DECAY ** np.arange(NEAR), [len(rows) for rows in later])
        self._times = histories.times_ms[self._second]

    def between(self, begin_ms: int, end_ms: int) -> Any:
        """(N, N) what event times [begin, end) added to C; upper triangle, sparse."""
        at = np.flatnonzero((self._times >= begin_ms) & (self._times < end_ms))
        one, other = (self._histories.items[each[at]] for each in (self._first, self._second))
        n = self._histories.n_items
        counts = sparse.csr_matrix((self._weight[at], (np.minimum(one, other), np.maximum(one, other))), (n, n))
        counts.sum_duplicates()
        counts.setdiag(0)
        counts.eliminate_zeros()
        return counts

    def taken(self, end_ms: int) -> Floats:
        """(N,) n as of an event time."""
        known = self._histories.items[self._histories.times_ms < end_ms]
        return np.bincount(known, minlength=self._histories.n_items).astype(np.float64)


def heaviest(counts: Any, most: int) -> Any:
    """Of sparse counts the `most` largest: what a record of bounded size can carry."""
    if counts.nnz <= most:
        return counts
    found = counts.tocoo()
    kept = np.argsort(-found.data, kind="stable")[:most]
    return sparse.csr_matrix((found.data[kept], (found.row[kept], found.col[kept])), counts.shape)


@dataclass(frozen=True)
class Broadcast:
    """τ at Q moments, sparse (Q, N): of the bundle's day, and with the last record before each moment.

    Attributes
    ----------
    base
        Pairs that the bundle would carry.
    records
        Pairs in each record that was needed. Each holds all that came since the bundle's day, not only since the
        record before it: a device needs the last one alone.
    """

    static: Any
    trends: Any
    base: int
    records: Sequence[int]

    def bytes_of(self, pairs: int) -> int:
        """Of so many pairs, with the counts of all N items."""
        return PAIR_BYTES * pairs + ITEM_BYTES * int(self.static.shape[1])


def broadcast(
    histories: Histories,
    users: Ints,
    positions: Ints,
    *,
    begin_ms: int,
    every_hours: int,
    most: int,
    on_done: OnDone = lambda _done, _total: None,
) -> Broadcast:
    """Make the records that devices would have had at moments.

    Parameters
    ----------
    begin_ms
        The bundle's day: until then the counts lie in the bundle; records are made every so many hours after it.
    most
        Pairs in a record.
    """
    counts = NeighbourCounts(histories)
    base = counts.between(np.iinfo(np.int64).min, begin_ms)
    static = Neighbours(base + base.T, counts.taken(begin_ms)).scores(histories, users, positions)
    times = histories.times_ms[histories.starts[users] + positions]
    made = begin_ms + (times - begin_ms) // (every_hours * HOUR_MS) * (every_hours * HOUR_MS)
    parts, order, sizes = [], [], []
    every = np.unique(made)
    for nth, as_of_ms in enumerate(every.tolist()):
        on_done(nth, len(every))
        at = np.flatnonzero(made == as_of_ms)
        new = heaviest(counts.between(begin_ms, as_of_ms), most)
        sizes.append(int(new.nnz))
        whole = base + new
        parts.append(Neighbours(whole + whole.T, counts.taken(as_of_ms)).scores(histories, users[at], positions[at]))
        order.append(at)
    on_done(len(every), len(every))
    trends = sparse.csr_matrix(sparse.vstack(parts))[np.argsort(np.concatenate(order))]
    return Broadcast(static, trends, int(base.nnz), sizes)


def columns(
    period: TestPeriod, sent: Broadcast, gaps: Sequence[int], *, weight: float, seed: int, on_done: OnDone
) -> list[Column]:
    """Rank every method of `METHODS` at every gap; all columns have all moments.

    Parameters
    ----------
    period
        Loaded for these gaps, with ``nearest``.
    sent
        For the period's moments.
    weight
        β.
    """
    bench = period.bench
    moments = bench.moments(period.moments)
    fresh_alpha = period.alpha(np.zeros(len(moments)))
    independent = _by_addition(SRM, bench.catalogue, moments, None, fresh_alpha, sent, weight)
    independent |= _by_addition(
        FRESH, bench.catalogue, moments, bench.embeddings[period.moments], fresh_alpha, sent, weight
    )
    found = []
    for nth, gap in enumerate(gaps):
        on_done(nth, len(gaps))
        _, pairs = period.pairs(gap, nearest=True)
        data = bench.data(pairs)
        alpha = period.alpha(period.staleness(data.phi))
        repaired = calibrator.apply(period.repair, data)
        ranks = independent | _by_addition(CALIBRATED, bench.catalogue, moments, repaired, alpha, sent, weight)
        found.append(Column(gap, moments.users, repeated(moments), {name: ranks[name] for name in METHODS}, seed))
    on_done(len(gaps), len(gaps))
    return found


def refreshed(period: TestPeriod, column: Column) -> dict[str, dict[float, Interval]]:
    """NDCG@10 where a share of the moments has a fresh embedding, handed out by w.

    Returns
    -------
    dict
        By what is added to the scores, of `ADDED`, then by share, of `RATIOS`.
    """
    _, pairs = period.pairs(column.gap, nearest=True)
    asking = period.worth(period.bench.data(pairs).phi)
    shares = [chosen(asking, ratio) for ratio in RATIOS]
    found = {}
    for added in ADDED:
        repaired, fresh = (ndcg_at(column.ranks[f"{served}{added}"]) for served in (CALIBRATED, FRESH))
        served = stacked([repaired + share * (fresh - repaired) for share in shares])
        found[added] = dict(zip(RATIOS, column.resamples.means(served), strict=True))
    return found


def _by_addition(
    served: str,
    catalogue: Catalogue,
    moments: Moments,
    embeddings: npt.NDArray[np.float32] | None,
    alpha: npt.NDArray[np.floating],
    sent: Broadcast,
    weight: float,
) -> dict[str, Ranks]:
    """Ranks of what is served, alone and with either addition."""
    additions: Mapping[str, Any] = dict(zip(ADDED, (None, sent.static, sent.trends), strict=True))
    found = {f"{served}{name}": np.zeros(len(moments), np.int64) for name in additions}
    for rows, part in moments.blocks():
        scores = standardised(part.hidden @ catalogue.srm_out.T + catalogue.srm_bias)
        if embeddings is not None:
            cloud = standardised(embeddings[rows] @ catalogue.vectors.T + catalogue.bias)
            scores = standardised(fused(cloud, scores, alpha[rows].astype(np.float32)))
        seen, targets = part.seen(), part.targets
        for name, tau in additions.items():
            whole = scores
            if tau is not None:
                whole = scores + np.float32(weight) * standardised(tau[rows].toarray().astype(np.float32))
            found[f"{served}{name}"][rows] = ranks_of(whole, targets, seen)
    return found
