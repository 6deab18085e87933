"""Promises of the registry: ours are always there, yours install beside them, a broken one harms nobody."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from streams.datasets import Dataset, ensure_prepared, find_dataset, list_datasets
from streams.errors import DatasetError
from streams.settings import Settings

PLUGIN = """
import polars as pl
from streams.datasets import RawData

class Shop:
    name, title, terms, repeats = "my-shop", "My shop", "mine", True

    def load(self, sources):
        events = pl.DataFrame({"device_id": ["a"], "item_id": ["x"], "event_time_ms": [5], "kind": ["buy"]})
        items = pl.DataFrame({"item_id": ["x"], "title": ["X"], "categories": [""]})
        return RawData(events, items, "my shop")

class Fake(Shop):
    name = "ml-100k"

broken = 1 / 0 if False else None
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with datasets: a good one, one that is missing, one named like one of ours."""
    folder = tmp_path / "site-packages"
    info = folder / "shop_data-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "shop_data.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-data\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[driftline.datasets]\nmy-shop = shop_data:Shop\ngone = shop_data:Nothing\nodd = shop_data:broken\n"
        "ml-100k = shop_data:Fake\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "shop_data", raising=False)


def test_built_in_datasets_are_found_without_an_installation() -> None:
    for name in ("ml-100k", "ml-latest-small", "ml-1m", "amazon-beauty", "online-retail-ii"):
        dataset = find_dataset(name)
        assert isinstance(dataset, Dataset)
        assert dataset.name == name


def test_a_packages_dataset_is_used_like_ours(plugin: None, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    prepared = ensure_prepared(settings, "my-shop")
    assert prepared.manifest.repeats
    listed = {each.name: each for each in list_datasets(settings)}
    assert listed["my-shop"].origin == "shop-data"
    assert listed["my-shop"].prepared == prepared.manifest


def test_a_broken_package_is_listed_with_its_problem(plugin: None, tmp_path: Path) -> None:
    listed = {each.name: each for each in list_datasets(Settings(home=tmp_path))}
    assert "shop-data cannot be used (AttributeError" in listed["gone"].problem
    assert "odd of shop-data" in listed["odd"].problem
    with pytest.raises(DatasetError, match="gone of shop-data"):
        find_dataset("gone")


def test_no_package_takes_the_place_of_a_built_in_dataset(plugin: None, tmp_path: Path) -> None:
    assert find_dataset("ml-100k").title.startswith("MovieLens")
    assert [each.origin for each in list_datasets(Settings(home=tmp_path)) if each.name == "ml-100k"] == ["built-in"]


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DatasetError, match=r"no dataset nope; known are .*ml-100k"):
        find_dataset("nope")
