"""Which bundle a command uses: the one named, the one set, or the newest of the dataset."""

from __future__ import annotations

from pathlib import Path

from cloud_worker.training.bundles import read_manifest
from streams.bundle import MANIFEST
from streams.errors import BundleError
from streams.settings import Settings


def choose_bundle(settings: Settings, given: Path | None = None) -> Path:
    """Folder of the bundle to use: the one given, else the setting, else the newest of the dataset under home.

    Raises
    ------
    BundleError
        None is named and there is none of the dataset.
    """
    if given or settings.bundle:
        return given or settings.bundle or Path()
    name = settings.dataset
    folder = settings.home / "bundles"
    found = sorted(
        (manifest.created, path.parent)
        for path in folder.glob(f"*/{MANIFEST}")
        if (manifest := read_manifest(path.parent)) is not None and manifest.dataset == name
    )
    if not found:
        raise BundleError(
            f"there is no bundle of dataset {name} under {folder}",
            remedy=f"train one with `driftline train --dataset {name}`, or name one with --bundle",
        )
    return found[-1][1]
