"""The text part of the cloud alone, with profiles written in different ways, on the test period.

Each template gets a projector of its own into the bundle's shared space, trained in the bundle's three steps
(`cloud_worker.training.projector`): from the same stand-ins, then from profiles at the same moments, on everything
before the test period. Then all moments of the test period are ranked by the text part alone.

Stand-ins are means of titles with categories, which may favour templates that name both. There is one projector a
template, so intervals, which resample users, know nothing of what another seed would give.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cloud_worker.encoder import Encoder
from cloud_worker.evaluation.drawn import draw_moments
from cloud_worker.evaluation.profile_templates import TEMPLATES, Template
from cloud_worker.evaluation.staleness import Column, repeated
from cloud_worker.training import evaluate, text
from cloud_worker.training.data import Histories
from cloud_worker.training.options import ProjectorOptions
from cloud_worker.training.projector import (
    Projector,
    fold_in_real_profiles,
    train_on_profiles,
    train_on_stand_ins,
)
from cloud_worker.training.served import check_encoder, networks_of
from cloud_worker.training.snapshots import Snapshots
from streams.bundle import Bundle
from streams.datasets import Prepared
from streams.errors import TrainingError

Floats = npt.NDArray[np.float32]
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Profiles:
    """What was measured.

    Attributes
    ----------
    column
        Ranks by template, as those of one gap (0).
    characters
        Mean length of a text by template: what encoding it costs.
    learned_from
        Moments before the test period whose profiles each projector learned from.
    """

    column: Column
    characters: Mapping[str, float]
    learned_from: int


def compare(
    bundle: Bundle,
    prepared: Prepared,
    encoder: Encoder,
    *,
    moments: int,
    profiles: int,
    seed: int,
    templates: Mapping[str, Template] = TEMPLATES,
    options: ProjectorOptions = ProjectorOptions(),  # noqa: B008 - frozen
    on_progress: OnProgress = lambda _stage, _done, _total: None,
) -> Profiles:
    """Train a projector for each template and rank all moments by it.

    Parameters
    ----------
    moments, seed
        Of `draw_moments`; the seed also of the projectors.
    profiles
        Moments before the test period to learn from, fewer where there are no more.

    Raises
    ------
    BundleError
        The bundle was trained on other data, or with another encoder.
    DatasetError
        There is no moment in the test period.
    TrainingError
        No user has two interactions before the test period.
    """
    check_encoder(bundle, encoder)
    drawn = draw_moments(bundle, prepared, moments=moments, seed=seed)
    histories, manifest = drawn.histories, bundle.manifest
    learned = _learned(histories, profiles, np.random.default_rng(seed))
    judged = Snapshots.of(drawn.users, drawn.positions)
    titles, categories = bundle.items.titles, bundle.items.categories
    item_text = text.encode_all(encoder, text.item_texts(titles, categories), _told(on_progress, "item texts"))
    space = networks_of(bundle).space()
    torch.manual_seed(seed)
    begun = Projector(encoder.dim, len(bundle.cloud["projector.0.bias"]), manifest.d)
    train_on_stand_ins(
        begun,
        space,
        item_text,
        histories,
        options,
        last=manifest.profile_items,
        exclude_seen=manifest.exclude_seen,
        generator=np.random.default_rng(seed),
        after=lambda done, total, _: on_progress("projector", done, total),
    )
    stand_ins = text.stand_ins(
        histories,
        learned.users,
        learned.positions,
        item_text,
        last=manifest.profile_items,
        decay=options.text_decay,
    )
    vectors, bias = (each.cpu().numpy() for each in space)
    catalogue = evaluate.Catalogue(vectors, bias, vectors, bias)
    ranks, characters = {}, {}
    for name, template in templates.items():
        told = _told(on_progress, f"profiles: {name}")
        texts = [_texts(bundle, histories, each, template) for each in (learned, judged)]
        encoded = text.encode_all(encoder, texts[0] + texts[1], told)
        known, asking = encoded[: len(learned)], encoded[len(learned) :]
        model = copy.deepcopy(begun)
        fold_in_real_profiles(model, known, stand_ins, options.ridge)
        train_on_profiles(
            model,
            space,
            histories,
            learned.users,
            learned.positions,
            known,
            options,
            exclude_seen=manifest.exclude_seen,
            generator=np.random.default_rng(seed),
        )
        alone = evaluate.Moments(histories, judged.users, judged.positions, model.embed(asking), manifest.exclude_seen)
        ranks[name] = evaluate.ranks(catalogue, alone, None, 0.0)
        characters[name] = float(np.mean([len(each) for each in texts[1]]))
    return Profiles(Column(0, judged.users, repeated(alone), ranks, seed), characters, len(learned))


def _learned(histories: Histories, most: int, generator: np.random.Generator) -> Snapshots:
    """Some moments before the test period that have an interaction before them."""
    users, positions = histories.owners, histories.places
    rows = np.flatnonzero((positions > 0) & (positions < histories.trained[users]))
    if not len(rows):
        raise TrainingError("no user has two interactions before the test period: there is nothing to learn from")
    rows = generator.choice(rows, min(most, len(rows)), replace=False)
    return Snapshots.of(users[rows], positions[rows])


def _texts(bundle: Bundle, histories: Histories, snapshots: Snapshots, template: Template) -> list[str]:
    manifest, items = bundle.manifest, bundle.items
    return [
        template(*window, items.titles, items.categories, manifest.profile_items)
        for window in text.windows(histories, snapshots, manifest.window)
    ]


def _told(on_progress: OnProgress, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: on_progress(stage, done, total)
