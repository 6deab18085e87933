"""Taking the cloud's answers into use: which embedding is taken, and what it leaves in a device's record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from device_agent.ranking import without_seen
from device_agent.signals import SignalWriter, inverse_norms, recent_of_window, write_age
from device_agent.state import Records, StateLayout
from streams.bundle import Manifest

Floats = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

APPLIED: Final = 0
OLDER: Final = 1
REPEATED: Final = 2
FUTURE: Final = 3
NOT_FINITE: Final = 4
FATES: Final = ("applied", "older", "repeated", "future", "not-finite")
"""What became of an embedding, by the codes that `Embeddings.apply` returns: it was taken; it knows less than the
cached one; exactly as much; more interactions than the device has seen; it holds NaN or infinity."""


class Embeddings:
    """Applies embeddings to records of one layout."""

    def __init__(self, manifest: Manifest, layout: StateLayout, writer: SignalWriter) -> None:
        self._manifest = manifest
        self._layout = layout
        self._writer = writer

    def apply(
        self,
        records: Records,
        arm_index: npt.NDArray[np.integer],
        vectors: Floats,
        as_of: Int64s,
        event_time_ms: Int64s,
        requested_at_ms: Int64s,
        candidates: Sequence[npt.NDArray[np.integer]] | npt.NDArray[np.integer],
        now_ms: int,
    ) -> tuple[Records, npt.NDArray[np.uint8]]:
        """See `device_agent.agent.DeviceCore.apply_embeddings`."""
        out = self._layout.copy(records)
        arm = out["arm"]
        every = np.arange(len(out))
        with np.errstate(over="ignore", invalid="ignore"):
            half = np.asarray(vectors).astype(np.float16)
        finite = np.logical_and.reduce(np.isfinite(half), axis=1)
        cached = arm["as_of"][every, arm_index]
        fate = np.select(
            [~finite, as_of > out["count"], as_of < cached, as_of == cached],
            [NOT_FINITE, FUTURE, OLDER, REPEATED],
            APPLIED,
        ).astype(np.uint8)
        waiting_for = arm["inflight_as_of"][every, arm_index]
        answered = np.flatnonzero((fate != NOT_FINITE) & (fate != FUTURE) & (as_of >= waiting_for))
        for name in ("inflight_as_of", "inflight_until_ms"):
            arm[name][answered, arm_index[answered]] = -1
        rows = np.flatnonzero(fate == APPLIED)
        if not len(rows):
            return out, fate
        at = (rows, arm_index[rows])
        arm["embedding"][at] = half[rows]
        arm["as_of"][at] = as_of[rows]
        arm["embedded_time_ms"][at] = event_time_ms[rows]
        arm["freshness_ms"][at] = np.maximum(now_ms - requested_at_ms[rows], 0)
        listed = self._clean_candidates([candidates[row] for row in rows.tolist()])
        arm["candidates"][at] = without_seen(listed, out["seen"][rows]) if self._manifest.exclude_seen else listed
        gap = out["count"][rows] - as_of[rows]
        mean, norm = recent_of_window(
            out["history_items"][rows],
            out["history_len"][rows],
            gap,
            self._writer.directions,
            float(np.float32(self._manifest.recency_decay)),
        )
        vector = half[rows].astype(np.float32)
        inverse_norm = inverse_norms(vector)
        arm["recent_mean"][at] = mean
        arm["recent_norm"][at] = norm
        arm["inverse_norm"][at] = inverse_norm
        phi = np.empty((len(rows), 1, arm["phi"].shape[-1]), np.float32)
        self._writer.write_embedded(phi[:, 0], vector)
        self._writer.write(
            phi,
            embedding=vector[:, None],
            inverse_norm=inverse_norm[:, None],
            mean=mean[:, None],
            norm=norm[:, None],
            gap=gap[:, None],
            last_item=out["last_item"][rows],
            hidden=out["srm_hidden"][rows],
            count=out["count"][rows],
        )
        write_age(phi, np.maximum(out["last_time_ms"][rows] - event_time_ms[rows], 0)[:, None])
        arm["phi"][at] = phi[:, 0]
        return out, fate

    def _clean_candidates(self, lists: list[npt.NDArray[np.integer]]) -> Int32s:
        """(n, C) candidates, each an item of the bundle and each once, filled up with -1."""
        clean = np.full((len(lists), self._layout.candidates), -1, np.int32)
        for row, given in enumerate(lists):
            listed = np.asarray(given)
            listed = listed[(listed >= 0) & (listed < self._manifest.n_items)]
            first = np.unique(listed, return_index=True)[1]
            if len(first) != len(listed):
                listed = listed[np.sort(first)]
            kept = listed[: self._layout.candidates]
            clean[row, : len(kept)] = kept
        return clean
