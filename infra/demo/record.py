"""What a demo served, in its run folder: enough to serve it again offline (`driftline evaluate demo`).

::

    <home>/runs/demo-<time>/
        outcomes.parquet     a row for each recommendation
        embeddings.parquet   a row for each embedding that the cloud sent
        served.json          bundle, data, arms, settings, and what the workers' models ran on

``served.json`` is written last: where it is, the others are whole. Times are milliseconds of event time, ``row`` is
the interaction's place in the prepared dataset.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from streams.errors import DatasetError, EnvironmentProblem
from streams.events import Embedding, Recommendation, unpack_vector

OUTCOMES: Final = "outcomes.parquet"
EMBEDDINGS: Final = "embeddings.parquet"
MANIFEST: Final = "served.json"
FORMAT: Final = 2

_NUMBERS: Final[Mapping[str, str]] = {
    "row": "q",
    "event_time_ms": "q",
    "rank": "i",
    "ranked": "i",
    "as_of": "q",
    "gap": "q",
    "age_ms": "q",
    "staleness": "f",
    "freshness_ms": "q",
    "refreshed": "b",
    "served_at_ms": "q",
    "trends_as_of_ms": "q",
}
"""Columns that are fields of a recommendation, ``row`` besides, and what an array of them holds."""
_LABELS: Final = ("device_id", "arm")
_OUTCOMES: Final = {*_NUMBERS, *_LABELS}


class ServedManifest(msgspec.Struct, frozen=True):
    """What a demo served with."""

    format: int
    run: str
    created: str
    """ISO 8601, UTC."""
    driftline_version: str
    dataset: str
    dataset_hash: str
    bundle: str
    bundle_path: str
    design: str
    arms: list[str]
    """As flags (`streams.experiment.arms.ArmSpec.flag`), the first one to compare with first."""
    ranking: str
    list_length: int
    item_vectors: str
    encoder: str
    runtimes: dict[str, str]
    """Device worker to what its models ran on, ``onnx`` or ``numpy``, as the workers themselves said."""
    recommendations: int
    embeddings: int


class ServedLog:
    """Collects recommendations of one replay, some 80 bytes each.

    Parameters
    ----------
    run
        The replay's name; events of others are left out.
    """

    def __init__(self, run: str) -> None:
        self._front = f"{run}:"
        self._columns = {name: array(code) for name, code in _NUMBERS.items()}
        self._labels = {name: array("i") for name in _LABELS}
        self._codes: dict[str, dict[str, int]] = {name: {} for name in _LABELS}

    def __len__(self) -> int:
        return len(self._columns["row"])

    def add(self, record: Recommendation) -> None:
        """Keep one recommendation."""
        row = record.event_id.removeprefix(self._front)
        if not row.isdecimal():
            return  # not of this replay: the books say so
        columns = self._columns
        columns["row"].append(int(row))
        for name in _NUMBERS:
            if name != "row":
                columns[name].append(getattr(record, name))
        for name, codes in self._codes.items():
            label: str = getattr(record, name)
            self._labels[name].append(codes.setdefault(label, len(codes)))

    def frame(self) -> pl.DataFrame:
        """All of them, by row and arm."""
        labels = {
            name: pl.Series(np.array([*self._codes[name], ""], object)[_array(codes)], dtype=pl.String)
            for name, codes in self._labels.items()
        }
        columns = {name: pl.Series(_array(each)) for name, each in self._columns.items()}
        frame = pl.DataFrame({**labels, **columns}).with_columns(pl.col("refreshed").cast(pl.Boolean))
        return frame.sort("row", "arm")


def embeddings_frame(sent: Iterable[Embedding]) -> pl.DataFrame:
    """Embeddings in the order in which they were sent; of two with one as_of a device takes the first."""
    rows = [(each.device_id, each.arm, each.as_of, each.event_time_ms, each.vector) for each in sent]
    schema = {
        "device_id": pl.String,
        "arm": pl.String,
        "as_of": pl.Int64,
        "event_time_ms": pl.Int64,
        "vector": pl.Binary,
    }
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    return frame.unique(["device_id", "arm", "as_of"], keep="first", maintain_order=True)


def write_served(folder: Path, manifest: ServedManifest, outcomes: pl.DataFrame, embeddings: pl.DataFrame) -> None:
    """Write a run's record.

    Raises
    ------
    EnvironmentProblem
        It cannot be written.
    """
    try:
        outcomes.write_parquet(folder / OUTCOMES)
        embeddings.write_parquet(folder / EMBEDDINGS)
        scratch = folder / f".{MANIFEST}"
        scratch.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        scratch.replace(folder / MANIFEST)
    except OSError as exc:
        raise EnvironmentProblem(
            f"what the demo served cannot be written to {folder}: {exc.strerror or exc}", remedy="make room there"
        ) from exc


@dataclass(frozen=True)
class ServedRun:
    """The record of a run, read back."""

    path: Path
    manifest: ServedManifest
    outcomes: pl.DataFrame
    embeddings: pl.DataFrame

    def vectors(self, arm: str, device_ids: Iterable[str], as_of: Iterable[int], d: int) -> npt.NDArray[np.float32]:
        """(Q, d) embeddings of an arm, by device and as_of; NaN where none is known.

        Raises
        ------
        DatasetError
            One has not d numbers.
        """
        of_arm = self.embeddings.filter(pl.col("arm") == arm)
        known = {
            (device, count): unpack_vector(raw)
            for device, count, raw in of_arm.select("device_id", "as_of", "vector").iter_rows()
        }
        if any(len(vector) != d for vector in known.values()):
            raise DatasetError(f"{self.path / EMBEDDINGS} holds embeddings of another size than the bundle's d = {d}")
        nothing = np.full(d, np.nan, np.float32)
        found = [known.get(each, nothing) for each in zip(device_ids, as_of, strict=True)]
        return np.stack(found) if found else np.zeros((0, d), np.float32)


def newest_run(home: Path) -> Path:
    """Folder of the newest demo that ran to its end.

    Raises
    ------
    DatasetError
        There is none.
    """
    found = sorted(path.parent for path in (home / "runs").glob(f"demo-*/{MANIFEST}"))
    if not found:
        raise DatasetError(
            f"there is no demo that ran to its end under {home / 'runs'}", remedy="run `driftline demo` first"
        )
    return found[-1]


def read_served(folder: Path) -> ServedRun:
    """Read a run's record.

    Raises
    ------
    DatasetError
        There is none, it is not whole, or another version wrote it.
    """
    if not folder.is_dir():
        raise DatasetError(f"there is no run folder {folder}", remedy="name one that `driftline demo` left")
    if not (folder / MANIFEST).is_file():
        raise DatasetError(
            f"{folder} holds no record of what was served (no {MANIFEST}): it is no demo's folder, or the demo did not "
            "run to its end",
            remedy="name the folder of a demo that ended well, or leave it out for the newest one",
        )
    try:
        raw: Any = msgspec.json.decode((folder / MANIFEST).read_bytes())
        if isinstance(raw, dict) and raw.get("format") != FORMAT:
            raise DatasetError(
                f"{folder / MANIFEST}: format {raw.get('format')}, this version reads {FORMAT}",
                remedy="run the demo again, or read it with the version that wrote it",
            )
        manifest = msgspec.convert(raw, ServedManifest)
        outcomes, embeddings = (pl.read_parquet(folder / name) for name in (OUTCOMES, EMBEDDINGS))
    except (OSError, msgspec.MsgspecError, pl.exceptions.PolarsError) as exc:
        raise DatasetError(f"{folder}: the record of what was served is damaged: {exc}", remedy="run it again") from exc
    if missing := _OUTCOMES - set(outcomes.columns):
        raise DatasetError(f"{folder / OUTCOMES} has no column {min(missing)}", remedy="run the demo again")
    return ServedRun(folder, manifest, outcomes, embeddings)


def _array(values: array[Any]) -> npt.NDArray[Any]:
    return np.frombuffer(values, dtype=np.dtype(values.typecode)) if len(values) else np.zeros(0, values.typecode)
