"""LSC4Rec's table: fusion rules, the share of moments that ask the cloud for a fresh embedding, and who asks.

Every moment is served with the embedding of `GAP` interactions ago (with a shorter history, of its first one) and the
list that came with it; who asks is served with the fresh embedding and its list. There is a table for each training of
the SRM (`cloud_worker.training.collaborative`): the same moments, lists and embeddings, another device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from cloud_worker.evaluation.bootstrap import Interval, UserResamples, stacked
from cloud_worker.evaluation.choosing import by_batches, chosen
from cloud_worker.evaluation.cloud_lists import disagreement, lists_of
from cloud_worker.evaluation.test_period import TestPeriod
from cloud_worker.training import calibrator, evaluate
from cloud_worker.training.cloud_lists import CloudLists, blocks
from cloud_worker.training.collaborative import INDEPENDENT, TRAININGS, Collaborative
from cloud_worker.training.list_fusion import (
    FIXED,
    LEARNED,
    LEARNED_RULE,
    SRM_ONLY,
    list_ranks,
    mixed,
    probabilities,
)
from cloud_worker.training.metrics import Ranks, ranks_of
from cloud_worker.training.snapshots import Pairs
from streams.experiment.ranking_metrics import ndcg_at

Floats = npt.NDArray[np.float64]
OnDone = Callable[[int, int], None]

GAP: Final = 16
GATED: Final = "gated by s"
RATIOS: Final = (0.0, 0.05, 0.10, 0.20, 0.50, 1.0)
RANDOM, RELEASED, PER_DEVICE, RELIABILITY, ORACLE = (
    "random",
    "disagreement, as released",
    "disagreement, per device",
    "reliability s",
    "oracle",
)


@dataclass(frozen=True)
class Device:
    """What serves: the SRM's side of a training.

    Attributes
    ----------
    catalogue
        The shared space, and the SRM's item side.
    moments
        (P,) the moments to serve, with its states there.
    weight
        λ of the learned rule; None: there is none.
    trained_on_lists
        Its logits tell what is taken from the others of a list.
    """

    catalogue: evaluate.Catalogue
    moments: evaluate.Moments
    weight: float | None
    trained_on_lists: bool


@dataclass(frozen=True)
class Table:
    """What was measured at Q moments, with the SRM of one training.

    Attributes
    ----------
    users, gaps
        (Q,) whose moments they are, and the gap each is served with before it asks.
    stale, fresh
        (Q,) NDCG@10 by each rule, without and with a fresh embedding.
    askers
        (Q,) by whom: the higher, the sooner a moment asks. The oracle, which differs from rule to rule, is not here.
    weight
        λ of the learned rule; None: there is none.
    """

    users: npt.NDArray[np.int64]
    gaps: npt.NDArray[np.int64]
    stale: Mapping[str, Floats]
    fresh: Mapping[str, Floats]
    askers: Mapping[str, Floats]
    weight: float | None
    seed: int = 0

    @cached_property
    def resamples(self) -> UserResamples:
        """Of the users; the same for all that is measured."""
        return UserResamples(self.users, self.seed)

    def asking(self, rule: str) -> Mapping[str, Floats]:
        """Who asks, with the oracle of a rule."""
        return {**self.askers, ORACLE: self.fresh[rule] - self.stale[rule]}

    def served(self, rule: str, who: str, ratio: float) -> Floats:
        """(Q,) NDCG@10 where a share of the moments asks."""
        asked = chosen(self.asking(rule)[who], ratio)
        return self.stale[rule] + asked * (self.fresh[rule] - self.stale[rule])


def measure(
    period: TestPeriod,
    *,
    candidates: int,
    seed: int,
    gap: int = GAP,
    made: Collaborative | None = None,
    on_done: OnDone = lambda _done, _total: None,
) -> dict[str, Table]:
    """Serve every moment twice, by every rule, with the SRM of each training.

    Parameters
    ----------
    period
        Loaded for this gap, with ``nearest``.
    made
        What collaborative training made of the bundle; None: there is the independent SRM alone.

    Returns
    -------
    dict
        By training; the same moments in each table.
    """
    bench = period.bench
    _, pairs = period.pairs(gap, nearest=True)
    same = Pairs(pairs.fresh, pairs.fresh)
    lists = lists_of(period, candidates)
    at = bench.moments(pairs.fresh)
    arrival = bench.histories.order[bench.histories.starts[at.users] + at.positions]
    tables = {}
    trainings = [each for each in TRAININGS if each == INDEPENDENT or made is not None]
    for nth, training in enumerate(trainings):
        on_done(2 * nth, 2 * len(trainings))
        device = _device(period, pairs, training, made)
        stale, disagreed, staleness = _serve(period, pairs, lists.take(pairs.stale), device)
        on_done(2 * nth + 1, 2 * len(trainings))
        fresh, _, _ = _serve(period, same, lists.take(same.stale), device)
        tables[training] = Table(
            at.users,
            at.positions - bench.snapshots.positions[pairs.stale],
            {rule: ndcg_at(ranks) for rule, ranks in stale.items()},
            {rule: ndcg_at(ranks) for rule, ranks in fresh.items()},
            {
                RANDOM: np.zeros(len(pairs)),
                RELEASED: by_batches(disagreed, arrival),
                PER_DEVICE: disagreed,
                RELIABILITY: staleness,
            },
            device.weight,
            seed,
        )
    on_done(2 * len(trainings), 2 * len(trainings))
    return tables


def cells(table: Table, rule: str) -> dict[str, list[Interval]]:
    """Mean NDCG@10 at each of `RATIOS`, by who asks."""
    found = {}
    for who in table.asking(rule):
        found[who] = table.resamples.means(stacked([table.served(rule, who, ratio) for ratio in RATIOS]))
    return found


def reliability_over(table: Table, rule: str, ratio: float) -> dict[str, Interval]:
    """Paired difference in NDCG@10 of asking by s less asking by each other score."""
    ours = table.served(rule, RELIABILITY, ratio)
    others = [who for who in table.askers if who != RELIABILITY]
    differences = stacked([ours - table.served(rule, who, ratio) for who in others])
    return dict(zip(others, table.resamples.means(differences), strict=True))


def over_independent(tables: Mapping[str, Table], training: str, rule: str, who: str) -> list[Interval]:
    """Paired difference in NDCG@10 of a training less the independent one, at each of `RATIOS`."""
    mine, other = tables[training], tables[INDEPENDENT]
    return mine.resamples.means(
        stacked([mine.served(rule, who, ratio) - other.served(rule, who, ratio) for ratio in RATIOS])
    )


def _device(period: TestPeriod, pairs: Pairs, training: str, made: Collaborative | None) -> Device:
    """The SRM of a training at the pairs' moments."""
    bench = period.bench
    moments = bench.moments(pairs.fresh)
    weight = None if made is None else made.weights[training]
    if training == INDEPENDENT or made is None:
        weight = period.bundle.manifest.metrics.get(LEARNED, weight)
        return Device(bench.catalogue, moments, weight, trained_on_lists=False)
    tensors = made.srms[training].tensors()
    hidden = made.srms[training].running_states(bench.histories, moments.users, moments.positions)
    return Device(
        replace(bench.catalogue, srm_out=tensors["srm.item_out"], srm_bias=tensors["srm.bias_out"]),
        replace(moments, hidden=hidden),
        weight,
        trained_on_lists=True,
    )


