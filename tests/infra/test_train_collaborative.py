"""``driftline train collaborative`` as a user meets it, and the table that it adds to the evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from cloud_worker.encoder import make_encoder
from cloud_worker.encoder.model_folder import find_model_folder
from cloud_worker.training.bundles import bundle_path
from cloud_worker.training.train import train_bundle
from streams.datasets import global_time_split, load_prepared
from streams.settings import CloudSettings
from tests.cloud_worker.evaluation_data import OPTIONS
from tests.command import TINY, Command, import_tiny

TRAININGS = {"independent", "cooperative", "adaptive"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The command with a bundle that was trained in seconds, and a text encoder of one layer."""
    place = tmp_path_factory.mktemp("collaborative")
    model = place / "m"
    shutil.copytree(find_model_folder(""), model, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    torch.manual_seed(0)
    config = BertConfig(hidden_size=384, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    BertModel(config).save_pretrained(model)
    command = Command(place / "home")
    import_tiny(command, place)
    prepared = load_prepared(command.home, TINY)
    split = global_time_split(prepared.events)
    encoder = make_encoder(CloudSettings(encoder="onnx", encoder_model=str(model)), command.home)
    train_bundle(prepared, split, encoder, bundle_path(command.home, TINY, 0, split), OPTIONS)
    settings = {"DRIFTLINE_CLOUD__ENCODER": "onnx", "DRIFTLINE_CLOUD__ENCODER_MODEL": str(model)}
    return lambda *arguments: command.run(*arguments, DRIFTLINE_DATASET=TINY, **settings)


def test_it_prints_what_each_training_is_worth_and_the_evaluation_compares_them(run) -> None:
    done = run("train", "collaborative", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {row["training"] for row in answer["rows"]} == TRAININGS
    assert len(answer["rows"]) == 3 * 5
    assert all(row["difference"] == 0 for row in answer["rows"] if row["training"] == "independent")
    assert set(answer["meta"]["lambda"]) == TRAININGS
    assert Path(answer["meta"]["path"]).is_file()

    out = Path(answer["meta"]["path"]).parent.parent / "evaluated"
    done = run(
        "evaluate", "collaborative", "--moments", "150", "--gap", "8", "--candidates", "30", "--out", str(out)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "NDCG@10 by how the SRM was trained" in done.stdout
    assert "cooperative" in done.stdout
    answer = json.loads((out / "result.json").read_text())
    assert {row["training"] for row in answer["rows"]} == TRAININGS
    assert {row["training"] for row in answer["trainings"]} == TRAININGS - {"independent"}
    assert any("learned λ: " in note and "(adaptive)" in note for note in answer["meta"]["notes"])
    assert (out / "collaborative.png").stat().st_size > 10_000


def test_without_a_bundle_it_says_how_to_train_one(run) -> None:
    done = run("train", "collaborative", "--dataset", "toys")
    assert done.returncode == 1
    assert "there is no bundle of dataset toys" in done.stderr


def test_options_of_train_before_the_verb_are_a_usage_error(run) -> None:
    done = run("train", "--seed", "3", "collaborative")
    assert done.returncode == 2
    assert "train collaborative` come after it" in " ".join(done.stderr.split())
