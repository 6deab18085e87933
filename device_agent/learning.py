"""What an interaction leaves in the records: counts, history, SRM state, m, and the signals φ. All of it in numpy.

What follows from interactions alone is the same to the bit however events were batched (`device_agent.state.digest`).
Everything here keeps that: each row is computed by operations that treat it alone, see `device_agent.row_product`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from device_agent.signals import SignalWriter
from device_agent.srm import make_srm
from device_agent.state import RECENT_HASHES, Records, StateLayout
from device_agent.step import Wave
from streams.bundle import Bundle

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

# Constants are arrays without a dimension: numpy takes a microsecond to make one of a Python number at each use.
_ONE: Final = np.array(1)
_ONE_FLOAT: Final = np.array(1, np.float32)
_NO_ITEM: Final = np.array(-1, np.int32)
_HASHES: Final = np.array(RECENT_HASHES)


class Learning:
    """Writes interactions into records of one layout."""

    def __init__(self, bundle: Bundle, layout: StateLayout, writer: SignalWriter) -> None:
        manifest = bundle.manifest
        self._layout = layout
        self._writer = writer
        self._srm = make_srm(bundle)
        self._exclude_seen = manifest.exclude_seen
        self._decay = np.array(manifest.recency_decay, np.float32)
        self._window = np.array(manifest.window)
        every = np.arange(manifest.n_items)
        self._seen_byte, self._seen_bit = every >> 3, (1 << (every & 7)).astype(np.uint8)

    def learn(self, out: Records, wave: Wave, hashes: npt.NDArray[np.uint64], known: Bools | None) -> None:
        """Apply the wave to `out`. `known`: which items the bundle knows; None: all."""
        if known is None:
            self._items(out, wave.items, wave.times_ms)
        else:
            rows = np.flatnonzero(known)
            part = self._layout.take(out, rows)
            self._items(part, wave.items[rows], wave.times_ms[rows])
            self._layout.put(out, rows, part)
        self._counts(out, wave, hashes, known)

    def signals(self, out: Records, embedding: Floats, gap: Int64s, *, all_known: bool) -> None:
        """Write φ, but for log_age, of embeddings (B, A, d) and gaps (B, A) after the wave."""
        arm = out["arm"]
        self._writer.write(
            arm["phi"],
            embedding=embedding,
            inverse_norm=arm["inverse_norm"],
            mean=arm["recent_mean"],
            norm=None if all_known else arm["recent_norm"],
            gap=gap,
            last_item=out["last_item"],
            hidden=out["srm_hidden"],
            count=out["count"],
        )

    def _items(self, out: Records, items: Int32s, times_ms: Int64s) -> None:
        """History, SRM state, seen items and what was taken since each embedding, of items of the bundle."""
        at = self._layout.every(len(out))
        before, history = out["history_len"], out["history_items"]
        slots = before % self._window
        history[at, slots] = items
        out["history_times"][at, slots] = times_ms
        out["last_item"] = items
        hidden = out["srm_hidden"]
        hidden[...] = self._srm.step(hidden, items, history, before)
        arm = out["arm"]
        if self._exclude_seen:
            out["seen"][at, self._seen_byte.take(items)] |= self._seen_bit.take(items)
            candidates = arm["candidates"]
            np.putmask(candidates, candidates == items[:, None, None], _NO_ITEM)
        mean, norm = arm["recent_mean"], arm["recent_norm"]
        norm *= self._decay
        norm += _ONE_FLOAT
        change = self._writer.directions.take(items, axis=0)[:, None] - mean
        change /= norm[..., None]
        mean += change

    def _counts(self, out: Records, wave: Wave, hashes: npt.NDArray[np.uint64], known: Bools | None) -> None:
        """What every interaction leaves behind, whatever its item."""
        out["recent_hashes"][self._layout.every(len(out)), out["hash_count"] % _HASHES] = hashes
        counters = self._layout.counters(out)
        counters += _ONE  # count, served, history_len, hash_count
        if np.count_nonzero(wave.serve) != len(out):
            counters[~wave.serve, 1] -= 1
        if known is not None:
            counters[~known, 2] -= 1
        last = out["last_time_ms"]
        np.maximum(last, wave.times_ms, out=last)
        out["applied"] = wave.offsets