def _serve(
    period: TestPeriod, pairs: Pairs, lists: CloudLists, device: Device
) -> tuple[dict[str, Ranks], Floats, Floats]:
    """(P,) ranks by each rule, disagreement, and staleness, serving with the pairs' stale embeddings and their lists.

    Staleness and calibration read the state of the SRM that the bundle has; so s is always the bundle's own, and what
    is calibrated is shown with its own SRM alone.
    """
    data = period.bench.data(pairs)
    s = period.staleness(data)
    parts: dict[str, list[Ranks]] = {}
    disagreed = [np.zeros(0)]
    for block in blocks(device.catalogue, device.moments, lists):
        p = probabilities(block, trained_on_lists=device.trained_on_lists)
        gate = s[block.rows][:, None]
        scores = {rule: mixed(block, p, 1.0, weight) for rule, weight in FIXED.items()}
        scores[GATED] = mixed(block, p, 1.0 - gate, gate)
        if device.weight is not None:
            scores[LEARNED_RULE] = mixed(block, p, 1.0, device.weight)
        ranks = {SRM_ONLY: ranks_of(block.srm, block.moments.targets, block.seen)}
        ranks |= {rule: list_ranks(block, each) for rule, each in scores.items()}
        for rule, found in ranks.items():
            parts.setdefault(rule, []).append(found)
        disagreed.append(disagreement(block))
    every = {rule: np.concatenate(each) for rule, each in parts.items()}
    fresh_alpha = float(period.alpha(np.zeros(1))[0])
    every["z-score"] = evaluate.ranks(device.catalogue, device.moments, data.stale, fresh_alpha)
    if not device.trained_on_lists:
        repaired = calibrator.apply(period.repair, data)
        every["z-score, calibrated"] = evaluate.ranks(device.catalogue, device.moments, repaired, period.alpha(s))
    return every, np.concatenate(disagreed), s
