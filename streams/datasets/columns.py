"""Reading columns of any file as ids and times, with an error that names file, column and first bad row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NoReturn

import polars as pl

from streams.errors import DatasetError

TimeUnit = Literal["auto", "s", "ms", "us", "ns", "iso"]

_PER_MS: Final = {"ms": 1, "us": 1_000, "ns": 1_000_000}

LATEST_MS: Final = 253_402_300_799_999
"""The end of the year 9999: what a calendar, and so a CloudEvents time stamp, can say."""

ISO_FORMATS: Final = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f%:z",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
)
"""A ``T`` between date and time is read as a space, a closing ``Z`` as +00:00; a time without an offset is UTC."""


def require(frame: pl.DataFrame, columns: Sequence[str], where: str) -> None:
    """See that the columns are there, and a row at least.

    Raises
    ------
    DatasetError
        One is missing, or the file is empty.
    """
    for column in columns:
        if column not in frame.columns:
            raise DatasetError(
                f"{where} has no column {column!r}; it has {', '.join(map(repr, frame.columns))}",
                remedy="name the columns that it has with --map, as in user=…,item=…,time=… or id=…,title=…",
            )
    if frame.is_empty():
        raise DatasetError(f"{where} holds no rows")


def ids(frame: pl.DataFrame, column: str, where: str) -> pl.Series:
    """Read a column as ids: text, trimmed; whole numbers that were stored as floats lose their ``.0``.

    Raises
    ------
    DatasetError
        A row has none.
    """
    series = frame[column]
    if series.dtype.is_float() and (series.is_null() | (series == series.round())).all():
        series = series.cast(pl.Int64, strict=False)
    text = series.cast(pl.String).str.strip_chars()
    bad = text.is_null() | (text == "") | text.str.contains("\x00", literal=True)
    if bad.any():
        complain(frame, column, bad, where, "an id")
    return text


def millis(
    frame: pl.DataFrame, column: str, where: str, unit: TimeUnit = "auto", formats: Sequence[str] = ISO_FORMATS
) -> pl.Series:
    """Read a column as event times in milliseconds since 1970, UTC.

    Parameters
    ----------
    unit
        Of numbers; ``auto`` goes by the size of the middle one (seconds up to the year 5138). ``iso``: dates as text.
    formats
        Of dates as text, tried in turn for each row.

    Raises
    ------
    DatasetError
        A row has no time, or none that can be read, or one outside 1970 to 9999.
    """
    series = frame[column]
    if series.dtype in (pl.Datetime, pl.Date):
        times = series.cast(pl.Datetime("ms")).dt.epoch("ms")
    else:
        times = _from_text(series, formats) if unit == "iso" else _from_numbers(series, unit)
        if unit == "auto" and times.is_null().all():
            times = _from_text(series, formats)
    bad = times.is_null() | ~times.is_between(0, LATEST_MS)
    if bad.any():
        complain(
            frame,
            column,
            bad,
            where,
            "a time between 1970 and 9999",
            "write times as numbers (--time-unit) or as dates (1998-03-01, 1998-03-01T12:00), leave out these rows",
        )
    return times


def _from_numbers(series: pl.Series, unit: TimeUnit) -> pl.Series:
    numbers = series.str.strip_chars().cast(pl.Int64, strict=False) if series.dtype == pl.String else series
    if series.dtype == pl.String and numbers.null_count() > series.null_count():
        numbers = series.str.strip_chars().cast(pl.Float64, strict=False)
    if not numbers.dtype.is_numeric():
        return pl.Series(series.name, [None] * len(series), dtype=pl.Int64)
    if numbers.dtype.is_float():
        numbers = numbers.fill_nan(None)
    if unit == "auto":
        middle = numbers.abs().median()
        size = middle if isinstance(middle, int | float) else 0
        unit = "s" if size < 1e11 else "ms" if size < 1e14 else "us" if size < 1e17 else "ns"
    # In whole numbers where the file has them: a float has no milliseconds to spare.
    scaled = numbers * 1_000 if unit == "s" else numbers // _PER_MS[unit]
    return scaled.cast(pl.Int64, strict=False) if scaled.dtype.is_integer() else _rounded(scaled)


def _rounded(numbers: pl.Series) -> pl.Series:
    return numbers.round().cast(pl.Int64, strict=False)


def _from_text(series: pl.Series, formats: Sequence[str]) -> pl.Series:
    text = series.cast(pl.String).str.strip_chars().str.replace("T", " ", literal=True).str.replace(r"\s?Z$", "+00:00")
    read = pl.DataFrame({"text": text}).select(
        pl.coalesce(
            pl.col("text")
            .str.to_datetime(each, time_unit="ms", strict=False, time_zone="UTC" if "%:z" in each else None)
            .dt.epoch("ms")
            for each in formats
        )
    )
    return read.to_series()


def complain(
    frame: pl.DataFrame, column: str, bad: pl.Series, where: str, wanted: str, remedy: str = "leave out these rows"
) -> NoReturn:
    """Raise for the first bad row of a column."""
    row = int(bad.arg_true()[0])
    value = frame[column][row]
    found = "is empty" if value is None or value == "" else f"has {value!r}"
    raise DatasetError(
        f"{where}: column {column!r} {found} in data row {row + 1}, where {wanted} is wanted "
        f"({int(bad.sum())} of {len(bad)} rows are like that)",
        remedy=f"{remedy}, or name another column with --map",
    )
