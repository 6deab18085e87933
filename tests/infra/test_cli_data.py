"""``driftline data`` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bundles import make_bundle

ROOT = Path(__file__).parents[2]


def driftline(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DRIFTLINE_")} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "infra", "--home", str(home), *arguments]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    (tmp_path / "e.csv").write_text("who,what,when\na,x,2020-01-01\na,y,2020-01-02\nb,x,2020-01-03\na,x,2020-01-04\n")
    (tmp_path / "i.tsv").write_text("item_id\ttitle\tcategories\nx\tThe X\tletters\n")
    return tmp_path


def test_an_imported_table_is_listed_and_shown_by_its_name(tables: Path) -> None:
    mapping = "user=who,item=what,time=when"
    done = driftline(
        tables, "data", "import", "--name", "mine", "--events", "e.csv", "--items", "i.tsv", "--map", mapping, "--json"
    )
    assert done.returncode == 0, done.stderr
    assert "note: 1 items that were taken have no title in i.tsv" in done.stderr
    made = json.loads(done.stdout)["rows"][0]
    assert (made["events"], made["devices"], made["items"], made["repeats"]) == (4, 2, 2, True)
    listed = {row["name"]: row for row in json.loads(driftline(tables, "data", "list", "--json").stdout)["rows"]}
    assert listed["mine"]["prepared"]
    assert listed["mine"]["origin"] == "imported"
    assert not listed["ml-1m"]["prepared"]
    assert json.loads(driftline(tables, "data", "show", "mine", "--json").stdout)["rows"][0] == made
    assert "2020-01-04" in driftline(tables, "data", "show", "mine").stdout


def test_an_import_says_what_it_replaces_and_where_times_are_hardly_meant(tables: Path) -> None:
    given = ("data", "import", "--name", "mine", "--map", "user=who,item=what,time=when", "--events")
    first = driftline(tables, *given, "e.csv")
    again = driftline(tables, *given, "e.csv")
    assert (first.returncode, again.returncode) == (0, 0)
    assert "note" not in first.stderr + again.stderr
    (tables / "s.csv").write_text("who,what,when\na,x,1577836800\nb,x,1577836900\n")
    other = driftline(tables, *given, "s.csv", "--time-unit", "ms")
    assert other.returncode == 0
    assert "it replaces the mine of 4 events" in other.stderr
    assert "all of it happened in 1970" in other.stderr


def test_what_cannot_be_imported_ends_with_1_and_a_remedy(tables: Path) -> None:
    done = driftline(tables, "data", "import", "--name", "mine", "--events", "e.csv")
    assert done.returncode == 1
    assert "e.csv has no column for user" in done.stderr
    assert "--map user=COLUMN" in done.stderr
    taken = driftline(tables, "data", "import", "--name", "ml-100k", "--events", "e.csv")
    assert taken.returncode == 1
    assert "built-in" in taken.stderr
    assert not (tables / "datasets").exists()


def test_a_folder_and_semicolons_are_told_as_what_they_are(tables: Path) -> None:
    folder = driftline(tables, "data", "import", "--name", "mine", "--events", ".")
    assert folder.returncode == 1
    assert "is a folder\nremedy: name the file in it" in folder.stderr
    (tables / "s.csv").write_text("user_id;item_id;timestamp\na;x;1\n")
    done = driftline(tables, "data", "import", "--name", "mine", "--events", "s.csv")
    assert done.returncode == 1
    assert "s.csv has semicolons between its columns" in done.stderr


def test_a_replay_refuses_a_bundle_of_other_data(tables: Path) -> None:
    driftline(tables, "data", "import", "--name", "mine", "--map", "user=who,item=what,time=when", "--events", "e.csv")
    bundle = make_bundle(tables / "bundle", n_items=4, d=8, srm_dim=8, window=4)
    done = driftline(tables, "replay", "mine", "--bundle", str(bundle.path), "--bootstrap", "127.0.0.1:1")
    assert done.returncode == 1
    assert "was trained on other data" in done.stderr
    assert "--bundle, DRIFTLINE_BUNDLE" in done.stderr


def test_a_replay_without_a_broker_or_with_two_paces_says_so(tables: Path) -> None:
    two = driftline(tables, "replay", "mine", "--speed", "3", "--rate", "3")
    assert two.returncode == 2
    assert "exclude each other" in two.stderr
    nowhere = driftline(tables, "replay", "nope")
    assert nowhere.returncode == 1
    assert "there is no dataset nope" in nowhere.stderr
