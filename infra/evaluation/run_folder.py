"""The folder that an evaluation leaves behind: what came out, the plot, and what it was made with.

::

    <home>/evaluations/<verb>-<dataset>-<time>/
        result.json      what --json prints
        <verb>.png       the plot
        manifest.json    code, data, bundle, seed, options and periods: enough to do it again
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec

from cloud_worker.training.bundles import driftline_version
from infra.evaluation.opening import Judged
from streams.errors import EnvironmentProblem

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGES: Final = ("numpy", "scipy", "torch", "onnxruntime", "sentence-transformers", "cornac")


@dataclass(frozen=True)
class RunFolder:
    """A folder of one run."""

    path: Path

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``."""
        self._write("result.json", result)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write ``manifest.json``."""
        self._write("manifest.json", manifest)

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        try:
            (self.path / name).write_text(json.dumps(plain(content), indent=2) + "\n", encoding="utf-8")
        except OSError as exc:
            raise _unwritable(self.path, exc) from exc


def make_run_folder(home: Path, verb: str, dataset: str, out: Path | None, now: datetime) -> RunFolder:
    """Make the folder, before the work is done that it is for.

    Parameters
    ----------
    out
        The folder itself; None: one under home.

    Raises
    ------
    EnvironmentProblem
        It cannot be made.
    """
    path = out or home / "evaluations" / f"{verb}-{dataset}-{now.astimezone(UTC):%Y%m%dT%H%M%S}"
    nth = 2
    while out is None and path.exists():
        path = path.with_name(f"{path.name.partition('~')[0]}~{nth}")
        nth += 1
    try:
        path.mkdir(parents=True, exist_ok=out is not None)
    except OSError as exc:
        raise _unwritable(path, exc) from exc
    return RunFolder(path)


def describe(judged: Judged, verb: str, options: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """What a run was made with: the content of ``manifest.json``."""
    manifest = judged.bundle.manifest
    return {
        "verb": verb,
        "created": now.astimezone(UTC).isoformat(timespec="seconds"),
        "driftline_version": driftline_version(),
        "git": git_revision(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "dataset": manifest.dataset,
        "dataset_hash": manifest.dataset_hash,
        "bundle": judged.bundle.id,
        "bundle_path": str(judged.bundle.path),
        "bundle_seed": manifest.seed,
        "encoder": manifest.encoder,
        "controls": judged.controls is not None,
        "options": dict(options),
        "periods": periods(judged),
    }


def periods(judged: Judged) -> dict[str, dict[str, Any]]:
    """The bundle's training, validation and test period."""
    manifest = judged.bundle.manifest
    return {
        name: msgspec.to_builtins(period) | {"start": _day(period.start_ms), "end": _day(period.end_ms)}
        for name, period in (("training", manifest.train), ("validation", manifest.valid), ("test", manifest.test))
    }


def git_revision() -> dict[str, Any] | None:
    """The commit that runs, and whether files of it were changed; None where this is no checkout."""
    if not (ROOT / ".git").exists():  # an installation inside somebody's repository is not that repository
        return None
    try:
        revision, changed = (
            subprocess.run(
                ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"revision": revision, "changed": bool(changed)}


def plain(value: Any) -> Any:
    """For JSON: numbers that are none become null, numpy's become Python's."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _day(ms: int) -> str:
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat(sep=" ", timespec="minutes")[:16]
    except (OverflowError, ValueError, OSError):  # made-up times
        return str(ms)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _unwritable(path: Path, exc: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"the results cannot be written to {path}: {exc.strerror}", remedy="name another folder with --out"
    )
