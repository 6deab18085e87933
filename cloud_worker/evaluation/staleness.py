"""What staleness costs, gap by gap, and how much of it each method makes good."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from cloud_worker.evaluation.bootstrap import Interval, UserResamples, around, stacked
from cloud_worker.evaluation.neighbours import ItemNeighbours, recent_popularity
from cloud_worker.evaluation.test_period import GAPS, TestPeriod
from cloud_worker.training import blending, calibrator, evaluate
from cloud_worker.training.controls import Controls
from cloud_worker.training.metrics import Ranks
from cloud_worker.training.snapshots import Pairs
from streams.experiment.ranking_metrics import hit_rate_at, ndcg_at, reciprocal_rank

Floats = npt.NDArray[np.float64]
OnGap = Callable[[int, int], None]

METRICS: Final[Mapping[str, Callable[[Ranks], Floats]]] = {
    "ndcg@10": ndcg_at,
    "hr@10": hit_rate_at,
    "mrr": reciprocal_rank,
}
SRM: Final = "SRM"
FRESH, STALE, CALIBRATED = "fused fresh", "fused stale", "fused calibrated"
WEIGHED: Final = "fused stale, α by s"
SECOND, HEAD = "control: second SRM seed", "control: distilled head, no cloud"


@dataclass(frozen=True)
class Column:
    """One gap: the ranks that every method gives the same moments.

    Attributes
    ----------
    users
        (Q,) whose moments they are.
    repeated
        (Q,) what is judged has the time stamp of the user's interaction before it: on data of day resolution these
        are another task.
    ranks
        (Q,) for each method.
    """

    gap: int
    users: npt.NDArray[np.int64]
    repeated: npt.NDArray[np.bool_]
    ranks: Mapping[str, Ranks]
    seed: int = 0

    @cached_property
    def resamples(self) -> UserResamples:
        """Of the users; the same for all that is measured at this gap."""
        return UserResamples(self.users, self.seed)

    def only(self, rows: npt.NDArray[np.bool_]) -> Column:
        """Some of the moments."""
        ranks = {name: each[rows] for name, each in self.ranks.items()}
        return Column(self.gap, self.users[rows], self.repeated[rows], ranks, self.seed)

    def measured(self, metric: str) -> Mapping[str, Floats]:
        """(Q,) for each method."""
        return {name: METRICS[metric](ranks) for name, ranks in self.ranks.items()}

    def means(self, metric: str) -> dict[str, Interval]:
        """Mean and interval of each method."""
        measured = self.measured(metric)
        return dict(zip(measured, self.resamples.means(stacked(list(measured.values()))), strict=True))


def repeated(moments: evaluate.Moments) -> npt.NDArray[np.bool_]:
    """(Q,) whether what is taken has the time stamp of the user's interaction before it."""
    histories = moments.histories
    at = histories.starts[moments.users] + moments.positions
    return np.asarray(histories.times_ms[at] == histories.times_ms[at - 1])


def columns(
    period: TestPeriod,
    controls: Controls | None,
    gaps: Sequence[int] = GAPS,
    seed: int = 0,
    on_gap: OnGap = lambda _done, _total: None,
) -> list[Column]:
    """Rank every method at every gap that some history bears."""
    bench = period.bench
    gaps = [gap for gap in gaps if gap <= period.longest_gap]
    found: list[Column] = []
    on_gap(0, 1 + len(gaps))
    independent = _independent(period, controls)
    for gap in gaps:
        on_gap(1 + len(found), 1 + len(gaps))
        able, pairs = period.pairs(gap)
        data, moments = bench.data(pairs), bench.moments(pairs.fresh)
        fresh_alpha = float(period.alpha(np.zeros(1))[0])
        repaired = calibrator.apply(period.repair, data)
        alpha = period.alpha(period.staleness(data))
        cloud, stale, weighed = evaluate.ranks_for_alphas(
            bench.catalogue, moments, data.stale, (1.0, fresh_alpha, alpha)
        )
        calibrated, fused = evaluate.ranks_for_alphas(bench.catalogue, moments, repaired, (1.0, alpha))
        ranks = {name: each[able] for name, each in independent.items()} | {
            "cloud stale": cloud,
            "calibrated": calibrated,
            STALE: stale,
            WEIGHED: weighed,
            CALIBRATED: fused,
        }
        found.append(Column(gap, moments.users, repeated(moments), ranks, seed))
    on_gap(1 + len(gaps), 1 + len(gaps))
    return found


