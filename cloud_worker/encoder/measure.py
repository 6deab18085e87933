"""Encoders side by side on the same texts: how fast each is, and how near its vectors come to those of the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cloud_worker.encoder.base import Encoder
from streams.clock import Clock


@dataclass(frozen=True)
class Measured:
    """One encoder.

    Parameters
    ----------
    texts_per_s
        Median over the rounds.
    ratio
        Of its speed to the first encoder's: the median of the rounds' ratios, since a machine that others use is slow
        for whole rounds.
    cosine_mean, cosine_min
        Of its vectors to the first encoder's.
    """

    texts_per_s: float
    ratio: float
    cosine_mean: float
    cosine_min: float


def measure_encoders(
    encoders: Mapping[str, Encoder],
    timed: Sequence[str],
    judged: Sequence[str],
    clock: Clock,
    *,
    rounds: int = 5,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Measured]:
    """Compare encoders with the first of them, in turns.

    Parameters
    ----------
    timed
        Texts encoded by each encoder in each round, in one call.
    judged
        Texts whose vectors are compared.
    progress
        Called `rounds` + 1 times an encoder.

    Raises
    ------
    EncoderError
        An encoder failed.
    ValueError
        There are no encoders, no texts or no rounds.
    """
    if not encoders or not timed or not judged or rounds < 1:
        raise ValueError("encoders, texts and rounds are needed")
    vectors = {}
    for name, encoder in encoders.items():
        vectors[name] = encoder.encode(judged).vectors
        progress()
    seconds = np.empty((rounds, len(encoders)))
    for turn in range(rounds):
        for column, encoder in enumerate(encoders.values()):
            started = clock.monotonic()
            encoder.encode(timed)
            seconds[turn, column] = clock.monotonic() - started
            progress()
    reference = next(iter(vectors.values()))
    found = {}
    for column, name in enumerate(encoders):
        cosines = (vectors[name] * reference).sum(axis=1)
        found[name] = Measured(
            texts_per_s=len(timed) / float(np.median(seconds[:, column])),
            ratio=float(np.median(seconds[:, 0] / seconds[:, column])),
            cosine_mean=float(cosines.mean()),
            cosine_min=float(cosines.min()),
        )
    return found
