"""LSC4Rec's table: fusion rules, the share of moments that ask the cloud for a fresh embedding, and who asks.

Every moment is served with the embedding of `GAP` interactions ago (with a shorter history, of its first one) and the
list that came with it; who asks is served with the fresh embedding and its list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from cloud_worker.evaluation.bootstrap import Interval, UserResamples, stacked
from cloud_worker.evaluation.choosing import by_batches, chosen
from cloud_worker.evaluation.cloud_lists import blocks, disagreement
from cloud_worker.evaluation.list_fusion import list_ranks, mixed, probabilities
from cloud_worker.evaluation.test_period import TestPeriod
from cloud_worker.training import calibrator, evaluate
from cloud_worker.training.metrics import Ranks, ranks_of
from cloud_worker.training.snapshots import Pairs
from streams.experiment.ranking_metrics import ndcg_at

Floats = npt.NDArray[np.float64]
OnDone = Callable[[int, int], None]

GAP: Final = 16
RATIOS: Final = (0.0, 0.05, 0.10, 0.20, 0.50, 1.0)
LEARNED: Final = "fusion.lambda"
"""Metric of a bundle under which training leaves the λ that it chose on the validation period, if it does."""
SRM_ONLY, LEARNED_RULE = "SRM only", "learned λ"
RANDOM, RELEASED, PER_DEVICE, RELIABILITY, ORACLE = (
    "random",
    "disagreement, as released",
    "disagreement, per device",
    "reliability s",
    "oracle",
)


@dataclass(frozen=True)
class Table:
    """What was measured at Q moments.

    Attributes
    ----------
    users, gaps
        (Q,) whose moments they are, and the gap each is served with before it asks.
    stale, fresh
        (Q,) NDCG@10 by each rule, without and with a fresh embedding.
    askers
        (Q,) by whom: the higher, the sooner a moment asks. The oracle, which differs from rule to rule, is not here.
    """

    users: npt.NDArray[np.int64]
    gaps: npt.NDArray[np.int64]
    stale: Mapping[str, Floats]
    fresh: Mapping[str, Floats]
    askers: Mapping[str, Floats]
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
    on_done: OnDone = lambda _done, _total: None,
) -> Table:
    """Serve every moment twice, by every rule.

    Parameters
    ----------
    period
        Loaded for this gap, with ``nearest``.
    """
    bench = period.bench
    _, pairs = period.pairs(gap, nearest=True)
    same = Pairs(pairs.fresh, pairs.fresh)
    on_done(0, 2)
    stale, disagreed, staleness = _serve(period, pairs, candidates)
    on_done(1, 2)
    fresh, _, _ = _serve(period, same, candidates)
    on_done(2, 2)
    moments = bench.moments(pairs.fresh)
    arrival = bench.histories.order[bench.histories.starts[moments.users] + moments.positions]
    askers = {
        RANDOM: np.zeros(len(moments)),
        RELEASED: by_batches(disagreed, arrival),
        PER_DEVICE: disagreed,
        RELIABILITY: staleness,
    }
    gaps = moments.positions - bench.snapshots.positions[pairs.stale]
    return Table(
        moments.users,
        gaps,
        {rule: ndcg_at(ranks) for rule, ranks in stale.items()},
        {rule: ndcg_at(ranks) for rule, ranks in fresh.items()},
        askers,
        seed,
    )


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


def _serve(period: TestPeriod, pairs: Pairs, candidates: int) -> tuple[dict[str, Ranks], Floats, Floats]:
    """(P,) ranks by each rule, disagreement, and staleness, serving with the pairs' stale embeddings."""
    bench = period.bench
    data, moments = bench.data(pairs), bench.moments(pairs.fresh)
    s = period.staleness(data.phi)
    learned = period.bundle.manifest.metrics.get(LEARNED)
    parts: dict[str, list[Ranks]] = {}
    disagreed = [np.zeros(0)]
    for block in blocks(bench, pairs, candidates):
        p = probabilities(block)
        gate = s[block.rows][:, None]
        lists = {
            "cloud only": mixed(block, p, 1.0, 0.0),
            "gated by s": mixed(block, p, 1.0 - gate, gate),
            "equal (λ = 1)": mixed(block, p, 1.0, 1.0),
            "SRM×2 (λ = 2)": mixed(block, p, 1.0, 2.0),
        }
        if learned is not None:
            lists[LEARNED_RULE] = mixed(block, p, 1.0, learned)
        ranks = {SRM_ONLY: ranks_of(block.srm, block.moments.targets, block.seen)}
        ranks |= {rule: list_ranks(block, scores) for rule, scores in lists.items()}
        for rule, each in ranks.items():
            parts.setdefault(rule, []).append(each)
        disagreed.append(disagreement(block))
    found = {rule: np.concatenate(each) for rule, each in parts.items()}
    fresh_alpha = float(period.alpha(np.zeros(1))[0])
    found["z-score"] = evaluate.ranks(bench.catalogue, moments, data.stale, fresh_alpha)
    repaired = calibrator.apply(period.repair, data)
    found["z-score, calibrated"] = evaluate.ranks(bench.catalogue, moments, repaired, period.alpha(s))
    return found, np.concatenate(disagreed), s
