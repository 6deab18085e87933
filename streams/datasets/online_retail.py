"""Online Retail II: two years of a UK gift retailer's invoice lines (D. Chen, UCI, doi 10.24432/C5CG6D).

UCI ships an Excel file with two sheets; CSV and Parquet copies keep its columns. A line is an interaction when it has
a customer, an item and a quantity above zero: lines without a customer, cancellations and corrections are left out
and counted.
"""

from __future__ import annotations

import importlib.util
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from streams.datasets import columns
from streams.datasets.base import RawData, Sources
from streams.datasets.files import find_one, not_found
from streams.errors import DatasetError

_FOLDERS: Final = ("online-retail-ii", "online_retail_II", "online_retail_ii", "uci_online_retail_II")
_PATTERNS: Final = tuple(
    f"{stem}*{end}"
    for end in (".parquet", ".csv", ".csv.gz", ".xlsx")
    for stem in ("online_retail_II", "online_retail_ii", "online_retail")
)
_ALIASES: Final = {
    "InvoiceNo": "Invoice",
    "UnitPrice": "Price",
    "CustomerID": "Customer ID",
    "Customer_ID": "Customer ID",
}
_NEEDED: Final = ("StockCode", "Description", "Quantity", "InvoiceDate", "Customer ID")
_FORMATS: Final = (*columns.ISO_FORMATS, "%m/%d/%Y %H:%M", "%m/%d/%y %H:%M")


@dataclass(frozen=True)
class OnlineRetail:
    """Purchases: a customer may buy an item again."""

    name: str = "online-retail-ii"
    title: str = "UCI Online Retail II: 5,881 customers of a gift shop, 5,000 items, 2009-11, by the minute"
    terms: str = "CC BY 4.0 (D. Chen, 2019, doi 10.24432/C5CG6D)"
    repeats: bool = True

    def load(self, sources: Sources) -> RawData:
        """Read the invoice lines."""
        path = find_one(sources, _FOLDERS, _PATTERNS)
        if path is None:
            raise not_found(self.name, sources, ["online_retail_II.csv, .parquet or .xlsx"])
        lines = _read(path)
        lines = lines.rename({old: new for old, new in _ALIASES.items() if old in lines.columns})
        where = str(path)
        columns.require(lines, _NEEDED, where)
        lines = lines.with_columns(
            pl.col("StockCode").cast(pl.String).str.strip_chars().replace("", None),
            pl.col("Description").cast(pl.String).str.strip_chars().replace("", None),
            pl.col("Customer ID").cast(pl.String).str.strip_chars().str.replace(r"\.0$", "").replace("", None),
            pl.col("Quantity").cast(pl.Float64, strict=False),
        )
        left_out: dict[str, int] = {}
        for reason, keep in (
            ("no customer", pl.col("Customer ID").is_not_null()),
            ("no item", pl.col("StockCode").is_not_null()),
            ("quantity not above 0", (pl.col("Quantity") > 0).fill_null(value=False)),
        ):
            kept = lines.filter(keep)
            if len(kept) < len(lines):
                left_out[reason] = len(lines) - len(kept)
            lines = kept
        if lines.is_empty():
            raise DatasetError(f"{where} holds no purchase by a known customer ({left_out} left out)")
        events = pl.DataFrame(
            {
                "device_id": columns.ids(lines, "Customer ID", where),
                "item_id": columns.ids(lines, "StockCode", where),
                "event_time_ms": columns.millis(lines, "InvoiceDate", where, "iso", _FORMATS),
            }
        ).with_columns(kind=pl.lit("purchase"), rating=pl.lit(None, dtype=pl.Float32))
        return RawData(events, _items(lines), where, left_out)


def _items(lines: pl.DataFrame) -> pl.DataFrame:
    """The description most often seen with a stock code is its title; of equals, the first seen."""
    return (
        lines.filter(pl.col("Description").is_not_null())
        .group_by("StockCode", "Description", maintain_order=True)
        .len()
        .sort("len", descending=True, maintain_order=True)
        .unique("StockCode", keep="first", maintain_order=True)
        .select(item_id="StockCode", title="Description", categories=pl.lit(""))
    )


def _read(path: Path) -> pl.DataFrame:
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        if path.suffix == ".xlsx":
            return _read_excel(path)
        return pl.read_csv(path, infer_schema=False, encoding="utf8-lossy")
    except pl.exceptions.NoDataError as exc:
        raise DatasetError(f"{path} is empty") from exc
    except (pl.exceptions.PolarsError, OSError, zipfile.BadZipFile) as exc:
        raise DatasetError(f"{path} cannot be read: {str(exc).splitlines()[0]}") from exc


def _read_excel(path: Path) -> pl.DataFrame:
    if importlib.util.find_spec("fastexcel") is None:
        raise DatasetError(
            f"{path} is an Excel file, which needs the Python package fastexcel",
            remedy="`uv pip install fastexcel`, or save the sheets as one CSV file",
        )
    sheets = pl.read_excel(path, sheet_id=0)
    text = [each.with_columns(pl.col("StockCode", "Description").cast(pl.String)) for each in sheets.values()]
    return pl.concat(text, how="vertical_relaxed")
