"""The OpenAI-compatible encoder against a real server that misbehaves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cloud_worker.encoder.openai import OpenAIEncoder
from streams.clock import ManualClock
from streams.errors import EncoderError
from tests.encoders import KEY, EmbeddingServer, embedding_server, hash_vector


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with embedding_server(dim=16) as each:
        yield each


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def encoder(server: EmbeddingServer, clock: ManualClock) -> Iterator[OpenAIEncoder]:
    made = OpenAIEncoder(server.url, "m", KEY, batch_size=3, attempts=4, clock=clock, jitter=lambda: 1.0)
    server.requests.clear()
    yield made
    made.close()


def test_texts_go_out_in_batches_and_come_back_by_index(server: EmbeddingServer, encoder: OpenAIEncoder) -> None:
    texts = [f"title {i} " + "x " * i for i in range(8)]
    batch = encoder.encode(texts)
    np.testing.assert_allclose(batch.vectors, [hash_vector(text, 16) for text in texts], atol=1e-6)
    assert [len(request["input"]) for request in server.requests] == [3, 3, 2]
    assert {request["model"] for request in server.requests} == {"m"}


def test_the_bill_is_shared_by_length_and_adds_up(server: EmbeddingServer, encoder: OpenAIEncoder) -> None:
    texts = ["one", "one two three four five six", "one two"]
    tokens = encoder.encode(texts).tokens
    assert tokens.sum() == sum(len(text.split()) + 2 for text in texts)
    assert tokens[1] == tokens.max()
    server.usage = False
    assert encoder.encode(texts).tokens.tolist() == [1, 7, 2], "a rule of thumb where the server does not tell"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_trouble_that_may_pass_is_waited_out(
    server: EmbeddingServer, encoder: OpenAIEncoder, clock: ManualClock, status: int
) -> None:
    server.troubles = [(status, {})] * 3
    assert encoder.encode(["a"]).vectors.shape == (1, 16)
    assert clock.monotonic() == pytest.approx(0.25 + 0.5 + 1.0), "waits double"


def test_the_server_says_how_long_to_wait(server: EmbeddingServer, encoder: OpenAIEncoder, clock: ManualClock) -> None:
    server.troubles = [(429, {"Retry-After": "7"})]
    encoder.encode(["a"])
    assert clock.monotonic() == 7


def test_trouble_that_stays_is_an_error(server: EmbeddingServer, encoder: OpenAIEncoder) -> None:
    server.troubles = [(503, {})] * 4
    with pytest.raises(EncoderError, match="failed 4 times, at last with status 503"):
        encoder.encode(["a"])


def test_a_refusal_is_not_repeated(server: EmbeddingServer, encoder: OpenAIEncoder) -> None:
    server.troubles = [(400, {})]
    with pytest.raises(EncoderError, match="refused: status 400"):
        encoder.encode(["a"])
    assert len(server.requests) == 1


def test_a_server_that_is_gone_is_an_error() -> None:
    with embedding_server(dim=16) as other:
        made = OpenAIEncoder(other.url, "m", KEY, attempts=2, clock=ManualClock())
    with pytest.raises(EncoderError, match="failed 2 times"):
        made.encode(["a"])


def test_a_wrong_key_is_refused_and_not_quoted(server: EmbeddingServer) -> None:
    with pytest.raises(EncoderError, match=r"status 401.*encoder_api_key") as caught:
        OpenAIEncoder(server.url, "m", "wrong-key")
    assert "wrong-key" not in str(caught.value)


def _with(position: int, value: Any) -> Any:
    def change(answer: dict[str, Any]) -> dict[str, Any]:
        answer["data"][position]["embedding"] = value
        return answer

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_with(0, [float("nan")] * 16), "NaN or infinity"),
        (_with(0, [0.0] * 16), "zero vector"),
        (_with(0, [1.0] * 5), "no list of embeddings"),
        (lambda answer: answer | {"data": answer["data"][1:]}, "no list of embeddings"),
        (lambda answer: answer | {"data": [each | {"embedding": [1.0] * 8} for each in answer["data"]]}, "dimension 8"),
        (lambda _: {"hello": "there"}, "no list of embeddings"),
        (lambda _: [1, 2], "no list of embeddings"),
    ],
)
def test_an_answer_that_is_no_list_of_vectors_is_refused(
    server: EmbeddingServer, encoder: OpenAIEncoder, change: Any, says: str
) -> None:
    server.change = change
    with pytest.raises(EncoderError, match=says):
        encoder.encode(["a", "b"])


@pytest.mark.parametrize("url", ["", "localhost:80", "ftp://host/v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(EncoderError, match="encoder_url"):
        OpenAIEncoder(url, "m")


def test_the_path_of_the_address_may_be_left_out(server: EmbeddingServer) -> None:
    for url in (server.url, server.url.removesuffix("/v1"), f"{server.url}/", f"{server.url}/embeddings"):
        assert OpenAIEncoder(url, "m", KEY).dim == 16
