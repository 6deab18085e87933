"""Which datasets there are: built in, from installed packages, and imported ones that are only known prepared."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from streams.datasets.amazon import CATEGORIES
from streams.datasets.base import Dataset, Sources
from streams.datasets.movielens import ML_1M, ML_100K, ML_LATEST_SMALL
from streams.datasets.online_retail import OnlineRetail
from streams.datasets.prepared import Manifest, Prepared, load_prepared, prepare, prepared_path, read_manifest
from streams.errors import DatasetError
from streams.log import get_logger
from streams.settings import Settings

GROUP: Final = "driftline.datasets"

log = get_logger(__name__)


@dataclass(frozen=True)
class Listed:
    """One line of the list of datasets."""

    name: str
    title: str
    terms: str
    origin: str
    """``built-in``, ``imported``, or the package it came from."""
    prepared: Manifest | None
    problem: str = ""
    """Why it cannot be used as it is."""


def built_in() -> dict[str, Dataset]:
    """Return the datasets that come with Driftline, by name."""
    ours: tuple[Dataset, ...] = (ML_100K, ML_LATEST_SMALL, ML_1M, *CATEGORIES, OnlineRetail())
    return {each.name: each for each in ours}


def find_dataset(name: str) -> Dataset:
    """Return a dataset that can be made anew, by name; a built-in one goes before an entry point of the same name.

    Raises
    ------
    DatasetError
        There is none, or its package does not work.
    """
    if found := built_in().get(name):
        return found
    for entry in entry_points(group=GROUP, name=name):
        return _loaded(entry)
    known = sorted({*built_in(), *(entry.name for entry in entry_points(group=GROUP))})
    raise DatasetError(
        f"there is no dataset {name}; known are {', '.join(known)}",
        remedy=f"bring your own with `driftline data import --name {name} --events FILE`",
    )


def list_datasets(settings: Settings) -> list[Listed]:
    """Every dataset that can be named, with what is prepared of it. A broken package is listed with its problem."""
    rows = {name: _listed(settings, name, each.title, each.terms, "built-in") for name, each in built_in().items()}
    for entry in entry_points(group=GROUP):
        if entry.name in rows:
            continue
        origin = entry.dist.name if entry.dist else "entry point"
        try:
            found = _loaded(entry)
        except DatasetError as problem:
            rows[entry.name] = Listed(entry.name, "", "", origin, None, str(problem))
        else:
            rows[entry.name] = _listed(settings, entry.name, found.title, found.terms, origin)
    folder = settings.home / "datasets"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in rows and path.is_dir() and not path.name.startswith("."):
            rows[path.name] = _listed(settings, path.name, "", "", "imported")
    return list(rows.values())


def sources_of(settings: Settings) -> Sources:
    """Where this installation's raw files may be."""
    return Sources(settings.data, settings.home / "downloads")


def ensure_prepared(settings: Settings, name: str) -> Prepared:
    """Read a dataset's prepared form; make it first where there is none, or where it is damaged.

    Raises
    ------
    DatasetError
        There is no such dataset, its files are not to be had, or, for an imported one, it must be imported again.
    """
    try:
        return load_prepared(settings.home, name)
    except DatasetError as problem:
        try:
            dataset = find_dataset(name)
        except DatasetError as unknown:
            # Imported: only its prepared form is known by name.
            raise (problem if prepared_path(settings.home, name).exists() else unknown) from None
        log.info("preparing dataset", dataset=name, because=problem.message)
        return prepare(dataset, sources_of(settings), settings.home)


def _listed(settings: Settings, name: str, title: str, terms: str, origin: str) -> Listed:
    try:
        manifest = read_manifest(settings.home, name)
    except DatasetError as problem:
        return Listed(name, title, terms, origin, None, str(problem))
    if manifest is not None and origin == "imported":
        title, terms = manifest.title, manifest.terms
    return Listed(name, title, terms, origin, manifest)


def _loaded(entry: EntryPoint) -> Dataset:
    package = entry.dist.name if entry.dist else entry.value
    try:
        found = entry.load()
        dataset = found if isinstance(found, Dataset) and not isinstance(found, type) else found()
    except Exception as exc:
        raise DatasetError(f"dataset {entry.name} of {package} cannot be used ({type(exc).__name__}: {exc})") from exc
    if not isinstance(dataset, Dataset) or dataset.name != entry.name:
        raise DatasetError(
            f"dataset {entry.name} of {package} is not one: "
            f"it needs name ({entry.name!r}), title, terms, repeats and load()"
        )
    return dataset
