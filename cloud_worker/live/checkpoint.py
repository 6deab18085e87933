"""The live index on disk: one file, replaced whole, that says up to where the topic was read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cloud_worker.live.index import LiveIndex, LiveOptions
from streams.errors import StoreError

VERSION: Final = "2"
_REMEDY: Final = "remove it; the index is then built again from the bundle and the topic"


def write(path: Path, index: LiveIndex, bundle_id: str, topic: str, positions: Mapping[int, int]) -> None:
    """Save the index and the next offset of each partition, whole or not at all.

    Parameters
    ----------
    topic
        What the offsets count in: an id that a topic deleted and made anew does not have.

    Raises
    ------
    StoreError
        The file cannot be written.
    """
    meta = {
        "version": VERSION,
        "bundle": bundle_id,
        "topic": topic,
        "options": msgspec.json.encode(index.options).decode(),
        "positions": msgspec.json.encode({str(k): v for k, v in positions.items()}).decode(),
    }
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(save({name: np.ascontiguousarray(array) for name, array in index.state().items()}, meta))
        scratch.replace(path)
    except OSError as exc:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise StoreError(
            f"the live index cannot be saved to {path}: {exc.strerror or exc}", remedy="see that the disk has room"
        ) from exc


def read(
    path: Path, n_items: int, options: LiveOptions, bundle_id: str, topic: str
) -> tuple[LiveIndex, dict[int, int]] | None:
    """Read a saved index and its positions; None where there is none, or it belongs to another bundle or topic.

    Raises
    ------
    StoreError
        The file is damaged or cannot be read.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            meta = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        if (
            meta["version"] != VERSION
            or meta["bundle"] != bundle_id
            or meta["topic"] != topic
            or msgspec.json.decode(meta["options"], type=LiveOptions) != options
        ):
            return None
        positions = msgspec.json.decode(meta["positions"], type=dict[str, int])
        return LiveIndex.from_state(n_items, options, state), {int(k): v for k, v in positions.items()}
    except (SafetensorError, msgspec.MsgspecError, KeyError, ValueError, OSError) as exc:
        raise StoreError(f"the live index in {path} cannot be read: {exc}", remedy=_REMEDY) from exc
