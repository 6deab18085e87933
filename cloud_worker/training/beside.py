"""Tensors that lie beside a bundle and belong to it: written whole or not at all, and not read where a byte changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from streams.errors import BundleError

Tensors = Mapping[str, npt.NDArray[Any]]
Built = TypeVar("Built")


def write_beside(path: Path, bundle_id: str, tensors: Tensors) -> None:
    """Write tensors of a bundle."""
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(whole, scratch, {"bundle": bundle_id, "sha256": _digest(whole)})
    scratch.replace(path)


def read_beside(path: Path, bundle_id: str, remedy: str, build: Callable[[Tensors], Built]) -> Built | None:
    """Build from tensors of a bundle; None where the bundle has no such file.

    Raises
    ------
    BundleError
        They belong to another bundle, cannot be read, were changed, are not finite, or nothing can be built of them.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            meta = file.metadata() or {}
            tensors = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as exc:
        raise BundleError(f"{path} cannot be read: {exc}", remedy=remedy) from exc
    if meta.get("bundle") != bundle_id:
        raise BundleError(f"{path} belongs to bundle {meta.get('bundle')}, not to {bundle_id}", remedy=remedy)
    if meta.get("sha256") != _digest(tensors):
        raise BundleError(f"{path} cannot be read: it was changed after it was written", remedy=remedy)
    if not all(np.isfinite(each).all() for each in tensors.values()):
        raise BundleError(f"{path} cannot be read: a number in it is not finite", remedy=remedy)
    try:
        return build(tensors)
    except (KeyError, ValueError, RuntimeError) as exc:
        raise BundleError(f"{path} cannot be read: {exc}", remedy=remedy) from exc


def _digest(tensors: Tensors) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {tensors[name].shape}\n".encode())
        found.update(np.ascontiguousarray(tensors[name]).tobytes())
    return found.hexdigest()
