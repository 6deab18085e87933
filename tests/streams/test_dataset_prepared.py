"""Promises of the prepared form: checked, ordered, verified, replaced whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from streams.datasets import RawData, Sources, ensure_prepared, load_prepared, prepare
from streams.datasets.prepared import EVENTS, ITEMS, MANIFEST
from streams.errors import DatasetError
from streams.settings import Settings

GOOD: dict[str, list[Any]] = {
    "device_id": ["b", "a", "a", "c"],
    "item_id": ["y", "x", "y", "new"],
    "event_time_ms": [2000, 1000, 2000, 2000],
    "kind": ["view"] * 4,
}


@dataclass(frozen=True)
class Made:
    """A dataset that a test makes up."""

    events: pl.DataFrame
    items: pl.DataFrame
    name: str = "made"
    title: str = "made up"
    terms: str = "none"
    repeats: bool | None = None

    def load(self, sources: Sources) -> RawData:
        return RawData(self.events, self.items, "nowhere.csv", {"cancelled": 2})


def made(items: dict[str, list[Any]] | None = None, **changed: list[Any]) -> Made:
    events = pl.DataFrame({**GOOD, **changed})
    titles = items or {"item_id": ["x", "y"], "title": ["X", None], "categories": ["a|b", None]}
    return Made(events, pl.DataFrame(titles))


def test_events_of_one_time_keep_the_order_of_the_file(tmp_path: Path) -> None:
    events = prepare(made(), Sources(), tmp_path).events
    assert events["device_id"].to_list() == ["a", "b", "a", "c"]


def test_titles_fall_back_to_the_id_and_unlisted_items_get_a_row(tmp_path: Path) -> None:
    items = prepare(made(), Sources(), tmp_path).items
    assert items.rows() == [("x", "X", "a|b"), ("y", "y", ""), ("new", "new", "")]


def test_a_repeated_event_is_left_out_and_counted(tmp_path: Path) -> None:
    twice = made(device_id=["a", "a", "a", "c"], item_id=["y", "x", "y", "new"])
    prepared = prepare(twice, Sources(), tmp_path)
    assert len(prepared.events) == 3
    assert prepared.manifest.left_out == {"cancelled": 2, "duplicate event": 1}
    assert not prepared.manifest.repeats


def test_an_item_taken_again_later_makes_a_dataset_with_repeats(tmp_path: Path) -> None:
    again = made(device_id=["a", "a", "b", "c"], item_id=["x", "x", "y", "new"])
    prepared = prepare(again, Sources(), tmp_path)
    assert prepared.manifest.repeats
    assert not prepared.exclude_seen
    declared = prepare(replace(again, repeats=False), Sources(), tmp_path)
    assert declared.exclude_seen


def test_a_listed_item_stays_in_the_catalogue_without_events(tmp_path: Path) -> None:
    cold = made({"item_id": ["x", "y", "cold", "x"], "title": ["X", "Y", "Cold", "X2"], "categories": [""] * 4})
    prepared = prepare(cold, Sources(), tmp_path)
    assert prepared.items["title"].to_list() == ["X", "Y", "Cold", "new"]
    assert prepared.manifest.left_out["duplicate item"] == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"device_id": ["b", None, "a", "c"]}, "device_id.*None in row 2"),
        ({"device_id": ["b", "a", "", "c"]}, "device_id.*'' in row 3"),
        ({"item_id": ["y", "x", "y\x00z", "n"]}, "item_id.*row 3"),
        ({"event_time_ms": [2000, None, 2000, 1]}, "event_time_ms.*row 2"),
        ({"event_time_ms": [-1, 1000, 2000, 1]}, "event_time_ms.*-1 in row 1"),
        ({"event_time_ms": [2000.0, 1000.0, 2000.0, 1.0]}, "event_time_ms.*Float64.*Int64"),
        ({"device_id": [1, 2, 3, 4]}, "device_id.*Int64.*String"),
        ({"kind": ["view", "backfill", "view", "view"]}, "reserved"),
    ],
)
def test_what_an_adapter_must_not_deliver_is_named(changed: dict[str, list[Any]], said: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=said):
        prepare(made(**changed), Sources(), tmp_path)
    assert not (tmp_path / "datasets" / "made").exists()


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    lacking = replace(made(), events=made().events.drop("item_id"))
    with pytest.raises(DatasetError, match="no column item_id"):
        prepare(lacking, Sources(), tmp_path)


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"empty: nowhere\.csv holds no events"):
        prepare(replace(made(), events=made().events.clear()), Sources(), tmp_path)


def test_a_failed_preparation_leaves_the_earlier_one(tmp_path: Path) -> None:
    prepare(made(), Sources(), tmp_path)
    with pytest.raises(DatasetError):
        prepare(made(kind=["view", "", "view", "view"]), Sources(), tmp_path)
    assert load_prepared(tmp_path, "made").manifest.events == 4
    assert [path.name for path in (tmp_path / "datasets").iterdir()] == ["made"]


def test_preparing_again_replaces_it(tmp_path: Path) -> None:
    before = prepare(made(), Sources(), tmp_path).manifest
    after = prepare(made(event_time_ms=[5, 6, 7, 8]), Sources(), tmp_path).manifest
    assert load_prepared(tmp_path, "made").manifest == after
    assert before.hash != after.hash


@pytest.mark.parametrize("file", [EVENTS, ITEMS])
def test_a_changed_byte_is_noticed(file: str, tmp_path: Path) -> None:
    path = prepare(made(), Sources(), tmp_path).path / file
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)
    with pytest.raises(DatasetError, match=f"{file} was changed"):
        load_prepared(tmp_path, "made")


def test_a_damaged_or_foreign_manifest_is_refused(tmp_path: Path) -> None:
    path = prepare(made(), Sources(), tmp_path).path / MANIFEST
    text = path.read_text()
    path.write_text(text[:-20])
    with pytest.raises(DatasetError, match="damaged"):
        load_prepared(tmp_path, "made")
    path.write_text(text.replace('"schema": 1', '"schema": 99'))
    with pytest.raises(DatasetError, match="form 99"):
        load_prepared(tmp_path, "made")


def test_what_was_never_prepared_says_how_to(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="driftline data prepare made"):
        load_prepared(tmp_path, "made")


@pytest.mark.parametrize("name", ["../up", "", "A", "a/b", ".hidden"])
def test_a_name_that_is_no_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no dataset name"):
        prepare(replace(made(), name=name), Sources(), tmp_path)


def test_a_damaged_built_in_dataset_is_prepared_again_but_an_imported_one_complains(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "u.data").write_text("1\t1\t5\t900000000\n")
    (data / "u.item").write_text("1|Toy Story (1995)|||" + "|0" * 19 + "\n")
    settings = Settings(home=tmp_path / "home", data=data)
    first = ensure_prepared(settings, "ml-100k")
    (first.path / EVENTS).write_bytes(b"")
    assert ensure_prepared(settings, "ml-100k").events.equals(first.events)

    mine = prepare(made(), Sources(), settings.home)
    assert ensure_prepared(settings, "made").events.equals(mine.events)
    (mine.path / EVENTS).write_bytes(b"")
    with pytest.raises(DatasetError, match=r"was changed.*driftline data import"):
        ensure_prepared(settings, "made")
    with pytest.raises(DatasetError, match="there is no dataset other"):
        ensure_prepared(settings, "other")
