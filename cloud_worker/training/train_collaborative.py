"""LSC4Rec's collaborative training of the SRM, from a trained bundle (arXiv 2501.05647).

The bundle's SRM and cloud know everything up to the test period, so nothing that they say of the validation period can
be taken at its word. Therefore it goes twice, as in the training of a bundle:

1. **to judge and to choose λ**: an SRM is trained on the training period alone, exactly as the bundle's was before it
   went on (the validation period says at which epoch it stops); then the lists of the training period make it
   cooperative, those of its last stretch adaptive; all three serve the validation period, on which no SRM was trained.
   The lists come from the bundle's cloud, which was, in its last epochs: they are a little too good, for all alike;
2. **to keep**: the bundle's own SRM is made cooperative by the lists of both periods, adaptive by those of the
   validation period, which is the recent window then. The test period is not looked at.

How long and how fast it learns is fixed; λ alone is chosen.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from cloud_worker.encoder import Encoder
from cloud_worker.training import list_training
from cloud_worker.training.bundles import check_data
from cloud_worker.training.checkpoints import Checkpoints
from cloud_worker.training.cloud_lists import CloudLists, blocks, cloud_lists
from cloud_worker.training.collaborative import (
    ADAPTIVE,
    COOPERATIVE,
    FILE,
    INDEPENDENT,
    TRAININGS,
    Collaborative,
    save_collaborative,
)
from cloud_worker.training.data import Ints
from cloud_worker.training.evaluate import Catalogue, Moments
from cloud_worker.training.list_fusion import (
    FIXED,
    LEARNED_RULE,
    SRM_ONLY,
    best_weight,
    list_ranks,
    mixed,
    probabilities,
)
from cloud_worker.training.list_training import Examples, Stretches, cut, examples
from cloud_worker.training.metrics import Ranks, ranks_of
from cloud_worker.training.one_network import train_network
from cloud_worker.training.options import OnProgress, Progress, TrainOptions, in_a_hurry, silent, with_srm
from cloud_worker.training.run import Run, torch_device
from cloud_worker.training.served import answers_of, check_encoder, histories_of, networks_of
from cloud_worker.training.snapshots import Snapshots
from cloud_worker.training.srm import Srm, make_srm
from cloud_worker.training.text import item_texts
from cloud_worker.user_model import blend_of
from streams.bundle import Bundle
from streams.datasets import Prepared
from streams.errors import TrainingError
from streams.experiment.ranking_metrics import ndcg_at

__all__ = ["FILE", "CollaborativeOptions", "Judgement", "train_collaborative"]

SHARES: Final = (0.5, 0.2, 0.3)
"""Of the lists: early in the training period, late in it, in the validation period."""


@dataclass(frozen=True)
class CollaborativeOptions:
    """How it trains. ``lists`` are asked of the cloud, fewer where their profiles have more than ``characters``."""

    seed: int = 0
    device: str = "auto"
    lists: int = 4_000
    characters: int = 1_200_000
    cooperative_epochs: int = 6
    adaptive_epochs: int = 3
    cooperative_rate: float = 1e-3
    adaptive_rate: float = 5e-4
    weight_decay: float = 1e-2
    train: TrainOptions | None = None
    """Of the SRM that serves the validation period; None: those that bundles are trained with."""


@dataclass(frozen=True)
class Judgement:
    """What each training is worth at Q moments of the validation period.

    Attributes
    ----------
    users
        (Q,) whose moments they are.
    ndcg
        (Q,) NDCG@10 by training and by rule.
    weights
        λ by training.
    """

    users: Ints
    ndcg: Mapping[str, Mapping[str, npt.NDArray[np.float64]]]
    weights: Mapping[str, float] = field(default_factory=dict)


def train_collaborative(
    bundle: Bundle,
    prepared: Prepared,
    encoder: Encoder,
    options: CollaborativeOptions = CollaborativeOptions(),
    on_progress: OnProgress = silent,
) -> tuple[Collaborative, Judgement]:
    """Train both variants from a bundle and write them beside it.

    Raises
    ------
    BundleError
        The bundle was trained on other data, or with another encoder.
    TrainingError
        The training period is too short for lists, the loss is not finite, or the torch device is not there.
    """
    check_data(bundle.manifest, prepared)
    check_encoder(bundle, encoder)
    run = _run(bundle, prepared, options, on_progress)
    told = lambda stage, done, total: on_progress(Progress(stage, done, total))  # noqa: E731
    histories, networks = run.histories, networks_of(bundle)
    parts = _draw(bundle, run, options)
    users, positions = (np.concatenate(each) for each in zip(*(part.made_at() for part in parts), strict=True))
    snapshots = Snapshots.of(users, positions)
    answers = answers_of(bundle, networks, histories, snapshots, encoder, told)
    at = Moments.without_states(histories, snapshots.users, snapshots.positions, exclude_seen=run.exclude_seen)
    on_progress(Progress("lists", 0, 1))
    lists = cloud_lists(answers, at, networks.space(), blend_of(bundle)).take(snapshots.find(users, positions))
    on_progress(Progress("lists", 1, 1))
    edges = np.cumsum([0, *(int(part.lists.sum()) for part in parts)])
    of = [lists.take(slice(*each)) for each in itertools.pairwise(edges)]
    early, late, valid = (
        examples(histories, part, mine, exclude_seen=run.exclude_seen) for part, mine in zip(parts, of, strict=True)
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the steps are too small for two: they would wait for each other
    try:
        first = _before_validation(run, bundle)
        judged = _judge(run, _both(run, "judging", first, _joined(early, late), late, options), parts[2], of[2])
        last = networks.srm.to(run.device)
        srms = _both(run, "to keep", last, _joined(_joined(early, late), valid), valid, options)
    finally:
        torch.set_num_threads(threads)
    made = Collaborative({name: srms[name] for name in (COOPERATIVE, ADAPTIVE)}, judged.weights)
    save_collaborative(bundle.path, bundle.id, made)
    run.checkpoints.remove()
    return made, judged


def _run(bundle: Bundle, prepared: Prepared, options: CollaborativeOptions, on_progress: OnProgress) -> Run:
    manifest = bundle.manifest
    train = options.train
    if train is None:
        train = with_srm(replace(TrainOptions(), window=manifest.window), manifest.srm)
        train = in_a_hurry(train) if manifest.quick else train
    train = replace(train, seed=options.seed)
    beside = bundle.path.with_name(f"{bundle.path.name}-collaborative")
    return Run(
        histories_of(bundle, prepared),
        train,
        manifest.exclude_seen,
        torch_device(options.device),
        Checkpoints(beside, (bundle.id, train)),
        on_progress,
    )


def _draw(bundle: Bundle, run: Run, options: CollaborativeOptions) -> tuple[Stretches, Stretches, Stretches]:
    """Early in the training period, late in it, and in the validation period: as many lists as the options allow.

    What is late has as many interactions as the validation period, so both are recent windows of the same size.
    """
    histories = run.histories
    trained = int(histories.trained.sum())
    boundary = trained - min(trained // 2, len(histories.items) - trained)
    until_late = np.zeros(histories.n_users, np.int64)
    np.add.at(until_late, histories.owners, histories.order < boundary)
    one = np.ones(histories.n_users, np.int64)
    edges = (one, np.maximum(one, until_late), np.maximum(one, histories.trained), histories.lengths)
    generator = run.generator("lists")
    per_profile = bundle.manifest.profile_items * float(
        np.average(
            [len(each) for each in item_texts(bundle.items.titles, bundle.items.categories)],
            weights=histories.popularity(valid=False),
        )
    )
    most = int(min(options.lists, options.characters / max(per_profile, 1.0)))
    drawn = []
    for first, end, share in zip(edges[:-1], edges[1:], SHARES, strict=True):
        whole = cut(first, end, bundle.manifest.window)
        order = generator.permutation(len(whole))
        enough = int(np.searchsorted(np.cumsum(whole.lists[order]), share * most)) + 1
        drawn.append(whole.take(np.sort(order[:enough])))
    if not all(len(each) for each in drawn):
        raise TrainingError(
            f"dataset {bundle.manifest.dataset}: nobody has a history that goes on into each of the periods",
            remedy="use more data, or train a bundle with another --split",
        )
    return drawn[0], drawn[1], drawn[2]


def _joined(one: Examples, other: Examples) -> Examples:
    stretches = Stretches(
        *(
            np.concatenate([getattr(one.stretches, name), getattr(other.stretches, name)])
            for name in ("users", "begins", "counts")
        )
    )
    return Examples(
        stretches,
        np.concatenate([one.items, other.items]),
        np.concatenate([one.valid, other.valid]),
        np.concatenate([[0], np.cumsum(stretches.counts)]),
    )


def _before_validation(run: Run, bundle: Bundle) -> Srm:
    """The SRM of the bundle's first stage; with the bundle's seed and this version's options it is the very same."""
    manifest, options = bundle.manifest, run.options.srm

    def untrained() -> Srm:
        return make_srm(
            manifest.srm, manifest.n_items, manifest.srm_dim, window=manifest.window, dropout=options.dropout
        )

    return train_network(run, "SRM", untrained, options)


