"""``driftline evaluate references`` as a user meets it, without the package it compares with and with it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from cloud_worker.training.bundles import bundle_path
from cloud_worker.training.train import train_bundle
from infra.cli._evaluate_references import need_package
from streams.datasets import global_time_split, load_prepared
from streams.errors import EnvironmentProblem
from tests.cloud_worker.evaluation_data import OPTIONS, HashEncoder
from tests.command import TINY, Command, import_tiny

INSTALLED = importlib.util.find_spec("cornac") is not None
INSTALL = "uv pip install -e '.[compare]' -c infra/constraints.txt"


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EnvironmentProblem, match="of the package cornac, which is not installed") as caught:
        need_package()
    assert INSTALL in caught.value.remedy


@pytest.mark.skipif(INSTALLED, reason="the extra `compare` is installed here")
def test_without_the_package_it_says_so_before_anything_is_looked_for_or_written(tmp_path: Path) -> None:
    done = Command(tmp_path / "home").run("evaluate", "references", "--json", "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error: the published GRU4Rec to compare with is that of the package cornac" in done.stderr
    assert INSTALL in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not INSTALLED, reason=f"the extra `compare` is not installed: {INSTALL}")
def test_the_srm_is_set_against_every_reference(tmp_path: Path) -> None:
    command = Command(tmp_path / "home")
    import_tiny(command, tmp_path)
    prepared = load_prepared(command.home, TINY)
    split = global_time_split(prepared.events)
    train_bundle(prepared, split, HashEncoder(), bundle_path(command.home, TINY, 0, split), OPTIONS)
    done = command.run(
        "evaluate",
        "references",
        "--dataset",
        TINY,
        "--json",
        "--moments",
        "150",
        "--candidates",
        "2",
        "--epochs",
        "12",
        "--seed",
        "3",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "neither the package nor its progress bar says anything"
    answer = json.loads(done.stdout)
    (theirs,) = [row["method"] for row in answer["rows"] if row["method"].startswith("GRU4Rec (Cornac")]
    assert [row["method"] for row in answer["rows"]] == ["popularity", "item-kNN", theirs, "SRM"]
    for row in answer["rows"]:
        assert 0 <= row["ndcg@10.low"] <= row["ndcg@10"] <= row["ndcg@10.high"] <= row["hr@10.high"] <= 1
    others = [row["other"] for row in answer["differences"] if row["metric"] == "mrr"]
    assert others == ["popularity", "item-kNN", theirs]
    by = {row["method"]: row for row in answer["rows"]}
    assert by[theirs]["seconds"] > 0
    assert by[theirs]["ndcg@10"] > by["popularity"]["ndcg@10"], "users of the small data stay with a genre"
    assert max(row["ndcg@10"] for row in answer["trials"]) == answer["trials"][0]["ndcg@10"]
    folder = Path(answer["meta"]["folder"])
    assert folder.parent == command.home / "evaluations"
    assert (folder / "references.png").stat().st_size > 10_000
    assert json.loads((folder / "result.json").read_text()) == answer
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["packages"]["cornac"] in theirs
    assert manifest["options"] == {"moments": 150, "candidates": 2, "epochs": 12, "seed": 3}
