"""What every encoder promises, whichever implementation it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cloud_worker.cache import CachedEncoder, EmbeddingCache
from cloud_worker.encoder import Encoder, make_encoder
from streams.settings import CloudSettings
from tests.encoders import KEY, embedding_server

TEXTS = [
    "Recently, newest first. today: Heat (crime, drama); Toy Story (animation). 3 days before: Alien (horror).",
    "",
    "Alien (horror)",
    "天空の城ラピュタ",
    "الرجل الذي باع ظهره — Ελληνικά, русский, हिन्दी 🎬",
    "one word after another " * 2000,
    " ",
]


@pytest.fixture(scope="module")
def home(exports_home: Path) -> Path:
    return exports_home


@pytest.fixture(scope="module", params=["sentence-transformers", "onnx", "onnx-int8", "openai", "cached"])
def encoder(request: pytest.FixtureRequest, home: Path) -> Iterator[Encoder]:
    if request.param == "openai":
        with embedding_server() as server:
            settings = CloudSettings(
                encoder="openai", encoder_model="test", encoder_url=server.url, encoder_api_key=KEY
            )
            yield make_encoder(settings, home)
    elif request.param == "cached":
        inner = make_encoder(CloudSettings(), home)
        yield CachedEncoder(inner, EmbeddingCache(home / "cache", 10_000_000))
    else:
        yield make_encoder(CloudSettings(encoder=request.param), home)


def test_every_text_has_a_unit_vector_and_a_cost(encoder: Encoder) -> None:
    batch = encoder.encode(TEXTS)
    assert batch.vectors.shape == (len(TEXTS), encoder.dim)
    assert batch.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(batch.vectors, axis=1), 1, atol=1e-5)
    assert batch.tokens.shape == (len(TEXTS),)
    assert batch.tokens.sum() > 0


def test_the_same_texts_have_the_same_vectors_always(encoder: Encoder) -> None:
    np.testing.assert_array_equal(encoder.encode(TEXTS).vectors, encoder.encode(TEXTS).vectors)


def test_a_batch_equals_one_by_one_in_the_order_given(encoder: Encoder) -> None:
    texts = TEXTS * 6  # more than one inner batch
    together = encoder.encode(texts).vectors
    alone = np.concatenate([encoder.encode([text]).vectors for text in TEXTS] * 6)
    np.testing.assert_allclose(together, alone, atol=1e-4)
    turned = encoder.encode(texts[::-1]).vectors
    np.testing.assert_allclose(turned[::-1], together, atol=1e-4)


def test_different_texts_have_different_vectors(encoder: Encoder) -> None:
    vectors = encoder.encode(["Heat (crime)", "Toy Story (animation)", "天空の城ラピュタ", ""]).vectors
    assert (vectors @ vectors.T - np.eye(4)).max() < 0.99


def test_of_a_text_that_is_too_long_the_front_counts(encoder: Encoder) -> None:
    long = "a quiet film about the sea " * 5000
    vectors = encoder.encode([long + " tail one", long + " another tail", "x " + long]).vectors
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


def test_no_texts_have_no_vectors(encoder: Encoder) -> None:
    batch = encoder.encode([])
    assert batch.vectors.shape == (0, encoder.dim)
    assert batch.tokens.shape == (0,)
