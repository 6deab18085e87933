"""The int8 encoder: near the float32 model in every script, alone in a call or not, and made once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from cloud_worker.encoder import Encoder, make_encoder
from cloud_worker.encoder.model_folder import find_model_folder, model_id_of
from cloud_worker.encoder.onnx_int8 import OnnxInt8Encoder, int8_id
from cloud_worker.encoder.onnx_int8_export import CALIBRATION, Int8Meta, write_int8_graph
from cloud_worker.encoder.sample_texts import sample_texts
from cloud_worker.text_part import TextPart
from streams.datasets import Sources, find_dataset, prepare
from streams.errors import BundleError, EncoderError
from streams.settings import CloudSettings
from tests.bundles import make_bundle

SCRIPTS = {
    "Latin": ["Heat (1995) (Action, Crime, Thriller)", "Crème brûlée torch, 2 pièces", "WHITE HANGING HEART HOLDER"],
    "Cyrillic": ["Сталкер (1979) (драма, фантастика)", "Ирония судьбы, или С лёгким паром!"],
    "Chinese, Japanese, Korean": ["霸王别姬 (剧情, 爱情)", "千と千尋の神隠し (アニメ)", "올드보이 (액션, 미스터리)"],
    "none": ["", " ", "1984", "🎬"],
}


@pytest.fixture(scope="module")
def home(exports_home: Path) -> Path:
    return exports_home


@pytest.fixture(scope="module")
def float32(home: Path) -> Encoder:
    return make_encoder(CloudSettings(), home)


@pytest.fixture(scope="module")
def int8(home: Path) -> Encoder:
    return make_encoder(CloudSettings(encoder="onnx-int8"), home, threads=2)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM's tokenizer and chain around a tiny transformer with random weights."""
    folder = tmp_path_factory.mktemp("small") / "model"
    shutil.copytree(find_model_folder(""), folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    torch.manual_seed(0)
    config = BertConfig(hidden_size=384, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    BertModel(config).save_pretrained(folder)
    return folder


def cosines(one: Encoder, other: Encoder, texts: list[str]) -> np.ndarray:
    return (one.encode(texts).vectors * other.encode(texts).vectors).sum(axis=1)


@pytest.mark.parametrize("script", SCRIPTS)
def test_vectors_are_near_those_of_float32_in_every_script(script: str, float32: Encoder, int8: Encoder) -> None:
    assert cosines(float32, int8, SCRIPTS[script]).min() > 0.97


def test_real_profiles_and_items_have_a_mean_cosine_of_099(
    float32: Encoder, int8: Encoder, shared_data: Path, tmp_path: Path
) -> None:
    prepared = prepare(find_dataset("ml-100k"), Sources(shared_data), tmp_path)
    profiles, items = sample_texts(prepared, 60)
    assert len(set(profiles)) == len(set(items)) == 60
    found = cosines(float32, int8, [*profiles, *items])
    assert found.mean() > 0.99
    assert found.min() > 0.97


def test_a_text_has_the_same_vector_in_whatever_company(int8: Encoder) -> None:
    texts = [text for each in SCRIPTS.values() for text in each]
    alone = np.concatenate([int8.encode([text]).vectors for text in texts])
    np.testing.assert_array_equal(int8.encode(texts).vectors, alone)
    loud = ["!" * 500, *texts[::-1], "zzz " * 300]
    np.testing.assert_array_equal(int8.encode(loud).vectors[1:-1], alone[::-1])


def test_neighbours_stay_neighbours(float32: Encoder, int8: Encoder) -> None:
    texts = [text for text in CALIBRATION if text]
    one, other = (encoder.encode(texts).vectors for encoder in (float32, int8))
    np.testing.assert_allclose(other @ other.T, one @ one.T, atol=0.08)


def test_its_id_is_its_own_and_a_bundle_of_the_float32_model_refuses_it(
    float32: Encoder, int8: Encoder, tmp_path: Path
) -> None:

    assert int8.model_id == int8_id(float32.model_id) != float32.model_id
    bundle = make_bundle(tmp_path / "b", encoder_id=float32.model_id)
    with pytest.raises(BundleError, match="trained with the encoder"):
        TextPart(bundle, int8)


def test_an_export_is_made_once_and_reused(int8: Encoder, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr("cloud_worker.encoder.onnx_int8.write_int8_graph", never)
    again = make_encoder(CloudSettings(encoder="onnx-int8"), home)
    np.testing.assert_array_equal(again.encode(["Heat"]).vectors, int8.encode(["Heat"]).vectors)
    left = {path.name for path in (home / "onnx").iterdir()}
    assert int8.model_id in left
    assert {name for name in left if name.startswith(int8.model_id)} == {int8.model_id}, "no scratch is left"


@pytest.fixture(scope="module")
def small_exports(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    exports = tmp_path_factory.mktemp("small-exports")
    OnnxInt8Encoder.from_model_folder(small_model, exports)
    return exports


@pytest.mark.parametrize("damage", ["graph cut", "graph bit", "no tokenizer", "meta", "other processor"])
def test_a_damaged_export_is_refused_and_made_anew(
    damage: str, small_model: Path, small_exports: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_exports, tmp_path, dirs_exist_ok=True)
    first = OnnxInt8Encoder.from_model_folder(small_model, tmp_path)
    folder = tmp_path / first.model_id
    graph, meta = folder / "model.onnx", folder / "meta.json"
    raw = bytearray(graph.read_bytes())
    if damage == "graph cut":
        graph.write_bytes(raw[: len(raw) // 2])
    elif damage == "graph bit":
        raw[len(raw) // 2] ^= 1
        graph.write_bytes(raw)
    elif damage == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif damage == "meta":
        meta.write_bytes(b"{}")
    else:
        then = json.loads(meta.read_bytes())
        meta.write_text(json.dumps(then | {"probe": then["probe"][::-1]}))
    with pytest.raises(EncoderError, match=r"exported graph in .* (cannot be used|is not what|has other vectors)"):
        OnnxInt8Encoder(folder)
    if damage not in {"graph cut", "other processor"}:
        return  # they are made anew as these are; it takes its time
    mended = OnnxInt8Encoder.from_model_folder(small_model, tmp_path)
    np.testing.assert_array_equal(mended.encode(["Heat"]).vectors, first.encode(["Heat"]).vectors)
    assert OnnxInt8Encoder(folder).graph_bytes == first.graph_bytes
    assert [path.name for path in tmp_path.iterdir()] == [first.model_id], "no scratch is left"


def test_an_export_that_fails_leaves_nothing(small_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "model"
    shutil.copytree(small_model, broken)
    (broken / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(EncoderError, match=str(broken)):
        OnnxInt8Encoder.from_model_folder(broken, tmp_path / "exports")
    assert list((tmp_path / "exports").iterdir()) == []


def test_products_stay_float32_until_the_vectors_are_near_enough(small_model: Path, tmp_path: Path) -> None:
    def made(name: str, wanted: float) -> Int8Meta:
        folder = tmp_path / name
        folder.mkdir()
        write_int8_graph(small_model, model_id_of(small_model), folder, mean_cosine=wanted, worst_cosine=0)
        return msgspec.json.decode((folder / "meta.json").read_bytes(), type=Int8Meta)

    free = made("free", 0.9)
    assert free.float32 == []
    wanted = free.cosine_mean + 0.3 * (1 - free.cosine_mean)
    strict = made("strict", wanted)
    assert strict.cosine_mean >= wanted
    assert strict.float32
    assert made("again", wanted) == strict, "the search is deterministic"
    with pytest.raises(EncoderError, match=r"differs from the model"):
        made("impossible", 1.01)
