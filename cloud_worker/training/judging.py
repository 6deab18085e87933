"""Choosing α, β and the heads on the validation period, and telling what everything is worth there."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cloud_worker.blend import Blend
from cloud_worker.training import blending, evaluate, reliability
from cloud_worker.training import calibrator as calibration
from cloud_worker.training.bench import Bench
from cloud_worker.training.cloud_lists import cloud_lists
from cloud_worker.training.fusion import GRID, best_alpha, between
from cloud_worker.training.list_fusion import LEARNED, best_weight
from cloud_worker.training.metrics import auc, expected_calibration_error, summary
from cloud_worker.training.networks import Answers
from cloud_worker.training.options import Progress
from cloud_worker.training.run import Run
from cloud_worker.training.signal_head import SignalHead
from cloud_worker.training.snapshots import Pairs, pairs_of
from cloud_worker.training.trends import WEIGHTS, Told
from cloud_worker.training.worth import Served, expected_gains
from cloud_worker.training.worth import fit as fit_worth

GAP: Final = 16
"""Interactions at which the metrics look at a stale embedding."""
MOST_PAIRS: Final = 4_000
"""Pairs with a gap that α and the heads are chosen on; a sixth as many have none."""
STALE_GRID: Final = (0.0, *GRID)
"""α at staleness 1, which no embedding reaches: what is judged is what α(s) comes to."""


class Judged(NamedTuple):
    """What was chosen and measured on the validation period.

    Attributes
    ----------
    alphas, trends
        α and β at staleness 0 and 1.
    """

    alphas: tuple[float, float]
    trends: tuple[float, float]
    staleness: SignalHead
    worth: SignalHead
    metrics: dict[str, float]


def judge(
    run: Run,
    bench: Bench,
    repair: calibration.Calibrator,
    answers: Answers,
    blend: Blend,
    space: tuple[Tensor, Tensor],
    told: Told,
) -> Judged:
    """α, β, the heads, and what every model is worth on the validation period.

    Parameters
    ----------
    answers
        Of the validation period's snapshots.
    """
    at = np.flatnonzero(bench.snapshots.valid)
    every = bench.moments(at)
    pairs = pairs_of(bench.snapshots, run.options.calibrator.largest_gap, valid=True)
    draw = run.generator("pairs")
    if len(pairs) > MOST_PAIRS:
        pairs = pairs.take(np.sort(draw.choice(len(pairs), MOST_PAIRS, replace=False)))
    just_asked = np.sort(draw.choice(at, min(len(at), len(pairs) // 6), replace=False))
    pairs = Pairs(np.concatenate([pairs.stale, just_asked]), np.concatenate([pairs.fresh, just_asked]))
    data, moments = bench.data(pairs), bench.moments(pairs.fresh)
    repaired, now = calibration.apply(repair, data), bench.embeddings[at]

    run.on_progress(Progress("choosing α", 0, 1))
    fresh_alpha = best_alpha(evaluate.ranks_for_alphas(bench.catalogue, every, now, GRID))
    fresh_ranks = evaluate.ranks(bench.catalogue, moments, data.fresh, fresh_alpha)
    stale_ranks = evaluate.ranks(bench.catalogue, moments, data.stale, fresh_alpha)
    was_stale = reliability.pays(stale_ranks, fresh_ranks)
    staleness = reliability.fit(data.phi, was_stale, moments.users, run.options.heads, run.options.seed)
    s = staleness.predicted
    choices = [between(fresh_alpha, alpha, s) for alpha in STALE_GRID]
    stale_alpha = best_alpha(evaluate.ranks_for_alphas(bench.catalogue, moments, repaired, choices), STALE_GRID)
    alphas = between(fresh_alpha, stale_alpha, s)
    near = pairs.take((data.gap > 0) & (data.gap <= GAP))
    served = Pairs(np.concatenate([at, near.stale]), np.concatenate([at, near.fresh]))
    lists = cloud_lists(answers, every, space, blend).take(np.searchsorted(at, served.stale))
    weight = best_weight(bench.catalogue, bench.moments(served.fresh), lists)
    run.on_progress(Progress("choosing α", 1, 1, f"α {fresh_alpha:.2f} fresh, {stale_alpha:.2f} stale"))

    run.on_progress(Progress("choosing β", 0, 1))
    fresh_told = told.ranks(bench.catalogue, every, now, fresh_alpha, _each(len(every)))
    fresh_beta = best_alpha(fresh_told, WEIGHTS)
    betas_tried = [between(fresh_beta, stale, s) for stale in WEIGHTS]
    stale_told = told.ranks(bench.catalogue, moments, repaired, alphas, betas_tried)
    alone_told = told.ranks(bench.catalogue, every, None, 0.0, _each(len(every)))
    stale_beta = best_alpha(np.concatenate([stale_told, alone_told], axis=1), WEIGHTS)
    betas, served_ranks = betas_tried[WEIGHTS.index(stale_beta)], stale_told[WEIGHTS.index(stale_beta)]
    run.on_progress(Progress("choosing β", 1, 1, f"β {fresh_beta:.1f} fresh, {stale_beta:.1f} stale"))

    run.on_progress(Progress("what refreshes gain", 0, 1))
    after = Served(data.fresh, np.full(len(pairs), fresh_alpha), np.full(len(pairs), fresh_beta))
    expected = expected_gains(bench.catalogue, moments, after, Served(repaired, alphas, betas), told.said(moments))
    (after_ranks,) = told.ranks(bench.catalogue, moments, data.fresh, fresh_alpha, [after.betas])
    realised = reliability.gain(after_ranks) - reliability.gain(served_ranks)
    worth = fit_worth(data.phi, expected, realised, moments.users, run.options.heads, run.options.seed)
    pays = reliability.pays(served_ranks, after_ranks)
    run.on_progress(Progress("what refreshes gain", 1, 1))

    found: dict[str, float] = {}
    popularity = run.histories.popularity(valid=False).astype(np.float32)
    found |= summary("popularity", evaluate.constant_ranks(popularity, every))
    found |= summary("srm", evaluate.ranks(bench.catalogue, every, None, 0.0))
    found |= summary("cloud_sequence", evaluate.ranks(bench.catalogue, every, answers.sequence, 1.0))
    found |= summary("cloud_text", evaluate.ranks(bench.catalogue, every, answers.text, 1.0))
    found |= summary("cloud_live", blending.live_ranks(answers.live, every))
    found |= summary("cloud_teacher", blending.teacher_ranks(answers, every, space, blend))
    found |= summary("cloud_fresh", evaluate.ranks(bench.catalogue, every, now, 1.0))
    found |= summary("fused_fresh", evaluate.ranks(bench.catalogue, every, now, fresh_alpha))

    far = data.gap == GAP
    late_moments = moments.take(far)
    found |= summary(f"srm@gap{GAP}", evaluate.ranks(bench.catalogue, late_moments, None, 0.0))
    found |= summary(f"fused_fresh@gap{GAP}", fresh_ranks[far])
    found |= summary(f"fused_stale@gap{GAP}", stale_ranks[far])
    untold = evaluate.ranks(bench.catalogue, late_moments, repaired[far], alphas[far])
    found |= summary(f"fused_calibrated@gap{GAP}", untold)
    found |= summary("srm+trends", alone_told[WEIGHTS.index(stale_beta)])
    found |= summary("fused_fresh+trends", fresh_told[WEIGHTS.index(fresh_beta)])
    found |= summary(f"fused_calibrated+trends@gap{GAP}", served_ranks[far])
    found |= {
        "moments": float(len(every)),
        f"moments@gap{GAP}": float(far.sum()),
        "alpha.fresh": fresh_alpha,
        "alpha.stale": stale_alpha,
        "trends.fresh": fresh_beta,
        "trends.stale": stale_beta,
        LEARNED: weight,
        "blend.live": blend.live,
        "blend.text": blend.text,
        "staleness.auc": auc(s, was_stale),
        "staleness.ece": expected_calibration_error(s, was_stale),
        "staleness.share": float(was_stale.mean()) if len(pairs) else 0.0,
        "staleness.pairs": float(len(pairs)),
        "worth.auc": auc(worth.predicted, pays),
        "worth.share": float(pays.mean()) if len(pairs) else 0.0,
        "worth.mean": float(realised.mean()) if len(pairs) else 0.0,
    }
    return Judged((fresh_alpha, stale_alpha), (fresh_beta, stale_beta), staleness.head, worth.head, found)


def _each(moments: int) -> list[npt.NDArray[np.float64]]:
    """Each β for all moments."""
    return [np.full(moments, weight) for weight in WEIGHTS]
