"""Encoders for tests: one that hashes words, and a small real HTTP server that speaks /v1/embeddings with it."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from cloud_worker.encoder.base import EncodedBatch, checked, empty_batch

KEY = "a-secret-key"


class HashEncoder:
    """Fast and deterministic; remembers what it was asked."""

    def __init__(self, dim: int = 384, model_id: str = "test-encoder") -> None:
        self.dim = dim
        self.model_id = model_id
        self.asked: list[list[str]] = []
        self.failing: Exception | None = None

    def encode(self, texts: Sequence[str]) -> EncodedBatch:
        self.asked.append(list(texts))
        if self.failing is not None:
            raise self.failing
        if not texts:
            return empty_batch(self.dim)
        tokens = [len(text.split()) + 2 for text in texts]
        return checked([hash_vector(text, self.dim) for text in texts], tokens, len(texts), self.dim, self.model_id)


def hash_vector(text: str, dim: int) -> np.ndarray:
    vector = np.zeros(dim)
    for word in ["", *text.split()]:
        seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
        vector += np.random.default_rng(seed).normal(size=dim)
    return vector / np.linalg.norm(vector)


@dataclass
class EmbeddingServer:
    """What the server did, and what it shall do next."""

    url: str = ""
    dim: int = 384
    requests: list[dict[str, Any]] = field(default_factory=list)
    troubles: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Statuses and headers with which the next requests are refused."""
    change: Callable[[dict[str, Any]], Any] = lambda answer: answer
    """Applied to every good answer."""
    delay_s: float = 0.0
    hold: threading.Event | None = None
    """Requests wait until this is set."""
    usage: bool = True
    gone: bool = False

    @property
    def texts(self) -> list[str]:
        return [text for request in self.requests for text in request["input"]]


@contextmanager
def embedding_server(dim: int = 384) -> Iterator[EmbeddingServer]:
    """Start one on a free port; it wants `KEY` and answers in reverse order, as the protocol allows."""
    state = EmbeddingServer(dim=dim)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            if state.gone:
                self.close_connection = True
                return None
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append(body)
            if state.hold is not None:
                state.hold.wait(60)
            time.sleep(state.delay_s)
            if self.path != "/v1/embeddings":
                return self.answer(404, {"error": "no such path"})
            if self.headers.get("Authorization") != f"Bearer {KEY}":
                return self.answer(401, {"error": "no key"})
            if state.troubles:
                status, headers = state.troubles.pop(0)
                return self.answer(status, {"error": "trouble"}, headers)
            if any(text == "" for text in body["input"]):
                return self.answer(400, {"error": "input must not be empty"})
            data = [
                {"object": "embedding", "index": i, "embedding": hash_vector(text, state.dim).tolist()}
                for i, text in enumerate(body["input"])
            ]
            usage = {"total_tokens": sum(len(text.split()) + 2 for text in body["input"])}
            answer = {"object": "list", "data": data[::-1], "model": body["model"]}
            return self.answer(200, state.change(answer | ({"usage": usage} if state.usage else {})))

        def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            raw = json.dumps(body).encode()
            try:
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)
            except ConnectionError:
                pass  # a client that was killed

        def log_message(self, *args: object) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.gone = True
        if state.hold is not None:
            state.hold.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
