"""A tiny dataset with structure, an encoder that needs no model, and a bundle trained on them in seconds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl

from cloud_worker.encoder import EncodedBatch
from cloud_worker.training.options import (
    CalibratorOptions,
    FitOptions,
    HeadOptions,
    MomentOptions,
    ProjectorOptions,
    TrainOptions,
)
from cloud_worker.training.train import train_bundle
from streams.bundle import Bundle, load_bundle
from streams.datasets import Prepared, Split, global_time_split
from streams.datasets.base import EVENT_SCHEMA
from streams.datasets.prepared import Manifest

N_ITEMS, USERS, LENGTH = 60, 50, 24
HOUR_MS = 3_600_000
OPTIONS = TrainOptions(
    d=16,
    hidden=24,
    srm=FitOptions(16, 5, 2, 0.1, 16, learning_rate=1e-2, positions=256),
    sequence=FitOptions(16, 5, 2, 0.1, 16, learning_rate=1e-2, positions=256),
    projector=ProjectorOptions(hidden=32, stand_in_positions=2_000, epochs=2, batch=128, learning_rate=5e-3),
    moments=MomentOptions(train=200, valid=120, encoded_train=60, encoded_valid=40),
    calibrator=CalibratorOptions(hidden=16, steps=30, final_steps=40),
    heads=HeadOptions(hidden=4, epochs=5),
)


class HashEncoder:
    """The port, with a direction for each word of a text: deterministic, and alike for alike texts."""

    model_id = "hash-16"
    dim = 16

    def encode(self, texts):
        vectors = np.full((len(texts), self.dim), 1e-3, np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                seed = int.from_bytes(hashlib.blake2b(word.strip(".,;()").encode(), digest_size=4).digest(), "little")
                vectors[row] += np.random.default_rng(seed).normal(size=self.dim).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return EncodedBatch(vectors, np.full(len(texts), 3, np.int64))


def made_up(seed: int = 0) -> Prepared:
    """Users walk along a ring of items and take none twice; every fifth step is at the time of the one before."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(USERS):
        at, start, seen = int(rng.integers(N_ITEMS)), float(rng.uniform(0, 80)), set[int]()
        for step in range(LENGTH):
            at = (at + (1 if rng.random() < 0.8 else 7)) % N_ITEMS
            while at in seen:
                at = (at + 1) % N_ITEMS
            seen.add(at)
            time = start + step - (step % 5 == 4)
            rows.append((f"u{user}", f"i{at}", int(time * HOUR_MS), "view", None))
    events = pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row").sort("event_time_ms", maintain_order=True)
    return prepared_of(events, f"hash-{seed}")


def made_up_data() -> tuple[Prepared, Split]:
    prepared = made_up()
    return prepared, global_time_split(prepared.events)


def train_made_up(path: Path) -> Bundle:
    train_bundle(*made_up_data(), HashEncoder(), path, OPTIONS)
    return load_bundle(path)


def prepared_of(events: pl.DataFrame, content: str, *, n_items: int = N_ITEMS, repeats: bool = False) -> Prepared:
    items = pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(n_items)],
            "title": [f"title{i}" for i in range(n_items)],
            "categories": [f"kind{i // 10}" for i in range(n_items)],
        }
    )
    times = events["event_time_ms"]
    manifest = Manifest(
        schema=1,
        name="made-up",
        title="",
        terms="",
        source="",
        created="",
        events=len(events),
        devices=events["device_id"].n_unique(),
        items=n_items,
        start_ms=int(times[0]),
        end_ms=int(times[-1]),
        repeats=repeats,
        hash=content,
        left_out={},
        files={},
    )
    return Prepared(Path(), manifest, events, items)