def _independent(period: TestPeriod, controls: Controls | None) -> dict[str, Ranks]:
    """Methods that no gap concerns: (Q,) ranks of all moments."""
    bench, histories = period.bench, period.histories
    moments = bench.moments(period.moments)
    answers = period.answers.take(period.moments)
    fresh = Pairs(period.moments, period.moments)
    embeddings = bench.embeddings[period.moments]
    neighbours = ItemNeighbours(histories)
    found: dict[str, Ranks] = {
        "popularity": recent_popularity(histories, moments),
        "item-kNN": neighbours.ranks(moments),
        SRM: evaluate.ranks(bench.catalogue, moments, None, 0.0),
    }
    if controls is not None:
        with torch.no_grad():
            other = evaluate.Catalogue(
                controls.second.table().numpy(),
                controls.second.bias.detach().numpy(),
                bench.catalogue.srm_out,
                bench.catalogue.srm_bias,
            )
        states = controls.second.running_states(histories, moments.users, moments.positions)
        found[SECOND] = evaluate.ranks(other, moments, states, controls.second_alpha)
        guessed = calibrator.apply(controls.head, bench.data(fresh))
        found[HEAD] = evaluate.ranks(bench.catalogue, moments, guessed, controls.head_alpha)
    found |= {
        "cloud: text alone": evaluate.ranks(bench.catalogue, moments, answers.text, 1.0),
        "cloud: sequence alone": evaluate.ranks(bench.catalogue, moments, answers.sequence, 1.0),
        "cloud: live alone": blending.live_ranks(answers.live, moments),
        "cloud: mixture, not compressed": blending.teacher_ranks(
            answers, moments, period.networks.space(), period.blend
        ),
        "cloud fresh": evaluate.ranks(bench.catalogue, moments, embeddings, 1.0),
        FRESH: evaluate.ranks(bench.catalogue, moments, embeddings, float(period.alpha(np.zeros(1))[0])),
    }
    return found


@dataclass(frozen=True)
class Cell:
    """A method at a gap: its mean, and its difference to the SRM at the same moments."""

    value: Interval
    over_srm: Interval


def cells(column: Column, metric: str) -> dict[str, Cell]:
    """Each method's mean at a gap and its paired difference to the SRM."""
    measured = column.measured(metric)
    values = stacked(list(measured.values()))
    over = column.resamples.means(values - measured[SRM][:, None])
    return {name: Cell(*each) for name, *each in zip(measured, column.means(metric).values(), over, strict=True)}


def difference(column: Column, method: str, other: str, metric: str) -> Interval:
    """Paired difference of two methods at the same moments."""
    measure = METRICS[metric]
    return column.resamples.mean(measure(column.ranks[method]) - measure(column.ranks[other]))


def recovered(column: Column, metric: str) -> Interval | None:
    """Share of what staleness costs the fused ranking that calibration wins back.

    Returns
    -------
    Interval or None
        None where staleness costs nothing significant: a share of nothing says nothing.
    """
    measured = column.measured(metric)
    fresh, stale, repaired = (measured[each] for each in (FRESH, STALE, CALIBRATED))
    loss, won = fresh - stale, repaired - stale
    if not len(loss) or not column.resamples.mean(loss).low > 0:
        return None
    totals = column.resamples.totals(stacked([won, loss]))
    lost = totals[:, 1]
    shares = np.divide(totals[:, 0], lost, out=np.full(len(lost), np.nan), where=lost > 0)
    return around(float(won.sum() / loss.sum()), shares)


def compared(column: Column) -> list[tuple[str, str]]:
    """Which methods are set against each other at a gap: the claims that the table is asked about."""
    pairs = [(FRESH, SRM), (FRESH, SECOND), (FRESH, HEAD), (CALIBRATED, HEAD)]
    pairs += [(CALIBRATED, FRESH)]
    if column.gap:
        pairs += [(CALIBRATED, STALE), (CALIBRATED, WEIGHED), (CALIBRATED, SRM), (STALE, SRM)]
    return [(method, other) for method, other in pairs if {method, other} <= set(column.ranks)]