def _both(
    run: Run, purpose: str, srm: Srm, every: Examples, recent: Examples, options: CollaborativeOptions
) -> dict[str, Srm]:
    """All three trainings, beginning with an independent SRM, which is left as it is."""
    cooperative = copy.deepcopy(srm)
    list_training.shift_bias(cooperative, run.histories, every.stretches)
    _fit(
        run,
        f"{COOPERATIVE}, {purpose}",
        cooperative,
        every,
        options.cooperative_epochs,
        options.cooperative_rate,
        options,
    )
    adaptive = copy.deepcopy(cooperative)
    _fit(run, f"{ADAPTIVE}, {purpose}", adaptive, recent, options.adaptive_epochs, options.adaptive_rate, options)
    return {INDEPENDENT: srm, COOPERATIVE: cooperative, ADAPTIVE: adaptive}


def _fit(
    run: Run, stage: str, model: Srm, given: Examples, epochs: int, rate: float, options: CollaborativeOptions
) -> None:
    run.seed_torch(stage)
    list_training.fit(
        model,
        run.histories,
        given,
        window=run.options.window,
        epochs=epochs,
        learning_rate=rate,
        weight_decay=options.weight_decay,
        generator=run.generator(stage),
        after_epoch=lambda epoch, loss: run.say(stage, epoch, epochs, loss),
    )


