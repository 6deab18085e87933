"""Exported graphs on disk: made once, whole or not at all, and made anew where one is damaged."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from streams.errors import EncoderError
from streams.log import get_logger

T = TypeVar("T")

log = get_logger(__name__)


def cached_export(target: Path, write: Callable[[Path], None], load: Callable[[Path], T]) -> T:
    """Load the export in the folder `target`, writing it first where there is none that loads.

    Parameters
    ----------
    target
        Its name stands for everything that decides the contents.
    write
        Fills an empty folder.
    load
        Reads a folder; raises EncoderError where it is damaged.

    Raises
    ------
    EncoderError
        `write` or `load` says why, or the disk refuses.
    """
    damaged = False
    if target.is_dir():
        try:
            return load(target)
        except EncoderError as exc:
            damaged = True
            log.warning("an exported encoder is damaged and made anew", folder=str(target), error=str(exc))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            made = scratch / "made"
            made.mkdir()
            write(made)
            loaded = load(made)
            _put(made, target, scratch / "damaged" if damaged else None)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as exc:
        raise EncoderError(
            f"an exported encoder cannot be written to {target}: {exc}", remedy="free the disk, or choose another home"
        ) from exc
    return loaded


def _put(made: Path, target: Path, old: Path | None) -> None:
    if old is not None and target.is_dir():
        target.rename(old)
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():  # otherwise another process was quicker and made the same
            raise
