"""The encoder port over an OpenAI-compatible endpoint: POST <base>/embeddings."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import numpy as np
import numpy.typing as npt

from cloud_worker.encoder.base import EncodedBatch, batches_by_length, checked, empty_batch
from streams.clock import Clock, SystemClock
from streams.errors import EncoderError

MAX_CHARS: Final = 6000
"""Hosted models refuse what exceeds their context (8,191 tokens) instead of cutting it: we cut."""
CHARS_PER_TOKEN: Final = 4
"""Rule of thumb for servers that do not tell their usage."""
RETRIED: Final = frozenset({408, 409, 429, 500, 502, 503, 504})
FIRST_WAIT_S: Final = 0.25
LONGEST_WAIT_S: Final = 8.0
LONGEST_TOLD_WAIT_S: Final = 30.0
"""A server may ask for any Retry-After; the worker has deadlines."""


def openai_id(model: str) -> str:
    """The id of a model behind an endpoint."""
    return f"openai-{model}"


class OpenAIEncoder:
    """Asks a server. Its dimension is learned from a first, one-word call.

    Parameters
    ----------
    base_url
        Up to and including the version: ``https://host/v1``. Without a path, ``/v1`` is added.
    model
        The server's name of the model; it is also the model id that bundles remember.
    api_key
        Sent as a bearer token when not empty; never logged or quoted.
    batch_size
        Texts in one request.
    timeout_s
        Of one request.
    attempts
        Tries of one request before it counts as failed; waits double from a quarter of a second, with jitter.
    clock
        Waits between the tries.
    jitter
        A number in [0, 1) each time it is called.

    Raises
    ------
    EncoderError
        No address or model is named, or the endpoint does not answer usefully.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str = "",
        *,
        batch_size: int = 64,
        timeout_s: float = 30.0,
        attempts: int = 5,
        clock: Clock | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if not base_url or not model:
            raise EncoderError(
                "the encoder 'openai' needs an address and a model",
                remedy="set cloud.encoder_url (https://host/v1) and cloud.encoder_model",
            )
        self._url = _embeddings_url(base_url)
        self._model = model
        self._batch_size = batch_size
        self._attempts = attempts
        self._clock = clock or SystemClock()
        self._jitter = jitter
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(timeout=timeout_s, headers=headers)
        vectors, _ = self._ask(["dimension"])
        self._dim = int(vectors.shape[1])

    @property
    def model_id(self) -> str:
        """The server's name of the model: its weights cannot be seen from here."""
        return openai_id(self._model)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def encode(self, texts: Sequence[str]) -> EncodedBatch:
        """Encode (B,) texts.

        Raises
        ------
        EncoderError
            The endpoint stayed away through all tries, refused, or answered something else than vectors.
        """
        if not texts:
            return empty_batch(self._dim)
        vectors = np.empty((len(texts), self._dim), np.float32)
        tokens = np.empty(len(texts), np.int64)
        for rows in batches_by_length([len(text) for text in texts], self._batch_size):
            # An empty input is refused by hosted models; a blank one is the nearest thing.
            batch = [texts[row][:MAX_CHARS] or " " for row in rows]
            answer, tokens[rows] = self._ask(batch)
            if answer.shape[1] != self._dim:
                raise EncoderError(f"{self._url} answered dimension {answer.shape[1]} after {self._dim}")
            vectors[rows] = answer
        return checked(vectors, tokens, len(texts), self._dim, self.model_id)

    def _ask(self, batch: Sequence[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """One request, tried again while the trouble may pass."""
        body = {"model": self._model, "input": list(batch), "encoding_format": "float"}
        for attempt in range(1, self._attempts + 1):
            told: str | None = None
            try:
                response = self._http.post(self._url, json=body)
            except httpx.TransportError as exc:
                trouble = f"{type(exc).__name__}: {exc}"
            else:
                if response.status_code == httpx.codes.OK:
                    return _read(response, batch, self._url)
                trouble = f"status {response.status_code}: {response.text[:200]}"
                if response.status_code not in RETRIED:
                    raise EncoderError(f"{self._url} refused: {trouble}", remedy=_remedy(response.status_code))
                told = response.headers.get("retry-after")
            if attempt < self._attempts:
                self._clock.sleep(_wait(attempt, told, self._jitter()))
        raise EncoderError(f"{self._url} failed {self._attempts} times, at last with {trouble}")


def _embeddings_url(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise EncoderError(f"cloud.encoder_url {base_url!r} is no http address", remedy="write it as https://host/v1")
    path = parts.path.rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path.removesuffix('/embeddings')}/embeddings"


def _wait(attempt: int, told: str | None, jitter: float) -> float:
    """Seconds before the next try: what the server asked for, or exponential with half of it random."""
    if told is not None and told.strip().replace(".", "", 1).isdigit():
        return min(float(told), LONGEST_TOLD_WAIT_S)
    full = min(FIRST_WAIT_S * 2.0 ** (attempt - 1), LONGEST_WAIT_S)
    return full * (0.5 + 0.5 * jitter)


def _remedy(status: int) -> str:
    if status in {401, 403}:
        return "set cloud.encoder_api_key"
    if status == httpx.codes.NOT_FOUND:
        return "check cloud.encoder_url and cloud.encoder_model"
    return ""


def _read(
    response: httpx.Response, batch: Sequence[str], url: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """(n, dim) vectors in the order of the request, and (n,) tokens."""
    try:
        answer: dict[str, Any] = response.json()
        by_index = {int(each["index"]): each["embedding"] for each in answer["data"]}
        vectors = np.array([by_index[index] for index in range(len(batch))], dtype=np.float32)
        usage = answer.get("usage") or {}
        total = int(usage.get("total_tokens") or usage.get("prompt_tokens") or 0)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise EncoderError(f"{url} answered something that is no list of embeddings: {exc!r}") from exc
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise EncoderError(f"{url} answered vectors of shape {vectors.shape}")
    return vectors, _share([len(text) for text in batch], total)


def _share(lengths: Sequence[int], total: int) -> npt.NDArray[np.int64]:
    """Split the request's tokens over its texts by their lengths, so that the shares add up to the bill."""
    if total <= 0:
        return np.array([-(-length // CHARS_PER_TOKEN) for length in lengths], np.int64)
    edges = np.cumsum(np.array(lengths, np.float64)) / sum(lengths) * total
    return np.diff(np.rint(edges), prepend=0.0).astype(np.int64)
