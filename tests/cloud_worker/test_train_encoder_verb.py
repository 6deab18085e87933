"""`driftline train encoder` as a user meets it; the encoders themselves are tested beside this file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from cloud_worker.encoder.model_folder import find_model_folder
from tests.command import Command


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path / "home")


def test_it_prints_speed_and_nearness_of_each_encoder(command: Command, tmp_path: Path, shared_data: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(find_model_folder(""), folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    torch.manual_seed(0)
    config = BertConfig(hidden_size=384, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    BertModel(config).save_pretrained(folder)
    done = command.run(
        "train", "encoder", "--json", "--dataset", "ml-100k",
        DRIFTLINE_CLOUD__ENCODER_MODEL=str(folder), DRIFTLINE_DATA=str(shared_data),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [row["model"] for row in answer["rows"]] == ["torch float32", "onnx float32", "onnx int8"]
    torch_row, onnx, int8 = answer["rows"]
    assert torch_row["id"] == onnx["id"] != int8["id"]
    assert int8["size_mb"] < 0.5 * torch_row["size_mb"]
    assert torch_row["ratio"] == 1
    assert onnx["cosine_min"] > 0.9999
    assert int8["cosine_mean"] > 0.99
    assert int8["cosine_min"] <= int8["cosine_mean"]
    assert {path.name for path in Path(answer["meta"]["exports"]).iterdir()} == {f"{onnx['id']}-v1", int8["id"]}
    assert "onnx_ir" not in done.stderr, "the exporter is quiet"


def test_a_model_folder_that_is_none_is_named_with_what_to_do(command: Command) -> None:
    done = command.run("train", "encoder", DRIFTLINE_CLOUD__ENCODER_MODEL="/no/such/model")
    assert done.returncode == 1
    assert "/no/such/model is no sentence-transformers model folder" in done.stderr
    assert "remedy: name one with cloud.encoder_model" in done.stderr


def test_options_of_train_are_not_silently_ignored_before_the_verb(command: Command) -> None:
    done = command.run("train", "--seed", "3", "encoder")
    assert done.returncode == 2
    assert "come after it" in done.stderr


def test_train_itself_still_takes_its_options(command: Command) -> None:
    done = command.run("train", "--dataset", "no-such-data")
    assert done.returncode == 1
    assert "no-such-data" in done.stderr
