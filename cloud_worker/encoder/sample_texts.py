"""Real texts on which encoders are measured: profiles of a dataset's users, and its items."""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from cloud_worker.profile_text import item_text, profile_text
from streams.datasets import Prepared

PROFILE_ITEMS: Final = 6
"""As bundles are trained by default."""


def sample_texts(
    prepared: Prepared, count: int, *, last: int = PROFILE_ITEMS, seed: int = 0
) -> tuple[list[str], list[str]]:
    """Up to `count` profile texts (of users as they stand at the end) and up to `count` item texts, drawn by `seed`."""
    rng = np.random.default_rng(seed)
    titles, categories = prepared.items["title"].to_list(), prepared.items["categories"].to_list()
    index_of = {item: index for index, item in enumerate(prepared.items["item_id"])}
    users = prepared.events["device_id"].unique(maintain_order=True)
    drawn = users.gather(rng.choice(len(users), min(count, len(users)), replace=False))
    recent = (
        prepared.events.filter(pl.col("device_id").is_in(drawn.implode()))
        .group_by("device_id", maintain_order=True)
        .agg(pl.col("item_id", "event_time_ms").tail(last))
    )
    profiles = [
        profile_text([index_of[item] for item in items], times, titles, categories, last=last)
        for items, times in zip(recent["item_id"].to_list(), recent["event_time_ms"].to_list(), strict=True)
    ]
    chosen = rng.choice(len(titles), min(count, len(titles)), replace=False)
    return profiles, [item_text(titles[index], categories[index]) for index in chosen]
