"""What staleness costs, gap by gap, and how much of it each method makes good."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from cloud_worker.evaluation.bootstrap import Interval, mean_interval
from cloud_worker.evaluation.neighbours import ItemNeighbours, recent_popularity
from cloud_worker.evaluation.test_period import GAPS, TestPeriod
from cloud_worker.training import blending, calibrator, evaluate
from cloud_worker.training.controls import Controls
from cloud_worker.training.metrics import Ranks
from cloud_worker.training.snapshots import Pairs
from cloud_worker.training.srm import running_states
from streams.experiment.ranking_metrics import hit_rate_at, ndcg_at, reciprocal_rank

METRICS: Final[Mapping[str, Callable[[Ranks], npt.NDArray[np.float64]]]] = {
    "ndcg@10": ndcg_at,
    "hr@10": hit_rate_at,
    "mrr": reciprocal_rank,
}
SRM: Final = "SRM"
FRESH, STALE, CALIBRATED = "fused fresh", "fused stale", "fused calibrated"
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


@dataclass(frozen=True)
class Cell:
    """A method at a gap: its mean, and its difference to the SRM at the same moments."""

    value: Interval
    over_srm: Interval


def columns(period: TestPeriod, controls: Controls | None, gaps: Sequence[int] = GAPS) -> list[Column]:
    """Rank every method at every gap."""
    bench, histories = period.bench, period.histories
    found: list[Column] = []
    independent = _independent(period, controls)
    for gap in gaps:
        able, pairs = period.pairs(gap)
        data, moments = bench.data(pairs), bench.moments(pairs.fresh)
        fresh_alpha = float(period.alpha(np.zeros(1))[0])
        repaired = calibrator.apply(period.repair, data)
        alpha = period.alpha(period.staleness(data.phi))
        ranks = {name: each[able] for name, each in independent.items()} | {
            "cloud stale": evaluate.ranks(bench.catalogue, moments, data.stale, 1.0),
            "calibrated": evaluate.ranks(bench.catalogue, moments, repaired, 1.0),
            STALE: evaluate.ranks(bench.catalogue, moments, data.stale, fresh_alpha),
            CALIBRATED: evaluate.ranks(bench.catalogue, moments, repaired, alpha),
        }
        at = histories.starts[moments.users] + moments.positions
        repeated = histories.times_ms[at] == histories.times_ms[at - 1]
        found.append(Column(gap, moments.users, repeated, ranks))
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
        states = running_states(controls.second, histories, moments.users, moments.positions)
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


def cell(column: Column, method: str, metric: str, seed: int) -> Cell:
    """A method's mean at a gap and its paired difference to the SRM."""
    measure = METRICS[metric]
    mine, srm = measure(column.ranks[method]), measure(column.ranks[SRM])
    return Cell(mean_interval(mine, column.users, seed), mean_interval(mine - srm, column.users, seed))


def difference(column: Column, method: str, other: str, metric: str, seed: int) -> Interval:
    """Paired difference of two methods at the same moments."""
    measure = METRICS[metric]
    return mean_interval(measure(column.ranks[method]) - measure(column.ranks[other]), column.users, seed)


def recovered(column: Column, metric: str) -> float | None:
    """Share of what staleness costs the fused ranking that calibration wins back; None where it costs nothing."""
    measure = METRICS[metric]
    fresh, stale, repaired = (float(measure(column.ranks[each]).mean()) for each in (FRESH, STALE, CALIBRATED))
    return (repaired - stale) / (fresh - stale) if fresh - stale > 1e-12 else None
