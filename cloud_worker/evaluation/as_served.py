"""What the offline pipeline makes of the very moments at which a running one served.

A recommendation is known by the interaction that followed it, by the ``as_of`` of the embedding it was made with, and
by that of the table of what people take near what (`streams.neighbours`). That is enough to make it again from the
dataset alone: what the cloud would have sent after as_of interactions, with the live index as it was then, and what the
device's models and the table make of it at the interaction's position. Without an embedding the device's own model
ranks alone, without a table nothing is added.

Three things may differ from what was served. The running cloud's live index knows what its worker had read when the
request came, which may be less or more than what happened before it; here it knows exactly that. A table was made while
events were flowing and may lack a few interactions before its boundary, where a partition was read late or a user's
ring had moved on; here it lacks none. And numbers are rounded otherwise. To tell the first from the others,
`AsServed.ranks` takes the embeddings that were really sent, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cloud_worker.encoder import Encoder
from cloud_worker.evaluation.broadcast import Sent, served_ranks
from cloud_worker.evaluation.drawn import whole_histories
from cloud_worker.evaluation.test_period import OnProgress, ask_cloud, staleness_of
from cloud_worker.live.neighbour_counts import neighbours_kept
from cloud_worker.live.reader import live_options
from cloud_worker.training import calibrator, evaluate
from cloud_worker.training.bench import Bench
from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.metrics import Ranks
from cloud_worker.training.served import bench_of, check_encoder, networks_of
from cloud_worker.training.signal_head import SignalHead
from cloud_worker.training.snapshots import Pairs, Snapshots
from cloud_worker.training.trends import tables_at
from streams.bundle import Bundle
from streams.datasets import Prepared
from streams.errors import DatasetError
from streams.neighbours import NeighbourTable

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Moments:
    """Q recommendations, by what was taken after them.

    Attributes
    ----------
    users, positions
        (Q,) whose they are, and how many interactions were known.
    as_of
        (Q,) interactions that the embedding knew; -1: there was none.
    trends_as_of_ms
        (Q,) event time that the neighbour table was as of; -1: there was none.
    """

    users: Ints
    positions: Ints
    as_of: Ints
    trends_as_of_ms: Ints

    def __len__(self) -> int:
        return len(self.users)

    @property
    def gap(self) -> Ints:
        """(Q,) interactions since the embedding; -1 without one."""
        return np.where(self.as_of < 0, -1, self.positions - self.as_of)

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Moments:
        """Some of them."""
        return Moments(self.users[rows], self.positions[rows], self.as_of[rows], self.trends_as_of_ms[rows])


@dataclass(frozen=True)
class Offline:
    """What the offline pipeline gives at moments: (Q,) ranks of what was taken, and staleness s (1: no embedding)."""

    ranks: Ranks
    staleness: npt.NDArray[np.float64]


@dataclass(frozen=True)
class AsServed:
    """The pipeline, ready for the moments it was opened for.

    Attributes
    ----------
    bench
        Its snapshots are the moments and those from which their embeddings come. ``embeddings`` is NaN where no
        embedding was served from: the cloud is asked for nothing else, since that is what costs.
    tables
        By as_of: those that the moments were served with.
    """

    bundle: Bundle
    bench: Bench
    repair: calibrator.Calibrator
    head: SignalHead
    tables: Mapping[int, NeighbourTable]

    def embeddings(self, moments: Moments) -> Floats:
        """(Q, d) what the offline cloud would have sent to moments that had an embedding."""
        return self.bench.embeddings[self.bench.snapshots.find(moments.users, moments.as_of)]

    def ranks(self, moments: Moments, sent: Floats | None = None) -> Offline:
        """Serve moments again.

        Parameters
        ----------
        sent
            (Q, d) the embeddings that were served with; rows of moments without one are not looked at. One embedding
            for each user and as_of. None: those that the offline cloud would have sent.
        """
        bench, snapshots = self.bench, self.bench.snapshots
        ranks, staleness = np.zeros(len(moments), np.int64), np.ones(len(moments))
        has = moments.as_of >= 0
        without = np.flatnonzero(~has)
        alone = bench.moments(snapshots.find(moments.users[without], moments.positions[without]))
        ranks[without] = self._ranks(alone, None, staleness[without], moments.trends_as_of_ms[without])
        rows = np.flatnonzero(has)
        some = moments.take(rows)
        pairs = Pairs(snapshots.find(some.users, some.as_of), snapshots.find(some.users, some.positions))
        if sent is not None:
            embeddings = np.full_like(bench.embeddings, np.nan)
            embeddings[pairs.stale] = sent[rows]
            bench = replace(bench, embeddings=embeddings)
        if len(rows):
            data = bench.data(pairs)
            staleness[rows] = staleness_of(self.head, data)
            repaired = calibrator.apply(self.repair, data)
            served = bench.moments(pairs.fresh)
            ranks[rows] = self._ranks(served, repaired, staleness[rows], some.trends_as_of_ms)
        return Offline(ranks, staleness)

    def _ranks(
        self,
        moments: evaluate.Moments,
        embeddings: Floats | None,
        staleness: npt.NDArray[np.float64],
        trends_as_of_ms: Ints,
    ) -> Ranks:
        """(Q,) ranks at staleness s (Q,), which is 1 without embeddings, each with the table of its as_of."""
        sent = Sent(self.tables, trends_as_of_ms)
        return served_ranks(self.bundle, self.bench.catalogue, moments, embeddings, staleness, sent)


def moments_of(histories: Histories, rows: Ints, as_of: Ints, trends_as_of_ms: Ints) -> Moments:
    """Find the moments of recommendations.

    Parameters
    ----------
    rows
        (Q,) which interaction of the dataset followed each.
    as_of
        (Q,) of the embeddings; -1: none.
    trends_as_of_ms
        (Q,) of the neighbour tables; -1: none.

    Raises
    ------
    DatasetError
        They are not of these data: there is no such interaction, or an embedding or a table knew what was still to
        come.
    """
    outside = (rows < 0) | (rows >= len(histories.items))
    if outside.any():
        raise DatasetError(
            f"interaction {rows[outside][0]} was served, the dataset has {len(histories.items)}",
            remedy="evaluate with the data that were replayed",
        )
    place = np.argsort(histories.order)[rows]
    moments = Moments(histories.owners[place], histories.places[place], as_of, trends_as_of_ms)
    wrong = (as_of == 0) | (as_of < -1) | (as_of > moments.positions)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise DatasetError(
            f"interaction {rows[first]} is number {moments.positions[first] + 1} of its user, and was served with an "
            f"embedding of {as_of[first]} interactions",
            remedy="evaluate with the data that were replayed",
        )
    early = trends_as_of_ms > histories.times_ms[place]
    if early.any():
        first = int(np.flatnonzero(early)[0])
        raise DatasetError(
            f"interaction {rows[first]} happened at {histories.times_ms[place][first]}, and was served with a "
            f"neighbour table as of {trends_as_of_ms[first]}, which is later",
            remedy="evaluate with the data that were replayed",
        )
    return moments


def open_as_served(
    bundle: Bundle,
    prepared: Prepared,
    encoder: Encoder,
    rows: Ints,
    as_of: Ints,
    trends_as_of_ms: Ints,
    *,
    on_progress: OnProgress = lambda _stage, _done, _total: None,
) -> tuple[AsServed, Moments]:
    """Let every part of the bundle look at the moments of recommendations.

    Parameters
    ----------
    rows, as_of, trends_as_of_ms
        See `moments_of`.

    Raises
    ------
    BundleError
        The bundle was trained on other data, or with another encoder.
    DatasetError
        The recommendations are not of these data.
    """
    check_encoder(bundle, encoder)
    histories = whole_histories(bundle, prepared)
    moments = moments_of(histories, rows, as_of, trends_as_of_ms)
    tables = tables_at(
        histories,
        trends_as_of_ms[trends_as_of_ms >= 0],
        ring=live_options(bundle).ring,
        kept=neighbours_kept(histories.n_items),
        on_done=lambda done, total: on_progress("tables", done, total),
    )
    with_one = moments.take(as_of >= 0)
    asked = Snapshots.of(with_one.users, with_one.as_of)
    snapshots = Snapshots.of(
        np.concatenate([asked.users, moments.users]), np.concatenate([asked.positions, moments.positions])
    )
    networks = networks_of(bundle)
    embeddings = np.full((len(snapshots), bundle.manifest.d), np.nan, np.float32)
    if len(asked):
        found = ask_cloud(bundle, networks, histories, asked, encoder, on_progress)[1]
        embeddings[snapshots.find(asked.users, asked.positions)] = found
    served = AsServed(
        bundle,
        bench_of(bundle, networks, histories, snapshots, embeddings),
        calibrator.Calibrator.from_tensors(bundle.device),
        SignalHead.from_tensors(bundle.device, "staleness"),
        tables,
    )
    return served, moments