def _judge(run: Run, srms: Mapping[str, Srm], stretches: Stretches, lists: CloudLists) -> Judgement:
    """Serve the validation period with each, and choose their λ there."""
    users, positions, which = stretches.served()
    served = lists.take(which)
    found: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    weights = {}
    for done, training in enumerate(TRAININGS):
        run.on_progress(Progress("judging", done, len(TRAININGS)))
        model, on_lists = srms[training], training != INDEPENDENT
        tensors = model.tensors()
        out, bias = tensors["srm.item_out"], tensors["srm.bias_out"]
        hidden = model.running_states(run.histories, users, positions)
        catalogue, moments = (
            Catalogue(out, bias, out, bias),
            Moments(run.histories, users, positions, hidden, run.exclude_seen),
        )
        weights[training] = best_weight(catalogue, moments, served, trained_on_lists=on_lists)
        ranks: dict[str, list[Ranks]] = {}
        for block in blocks(catalogue, moments, served):
            p = probabilities(block, trained_on_lists=on_lists)
            ranks.setdefault(SRM_ONLY, []).append(ranks_of(block.srm, block.moments.targets, block.seen))
            for rule, weight in {**FIXED, LEARNED_RULE: weights[training]}.items():
                ranks.setdefault(rule, []).append(list_ranks(block, mixed(block, p, 1.0, weight)))
        found[training] = {rule: ndcg_at(np.concatenate(each)) for rule, each in ranks.items()}
    run.on_progress(Progress("judging", len(TRAININGS), len(TRAININGS)))
    return Judgement(users, found, weights)
