"""Opening what an evaluation judges: a bundle, the data it was trained on, and its controls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloud_worker.cache import CachedEncoder, EmbeddingCache
from cloud_worker.encoder import Encoder, make_encoder
from cloud_worker.evaluation.test_period import OnProgress, TestPeriod, load_test_period
from cloud_worker.training.controls import Controls, load_controls
from streams.bundle import Bundle, load_bundle
from streams.datasets import Prepared, ensure_prepared
from streams.errors import BundleError
from streams.settings import Settings


@dataclass(frozen=True)
class Judged:
    """What is judged.

    Attributes
    ----------
    controls
        None where the bundle was trained without.
    """

    settings: Settings
    bundle: Bundle
    prepared: Prepared
    controls: Controls | None


def open_judged(settings: Settings, dataset: str | None, path: Path) -> Judged:
    """Load a bundle and its data.

    Parameters
    ----------
    dataset
        The one it must be of; None: any.
    path
        The bundle's folder.

    Raises
    ------
    BundleError
        The bundle is damaged, or of another dataset, or of another content of this dataset.
    DatasetError
        The data cannot be prepared.
    """
    loaded = load_bundle(path)
    name = loaded.manifest.dataset
    if dataset is not None and name != dataset:
        raise BundleError(
            f"bundle {loaded.id} in {loaded.path} was trained on other data: on {name}, not on {dataset}",
            remedy=f"leave --dataset out, or name a bundle of {dataset} with --bundle",
        )
    prepared = ensure_prepared(settings, name)
    if loaded.manifest.dataset_hash != prepared.manifest.hash:
        raise BundleError(
            f"bundle {loaded.id} was trained on other data: on {name} {loaded.manifest.dataset_hash[:12]}, "
            f"prepared is {name} {prepared.manifest.hash[:12]}",
            remedy=f"train one on these with `driftline train --dataset {name}`",
        )
    return Judged(settings, loaded, prepared, load_controls(loaded.path, loaded.id))


def open_period(
    judged: Judged,
    on_progress: OnProgress,
    *,
    moments: int,
    seed: int,
    gaps: Sequence[int],
    nearest: bool = False,
) -> TestPeriod:
    """Look at the test period."""
    with open_encoder(judged.settings) as encoder:
        return load_test_period(
            judged.bundle,
            judged.prepared,
            encoder,
            moments=moments,
            seed=seed,
            gaps=gaps,
            nearest=nearest,
            on_progress=on_progress,
        )


@contextlib.contextmanager
def open_encoder(settings: Settings) -> Iterator[Encoder]:
    """The settings' text encoder; what was encoded before comes from the cache."""
    cache = EmbeddingCache(settings.home / "embedding-cache", int(settings.cloud.cache_gb * 2**30))
    try:
        yield CachedEncoder(make_encoder(settings.cloud, settings.home), cache)
    finally:
        cache.close()
