"""A small valid bundle with random tensors, for tests that need one and do not care what it learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from streams.bundle import DIN_PARTS, PHI, SRM_TENSORS, Bundle, Items, Period, load_bundle, save_bundle

ENCODER_ID = "test-encoder"
GENRES = ("comedy", "drama", "horror", "science fiction", "animation")


def make_bundle(
    path: Path,
    *,
    n_items: int = 200,
    d: int = 128,
    seed: int = 0,
    text_dim: int = 384,
    encoder_id: str = ENCODER_ID,
    srm_dim: int = 64,
    profile_items: int = 10,
    window: int = 50,
    exclude_seen: bool = True,
    srm: str = "gru4rec",
) -> Bundle:
    """Write a bundle to `path` and load it again; the same arguments give the same bundle id."""
    rng = np.random.default_rng(seed)
    p, h, hidden = len(PHI), srm_dim, 64

    def normal(*shape: int, scale: float = 0.1) -> np.ndarray:
        return rng.normal(0.0, scale, shape).astype(np.float32)

    popularity = np.sort(rng.zipf(1.5, n_items).clip(max=10_000))[::-1].astype(np.float32)
    device = {
        "item_vectors": normal(n_items, d, scale=d**-0.5),
        "item_bias": normal(n_items),
        "popularity": popularity,
        "srm.item_in": normal(n_items, h),
        "srm.norm.weight": np.ones(h, np.float32),
        "srm.norm.bias": np.zeros(h, np.float32),
        "srm.gru.weight_ih": normal(3 * h, h),
        "srm.gru.weight_hh": normal(3 * h, h),
        "srm.gru.bias_ih": normal(3 * h),
        "srm.gru.bias_hh": normal(3 * h),
        "srm.item_out": normal(n_items, h),
        "srm.bias_out": normal(n_items),
        "phi.mean": normal(p),
        "phi.scale": np.ones(p, np.float32),
        "calibrator.gate.weight": normal(d, 2 * d + h + p),
        "calibrator.gate.bias": np.full(d, 2.0, np.float32),
        "calibrator.mlp.0.weight": normal(hidden, 2 * d + h + p),
        "calibrator.mlp.0.bias": np.zeros(hidden, np.float32),
        "calibrator.mlp.2.weight": normal(d, hidden),
        "calibrator.mlp.2.bias": np.zeros(d, np.float32),
        "calibrator.tau": np.array([3.0], np.float32),
        "staleness.0.weight": normal(8, p),
        "staleness.0.bias": normal(8),
        "staleness.2.weight": normal(1, 8),
        "staleness.2.bias": np.zeros(1, np.float32),
        "worth.0.weight": normal(8, p),
        "worth.0.bias": normal(8),
        "worth.2.weight": 0.1 * normal(1, 8),
        "worth.2.bias": np.zeros(1, np.float32),
        "fusion.alpha": np.array([0.6, 0.4], np.float32),
        "fusion.trends": np.array([0.2, 0.7], np.float32),
    }
    if srm != "gru4rec":
        device = {name: tensor for name, tensor in device.items() if name not in SRM_TENSORS["gru4rec"]}
        device |= srm_tensors(srm, np.random.default_rng(seed), n_items, h, window)
    cloud = {
        "projector.0.weight": normal(256, text_dim, scale=text_dim**-0.5),
        "projector.0.bias": normal(256),
        "projector.2.weight": normal(d, 256),
        "projector.2.bias": normal(d),
        "sequence.table": device["item_vectors"],
        "sequence.bias": device["item_bias"],
        "sequence.gaps": normal(16, d),
        "sequence.norm.weight": np.ones(d, np.float32),
        "sequence.norm.bias": np.zeros(d, np.float32),
        "sequence.gru.weight_ih": normal(3 * 96, d),
        "sequence.gru.weight_hh": normal(3 * 96, 96),
        "sequence.gru.bias_ih": normal(3 * 96),
        "sequence.gru.bias_hh": normal(3 * 96),
        "sequence.out.weight": normal(d, 96),
        "sequence.out.bias": normal(d),
    }
    live = {
        "keys": np.zeros(0, np.uint64),
        "lengths": np.zeros(0, np.int64),
        "items": np.zeros(0, np.int32),
        "times_ms": np.zeros(0, np.int64),
        "counts": np.zeros(n_items),
        "counts_at_ms": np.zeros(1, np.int64),
        "taken": np.zeros(n_items, np.int64),
        "takers": np.zeros(0, np.int32),
    }
    items = Items(
        ids=[f"i{index}" for index in range(n_items)],
        titles=[f"Title number {index}" for index in range(n_items)],
        categories=["|".join(sorted({GENRES[index % 5], GENRES[index % 3]})) for index in range(n_items)],
    )
    manifest = {
        "created": "2026-01-01T00:00:00Z",
        "driftline_version": "0.1.0",
        "dataset": "made",
        "dataset_hash": "0" * 16,
        "seed": seed,
        "train": Period(0, 800, 800),
        "valid": Period(800, 900, 100),
        "test": Period(900, 1000, 100),
        "n_items": n_items,
        "d": d,
        "srm_dim": srm_dim,
        "encoder": encoder_id,
        "text_dim": text_dim,
        "profile_items": profile_items,
        "window": window,
        "recency_decay": 0.8,
        "exclude_seen": exclude_seen,
        "blend": {"sequence": 0.5, "text": 0.2, "live": 0.3},
        "live": {"last": 10, "users": 1000, "ring": 20, "takers": 16},
        "quick": False,
        "retrained": True,
        "metrics": {},
        "srm": srm,
    }
    save_bundle(path, manifest, items, device, cloud, live)
    return load_bundle(path)


def srm_tensors(srm: str, rng: np.random.Generator, n_items: int, h: int, window: int) -> dict[str, np.ndarray]:
    """Random tensors of an SRM's own, of the sizes that training leads to; a DIN's tables are those of its network."""
    part = h // DIN_PARTS
    sizes = {"N": n_items, "h": h, "W": window, f"h / {DIN_PARTS}": part, str(DIN_PARTS): DIN_PARTS}
    tensors = {}
    for name, meaning in SRM_TENSORS[srm].items():
        shape = [sizes[each.strip()] for each in meaning[1 : meaning.index(")")].split(",") if each.strip()]
        centre = 1.0 if name.endswith("norm.weight") else 0.0
        tensors[name] = rng.normal(centre, h**-0.5 if len(shape) == 2 else 0.1, shape).astype(np.float32)
    return tensors | din_tables(tensors) if srm == "din" else tensors


def din_parts(tensors: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a DIN's network makes of its items: (N, k) x and (N, C) φ and ψ, as its definition has them."""
    t = {name: each.astype(np.float64) for name, each in tensors.items()}
    e = t["srm.items"]
    x = (e - e.mean(axis=1, keepdims=True)) / np.sqrt(e.var(axis=1, keepdims=True) + 1e-5)
    x = x * t["srm.norm.weight"] + t["srm.norm.bias"]
    taken, candidate = (
        np.logaddexp(0, x @ t[f"srm.{each}.weight"].T + t[f"srm.{each}.bias"]) for each in ("taken", "candidate")
    )
    return x, taken, candidate


def din_tables(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a device reads of a DIN, from its network."""
    x, taken, candidate = din_parts(tensors)
    tables = {
        "srm.item_in": (taken[:, :, None] * x[:, None]).reshape(len(x), -1),
        "srm.item_out": (candidate[:, :, None] * tensors["srm.items"][:, None]).reshape(len(x), -1),
        "srm.decay": np.repeat(1 / (1 + np.exp(-tensors["srm.decay_logit"])), x.shape[1]),
    }
    return {name: each.astype(np.float32) for name, each in tables.items()}
