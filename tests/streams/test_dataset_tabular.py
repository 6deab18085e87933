"""Promises about tables of any shape: which columns, which times, and what is said of a bad row."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from streams.datasets import Sources, prepare
from streams.datasets.tabular import Tabular, parse_map
from streams.errors import DatasetError

NOON = int(datetime(2020, 5, 17, 12, 30, tzinfo=UTC).timestamp())


def table(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def times(dataset: Tabular) -> list[int]:
    return dataset.load(Sources()).events["event_time_ms"].to_list()


@pytest.mark.parametrize(
    ("written", "millis"),
    [
        (str(NOON), 0),
        (f"{NOON}.25", 250),
        (f"{NOON}250", 250),
        (f"{NOON}250000", 250),
        (f"{NOON}250000000", 250),
        (" 2020-05-17 12:30:00 ", 0),
        ("2020-05-17T12:30:00Z", 0),
        ("2020-05-17T12:30:00.250+00:00", 250),
        ("2020-05-17T14:30:00.25+02:00", 250),
        ("2020-05-17 12:30", 0),
    ],
)
def test_a_time_is_understood_as_people_write_it(written: str, millis: int, tmp_path: Path) -> None:
    path = table(tmp_path / "e.csv", f"user_id,item_id,timestamp\na,x,{written}\n")
    assert times(Tabular("t", path)) == [NOON * 1000 + millis]


def test_a_bare_date_is_its_midnight(tmp_path: Path) -> None:
    path = table(tmp_path / "e.csv", "user_id,item_id,timestamp\na,x,1970-01-02\n")
    assert times(Tabular("t", path)) == [86_400_000]


def test_the_unit_can_be_said_where_the_size_misleads(tmp_path: Path) -> None:
    path = table(tmp_path / "e.csv", "user_id,item_id,timestamp\na,x,1000000\n")
    assert times(Tabular("t", path)) == [1_000_000_000]
    assert times(Tabular("t", path, time_unit="ms")) == [1_000_000]


def test_typed_parquet_times_are_read_with_their_zone(tmp_path: Path) -> None:
    moment = pl.Series([datetime(2020, 5, 17, 12, 30, tzinfo=UTC)]).dt.convert_time_zone("Europe/Paris")
    pl.DataFrame({"user": [7.0], "item": [1], "time": moment}).write_parquet(tmp_path / "e.parquet")
    events = Tabular("t", tmp_path / "e.parquet").load(Sources()).events
    assert events.select("device_id", "item_id", "event_time_ms").row(0) == ("7", "1", NOON * 1000)


@pytest.mark.parametrize("bad", ["", "NaN", "yesterday", "-5", "99999999999999999999"])
def test_a_bad_time_is_named_by_file_column_and_row(bad: str, tmp_path: Path) -> None:
    path = table(tmp_path / "e.csv", f"user_id,item_id,timestamp\na,x,{NOON}\na,y,{bad}\na,z,{NOON}\n")
    with pytest.raises(DatasetError, match=r"e\.csv: column 'timestamp' .* data row 2.*1 of 3 rows"):
        Tabular("t", path).load(Sources())


@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_an_empty_id_is_named_by_file_column_and_row(column: str, tmp_path: Path) -> None:
    row = {"user_id": f",x,{NOON}", "item_id": f"a,,{NOON}"}[column]
    path = table(tmp_path / "e.csv", f"user_id,item_id,timestamp\na,x,{NOON}\na,x,{NOON}\n{row}\n")
    with pytest.raises(DatasetError, match=rf"e\.csv: column '{column}' is empty in data row 3"):
        Tabular("t", path).load(Sources())


def test_a_column_that_cannot_be_guessed_is_asked_for(tmp_path: Path) -> None:
    path = table(tmp_path / "e.csv", f"who,what,at\na,x,{NOON}\n")
    with pytest.raises(DatasetError, match=r"no column for user.*who, what, at.*--map user=COLUMN"):
        Tabular("t", path).load(Sources())
    mapped = Tabular("t", path, mapping=parse_map("user=who, item=what, time=at"))
    assert mapped.load(Sources()).events.row(0)[:3] == ("a", "x", NOON * 1000)


def test_a_mapped_column_that_is_missing_is_named(tmp_path: Path) -> None:
    path = table(tmp_path / "e.csv", f"user_id,item_id,timestamp\na,x,{NOON}\n")
    with pytest.raises(DatasetError, match="no column 'when'"):
        Tabular("t", path, mapping={"time": "when"}).load(Sources())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("user", "not ROLE=COLUMN"),
        ("user=", "not ROLE=COLUMN"),
        ("=x", "no role ''"),
        ("colour=red", "no role 'colour'"),
        ("user=a,item=b,user=c", "user is given twice"),
        ("user=a,item=a", "one column is two of user, item and time"),
    ],
)
def test_a_mapping_that_is_none_is_refused(text: str, why: str) -> None:
    with pytest.raises(DatasetError, match=why):
        parse_map(text)


def test_one_column_may_be_the_item_of_the_events_and_the_id_of_the_items() -> None:
    assert parse_map("item=sku,id=sku") == {"item": "sku", "id": "sku"}


def test_a_column_of_an_items_file_that_was_not_named_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "e.csv", f"user_id,item_id,timestamp\na,x,{NOON}\n")
    with pytest.raises(DatasetError, match="id is a column of an items file, and there is none"):
        Tabular("t", path, mapping={"id": "item_id"}).load(Sources())


@pytest.mark.parametrize("text", ["", "user_id,item_id,timestamp\n"])
def test_an_empty_file_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"e\.csv (is empty|holds no rows)"):
        Tabular("t", table(tmp_path / "e.csv", text)).load(Sources())


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.parquet").write_bytes(b"PAR1 no, not really")
    with pytest.raises(DatasetError, match="cannot be read as parquet"):
        Tabular("t", tmp_path / "e.parquet").load(Sources())
    (tmp_path / "e.csv").write_bytes("user_id,item_id,timestamp\na,Amélie,1\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"e\.csv cannot be read as csv.*UTF-8"):
        Tabular("t", tmp_path / "e.csv").load(Sources())


def test_ids_keep_their_leading_zeros(tmp_path: Path) -> None:
    path = table(tmp_path / "e.csv", f"user_id,item_id,timestamp\n007,0042,{NOON}\n")
    assert Tabular("t", path).load(Sources()).events.row(0)[:2] == ("007", "0042")


def test_a_position_column_orders_events_of_one_time(tmp_path: Path) -> None:
    rows = f"a,second,{NOON},10\na,first,{NOON},9\nb,earlier,{NOON - 5},0\n"
    path = table(tmp_path / "e.csv", "user_id,item_id,unix_time,seq_pos\n" + rows)
    events = prepare(Tabular("t", path), Sources(), tmp_path).events
    assert events["item_id"].to_list() == ["earlier", "first", "second"]


def test_titles_and_kinds_can_stand_among_the_events(tmp_path: Path) -> None:
    rows = f"a,1,{NOON},Red hat,buy\nb,1,{NOON},Red hat!,look\n"
    path = table(tmp_path / "e.csv", "user_id,item_id,timestamp,label,kind\n" + rows)
    prepared = prepare(Tabular("t", path, mapping={"title": "label"}), Sources(), tmp_path)
    assert prepared.items.rows() == [("1", "Red hat", "")]
    assert prepared.events["kind"].to_list() == ["buy", "look"]
