"""Finding raw files: in a folder of the dataset's name, in the data folder itself, or in the archive as shipped."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from streams.datasets.base import Sources
from streams.errors import DatasetError


@dataclass(frozen=True)
class RawFiles:
    """The wanted files of one dataset, plain in a folder or inside a zip archive."""

    place: Path
    """Folder, or archive."""
    members: dict[str, str]
    """Wanted name to path in the folder, or to the archive's member."""

    def where(self, name: str) -> str:
        """How messages call a file."""
        return f"{self.place / self.members[name]}"

    def open(self, name: str) -> IO[bytes]:
        """Open a file to read its bytes.

        Raises
        ------
        DatasetError
            It cannot be read.
        """
        try:
            if self.place.is_dir():
                return (self.place / self.members[name]).open("rb")
            return zipfile.ZipFile(self.place).open(self.members[name])
        except (OSError, zipfile.BadZipFile) as exc:
            raise DatasetError(f"{self.where(name)} cannot be read: {exc}") from exc

    def read(self, name: str) -> bytes:
        """All bytes of a file.

        Raises
        ------
        DatasetError
            It cannot be read, or its archive is damaged.
        """
        try:
            with self.open(name) as file:
                return file.read()
        except (OSError, zipfile.BadZipFile, EOFError) as exc:
            raise DatasetError(f"{self.where(name)} cannot be read: {exc}") from exc


def find_files(sources: Sources, folders: Sequence[str], wanted: Sequence[str]) -> RawFiles | None:
    """Return the first place that has all the wanted files.

    Parameters
    ----------
    folders
        Names that the dataset's folder or archive may have, without ``.zip``.
    wanted
        File names.
    """
    for root in sources.folders():
        for folder in (*(root / name for name in folders), root):
            if all((folder / name).is_file() for name in wanted):
                return RawFiles(folder, {name: name for name in wanted})
        for archive in _archives(root, folders):
            if found := _in_archive(archive, wanted):
                return found
    return None


def find_one(sources: Sources, folders: Sequence[str], patterns: Sequence[str]) -> Path | None:
    """Return the first file that matches the first pattern that any does."""
    for root in sources.folders():
        for folder in (*(root / name for name in folders), root):
            for pattern in patterns:
                if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
                    return found[0]
    return None


def not_found(name: str, sources: Sources, wanted: Sequence[str], remedy: str = "", tried: str = "") -> DatasetError:
    """Say that a dataset's files are nowhere, and where they are looked for."""
    if sources.data is None:
        looked = "no folder with raw data is set"
    else:
        looked = f"not in {sources.data / name}, {sources.data} or {sources.data / name}.zip"
    return DatasetError(
        f"dataset {name}: {' and '.join(wanted)} not found ({looked}{tried})",
        remedy=remedy or "put the files there and set DRIFTLINE_DATA to the folder",
    )


def _archives(root: Path, folders: Sequence[str]) -> Iterator[Path]:
    for name in folders:
        for archive in (root / f"{name}.zip", root / name / f"{name}.zip"):
            if archive.is_file():
                yield archive


def _in_archive(archive: Path, wanted: Sequence[str]) -> RawFiles | None:
    try:
        with zipfile.ZipFile(archive) as opened:
            members = {Path(each).name: each for each in opened.namelist() if not each.endswith("/")}
    except (OSError, zipfile.BadZipFile) as exc:
        raise DatasetError(f"{archive} is no readable zip archive: {exc}", remedy="fetch it again") from exc
    if all(name in members for name in wanted):
        return RawFiles(archive, {name: members[name] for name in wanted})
    return None
