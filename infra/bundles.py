"""Which bundle a command uses: the one named, the one set, or the newest of the dataset, a quick one last."""

from __future__ import annotations

from pathlib import Path

from cloud_worker.training.bundles import check_data, find_bundle, newest_bundle
from streams.bundle import load_manifest
from streams.datasets import Prepared, Split
from streams.errors import BundleError
from streams.settings import Settings


def choose_bundle(settings: Settings, given: Path | None = None) -> Path:
    """Folder of the bundle to use: the one given, else the setting, else the newest of the dataset.

    A bundle that was trained in a hurry for a demo comes after all others.

    Raises
    ------
    BundleError
        What is named is no bundle, or none is named and there is none of the dataset.
    """
    if named := given or settings.bundle:
        load_manifest(named)
        return named
    name = settings.dataset
    found = newest_bundle(settings.home, name)
    if found is None:
        raise BundleError(
            f"there is no bundle of dataset {name} under {settings.home / 'bundles'}",
            remedy=f"train one with `driftline train --dataset {name}`, name one with --bundle, or another dataset "
            "with DRIFTLINE_DATASET",
        )
    return found


def split_of_bundle(settings: Settings, prepared: Prepared) -> Split | None:
    """Return the periods of the bundle that a command would use with these data; None where there is none.

    Raises
    ------
    BundleError
        What is named is no bundle, or was trained on other data.
    """
    if settings.bundle:
        manifest = load_manifest(settings.bundle)
        check_data(manifest, prepared)
    elif found := find_bundle(settings.home, prepared.manifest.name, prepared.manifest.hash):
        manifest = load_manifest(found)
    else:
        return None
    return Split(manifest.train, manifest.valid, manifest.test)
