"""Device records as they would have been at moments of the test period: what the runtimes are compared on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloud_worker.evaluation.cloud_lists import lists_of
from cloud_worker.evaluation.test_period import TestPeriod
from cloud_worker.training import signals
from cloud_worker.training.evaluate import Moments
from cloud_worker.training.snapshots import Pairs as SnapshotPairs
from device_agent.learning import Learning
from device_agent.ranking import Mode, without_seen
from device_agent.serving import Pairs
from device_agent.signals import SignalWriter
from device_agent.state import Records, StateLayout
from device_agent.step import Wave
from streams.bundle import Bundle

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Recorded:
    """R devices, each before an interaction of the test period.

    Attributes
    ----------
    records
        (R,) with one arm; φ has the age at the interaction.
    items
        (R,) what is taken.
    gap, age_ms
        (R,) interactions and event time since the embedding.
    users
        (R,) whose they are.
    trained_after
        m and φ after the interaction, as the code of training computes them, (K, d + P); and (K,) for which devices,
        since it knows them only where there is a next interaction.
    """

    bundle: Bundle
    layout: StateLayout
    records: Records
    items: npt.NDArray[np.int32]
    gap: Ints
    age_ms: Ints
    users: Ints
    trained_after: tuple[Ints, Floats]

    def __len__(self) -> int:
        return len(self.records)

    def pairs(self, ranking: Mode) -> Pairs:
        """As the device hands them to its models."""
        arm = self.records["arm"]
        return Pairs(
            self.items[:, None],
            self.records["srm_hidden"],
            arm["embedding"][:, 0],
            self.layout.recent(self.records)[:, 0],
            self.gap[:, None],
            np.ascontiguousarray(arm["candidates"][:, 0] if ranking == "candidates" else self.records["seen"]),
            self.layout.last_items(self.records, 0),
        )

    def graph_inputs(self, ranking: Mode) -> dict[str, npt.NDArray[np.generic]]:
        """Every input that a whole graph may have (`device_agent.device_graph`)."""
        pairs = self.pairs(ranking)
        return {
            **pairs._asdict(),
            "candidates" if ranking == "candidates" else "seen": pairs.choice,
            "last_items": self.records["last_item"][:, None],
            "age_ms": self.age_ms[:, None],
            "count": self.records["count"][:, None],
            "history": self.records["history_items"],
            "history_len": self.records["history_len"][:, None],
        }

    def windows(self) -> Ints:
        """(R, W) the last items, what is taken among them, oldest first; -1 behind."""
        known, window = self.records["history_len"][:, None], self.layout.window
        steps = np.arange(window)
        places = np.maximum(known + 1 - window, 0) + steps
        items = np.take_along_axis(self.records["history_items"], places % window, axis=1)
        return np.where(places < known, items, np.where(places == known, self.items[:, None], -1)).astype(np.int64)

    def learned(self) -> Records:
        """(R,) the records after the interaction, by the device's own code."""
        writer = SignalWriter(self.bundle)
        learning, after = Learning(self.bundle, self.layout, writer), self.layout.copy(self.records)
        rows = len(after)
        nothing = np.zeros(rows, np.int64)
        wave = Wave(self.items, nothing, nothing.astype(np.uint64), nothing, np.ones(rows, np.bool_), 0)
        learning.learn(after, wave, wave.hashes, None)
        embedding = after["arm"]["embedding"].astype(np.float32)
        learning.signals(after, embedding, self.gap[:, None] + 1, all_known=True)
        return after


def record(period: TestPeriod, pairs: SnapshotPairs, candidates: int) -> Recorded:
    """Records of devices that serve fresh snapshots with the embeddings, and the lists, of stale ones."""
    bundle, bench, histories = period.bundle, period.bench, period.histories
    layout = StateLayout(bundle.manifest, 1, candidates=candidates)
    records = layout.new(len(pairs))
    moments = bench.moments(pairs.fresh)
    means, phi = bench.raw_signals(pairs)
    since = bench.snapshots.positions[pairs.stale]
    gap = moments.positions - since
    starts = histories.starts[moments.users]
    arm = records["arm"]
    arm["embedding"][:, 0] = bench.embeddings[pairs.stale]
    length = np.linalg.norm(arm["embedding"][:, 0].astype(np.float32), axis=1)
    arm["inverse_norm"][:, 0] = np.divide(1, length, out=np.zeros(len(pairs), np.float32), where=length > 0)
    arm["recent_mean"][:, 0] = means
    decay = bundle.manifest.recency_decay
    arm["recent_norm"][:, 0] = (1 - decay**gap) / (1 - decay) if decay < 1 else gap
    arm["phi"][:, 0] = phi
    lists = lists_of(period, candidates).take(pairs.stale)
    arm["candidates"][:, 0, : lists.items.shape[1]] = np.where(lists.listed, lists.items, -1)
    records["srm_hidden"] = moments.hidden
    records["last_item"] = histories.items[starts + moments.positions - 1]
    for name in ("count", "served", "history_len", "hash_count"):
        records[name] = moments.positions
    rows, back = np.nonzero(np.arange(layout.window) < moments.positions[:, None])
    places = moments.positions[rows] - 1 - back
    for name, kept in (("history_items", histories.items), ("history_times", histories.times_ms)):
        records[name][rows, places % layout.window] = kept[starts[rows] + places]
    if bundle.manifest.exclude_seen:
        seen = moments.seen()
        assert seen is not None
        records["seen"] = np.packbits(seen, axis=1, bitorder="little")
        arm["candidates"][:, 0] = without_seen(arm["candidates"][:, 0], records["seen"])
    age = histories.times_ms[starts + moments.positions] - histories.times_ms[starts + since - 1]
    trained_after = _trained_after(period, moments, since, bench.embeddings[pairs.stale])
    items = moments.targets.astype(np.int32)
    return Recorded(bundle, layout, records, items, gap, np.maximum(age, 0), moments.users, trained_after)


def _trained_after(period: TestPeriod, moments: Moments, since: Ints, embeddings: Floats) -> tuple[Ints, Floats]:
    """See `Recorded.trained_after`."""
    bench, histories = period.bench, period.histories
    rows = np.flatnonzero(moments.positions + 1 < histories.lengths[moments.users])
    users, begin, end = moments.users[rows], since[rows], moments.positions[rows] + 1
    hidden = period.networks.srm.running_states(histories, users, end)
    means = signals.recent_means(histories, users, begin, end, bench.unit, bench.decay)
    phi = signals.signals(histories, users, begin, end, embeddings[rows], hidden, means, bench.unit, bench.spaces)
    return rows, np.concatenate([means, phi], axis=1)
