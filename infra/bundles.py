"""Which bundle a command uses: the one named, the one set, or the newest of the dataset."""

from __future__ import annotations

from pathlib import Path

import msgspec

from streams.bundle import MANIFEST, Manifest
from streams.errors import BundleError
from streams.settings import Settings


def choose_bundle(settings: Settings, given: Path | None = None, *, dataset: str | None = None) -> Path:
    """Folder of the bundle to use: the one given, else the setting, else the newest of the dataset under home.

    Raises
    ------
    BundleError
        None is named and there is none of the dataset.
    """
    if given or settings.bundle:
        return given or settings.bundle or Path()
    name = dataset or settings.dataset
    folder = settings.home / "bundles"
    found = sorted(
        (manifest.created, path.parent)
        for path in folder.glob(f"*/{MANIFEST}")
        if (manifest := _manifest(path)) is not None and manifest.dataset == name
    )
    if not found:
        raise BundleError(
            f"there is no bundle of dataset {name} under {folder}",
            remedy=f"train one with `driftline train --dataset {name}`, or name one with --bundle",
        )
    return found[-1][1]


def _manifest(path: Path) -> Manifest | None:
    """Read a manifest; a folder with something else in it is no bundle."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError):
        return None
