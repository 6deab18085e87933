"""The encoder port: texts in, unit vectors and their cost out; and the check that every answer passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from streams.errors import EncoderError

UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class EncodedBatch:
    """The answer to one call.

    Parameters
    ----------
    vectors
        (B, dim) float32, each of length 1, in the order of the texts.
    tokens
        (B,) tokens encoded for each text: its cost; 0 where the vector came from a cache.
    cached
        How many of them came from a cache.
    """

    vectors: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.int64]
    cached: int = 0


class Encoder(Protocol):
    """Turns texts into vectors.

    Implementations are deterministic, and take no text at all, an empty text, a text longer than the model reads (its
    front counts) and any script.
    """

    @property
    def model_id(self) -> str:
        """What made the vectors: equal ids mean interchangeable vectors. A bundle remembers it."""
        ...

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    def encode(self, texts: Sequence[str]) -> EncodedBatch:
        """Encode (B,) texts.

        Raises
        ------
        EncoderError
            The model could not be reached, or its answer is not (B, dim) finite numbers.
        """
        ...


def checked(vectors: npt.ArrayLike, tokens: npt.ArrayLike, texts: int, dim: int, model_id: str) -> EncodedBatch:
    """Normalise an implementation's answer, or refuse it.

    Raises
    ------
    EncoderError
        Not (texts, dim), not finite, or a vector without a direction.
    """
    rows = np.asarray(vectors, dtype=np.float32)
    if rows.shape != (texts, dim):
        raise EncoderError(f"encoder {model_id} answered {rows.shape} for {texts} texts of dimension {dim}")
    if not np.isfinite(rows).all():
        raise EncoderError(f"encoder {model_id} answered NaN or infinity")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if texts and lengths.min() < UNIT_TOLERANCE:
        raise EncoderError(f"encoder {model_id} answered a zero vector, which has no direction")
    return EncodedBatch(rows / lengths, np.asarray(tokens, dtype=np.int64).reshape(texts))


def empty_batch(dim: int) -> EncodedBatch:
    """The answer to no texts."""
    return EncodedBatch(np.zeros((0, dim), np.float32), np.zeros(0, np.int64))


def batches_by_length(lengths: Sequence[int] | npt.NDArray[np.int64], size: int) -> Iterator[npt.NDArray[np.intp]]:
    """Indexes of the texts in batches of like length (in tokens or characters), longest first.

    A batch is padded to its longest text, so like lengths waste nothing; longest first shows at once whether the
    memory suffices. Ties keep their order: the same texts always meet in the same batches.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]
