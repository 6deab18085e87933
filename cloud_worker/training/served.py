"""A trained bundle as training sees it again: what it was trained on, its networks, and what its cloud answers."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from cloud_worker.encoder import Encoder
from cloud_worker.live.index import LiveOptions
from cloud_worker.sequence import SequenceModel
from cloud_worker.training import live, text
from cloud_worker.training.bench import Bench, make_bench
from cloud_worker.training.data import Histories, histories_of_events
from cloud_worker.training.networks import Answers, Networks, sequence_embeddings
from cloud_worker.training.projector import Projector
from cloud_worker.training.snapshots import Snapshots
from cloud_worker.training.srm import srm_from_tensors
from streams.bundle import Bundle
from streams.datasets import Prepared
from streams.errors import BundleError

Floats = npt.NDArray[np.float32]
OnProgress = Callable[[str, int, int], None]


def check_encoder(bundle: Bundle, encoder: Encoder) -> None:
    """Refuse what would be asked in another language than it was trained in.

    Raises
    ------
    BundleError
        The bundle was trained with another encoder.
    """
    manifest = bundle.manifest
    if manifest.encoder != encoder.model_id or manifest.text_dim != encoder.dim:
        raise BundleError(
            f"bundle {bundle.id} was trained with the encoder {manifest.encoder} of dimension {manifest.text_dim}; "
            f"the settings name {encoder.model_id} of dimension {encoder.dim}",
            remedy="set cloud.encoder and cloud.encoder_model to that model, or train a bundle with this one",
        )


def histories_of(bundle: Bundle, prepared: Prepared) -> Histories:
    """What the bundle was trained on: everything before its test period, and nothing of it."""
    manifest = bundle.manifest
    known = prepared.events.filter(pl.col("event_time_ms") < manifest.test.start_ms)
    return histories_of_events(known, bundle.items.ids, manifest.valid.start_ms)


def networks_of(bundle: Bundle) -> Networks:
    """The networks that a bundle serves with; it holds one projector."""
    projector = Projector.from_tensors(bundle.cloud)
    sequence = SequenceModel.from_tensors(bundle.cloud)
    return Networks(srm_from_tensors(bundle.device), sequence, projector, projector)


def bench_of(
    bundle: Bundle, networks: Networks, histories: Histories, snapshots: Snapshots, embeddings: Floats
) -> Bench:
    """Serving at S snapshots with a bundle: with its φ, and embeddings (S, d) of its cloud."""
    manifest = bundle.manifest
    return make_bench(
        networks,
        histories,
        snapshots,
        embeddings,
        exclude_seen=manifest.exclude_seen,
        decay=manifest.recency_decay,
        standard=(np.asarray(bundle.device["phi.mean"]), np.asarray(bundle.device["phi.scale"])),
    )


def answers_of(
    bundle: Bundle,
    networks: Networks,
    histories: Histories,
    snapshots: Snapshots,
    encoder: Encoder,
    on_progress: OnProgress = lambda _stage, _done, _total: None,
) -> Answers:
    """What the parts of its cloud would have said at snapshots, with the live index as it was then."""
    manifest = bundle.manifest
    profiles = text.profile_texts(
        histories, snapshots, bundle.items.titles, bundle.items.categories, manifest.profile_items
    )
    vectors = text.encode_all(encoder, profiles, lambda done, total: on_progress("profile texts", done, total))
    (scores,) = live.scores_at(
        histories,
        snapshots.users,
        snapshots.positions,
        [msgspec.convert(manifest.live, LiveOptions)],
        exclude_seen=manifest.exclude_seen,
        on_done=lambda done, total: on_progress("live index", done, total),
    )
    return Answers(
        sequence_embeddings(networks.sequence, histories, snapshots.users, snapshots.positions, manifest.window),
        networks.projector.embed(vectors),
        scores,
    )
