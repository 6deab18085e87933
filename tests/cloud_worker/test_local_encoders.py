"""What holds between the two local implementations, and what they say when a model cannot be used."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cloud_worker.encoder import make_encoder
from cloud_worker.encoder.model_folder import find_model_folder, model_id_of
from cloud_worker.encoder.onnx import OnnxEncoder
from streams.errors import EncoderError
from streams.settings import CloudSettings
from tests.contract.test_encoder_contract import TEXTS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_onnx_equals_sentence_transformers_and_both_have_one_id(home: Path) -> None:
    torch = make_encoder(CloudSettings(), home)
    onnx = make_encoder(CloudSettings(encoder="onnx"), home, threads=1)
    one, other = torch.encode(TEXTS), onnx.encode(TEXTS)
    assert (one.vectors * other.vectors).sum(axis=1).min() > 0.999
    np.testing.assert_array_equal(one.tokens, other.tokens)
    assert torch.model_id == onnx.model_id
    assert [path.name for path in (home / "onnx").iterdir()] == [f"{onnx.model_id}-v1"], "no scratch is left"


def test_onnx_once_exported_needs_no_torch(home: Path) -> None:
    make_encoder(CloudSettings(encoder="onnx"), home)
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from cloud_worker.encoder import make_encoder\n"
        "from streams.settings import CloudSettings\n"
        f"encoder = make_encoder(CloudSettings(encoder='onnx'), Path({str(home)!r}))\n"
        "print(encoder.encode(['Heat']).vectors.shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "(1, 384)", done.stderr


def test_a_damaged_export_says_so(home: Path, tmp_path: Path) -> None:
    encoder = make_encoder(CloudSettings(encoder="onnx"), home)
    copy = tmp_path / "onnx" / f"{encoder.model_id}-v1"
    shutil.copytree(home / "onnx" / copy.name, copy)
    (copy / "model.onnx").write_bytes(b"cut")
    with pytest.raises(EncoderError, match=r"cannot be used.*delete that folder"):
        OnnxEncoder(copy)


def test_the_id_follows_from_the_contents_not_from_the_name(tmp_path: Path) -> None:
    original = find_model_folder("")
    copy = tmp_path / "another name"
    shutil.copytree(original, copy)
    assert model_id_of(copy) == model_id_of(original)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    assert model_id_of(copy) != model_id_of(original)


def test_a_hub_name_is_not_looked_up(home: Path) -> None:
    with pytest.raises(EncoderError, match=r"no sentence-transformers model folder.*not looked up"):
        make_encoder(CloudSettings(encoder_model="sentence-transformers/all-MiniLM-L6-v2"), home)


def test_a_folder_that_cannot_be_loaded_is_named(tmp_path: Path, home: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no such type"}')
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(EncoderError, match=str(tmp_path)):
        make_encoder(CloudSettings(encoder_model=str(tmp_path)), home)
