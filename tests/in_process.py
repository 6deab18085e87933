"""A demo without Kafka: devices and a cloud in this process, fed with a dataset in its own order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from cloud_worker.history import History
from cloud_worker.live.broadcast import MOST
from cloud_worker.live.index import LiveIndex
from cloud_worker.live.neighbour_counts import neighbour_table, neighbours_kept
from cloud_worker.live.reader import live_options
from cloud_worker.live.shared import SharedIndex
from cloud_worker.user_model import BlendedUserModel
from device_agent.agent import APPLIED, DeviceCore, Wave
from device_agent.serving import make_serving
from device_agent.trends import TrendsBoard
from infra.demo.record import FORMAT, ServedLog, ServedManifest, embeddings_frame
from streams.bundle import Bundle
from streams.clock import ManualClock
from streams.datasets import Prepared
from streams.events import SCHEMA_VERSION, Embedding, Recommendation, event_hash, pack_items, pack_vector
from streams.experiment.arms import ArmSpec, parse_arm
from streams.neighbours import NeighbourTable

RUN = "in-process"
CANDIDATES = 20
TABLE_MS = 3_600_000
"""From one neighbour table to the next."""
TABLE_LATE = 5
"""Interactions that are served before a table that is due is there."""


class InProcess:
    """Serves a test period, an event at a time.

    Parameters
    ----------
    late
        Interactions of its device that an embedding misses on its way.
    ahead
        Interactions of everybody that the live index reads before a request's own.
    trends
        Make neighbour tables.
    """

    def __init__(
        self,
        bundle: Bundle,
        prepared: Prepared,
        encoder,
        arms: Sequence[str],
        runtime: str = "numpy",
        *,
        late: int = 2,
        ahead: int = 0,
        trends: bool = True,
    ) -> None:
        self.bundle, self.prepared = bundle, prepared
        self.arms: list[ArmSpec] = [parse_arm(arm) for arm in arms]
        self.late, self.ahead = late, ahead
        self.board = TrendsBoard() if trends else None
        serving = make_serving(bundle, runtime, candidates=CANDIDATES, trends=trends)  # type: ignore[arg-type]
        self.runtime = serving.runtime
        self.core = DeviceCore(bundle, self.arms, serving=serving, candidates=CANDIDATES, trends=self.board)
        self.live = SharedIndex(LiveIndex.from_state(bundle.manifest.n_items, live_options(bundle), dict(bundle.live)))
        self.cloud = BlendedUserModel(bundle, encoder, self.live, ManualClock())
        self.served = ServedLog(RUN)
        self.sent: list[Embedding] = []
        self._records: dict[str, np.ndarray] = {}
        self._under_way: dict[str, list[Embedding]] = defaultdict(list)

    def run(self) -> tuple[ServedManifest, object, object]:
        """Serve the whole test period: the manifest and both tables of a demo's record."""
        events, index = self.prepared.events, {item: at for at, item in enumerate(self.bundle.items.ids)}
        rows = list(events.select("device_id", "item_id", "event_time_ms").iter_rows())
        taken = [(event_hash(device), index[item], time) for device, item, time in rows]
        start = self.bundle.manifest.test.start_ms
        read = next((row for row, (_, _, time) in enumerate(rows) if time >= start), len(rows))
        tables: list[tuple[int, NeighbourTable]] = []
        due = start
        for row, (device, item, time) in enumerate(rows):
            if time >= due:
                as_of_ms = time - (time - start) % TABLE_MS
                tables.append((row + TABLE_LATE, self._table(as_of_ms)))
                due = as_of_ms + TABLE_MS
            while self.board is not None and tables and tables[0][0] <= row:
                self.board.offer(tables.pop(0)[1])
            upto = min(row + 1 + self.ahead, len(rows))
            if time >= start and read < upto:
                columns = zip(*taken[read:upto], strict=True)
                self.live.observe(
                    *(np.array(each, kind) for each, kind in zip(columns, (np.uint64, int, int), strict=True))
                )
                read = upto
            self._step(row, device, index[item], time, serve=time >= start)
        frames = self.served.frame(), embeddings_frame(self.sent)
        return self._manifest(*(len(each) for each in frames)), *frames

    def _table(self, as_of_ms: int) -> NeighbourTable:
        n = self.bundle.manifest.n_items
        lengths, items = self.live.index.sequences(as_of_ms, MOST)
        return neighbour_table(lengths, items, n, as_of_ms=as_of_ms, kept=neighbours_kept(n))

    def _step(self, row: int, device: str, item: int, time: int, *, serve: bool) -> None:
        records = self._records.get(device)
        if records is None:
            records = self.core.layout.new(1)
        count = int(records["count"][0])
        waiting = self._under_way[device]
        while waiting and count >= waiting[0].as_of + self.late:
            records = self._deliver(records, waiting.pop(0))
        event_id = f"{RUN}:{row}"
        wave = Wave(
            np.array([item], np.int32),
            np.array([time], np.int64),
            np.array([event_hash(event_id)], np.uint64),
            np.array([row], np.int64),
            np.array([serve]),
            row,
        )
        result = self.core.step(records, wave)
        self._records[device] = result.records
        if not serve:
            return
        for arm, spec in enumerate(self.arms):
            self._keep(event_id, device, arm, spec, time, result)
            if result.request[0, arm]:
                waiting.append(self._ask(device, spec.name, time, result.records[0]))

    def _ask(self, device: str, arm: str, time: int, record) -> Embedding:
        items, times = self.core.history(record)
        found = self.cloud.embed([History(items, times, event_hash(device), time)], CANDIDATES)
        sent = Embedding(
            SCHEMA_VERSION[Embedding],
            f"{device}-{arm}-{time}",
            device,
            arm,
            self.bundle.id,
            self.cloud.model_id,
            int(record["count"]),
            pack_vector(found.vectors[0]),
            pack_items(found.candidates[0]),
            time,
            0,
            0,
            0.0,
            0,
        )
        self.sent.append(sent)
        return sent

    def _deliver(self, records, sent: Embedding):
        from streams.events import unpack_items, unpack_vector

        after, fates = self.core.apply_embeddings(
            records,
            np.array([[each.name for each in self.arms].index(sent.arm)]),
            unpack_vector(sent.vector)[None],
            np.array([sent.as_of], np.int64),
            np.array([sent.event_time_ms], np.int64),
            np.zeros(1, np.int64),
            [unpack_items(sent.candidates)],
            0,
        )
        assert fates.tolist() == [APPLIED]
        return after

    def _keep(self, event_id: str, device: str, arm: int, spec: ArmSpec, time: int, result) -> None:
        self.served.add(
            Recommendation(
                SCHEMA_VERSION[Recommendation],
                f"0-{event_id}-{spec.name}",
                event_id,
                device,
                spec.name,
                spec.policy,
                [],
                int(result.rank[0, arm]),
                int(result.ranked[0, arm]),
                float(result.staleness[0, arm]),
                1 - float(result.staleness[0, arm]),
                int(result.gap[0, arm]),
                int(result.age_ms[0, arm]),
                int(result.as_of[0, arm]),
                0,
                bool(result.request[0, arm]),
                "",
                time,
                0,
                0.0,
                int(result.trends_as_of_ms[0]),
            )
        )

    def _manifest(self, recommendations: int, embeddings: int) -> ServedManifest:
        return ServedManifest(
            format=FORMAT,
            run=RUN,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            driftline_version="source",
            dataset=self.prepared.manifest.name,
            dataset_hash=self.prepared.manifest.hash,
            bundle=self.bundle.id,
            bundle_path=str(self.bundle.path),
            design="paired",
            arms=[arm.flag() for arm in self.arms],
            ranking="catalogue",
            list_length=10,
            item_vectors="float32",
            encoder="none",
            runtimes={"device-1": self.runtime},
            recommendations=recommendations,
            embeddings=embeddings,
        )
