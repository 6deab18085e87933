"""Whether the staleness score is right, and what refreshes are worth where each score asks for them.

What a refresh gains is told beside what all devices have anyway: both before and after it, the newest neighbour table
is added, where tables are sent. Whether the embedding itself is stale, which s says, is asked without them.

Pairs: each judged moment with each gap of `GAPS` that its history bears, so gaps weigh nearly alike. Gap 0 is among
them where s is judged: there a refresh brings the embedding that the device has, and s is 0. Where refreshes are handed
out they are not: a device asks after it has learned, and its gap is 1 then at least.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final

import numpy as np
import numpy.typing as npt

from cloud_worker.evaluation.bootstrap import Interval, UserResamples, around, stacked
from cloud_worker.evaluation.broadcast import Broadcast, served_ranks
from cloud_worker.evaluation.choosing import chosen
from cloud_worker.evaluation.cloud_lists import disagreements, lists_of
from cloud_worker.evaluation.test_period import GAPS, TestPeriod
from cloud_worker.training import calibrator, evaluate
from cloud_worker.training.metrics import auc, expected_calibration_error
from cloud_worker.training.reliability import CLEARLY, gain, pays
from streams.bundle import PHI
from streams.experiment.ranking_metrics import ndcg_at

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
OnGap = Callable[[int, int], None]

__all__ = ["CLEARLY", "Bin", "Decision", "Quality", "Sample", "curve", "decisions", "diagram", "quality", "sample"]

RATES: Final = (0.05, 0.10, 0.20)
BINS: Final = 10
CALIBRATED, STALE = "fused calibrated", "fused stale"
OURS, STALENESS, ORACLE = "expected gain w", "staleness s", "oracle"
_COSINE, _AGE = PHI.index("cos_cached_recent"), PHI.index("log_age")


@dataclass(frozen=True)
class Sample:
    """P pairs of a moment and an embedding of some gap.

    Attributes
    ----------
    gap, users
        (P,)
    staleness
        (P,) s of the bundle's head.
    pays
        (P,) for what is served without a refresh: whether the refresh lifts the next item clearly
        (`cloud_worker.training.reliability.pays`). `CALIBRATED` is what is served; `STALE` has no tables.
    gains
        (P,) NDCG@10 fused fresh less fused calibrated, with the tables that there were.
    scores
        (P,) by which refreshes could be handed out: the higher, the more a refresh is wanted.
    """

    gap: npt.NDArray[np.int64]
    users: npt.NDArray[np.int64]
    staleness: Floats
    pays: Mapping[str, Bools]
    gains: Floats
    scores: Mapping[str, Floats]
    seed: int = 0

    @cached_property
    def resamples(self) -> UserResamples:
        """Of the users; the same for all that is measured."""
        return UserResamples(self.users, self.seed)


@dataclass(frozen=True)
class Quality:
    """How good s is as a probability that a refresh pays.

    Attributes
    ----------
    share
        Of pairs where it pays: what AUC and ECE start from.
    """

    pairs: int
    share: float
    predicted: float
    auc: Interval
    ece: Interval


@dataclass(frozen=True)
class Bin:
    """Pairs of like s: the mean of s, and the share of them where a refresh pays."""

    pairs: int
    predicted: float
    observed: Interval


@dataclass(frozen=True)
class Decision:
    """A share of pairs refreshed, by one score.

    Attributes
    ----------
    gain
        Mean NDCG@10 that a refresh brings.
    precision
        Share of the refreshes that pay.
    ours_over
        Gain of a refresh handed out by w less by this score, paired.
    """

    score: str
    rate: float
    gain: Interval
    precision: Interval
    ours_over: Interval


def sample(
    period: TestPeriod,
    gaps: Sequence[int] = GAPS,
    *,
    sent: Broadcast | None,
    candidates: int,
    seed: int,
    on_gap: OnGap = lambda _done, _total: None,
) -> Sample:
    """Serve every moment with every gap, and see what a refresh would have brought.

    Parameters
    ----------
    sent
        The tables that devices had at the period's moments; None: none were sent.
    """
    bench = period.bench
    gaps = [gap for gap in gaps if gap <= period.longest_gap]
    parts: list[dict[str, npt.NDArray[np.generic]]] = []
    fresh_alpha = float(period.alpha(np.zeros(1))[0])
    lists = lists_of(period, candidates)
    for gap in gaps:
        on_gap(len(parts), len(gaps))
        able, pairs = period.pairs(gap)
        data, moments = bench.data(pairs), bench.moments(pairs.fresh)
        s, told = period.staleness(data), None if sent is None else sent.take(able)
        alone = evaluate.ranks(bench.catalogue, moments, data.fresh, fresh_alpha)
        stale = evaluate.ranks(bench.catalogue, moments, data.stale, fresh_alpha)
        served = partial(served_ranks, period.bundle, bench.catalogue, moments, sent=told)
        fresh = served(data.fresh, np.zeros(len(pairs)))
        repaired = served(calibrator.apply(period.repair, data), s)
        gains = ndcg_at(fresh) - ndcg_at(repaired)
        parts.append(
            {
                "gap": data.gap,
                "users": moments.users,
                "s": s,
                "w": period.worth(data),
                CALIBRATED: pays(repaired, fresh),
                STALE: pays(stale, alone),
                "gains": gains,
                "age": data.phi[:, _AGE].astype(np.float64),
                "cosine": -data.phi[:, _COSINE].astype(np.float64),
                "disagreement": disagreements(period, pairs, lists),
                # Where NDCG@10 gains nothing, what moves up below the tenth place comes first.
                "oracle": gains + 1e-6 * (gain(fresh) - gain(repaired)),
            }
        )
    on_gap(len(gaps), len(gaps))
    every = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    scores = {
        "random": np.zeros(len(every["s"])),
        "gap": every["gap"].astype(np.float64),
        "age": every["age"],
        "1 - cos(e, m)": every["cosine"],
        "disagreement": every["disagreement"],
        STALENESS: every["s"],
        OURS: every["w"],
        ORACLE: every["oracle"],
    }
    labels = {each: every[each].astype(np.bool_) for each in (CALIBRATED, STALE)}
    floats: dict[str, Floats] = {name: np.asarray(each, np.float64) for name, each in scores.items()}
    return Sample(
        np.asarray(every["gap"], np.int64),
        np.asarray(every["users"], np.int64),
        floats[STALENESS],
        labels,
        np.asarray(every["gains"], np.float64),
        floats,
        seed,
    )


def quality(found: Sample, without: str, gap: int | None = None) -> Quality:
    """AUC and ECE of s, against what is served without a refresh.

    Parameters
    ----------
    without
        `CALIBRATED` or `STALE`.
    gap
        Pairs of this gap alone; None: all.
    """
    rows = np.ones(len(found.gap), np.bool_) if gap is None else found.gap == gap
    s, labels = found.staleness[rows], found.pays[without][rows]
    resamples = found.resamples if gap is None else UserResamples(found.users[rows], found.seed)
    return Quality(
        len(s),
        float(labels.mean()),
        float(s.mean()),
        around(auc(s, labels) if 0 < labels.sum() < len(labels) else float("nan"), _auc_of(resamples, s, labels)),
        around(expected_calibration_error(s, labels, BINS), _ece_of(resamples, s, labels)),
    )


def diagram(found: Sample, without: str) -> list[Bin]:
    """`BINS` bins of equally many pairs, by s."""
    labels = found.pays[without].astype(np.float64)
    bins = []
    for rows in np.array_split(np.argsort(found.staleness, kind="stable"), BINS):
        if len(rows):
            inside = np.zeros(len(labels))
            inside[rows] = 1.0
            observed = _ratios(found.resamples, [inside * labels], [inside])[0]
            bins.append(Bin(len(rows), float(found.staleness[rows].mean()), observed))
    return bins


def decisions(found: Sample, rates: Sequence[float] = RATES) -> list[Decision]:
    """Hand out refreshes by each score at each rate, among the pairs with a gap: a device never asks just after one."""
    labels = found.pays[CALIBRATED].astype(np.float64)
    made = []
    for rate in rates:
        weights = {name: _handed_out(found, name, rate) for name in found.scores}
        gains = [each * found.gains for each in weights.values()]
        gained = _ratios(found.resamples, gains, list(weights.values()))
        precise = _ratios(found.resamples, [each * labels for each in weights.values()], list(weights.values()))
        ours = weights[OURS]
        for name, gain_, precision in zip(weights, gained, precise, strict=True):
            over = _difference(
                found.resamples, (ours * found.gains, ours), (weights[name] * found.gains, weights[name])
            )
            made.append(Decision(name, rate, gain_, precision, over))
    return made


def curve(found: Sample, score: str, rates: Sequence[float]) -> list[float]:
    """NDCG@10 that refreshing a share of the pairs with a gap adds to all of these, at each rate."""
    aged = max(1, int((found.gap > 0).sum()))
    return [float((_handed_out(found, score, rate) * found.gains).sum()) / aged for rate in rates]


def _handed_out(found: Sample, score: str, rate: float) -> Floats:
    """(P,) how much of each pair is refreshed."""
    weights, aged = np.zeros(len(found.gap)), found.gap > 0
    weights[aged] = chosen(found.scores[score][aged], rate)
    return weights


def _ratios(resamples: UserResamples, tops: Sequence[Floats], bottoms: Sequence[Floats]) -> list[Interval]:
    totals = resamples.totals(stacked([*tops, *bottoms]))
    cut = len(tops)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = totals[:, :cut] / totals[:, cut:]
    pairs = zip(tops, bottoms, strict=True)
    return [around(_ratio(top, bottom), each) for (top, bottom), each in zip(pairs, found.T, strict=True)]


def _difference(resamples: UserResamples, mine: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> Interval:
    totals = resamples.totals(stacked([*mine, *other]))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = totals[:, 0] / totals[:, 1] - totals[:, 2] / totals[:, 3]
    return around(_ratio(*mine) - _ratio(*other), found)


def _ratio(top: Floats, bottom: Floats) -> float:
    return float(top.sum() / bottom.sum()) if bottom.sum() else float("nan")


def _auc_of(resamples: UserResamples, scores: Floats, labels: Bools) -> Floats:
    """(resamples,) AUC of each; NaN where one class is missing."""
    distinct, at = np.unique(scores, return_inverse=True)
    found = np.full(resamples.count, np.nan)
    for row in range(resamples.count):
        weights = resamples.weights(row)
        positives = np.bincount(at[labels], weights[labels], len(distinct))
        negatives = np.bincount(at[~labels], weights[~labels], len(distinct))
        pairs = positives.sum() * negatives.sum()
        if pairs:
            found[row] = (positives * (np.cumsum(negatives) - negatives / 2)).sum() / pairs
    return found


def _ece_of(resamples: UserResamples, probabilities: Floats, labels: Bools) -> Floats:
    """(resamples,) ECE of each."""
    which = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    values = np.zeros((len(probabilities), BINS + 1))
    values[np.arange(len(which)), which] = probabilities - labels
    values[:, -1] = 1.0
    totals = resamples.totals(values)
    return np.asarray(np.abs(totals[:, :-1]).sum(axis=1) / totals[:, -1])
