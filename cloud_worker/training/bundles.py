"""Where bundles lie, and which of them fits a dataset. No torch here: the demo asks this first."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from streams.bundle import MANIFEST, Manifest, load_manifest
from streams.datasets import Prepared, Split
from streams.errors import BundleError


def driftline_version() -> str:
    """The installed version; ``source`` when run from a tree that is not installed."""
    try:
        return metadata.version("driftline")
    except metadata.PackageNotFoundError:
        return "source"


def check_data(bundle: Manifest, prepared: Prepared) -> None:
    """Refuse other data than a bundle was trained on.

    Raises
    ------
    BundleError
        They are others.
    """
    if bundle.dataset_hash != prepared.manifest.hash:
        raise BundleError(
            f"bundle {bundle.bundle_id} was trained on other data: on {bundle.dataset} {bundle.dataset_hash[:12]}, "
            f"not on {prepared.manifest.name} {prepared.manifest.hash[:12]}",
            remedy="name another (--bundle, DRIFTLINE_BUNDLE), or none and train one with "
            f"`driftline train --dataset {prepared.manifest.name}`",
        )


def split_hash(split: Split) -> str:
    """Eight hexadecimal digits of the three periods."""
    edges = [split.train.start_ms, split.valid.start_ms, split.test.start_ms, split.test.end_ms]
    return hashlib.sha256(repr(edges).encode()).hexdigest()[:8]


def bundle_path(
    home: Path, dataset: str, seed: int, split: Split, *, quick: bool = False, srm: str = "gru4rec"
) -> Path:
    """Where `driftline train` puts a bundle when it is not told."""
    other = "" if srm == "gru4rec" else f"-{srm}"
    return home / "bundles" / f"{dataset}-{seed}-{split_hash(split)}{other}{'-quick' if quick else ''}"


def read_manifest(path: Path) -> Manifest | None:
    """Return a bundle's manifest, or None where there is none that this version reads; the files are not verified."""
    try:
        return load_manifest(path)
    except BundleError:
        return None


def fits(
    manifest: Manifest,
    dataset_hash: str,
    split: Split | None = None,
    seed: int | None = None,
    encoder: str | None = None,
) -> bool:
    """Whether a bundle was made by this version for these data, and for the split, seed and encoder that are given."""
    return (
        manifest.dataset_hash == dataset_hash
        and manifest.driftline_version == driftline_version()
        and (seed is None or manifest.seed == seed)
        and (encoder is None or manifest.encoder == encoder)
        and (split is None or (manifest.train, manifest.valid, manifest.test) == (split.train, split.valid, split.test))
    )


def find_bundle(
    home: Path, dataset: str, dataset_hash: str, split: Split | None = None, encoder: str | None = None
) -> Path | None:
    """Return the newest bundle under `home` that this version made for a dataset with this content, a quick one last.

    Parameters
    ----------
    dataset, dataset_hash
        Name and content hash of the prepared dataset.
    split, encoder
        None: any.
    """
    return newest_bundle(home, dataset, lambda manifest: fits(manifest, dataset_hash, split, None, encoder))


def newest_bundle(home: Path, dataset: str, suits: Callable[[Manifest], bool] = lambda _: True) -> Path | None:
    """Return the newest bundle of a dataset under `home` whose manifest suits, a quick one last."""
    found = [
        (not manifest.quick, manifest.created, path.parent)
        for path in (home / "bundles").glob(f"*/{MANIFEST}")
        if (manifest := read_manifest(path.parent)) is not None and manifest.dataset == dataset and suits(manifest)
    ]
    return max(found)[2] if found else None
