"""Choosing calibrator, α, β and the heads on the validation period, and telling what everything is worth there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cloud_worker.blend import Blend
from cloud_worker.training import blending, evaluate, reliability
from cloud_worker.training import calibrator as calibration
from cloud_worker.training.bench import Bench
from cloud_worker.training.cloud_lists import CloudLists, cloud_lists
from cloud_worker.training.data import Ints
from cloud_worker.training.fusion import GRID, as_good_nearest_to, best_alpha, between, smoothed_worth
from cloud_worker.training.list_fusion import LEARNED, best_weight
from cloud_worker.training.metrics import Ranks, auc, expected_calibration_error, summary
from cloud_worker.training.networks import Answers
from cloud_worker.training.options import Progress
from cloud_worker.training.run import Run
from cloud_worker.training.signal_head import SignalHead
from cloud_worker.training.snapshots import Pairs, pairs_of
from cloud_worker.training.trends import WEIGHTS, Told
from cloud_worker.training.worth import Served, expected_gains
from cloud_worker.training.worth import fit as fit_worth

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

GAP: Final = 16
"""Interactions at which the metrics look at a stale embedding."""
MOST_PAIRS: Final = 4_000
"""Pairs with a gap that calibrator, α and the heads are chosen on; a sixth as many have none, where s and w are 0."""
STALE_GRID: Final = (0.0, *GRID)
"""α at staleness 1, which no embedding reaches: what is judged is what α(s) comes to."""


class Judged(NamedTuple):
    """What was chosen and measured on the validation period.

    Attributes
    ----------
    repair
        The calibrator, as it was judged.
    alphas, trends
        α and β at staleness 0 and 1.
    """

    repair: calibration.Calibrator
    alphas: tuple[float, float]
    trends: tuple[float, float]
    staleness: SignalHead
    worth: SignalHead
    metrics: dict[str, float]


def judge(
    run: Run,
    bench: Bench,
    repairs: Sequence[calibration.Calibrator],
    answers: Answers,
    blend: Blend,
    space: tuple[Tensor, Tensor],
    told: Told,
) -> Judged:
    """The calibrator, α, β, the heads, and what every model is worth on the validation period.

    Parameters
    ----------
    repairs
        One of them is chosen.
    answers
        Of the validation period's snapshots.
    """
    seen = _look(run, bench)
    run.on_progress(Progress("choosing α and τ", 0, 1))
    fusion = _choose_fusion(run, seen, repairs)
    weight = _choose_list_weight(seen, cloud_lists(answers, seen.every, space, blend))
    alphas, tau = (fusion.fresh_alpha, fusion.stale_alpha), float(fusion.repair.tau)
    run.on_progress(Progress("choosing α and τ", 1, 1, f"α {alphas[0]:.2f} fresh, {alphas[1]:.2f} stale, τ {tau:g}"))
    run.on_progress(Progress("choosing β", 0, 1))
    betas = _choose_betas(seen, fusion, told)
    run.on_progress(Progress("choosing β", 1, 1, f"β {betas.fresh_beta:.1f} fresh, {betas.stale_beta:.1f} stale"))
    run.on_progress(Progress("what refreshes gain", 0, 1))
    worth, of_worth = _fit_worth(run, seen, fusion, betas, told)
    run.on_progress(Progress("what refreshes gain", 1, 1))
    found = _of_parts(run, seen, answers, blend, space) | _of_fusion(seen, fusion) | betas.metrics | of_worth
    found |= {"blend.live": blend.live, "blend.text": blend.text, LEARNED: weight, "calibrator.tau": tau}
    return Judged(fusion.repair, alphas, (betas.fresh_beta, betas.stale_beta), fusion.staleness.head, worth, found)


class _Seen(NamedTuple):
    """The validation period as it is looked at: just after a refresh everywhere, and over gaps at pairs of moments.

    Attributes
    ----------
    at
        Snapshots that are judged, and ``every`` moment at them; ``now`` is what the cloud would send there.
    pairs
        With their ``moments`` and ``data``.
    """

    bench: Bench
    at: Ints
    every: evaluate.Moments
    now: Floats
    pairs: Pairs
    moments: evaluate.Moments
    data: calibration.CalibrationData

    @property
    def far(self) -> npt.NDArray[np.bool_]:
        """Pairs of the gap that metrics look at."""
        return np.asarray(self.data.gap == GAP)


def _look(run: Run, bench: Bench) -> _Seen:
    at = np.flatnonzero(bench.snapshots.judged)
    pairs = pairs_of(bench.snapshots, run.options.calibrator.largest_gap, judged=True)
    draw = run.generator("pairs")
    if len(pairs) > MOST_PAIRS:
        pairs = pairs.take(np.sort(draw.choice(len(pairs), MOST_PAIRS, replace=False)))
    just_asked = np.sort(draw.choice(at, min(len(at), len(pairs) // 6), replace=False))
    pairs += Pairs(just_asked, just_asked)
    moments, data = bench.moments(pairs.fresh), bench.data(pairs)
    return _Seen(bench, at, bench.moments(at), bench.embeddings[at], pairs, moments, data)


class _Fusion(NamedTuple):
    """The calibrator, α at both ends, the staleness head, and α(s) of each pair; the ranks without tables.

    Attributes
    ----------
    repaired
        What the calibrator makes of the pairs' stale embeddings.
    now_ranks
        Of every moment just after a refresh; the others are of the pairs.
    """

    repair: calibration.Calibrator
    repaired: Floats
    fresh_alpha: float
    stale_alpha: float
    staleness: reliability.Fitted
    was_stale: npt.NDArray[np.bool_]
    alphas: Doubles
    now_ranks: Ranks
    fresh_ranks: Ranks
    stale_ranks: Ranks
    repaired_ranks: Ranks


def _choose_fusion(run: Run, seen: _Seen, repairs: Sequence[calibration.Calibrator]) -> _Fusion:
    catalogue, moments, data = seen.bench.catalogue, seen.moments, seen.data
    now = evaluate.ranks_for_alphas(catalogue, seen.every, seen.now, GRID)
    fresh_alpha = best_alpha(now)
    fresh_ranks = evaluate.ranks(catalogue, moments, data.fresh, fresh_alpha)
    stale_ranks = evaluate.ranks(catalogue, moments, data.stale, fresh_alpha)
    was_stale = reliability.pays(stale_ranks, fresh_ranks)
    staleness = reliability.fit(data.phi, data.gap, was_stale, moments.users, run.options.heads, run.options.seed)
    choices = [between(fresh_alpha, alpha, staleness.predicted) for alpha in STALE_GRID]
    made = [calibration.apply(repair, data) for repair in repairs]
    ranks = [evaluate.ranks_for_alphas(catalogue, moments, each, choices) for each in made]
    best = int(np.argmax([smoothed_worth(each).max() for each in ranks])) if len(moments) else 0
    stale_alpha = best_alpha(ranks[best], STALE_GRID)
    chosen = STALE_GRID.index(stale_alpha)
    return _Fusion(
        repairs[best],
        made[best],
        fresh_alpha,
        stale_alpha,
        staleness,
        was_stale,
        choices[chosen],
        now[GRID.index(fresh_alpha)],
        fresh_ranks,
        stale_ranks,
        ranks[best][chosen],
    )


def _choose_list_weight(seen: _Seen, lists: CloudLists) -> float:
    """The learned λ of LSC4Rec, over lists (of every moment) that are up to `GAP` interactions old."""
    listed = seen.bench.snapshots.judged[seen.pairs.stale]  # lists were made at every moment, and not before
    near = seen.pairs.take(listed & (seen.data.gap > 0) & (seen.data.gap <= GAP))
    served = Pairs(seen.at, seen.at) + near
    places = np.searchsorted(seen.at, served.stale)
    assert np.array_equal(seen.at[places], served.stale)
    taken = lists.take(places)
    return best_weight(seen.bench.catalogue, seen.bench.moments(served.fresh), taken)


class _Betas(NamedTuple):
    """β at both ends, of each pair β(s) and the ranks of what is served with it, and what tables are worth."""

    fresh_beta: float
    stale_beta: float
    betas: Doubles
    served_ranks: Ranks
    metrics: dict[str, float]


def _choose_betas(seen: _Seen, fusion: _Fusion, told: Told) -> _Betas:
    catalogue, every = seen.bench.catalogue, seen.every
    each = [np.full(len(every), weight) for weight in WEIGHTS]
    fresh = told.ranks(catalogue, every, seen.now, fusion.fresh_alpha, each)
    alone = told.ranks(catalogue, every, None, 0.0, each)
    # What a table gives without an embedding, a refresh takes away again only where more than noise asks for it.
    alone_beta, best_beta = best_alpha(alone, WEIGHTS), best_alpha(fresh, WEIGHTS)
    fresh_beta = as_good_nearest_to(alone_beta, best_beta, fresh, every.users, WEIGHTS)
    tried = [between(fresh_beta, stale, fusion.staleness.predicted) for stale in WEIGHTS]
    stale = told.ranks(catalogue, seen.moments, fusion.repaired, fusion.alphas, tried)
    stale_beta = best_alpha(np.concatenate([stale, alone], axis=1), WEIGHTS)
    chosen = WEIGHTS.index(stale_beta)
    metrics = {"trends.fresh": fresh_beta, "trends.stale": stale_beta}
    metrics |= summary("srm+trends", alone[chosen])
    metrics |= summary("fused_fresh+trends", fresh[WEIGHTS.index(fresh_beta)])
    metrics |= summary(f"fused_calibrated+trends@gap{GAP}", stale[chosen, seen.far])
    return _Betas(fresh_beta, stale_beta, tried[chosen], stale[chosen], metrics)


def _fit_worth(
    run: Run, seen: _Seen, fusion: _Fusion, betas: _Betas, told: Told
) -> tuple[SignalHead, dict[str, float]]:
    """The head of the gain that a refresh adds to what is served, tables included, and what it is worth."""
    catalogue, moments, data = seen.bench.catalogue, seen.moments, seen.data
    after = Served(data.fresh, np.full(len(moments), fusion.fresh_alpha), np.full(len(moments), betas.fresh_beta))
    before = Served(fusion.repaired, fusion.alphas, betas.betas)
    expected = expected_gains(catalogue, moments, after, before, told.said(moments))
    (after_ranks,) = told.ranks(catalogue, moments, data.fresh, fusion.fresh_alpha, [after.betas])
    realised = reliability.gain(after_ranks) - reliability.gain(betas.served_ranks)
    worth = fit_worth(data.phi, data.gap, expected.gains, realised, moments.users, run.options.heads, run.options.seed)
    pays = reliability.pays(betas.served_ranks, after_ranks)
    return worth.head, {
        "worth.auc": auc(worth.predicted[data.gap > 0], pays[data.gap > 0]),
        "worth.cloud_share": expected.cloud_share,
        "worth.share": float(pays.mean()) if len(pays) else 0.0,
        "worth.mean": float(realised.mean()) if len(pays) else 0.0,
    }


def _of_parts(run: Run, seen: _Seen, answers: Answers, blend: Blend, space: tuple[Tensor, Tensor]) -> dict[str, float]:
    """What each model alone is worth at every moment."""
    catalogue, every = seen.bench.catalogue, seen.every
    popularity = run.histories.popularity(valid=False).astype(np.float32)
    found = {"moments": float(len(every))}
    found |= summary("popularity", evaluate.constant_ranks(popularity, every))
    found |= summary("srm", evaluate.ranks(catalogue, every, None, 0.0))
    found |= summary("cloud_sequence", evaluate.ranks(catalogue, every, answers.sequence, 1.0))
    found |= summary("cloud_text", evaluate.ranks(catalogue, every, answers.text, 1.0))
    found |= summary("cloud_live", blending.live_ranks(answers.live, every))
    found |= summary("cloud_teacher", blending.teacher_ranks(answers, every, space, blend))
    found |= summary("cloud_fresh", evaluate.ranks(catalogue, every, seen.now, 1.0))
    return found


def _of_fusion(seen: _Seen, fusion: _Fusion) -> dict[str, float]:
    """What both models together are worth, without tables, and how good the staleness head is."""
    far, s = seen.far, fusion.staleness.predicted
    found = {
        "alpha.fresh": fusion.fresh_alpha,
        "alpha.stale": fusion.stale_alpha,
        f"moments@gap{GAP}": float(far.sum()),
    }
    found |= summary("fused_fresh", fusion.now_ranks)
    found |= summary(f"srm@gap{GAP}", evaluate.ranks(seen.bench.catalogue, seen.moments.take(far), None, 0.0))
    found |= summary(f"fused_fresh@gap{GAP}", fusion.fresh_ranks[far])
    found |= summary(f"fused_stale@gap{GAP}", fusion.stale_ranks[far])
    found |= summary(f"fused_calibrated@gap{GAP}", fusion.repaired_ranks[far])
    return found | {
        "staleness.auc": auc(s, fusion.was_stale),
        "staleness.ece": expected_calibration_error(s, fusion.was_stale),
        "staleness.share": float(fusion.was_stale.mean()) if len(s) else 0.0,
        "staleness.pairs": float(len(s)),
    }
