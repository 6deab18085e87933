"""Choosing α and the staleness head on the validation period, and telling what everything is worth there."""

from __future__ import annotations

from typing import Final

import numpy as np
from torch import Tensor

from cloud_worker.blend import Blend
from cloud_worker.training import blending, evaluate, reliability
from cloud_worker.training import calibrator as calibration
from cloud_worker.training.bench import Bench
from cloud_worker.training.cloud_lists import cloud_lists
from cloud_worker.training.fusion import GRID, best_alpha
from cloud_worker.training.list_fusion import LEARNED, best_weight
from cloud_worker.training.metrics import auc, expected_calibration_error, summary
from cloud_worker.training.networks import Answers
from cloud_worker.training.options import Progress
from cloud_worker.training.run import Run
from cloud_worker.training.snapshots import Pairs, pairs_of

GAP: Final = 16
"""Interactions at which the metrics look at a stale embedding."""
MOST_PAIRS: Final = 4_000
"""Pairs that α and the head are chosen on."""


def judge(
    run: Run,
    bench: Bench,
    repair: calibration.Calibrator,
    answers: Answers,
    blend: Blend,
    space: tuple[Tensor, Tensor],
) -> tuple[tuple[float, float], reliability.StalenessHead, dict[str, float]]:
    """α, the staleness head, and what every model is worth on the validation period.

    Parameters
    ----------
    answers
        Of the validation period's snapshots.
    """
    at = np.flatnonzero(bench.snapshots.valid)
    every = bench.moments(at)
    pairs = pairs_of(bench.snapshots, run.options.calibrator.largest_gap, valid=True)
    if len(pairs) > MOST_PAIRS:
        pairs = pairs.take(np.sort(run.generator("pairs").choice(len(pairs), MOST_PAIRS, replace=False)))
    data, moments = bench.data(pairs), bench.moments(pairs.fresh)
    run.on_progress(Progress("choosing α", 0, 1))
    repaired = calibration.apply(repair, data)
    late = data.gap >= 4
    fresh_alpha = best_alpha(evaluate.ranks_for_alphas(bench.catalogue, every, bench.embeddings[at], GRID))
    stale_alpha = best_alpha(evaluate.ranks_for_alphas(bench.catalogue, moments.take(late), repaired[late], GRID))
    near = pairs.take(data.gap <= GAP)
    served = Pairs(np.concatenate([at, near.stale]), np.concatenate([at, near.fresh]))
    lists = cloud_lists(answers, every, space, blend).take(np.searchsorted(at, served.stale))
    weight = best_weight(bench.catalogue, bench.moments(served.fresh), lists)
    run.on_progress(Progress("choosing α", 1, 1, f"α {fresh_alpha:.2f} fresh, {stale_alpha:.2f} stale"))

    found: dict[str, float] = {}
    popularity = run.histories.popularity(valid=False).astype(np.float32)
    found |= summary("popularity", evaluate.constant_ranks(popularity, every))
    found |= summary("srm", evaluate.ranks(bench.catalogue, every, None, 0.0))
    found |= summary("cloud_sequence", evaluate.ranks(bench.catalogue, every, answers.sequence, 1.0))
    found |= summary("cloud_text", evaluate.ranks(bench.catalogue, every, answers.text, 1.0))
    found |= summary("cloud_live", blending.live_ranks(answers.live, every))
    found |= summary("cloud_teacher", blending.teacher_ranks(answers, every, space, blend))
    found |= summary("cloud_fresh", evaluate.ranks(bench.catalogue, every, bench.embeddings[at], 1.0))
    found |= summary("fused_fresh", evaluate.ranks(bench.catalogue, every, bench.embeddings[at], fresh_alpha))

    fresh_ranks = evaluate.ranks(bench.catalogue, moments, data.fresh, fresh_alpha)
    repaired_ranks = evaluate.ranks(bench.catalogue, moments, repaired, stale_alpha)
    pays = reliability.pays(repaired_ranks, fresh_ranks)
    phi = np.concatenate([data.phi, bench.data(Pairs(at, at)).phi])
    labels = np.concatenate([pays, np.zeros(len(at), np.bool_)])
    users = np.concatenate([moments.users, every.users])
    fitted_head = reliability.fit(phi, labels, users, run.options.reliability, run.options.seed)
    predicted = fitted_head.predicted[: len(pairs)]

    far = data.gap == GAP
    late_moments = moments.take(far)
    alpha = fresh_alpha + (stale_alpha - fresh_alpha) * predicted[far]
    found |= summary(f"srm@gap{GAP}", evaluate.ranks(bench.catalogue, late_moments, None, 0.0))
    found |= summary(f"fused_fresh@gap{GAP}", fresh_ranks[far])
    found |= summary(
        f"fused_stale@gap{GAP}", evaluate.ranks(bench.catalogue, late_moments, data.stale[far], fresh_alpha)
    )
    found |= summary(f"fused_calibrated@gap{GAP}", evaluate.ranks(bench.catalogue, late_moments, repaired[far], alpha))
    found |= {
        "moments": float(len(every)),
        f"moments@gap{GAP}": float(far.sum()),
        "alpha.fresh": fresh_alpha,
        "alpha.stale": stale_alpha,
        LEARNED: weight,
        "blend.live": blend.live,
        "blend.text": blend.text,
        "staleness.auc": auc(predicted, pays),
        "staleness.ece": expected_calibration_error(predicted, pays),
        "staleness.share": float(pays.mean()) if len(pays) else 0.0,
        "staleness.pairs": float(len(pairs)),
    }
    return (fresh_alpha, stale_alpha), fitted_head.head, found
