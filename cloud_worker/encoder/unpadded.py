"""Running a graph that takes one text at a time: no padding, no mask, and no text that changes another's vector."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cloud_worker.encoder.base import batches_by_length

SLOW_FUSIONS: Final = ("SkipLayerNormFusion",)
"""Left out: ONNX Runtime's fused kernel takes 11 ms where the two kernels it replaces take 4 (4096 x 384, AVX-512)."""


class UnpaddedGraph:
    """A graph from token ids (1, L) int64 to one vector (1, dim) float32, and its tokenizer.

    int8 activations share one scale a tensor. In a padded batch a text's vector would therefore depend on its
    neighbours (and differ from run to run as the batches fall); alone it does not, the attention needs no mask, what
    a layer works on fits the cache, and texts instead of parts of a matrix are what threads divide.

    Parameters
    ----------
    graph, tokenizer
        Files.
    max_tokens
        What is longer is cut.
    threads
        Texts encoded at a time, one thread each; None: all cores.
    """

    def __init__(self, graph: Path, tokenizer: Path, max_tokens: int, *, threads: int | None = None) -> None:
        self._tokenizer = load_tokenizer(tokenizer, max_tokens)
        self._session = load_session(graph, 1, SLOW_FUSIONS)
        self._input = self._session.get_inputs()[0].name
        self._threads = threads or os.cpu_count() or 1

    def run(self, texts: Sequence[str], dim: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Vectors (B, dim) as the graph answers them, and tokens (B,), of (B,) texts."""
        encodings = self._tokenizer.encode_batch(list(texts))
        tokens = np.array([len(each.ids) for each in encodings], np.int64)
        vectors = np.empty((len(texts), dim), np.float32)

        def encode(row: int) -> None:
            (answer,) = self._session.run(None, {self._input: np.array([encodings[row].ids], np.int64)})
            vectors[row] = answer[0]

        # Longest first: the threads end together.
        order = [int(row) for (row,) in batches_by_length(tokens, 1)]
        if self._threads == 1 or len(order) < 2:
            for row in order:
                encode(row)
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(encode, order))
        return vectors, tokens


def load_tokenizer(path: Path, max_tokens: int) -> Any:
    """The tokenizer in a file, cutting at `max_tokens` and not padding."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - only machines that encode have it

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(max_length=max_tokens)
    tokenizer.no_padding()
    return tokenizer


def load_session(graph: Path, threads: int | None, left_out: Sequence[str] = ()) -> Any:
    """A session of ONNX Runtime on the CPU, without the optimisations `left_out`."""
    import onnxruntime  # noqa: PLC0415 - only machines that encode have it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(left_out)
    )
