"""Text vectors for training: of every item, and of the profiles at the snapshots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from cloud_worker.encoder import Encoder
from cloud_worker.profile_text import item_text, profile_text
from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.snapshots import Snapshots

Floats = npt.NDArray[np.float32]
CHUNK = 256


def encode_all(encoder: Encoder, texts: Sequence[str], on_done: Callable[[int, int], None]) -> Floats:
    """(n, T) vectors of texts; equal ones are encoded once, and texts of like length together."""
    unique = sorted(set(texts), key=lambda text: (-len(text), text))
    parts = [np.zeros((0, encoder.dim), np.float32)]
    for start in range(0, len(unique), CHUNK):
        parts.append(encoder.encode(unique[start : start + CHUNK]).vectors)
        on_done(min(start + CHUNK, len(unique)), len(unique))
    row = {text: index for index, text in enumerate(unique)}
    vectors = np.concatenate(parts)
    return vectors[[row[text] for text in texts]] if texts else vectors


def item_texts(titles: Sequence[str], categories: Sequence[str]) -> list[str]:
    """(N,) the items as the encoder reads them."""
    return [item_text(title, kinds) for title, kinds in zip(titles, categories, strict=True)]


def profile_texts(
    histories: Histories, snapshots: Snapshots, titles: Sequence[str], categories: Sequence[str], last: int
) -> list[str]:
    """(S,) the profiles as the cloud will write them."""
    return [
        profile_text(items, times_ms, titles, categories, last=last)
        for items, times_ms in windows(histories, snapshots, last)
    ]


def windows(histories: Histories, snapshots: Snapshots, reach: int) -> Iterator[tuple[Ints, Ints]]:
    """Each snapshot's last items, at most `reach`, and their times; oldest first."""
    for user, position in zip(snapshots.users, snapshots.positions, strict=True):
        end = histories.starts[user] + position
        window = slice(max(histories.starts[user], end - reach), end)
        yield histories.items[window], histories.times_ms[window]


def stand_ins(
    histories: Histories, users: Ints, positions: Ints, vectors: Floats, *, last: int, decay: float
) -> Floats:
    """(Q, T) what a profile's vector is about: the recency-weighted mean of its items' vectors, of length one.

    A real profile vector costs a forward pass of the encoder; this costs nothing, so it can be had for every position.
    """
    starts = histories.starts[users]
    back = np.arange(last)
    places = starts[:, None] + positions[:, None] - 1 - back
    weight = ((places >= starts[:, None]) * decay**back).astype(np.float32)
    items = histories.items[np.maximum(places, starts[:, None])]
    mixed = np.zeros((len(users), vectors.shape[1]), np.float32)
    for age in range(last):
        mixed += weight[:, age, None] * vectors[items[:, age]]
    mixed /= np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-12)
    return mixed
