"""``driftline evaluate`` as a user meets it: on a small dataset, with a bundle that was trained in seconds."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from cloud_worker.encoder import make_encoder
from cloud_worker.encoder.model_folder import find_model_folder
from cloud_worker.training.bundles import bundle_path
from cloud_worker.training.train import train_bundle
from infra.evaluation import run_folder
from infra.evaluation.run_folder import make_run_folder, plain
from streams.datasets import global_time_split, load_prepared
from streams.errors import EnvironmentProblem
from streams.settings import CloudSettings
from tests.cloud_worker.evaluation_data import OPTIONS
from tests.command import TINY, Command, import_tiny

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A text encoder of one layer with random weights, which loads and encodes at once."""
    folder = tmp_path_factory.mktemp("model") / "m"
    shutil.copytree(find_model_folder(""), folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    torch.manual_seed(0)
    config = BertConfig(hidden_size=384, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def command(tmp_path_factory, model: Path) -> Command:
    place = tmp_path_factory.mktemp("evaluate")
    command = Command(place / "home")
    import_tiny(command, place)
    prepared = load_prepared(command.home, TINY)
    split = global_time_split(prepared.events)
    encoder = make_encoder(CloudSettings(encoder="onnx", encoder_model=str(model)), command.home)  # loads in a second
    train_bundle(prepared, split, encoder, bundle_path(command.home, TINY, 0, split), OPTIONS)
    return command


@pytest.fixture
def evaluate(command: Command, model: Path):
    def run(*arguments: str):
        return command.run(
            "evaluate",
            *arguments,
            DRIFTLINE_CLOUD__ENCODER="onnx",
            DRIFTLINE_CLOUD__ENCODER_MODEL=str(model),
            DRIFTLINE_DATASET=TINY,
        )

    return run


def left_behind(answer: dict, verb: str) -> dict:
    """The run folder of an answer: its plot and result are there; its manifest is returned."""
    folder = Path(answer["meta"]["folder"])
    assert (folder / f"{verb}.png").read_bytes().startswith(PNG)
    assert (folder / f"{verb}.png").stat().st_size > 10_000
    assert json.loads((folder / "result.json").read_text()) == answer
    return json.loads((folder / "manifest.json").read_text())


def test_trends_prints_what_a_broadcast_adds_by_gap_and_by_refreshes(evaluate, command: Command) -> None:
    done = evaluate("trends", "--json", "--moments", "60", "--gaps", "1,4", "--kept", "30")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    methods = {row["method"] for row in answer["rows"]}
    assert len(methods) == 9
    assert {"SRM", "SRM + trends", "fused calibrated + trends", "fused fresh"} < methods
    assert {row["gap"] for row in answer["rows"]} == {1, 4}
    shares = [row["share"] for row in answer["refreshes"] if row["added"] == "trends"]
    assert shares == [0, 0.05, 0.1, 0.2, 0.5, 1]
    assert "stale; a table of 30 neighbours of each of" in answer["meta"]["notes"][0]
    assert "one every 24 h" in answer["meta"]["notes"][0]
    options = left_behind(answer, "trends")["options"]
    assert (options["kept"], options["every_hours"]) == (30, 24)
    assert evaluate("trends", "--gaps", "x").returncode == 2
    off = command.run("evaluate", "trends", DRIFTLINE_CLOUD__TRENDS_HOURS="0")
    assert off.returncode == 2
    assert "name hours with --every-hours" in off.stderr


def test_profiles_prints_every_template_and_what_it_costs(evaluate) -> None:
    done = evaluate("profiles", "--json", "--moments", "60", "--learn", "40")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [row["template"] for row in answer["rows"]] == ["served", "no ages", "titles", "tastes"]
    assert all(row["characters"] > 0 and 0 <= row["ndcg@10.low"] <= row["ndcg@10"] for row in answer["rows"])
    assert {row["template"] for row in answer["differences"]} == {"no ages", "titles", "tastes"}
    assert left_behind(answer, "profiles")["options"] == {"moments": 60, "learn": 40, "seed": 0}
    assert "learned from 40 profiles before the test period" in answer["meta"]["notes"][0]


def test_staleness_prints_every_method_at_every_gap_and_leaves_a_run_folder(evaluate, command: Command) -> None:
    done = evaluate("staleness", "--json", "--moments", "150", "--gaps", "0,2,8", "--seed", "3")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    methods = {row["method"] for row in answer["rows"]}
    assert {"popularity", "item-kNN", "SRM", "cloud stale", "cloud fresh", "calibrated"} < methods
    assert {"control: second SRM seed", "control: distilled head, no cloud", "fused calibrated"} < methods
    assert len(answer["rows"]) == 3 * len(methods)
    for row in answer["rows"]:
        assert 0 <= row["ndcg@10.low"] <= row["ndcg@10"] <= row["ndcg@10.high"] <= row["hr@10.high"] <= 1
    by = {(row["method"], row["gap"]): row for row in answer["rows"]}
    assert by["fused stale", 0]["mrr"] == by["fused fresh", 0]["mrr"]
    found = {(row["method"], row["other"]) for row in answer["differences"] if row["gap"] == 0}
    assert {("fused fresh", each) for each in ("SRM", "control: second SRM seed")} <= found
    manifest = left_behind(answer, "staleness")
    assert manifest["options"] == {"moments": 150, "gaps": [0, 2, 8], "seed": 3}
    assert manifest["dataset_hash"] == load_prepared(command.home, TINY).manifest.hash
    assert set(manifest["periods"]) == {"training", "validation", "test"}
    assert manifest["periods"]["test"]["start"] == manifest["periods"]["validation"]["end"]
    assert Path(answer["meta"]["folder"]).parent == command.home / "evaluations"


def test_without_controls_the_table_says_so(evaluate, command: Command, tmp_path: Path) -> None:
    (bundle,) = (command.home / "bundles").iterdir()
    shutil.copytree(bundle, tmp_path / "b", ignore=shutil.ignore_patterns("controls.safetensors"))
    out = tmp_path / "out"
    done = evaluate(
        "staleness", "--moments", "60", "--gaps", "0,4,500", "--bundle", str(tmp_path / "b"), "--out", str(out)
    )
    assert done.returncode == 0, done.stderr
    assert "without controls" in done.stdout
    assert "control: second" not in done.stdout
    assert "no history drawn is long enough for gap 500" in done.stdout
    assert "validation" in done.stdout
    assert f"written to {out}" in done.stdout
    assert {each.name for each in out.iterdir()} == {"result.json", "manifest.json", "staleness.png"}
    assert done.stderr.count("\r") == 0, "no bars where there is no terminal"


def test_reliability_compares_the_expected_gain_with_every_other_score(evaluate) -> None:
    done = evaluate("reliability", "--json", "--moments", "150")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {(row["without"], row["gap"]) for row in answer["rows"]} >= {("fused calibrated", "all"), ("fused stale", 4)}
    assert {row["rate"] for row in answer["decisions"]} == {0.05, 0.1, 0.2}
    assert len({row["score"] for row in answer["decisions"]}) == 8
    assert len(answer["diagram"]) == 20
    options = left_behind(answer, "reliability")["options"]
    assert (options["candidates"], options["every_hours"]) == (100, 24)
    assert any("every 24 h is added before and after" in note for note in answer["meta"]["notes"])
    done = evaluate("reliability", "--json", "--moments", "150", "--every-hours", "0")
    alone = json.loads(done.stdout)
    assert evaluate("reliability", "--every-hours", "0.001").returncode == 2
    assert any(note.startswith("no broadcast") for note in alone["meta"]["notes"])
    gains = ({(row["score"], row["rate"]): row["gain"] for row in each["decisions"]} for each in (answer, alone))
    assert next(gains) != next(gains)


def test_collaborative_shows_every_rule_and_who_asks(evaluate) -> None:
    done = evaluate("collaborative", "--json", "--moments", "150", "--gap", "8", "--candidates", "30")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    asked = {(row["rule"], row["asks"], row["ratio"]) for row in answer["rows"]}
    for who in ("random", "disagreement, as released", "disagreement, per device", "reliability s", "oracle"):
        for ratio in (0, 0.05, 0.1, 0.2, 0.5, 1):
            assert ("SRM×2 (λ = 2)", who, ratio) in asked
    assert {row["training"] for row in answer["rows"]} == {"independent"}
    assert any("driftline train collaborative" in note for note in answer["meta"]["notes"])
    assert any(note.startswith("learned λ: ") for note in answer["meta"]["notes"])
    assert ("learned λ", "oracle", 1) in asked
    manifest = left_behind(answer, "collaborative")
    assert manifest["options"]["candidates"] == 30


def test_all_runtimes_agree_on_recorded_moments_with_the_code_of_training(evaluate) -> None:
    done = evaluate("runtime", "--json", "--moments", "60")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    compared = {(row["quantity"], *sorted((row["one"], row["other"]))) for row in answer["parity"]}
    for quantity in ("scores", "staleness s", "calibrated ê", "SRM state after", "m and φ after"):
        assert {(quantity, "ONNX", "numpy"), (quantity, "numpy", "torch"), (quantity, "ONNX", "torch")} <= compared
    assert max(row["error"] for row in answer["parity"]) < 1e-4
    times = {(row["runtime"], row["item_vectors"], row["ranking"], row["rows"]): row for row in answer["rows"]}
    assert len(times) == 5 * 2 * 2
    assert all(row["us_per_call"] > 0 for row in times.values())
    assert {(row["ranking"], row["runtime"]) for row in answer["int8"]} == {
        (ranking, name) for ranking in ("candidates", "catalogue") for name in ("ONNX", "numpy")
    }
    assert all(abs(row["difference"]) < 0.1 for row in answer["int8"])
    left_behind(answer, "runtime")


def test_without_a_bundle_it_says_how_to_train_one(evaluate) -> None:
    done = evaluate("staleness", "--dataset", "toys")
    assert done.returncode == 1
    assert "there is no bundle of dataset toys" in done.stderr
    assert "driftline train --dataset toys" in done.stderr


def test_a_bundle_of_another_dataset_is_refused(evaluate, command: Command) -> None:
    (bundle,) = (command.home / "bundles").iterdir()
    done = evaluate("reliability", "--dataset", "toys", "--bundle", str(bundle))
    assert done.returncode == 1
    assert f"was trained on other data: on {TINY}, not on toys" in done.stderr


def test_a_gap_longer_than_any_history_leaves_no_folder(evaluate, command: Command, tmp_path: Path) -> None:
    done = evaluate("staleness", "--gaps", "5000", "--moments", "30", "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "a gap of 5000 is longer than any history" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("gaps", ["a", "-1", "1,,2"])
def test_gaps_that_are_no_numbers_are_a_usage_error(evaluate, gaps: str) -> None:
    done = evaluate("staleness", "--gaps", gaps)
    assert done.returncode == 2
    assert "--gaps takes" in " ".join(done.stderr.split())


def test_a_folder_that_cannot_be_made_is_said_before_the_work(evaluate, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = evaluate("staleness", "--out", str(tmp_path / "file"))
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "--out" in done.stderr


def test_two_runs_in_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    made = [make_run_folder(tmp_path, "staleness", "d", None, now).path.name for _ in range(3)]
    assert made == ["staleness-d-20260102T030405", "staleness-d-20260102T030405~2", "staleness-d-20260102T030405~3"]


def test_a_number_that_is_none_is_null_in_json() -> None:
    assert plain({"a": float("nan"), "b": [float("inf"), torch.tensor(1.5)]}) == {"a": None, "b": [None, 1.5]}


def test_git_revision_is_that_of_this_checkout_and_none_where_there_is_none(tmp_path: Path, monkeypatch) -> None:
    if (run_folder.ROOT / ".git").exists():
        revision = run_folder.git_revision()
        assert revision is not None
        assert len(revision["revision"]) == 40
    monkeypatch.setattr(run_folder, "ROOT", tmp_path)
    assert run_folder.git_revision() is None


def test_a_result_that_cannot_be_written_names_the_folder(tmp_path: Path) -> None:
    folder = make_run_folder(tmp_path, "x", "d", None, datetime.now(UTC))
    shutil.rmtree(folder.path)
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        folder.write_result({})
