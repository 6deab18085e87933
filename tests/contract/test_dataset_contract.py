"""Every dataset keeps the same promises, from files in the formats that their publishers ship."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import pytest

from streams.datasets import Dataset, Sources, global_time_split, load_prepared, prepare
from streams.datasets.amazon import CATEGORIES
from streams.datasets.base import EVENT_SCHEMA, ITEM_SCHEMA
from streams.datasets.movielens import _GENRES, ML_1M, ML_100K, ML_LATEST_SMALL
from streams.datasets.online_retail import OnlineRetail
from streams.datasets.tabular import Tabular
from streams.errors import DatasetError

DAY_S = 86_400

# Three users, four items, times out of order in the file: (user, item, rating, seconds).
RATINGS = [
    ("2", "20", 4, 900_000_300),
    ("1", "10", 5, 900_000_100),
    ("1", "20", 3, 900_000_200),
    ("3", "30", 1, 900_000_200),
    ("1", "40", 2, 900_000_400),
]
TITLES = {"10": "Amélie (2001)", "20": 'The 12" Tailor (1998)', "30": "Heat: Part 2, again (1995)"}


@dataclass(frozen=True)
class Case:
    dataset: Dataset
    events: int = 5
    titles: tuple[tuple[str, str], ...] = tuple(TITLES.items())
    fallback: str = "40"
    """An item that occurs, but has no title."""


def u_data() -> dict[str, bytes]:
    events = "".join(f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in RATINGS)
    flags = "|".join("1" if k in {5, 16} else "0" for k in range(19))
    items = "".join(f"{i}|{title}|01-Jan-1995||http://x|{flags}\n" for i, title in TITLES.items())
    return {"u.data": events.encode(), "u.item": items.encode("latin-1")}


def ratings_csv() -> dict[str, bytes]:
    events = "userId,movieId,rating,timestamp\n" + "".join(f"{u},{i},{r}.0,{t}\n" for u, i, r, t in RATINGS)
    quoted = {i: '"' + title.replace('"', '""') + '"' for i, title in TITLES.items()}
    items = "movieId,title,genres\n" + "".join(f"{i},{title},Comedy|Sci-Fi\n" for i, title in quoted.items())
    return {"ratings.csv": events.encode(), "movies.csv": items.encode()}


def ratings_dat() -> dict[str, bytes]:
    events = "".join(f"{u}::{i}::{r}::{t}\n" for u, i, r, t in RATINGS)
    items = "".join(f"{i}::{title}::Comedy|Sci-Fi\n" for i, title in TITLES.items())
    return {"ratings.dat": events.encode(), "movies.dat": items.encode("latin-1")}


def put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, blob in files.items():
        (folder / name).write_bytes(blob)


def put_zip(archive: Path, folder: str, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(f"{folder}/", b"")
        for name, blob in files.items():
            opened.writestr(f"{folder}/{name}", blob)


def movielens(dataset: Dataset, files: Callable[[], dict[str, bytes]], layout: str) -> Callable[[Path], Case]:
    def make(data: Path) -> Case:
        if layout == "folder":
            put(data / dataset.name, files())
        elif layout == "bare":
            put(data, files())
        else:
            put_zip(data / f"{dataset.name}.zip", dataset.name, files())
        return Case(dataset)

    return make


def amazon(release: int) -> Callable[[Path], Case]:
    def make(data: Path) -> Case:
        reviews = "".join(
            json.dumps(
                {
                    "reviewerID": f"A{u}",
                    "asin": f"B{i}",
                    "overall": float(r),
                    "unixReviewTime": (10_000 + (t - 900_000_000) // 100) * DAY_S,
                }
            )
            + "\n"
            for u, i, r, t in RATINGS
        )
        meta = []
        for i, title in [*TITLES.items(), ("99", "never bought")]:
            shown = title.replace("é", "&eacute;")
            if release == 2014:  # Python literals, single quotes
                fields = {"asin": f"B{i}", "title": shown, "categories": [["Beauty"], ["Beauty", "Skin", "O'Dry"]]}
                meta.append(repr(fields))
            else:
                meta.append(json.dumps({"category": ["Beauty", "Skin", "O'Dry"], "title": shown, "asin": f"B{i}"}))
        names = ("reviews_Beauty_5", "meta_Beauty") if release == 2014 else ("Beauty_5", "meta_Beauty")
        blobs = (reviews, "\n".join(meta) + "\n")
        put(
            data / "amazon-beauty",
            {f"{n}.json.gz": gzip.compress(b.encode()) for n, b in zip(names, blobs, strict=True)},
        )
        return Case(CATEGORIES[0], titles=tuple((f"B{i}", title) for i, title in TITLES.items()), fallback="B40")

    return make


INVOICES = [
    # Invoice, StockCode, Description, Quantity, InvoiceDate, Price, Customer ID, Country
    ("489434", "85048", 'GLASS BALL, 12"', 12, "2009-12-01 07:45:00", 6.95, 13085, "United Kingdom"),
    ("489435", "22350", "CAT BOWL", 1, "2009-12-01 09:46:00", 2.55, 13085, "United Kingdom"),
    ("489436", "22350", "CAT BOWL ", 2, "2009-12-02 09:46:00", 2.55, 13085, "United Kingdom"),
    ("489437", "POST", None, 1, "2009-12-03 10:00:00", 18.0, 12682, "France"),
    ("C489449", "22350", "CAT BOWL", -1, "2009-12-03 10:33:00", 2.55, 13085, "Australia"),
    ("489464", "21733", "mixed up", 5, "2009-12-03 10:52:00", 0.0, None, "United Kingdom"),
    ("489465", "85048", "damaged", 1, "2009-12-04 07:00:00", 1.0, 12682, "France"),
    ("489466", "85048", 'GLASS BALL, 12"', 1, "2009-12-05 07:00:00", 1.0, 13085, "France"),
]


def invoices() -> pl.DataFrame:
    names = ["Invoice", "StockCode", "Description", "Quantity", "InvoiceDate", "Price", "Customer ID", "Country"]
    return pl.DataFrame(INVOICES, schema=names, orient="row", infer_schema_length=None)


def retail(form: str) -> Callable[[Path], Case]:
    def make(data: Path) -> Case:
        frame = invoices()
        if form == "parquet":
            typed = frame.with_columns(pl.col("InvoiceDate").str.to_datetime(), pl.col("Customer ID").cast(pl.Float64))
            typed.write_parquet(data / "online_retail_II.parquet")
        else:
            # As pandas writes it: customers as floats.
            frame.with_columns(pl.col("Customer ID").cast(pl.Float64)).write_csv(data / "online_retail_II.csv")
        titles = (("85048", 'GLASS BALL, 12"'), ("22350", "CAT BOWL"))
        return Case(OnlineRetail(), events=6, titles=titles, fallback="POST")

    return make


def tabular(form: str) -> Callable[[Path], Case]:
    def make(data: Path) -> Case:
        events = pl.DataFrame(RATINGS, schema=["user_id", "item_id", "rating", "unix_time"], orient="row")
        items = pl.DataFrame(
            {"item_id": list(TITLES), "title": list(TITLES.values()), "categories": ["Drama"] * len(TITLES)}
        )
        if form == "parquet":
            events.write_parquet(data / "e.parquet")
            items.write_parquet(data / "i.parquet")
        else:
            separator = "\t" if form.startswith("tsv") else ","
            quotes = "never" if form.startswith("tsv") else "necessary"
            for frame, name in ((events, "e"), (items, "i")):
                text = frame.write_csv(separator=separator, quote_style=quotes).encode()
                zipped = form.endswith("gz")
                (data / f"{name}.{form}").write_bytes(gzip.compress(text) if zipped else text)
        return Case(Tabular("mine", data / f"e.{form}", data / f"i.{form}"))

    return make


def packaged(data: Path) -> Case:
    """ML-100K as the pip package has it."""
    folder = data / "ml-100k-from-package"
    folder.mkdir()
    rows = pl.DataFrame(RATINGS, schema=["user_id", "movie_id", "rating", "timestamp"], orient="row")
    rows.with_columns(pl.col("user_id", "movie_id").cast(pl.Int64)).write_parquet(
        folder / "MovieLens100k_data.parquet.brotli"
    )
    text = pl.read_csv(
        io.BytesIO(u_data()["u.item"].decode("latin-1").encode()), separator="|", has_header=False, quote_char=None
    )
    text.columns = ["movie_id", "movie_title", "release_date", "video_release_date", "IMDb_URL", *_GENRES]
    text.write_parquet(folder / "MovieLens100k_items.parquet.brotli")
    return Case(ML_100K)


CASES: dict[str, Callable[[Path], Case]] = {
    "ml-100k, folder": movielens(ML_100K, u_data, "folder"),
    "ml-100k, the data folder itself": movielens(ML_100K, u_data, "bare"),
    "ml-100k, zip as shipped": movielens(ML_100K, u_data, "zip"),
    "ml-100k, from the package": packaged,
    "ml-latest-small, folder": movielens(ML_LATEST_SMALL, ratings_csv, "folder"),
    "ml-latest-small, zip as shipped": movielens(ML_LATEST_SMALL, ratings_csv, "zip"),
    "ml-1m, folder": movielens(ML_1M, ratings_dat, "folder"),
    "ml-1m, zip as shipped": movielens(ML_1M, ratings_dat, "zip"),
    "amazon 2014": amazon(2014),
    "amazon 2018": amazon(2018),
    "online retail, csv": retail("csv"),
    "online retail, parquet": retail("parquet"),
    "tabular csv": tabular("csv"),
    "tabular csv.gz": tabular("csv.gz"),
    "tabular tsv": tabular("tsv"),
    "tabular tsv.gz": tabular("tsv.gz"),
    "tabular parquet": tabular("parquet"),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    data = tmp_path / "data"
    data.mkdir()
    return CASES[request.param](data)


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(tmp_path / "data")


def test_it_says_what_it_is(case: Case) -> None:
    assert isinstance(case.dataset, Dataset)
    assert case.dataset.name
    assert case.dataset.terms


def test_raw_data_has_the_declared_columns(case: Case, sources: Sources) -> None:
    raw = case.dataset.load(sources)
    assert {name: raw.events[name].dtype for name in EVENT_SCHEMA} == dict(EVENT_SCHEMA)
    assert {name: raw.items[name].dtype for name in ITEM_SCHEMA} == dict(ITEM_SCHEMA)
    assert str(sources.data) in raw.source


def test_every_event_is_there_in_time_order(case: Case, sources: Sources, tmp_path: Path) -> None:
    prepared = prepare(case.dataset, sources, tmp_path / "home")
    assert len(prepared.events) == case.events == prepared.manifest.events
    assert prepared.events["event_time_ms"].is_sorted()
    assert prepared.events["event_time_ms"].min() > 8e11  # milliseconds, not seconds
    assert prepared.manifest.start_ms == prepared.events["event_time_ms"].min()
    assert prepared.manifest.end_ms == prepared.events["event_time_ms"].max()


def test_every_item_that_occurs_has_a_title(case: Case, sources: Sources, tmp_path: Path) -> None:
    items = prepare(case.dataset, sources, tmp_path / "home").items
    titles = dict(zip(items["item_id"], items["title"], strict=True))
    assert titles == {**dict(case.titles), case.fallback: case.fallback}
    assert items["categories"].null_count() == 0


def test_the_same_files_give_the_same_hash_and_another_event_another(
    case: Case, sources: Sources, tmp_path: Path
) -> None:
    once = prepare(case.dataset, sources, tmp_path / "one")
    again = prepare(case.dataset, sources, tmp_path / "two")
    assert once.manifest.hash == again.manifest.hash
    loaded = load_prepared(tmp_path / "one", case.dataset.name)
    assert loaded.manifest == once.manifest
    assert loaded.events.equals(once.events)
    assert loaded.items.equals(once.items)


def test_it_can_be_split_by_time(case: Case, sources: Sources, tmp_path: Path) -> None:
    prepared = prepare(case.dataset, sources, tmp_path / "home")
    split = global_time_split(prepared.events)
    assert split.train.end_ms == split.valid.start_ms
    assert split.valid.end_ms == split.test.start_ms
    assert split.train.interactions + split.valid.interactions + split.test.interactions == case.events


def test_missing_files_are_named_and_nothing_is_fetched_without_leave(case: Case, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    if isinstance(case.dataset, Tabular):  # its files are named one by one, wherever they are
        with pytest.raises(DatasetError, match=r"elsewhere.* does not exist"):
            replace(case.dataset, events=tmp_path / "elsewhere" / "e.csv").load(Sources(tmp_path / "elsewhere"))
        return
    with pytest.raises(DatasetError, match="not found") as caught:
        case.dataset.load(Sources(tmp_path / "elsewhere"))
    assert "elsewhere" in str(caught.value)
    assert "DRIFTLINE_DATA" in str(caught.value)


REAL = {
    "ml-100k": (lambda data: ML_100K, (100_000, 943, 1_682)),
    "amazon_beauty_2014": (lambda data: _pair("beauty", data / "amazon_beauty_2014"), (198_502, 22_363, 12_101)),
    "amazon_toys_2014": (lambda data: _pair("toys", data / "amazon_toys_2014"), (167_597, 19_412, 11_924)),
    "uci_online_retail_II": (
        lambda data: Tabular(
            "retail",
            data / "uci_online_retail_II" / "events.tsv.gz",
            mapping={"item": "title", "time": "InvoiceDate"},
            kind="purchase",
        ),
        (768_222, 5_881, 5_230),  # 791,114 lines, of which 22,892 repeat customer, item and minute
    ),
}


def _pair(name: str, folder: Path) -> Dataset:
    return Tabular(name, folder / "events.tsv.gz", folder / "items.tsv.gz")


@pytest.mark.parametrize("name", REAL)
def test_real_data_is_read_whole(name: str, shared_data: Path, tmp_path: Path) -> None:
    if not (shared_data / name).is_dir():
        pytest.skip(f"{name} is not in {shared_data}")
    make, (events, devices, items) = REAL[name]
    manifest = prepare(make(shared_data), Sources(shared_data), tmp_path).manifest
    assert (manifest.events, manifest.devices, manifest.items) == (events, devices, items)
    assert manifest.repeats is (name == "uci_online_retail_II")
    assert manifest.events + sum(manifest.left_out.values()) == (791_114 if manifest.repeats else events)
