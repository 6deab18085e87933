"""The device agent's core: B devices and A arms step at once, from records and events to new records and decisions.

Nothing here reads a clock, a file or a topic, and no argument is changed: the same core runs under the Kafka worker,
in a simulation and in tests. For each interaction:

1. drop it if the device has applied its offset, or knows the hash of its event id;
2. **serve** (`device_agent.serving`): rank from the state before the interaction (prequential), with the calibrated
   embedding of each arm;
3. **learn** (`device_agent.learning`): history, SRM state, seen items, what was taken since each arm's embedding;
4. compute the staleness signals;
5. **ask** each arm's policy (`device_agent.asking`), and mark the request as under way: one at a time for a device and
   arm, until an embedding that knows as much arrives or the deadline is over.

Backfill (``serve`` False) only learns. An item that the bundle does not know is counted and served (its rank is 0:
it could not be ranked), but leaves history, SRM state and seen items alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from device_agent.asking import Asking
from device_agent.embeddings import APPLIED, FATES, FUTURE, NOT_FINITE, OLDER, REPEATED, Embeddings
from device_agent.learning import Learning
from device_agent.ranking import Mode, popular_items, without_seen
from device_agent.serving import NumpyServing, Pairs, Served, Serving
from device_agent.signals import SignalWriter, write_age
from device_agent.state import Records, StateLayout
from device_agent.step import StepResult, Wave, nothing_happened
from device_agent.trends import TrendsBoard
from streams.bundle import Bundle
from streams.experiment.arms import ArmSpec
from streams.neighbours import NEAR

__all__ = [
    "APPLIED",
    "FATES",
    "FUTURE",
    "NOT_FINITE",
    "OLDER",
    "REPEATED",
    "DeviceCore",
    "StepResult",
    "Wave",
]

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

# Constants are arrays without a dimension: numpy takes a microsecond to make one of a Python number at each use.
_ZERO: Final = np.array(0)
_ONE: Final = np.array(1)
_FIRST_HASH: Final = np.array(1, np.uint64)


class DeviceCore:
    """The device step for one bundle and one experiment.

    Parameters
    ----------
    bundle
        The models.
    arms
        The experiment's arms; their policies are built here.
    ranking
        ``"catalogue"`` ranks all items, ``"candidates"`` those that came with the embedding, or the most popular
        ones before the first embedding.
    list_length
        k, items in the list that is served.
    deadline_ms
        Wall time after which a request under way is given up.
    candidates
        C, candidates kept with an embedding.
    serving
        What the models run on (`device_agent.serving.make_serving`), for the same bundle; its ranking and list length
        take the place of those given here. None: numpy.
    trends
        The tables of what people take near what; `serving` must have been made for them. None: none.

    Raises
    ------
    SettingsError
        An arm names a policy or parameter that does not exist.
    BundleError
        Its numbers are so large that scores would overflow.
    """

    def __init__(
        self,
        bundle: Bundle,
        arms: Sequence[ArmSpec],
        *,
        ranking: Mode = "catalogue",
        list_length: int = 10,
        deadline_ms: int = 30_000,
        candidates: int = 100,
        serving: Serving | None = None,
        trends: TrendsBoard | None = None,
    ) -> None:
        manifest, tensors = bundle.manifest, bundle.device
        self.bundle = bundle
        self.arms = tuple(arms)
        self.deadline_ms = deadline_ms
        self.layout = StateLayout(manifest, len(self.arms), candidates=candidates)
        self._asking = Asking(self.arms, tensors, deadline_ms)
        self._trends = trends
        self._serving = serving or NumpyServing(bundle, ranking=ranking, list_length=list_length)
        self.ranking: Mode = self._serving.ranking
        self.list_length = self._serving.list_length
        writer = SignalWriter(bundle)
        self._learning = Learning(bundle, self.layout, writer)
        self._embeddings = Embeddings(manifest, self.layout, writer)
        self._popular = popular_items(tensors["popularity"], candidates)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Every word for why a request is made; the first is the empty string."""
        return self._asking.reasons

    def step(self, records: Records, wave: Wave) -> StepResult:
        """Apply one event to each of B devices.

        Parameters
        ----------
        records
            (B,) the devices' records; `StateLayout.new` for a device that was never seen. They are not changed.
        wave
            Their events.
        """
        hashes = np.maximum(wave.hashes, _FIRST_HASH)  # 0 marks an empty slot
        already = wave.offsets <= records["applied"]
        repeated = records["recent_hashes"] == hashes[:, None]
        if not np.count_nonzero(already) and not np.count_nonzero(repeated):
            return self._step_live(self.layout.copy(records), wave, hashes, already)
        duplicate = repeated.any(axis=1) & ~already
        dropped = already | duplicate
        live = np.flatnonzero(~dropped)
        copied = self.layout.copy(records)
        whole = nothing_happened(copied, already, duplicate, len(self.arms), self.list_length)
        whole.records["applied"][duplicate] = wave.offsets[duplicate]
        if not len(live):
            return whole
        part = self._step_live(self.layout.take(records, live), wave.take(live), hashes[live], dropped[live])
        self.layout.put(whole.records, live, part.records)
        columns: tuple[npt.NDArray[Any], ...] = whole[1:]
        for mine, theirs in zip(columns, part[1:], strict=True):
            mine[live] = theirs
        return whole._replace(already_applied=already, duplicate=duplicate)

    def apply_embeddings(
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
        """Take the cloud's answers into use, one for each of B different devices.

        An embedding is taken only if its as_of is newer than the cached one's. Any usable answer to the request under
        way ends the wait for it, taken or not; one that is not finite does not, so the deadline keeps a device from
        asking a broken cloud again and again.

        Parameters
        ----------
        records
            (B,) they are not changed.
        arm_index
            (B,) which arm each embedding is for.
        vectors
            (B, d)
        as_of, event_time_ms, requested_at_ms
            (B,) as in `streams.events.Embedding`.
        candidates
            For each device its item indexes, best first; cut or filled up to C. What is no item, or stands there
            twice, is left out.
        now_ms
            Wall time.

        Returns
        -------
        (B,) new records, and (B,) codes of `FATES`
        """
        return self._embeddings.apply(
            records, arm_index, vectors, as_of, event_time_ms, requested_at_ms, candidates, now_ms
        )

    def history(self, record: Any) -> tuple[Int32s, Int64s]:
        """What a refresh request sends of one record: the last items, oldest first, and their event times."""
        length, window = int(record["history_len"]), self.layout.window
        slots = np.arange(max(0, length - window), length) % window
        return record["history_items"][slots], record["history_times"][slots]

    def _step_live(self, out: Records, wave: Wave, hashes: npt.NDArray[np.uint64], no_rows: Bools) -> StepResult:
        """Step devices none of which drops its event; `out` is ours and is changed."""
        arm = out["arm"]
        as_of = arm["as_of"].copy()
        has = as_of >= _ZERO
        lacking = None if np.count_nonzero(has) == has.size else ~has
        age = np.maximum(wave.times_ms[:, None] - arm["embedded_time_ms"], _ZERO)
        gap = out["count"][:, None] - as_of

        # Serve, from the state before the interaction: of the signals, only the embedding's age has moved on.
        phi = arm["phi"]
        write_age(phi, age)
        served_age = age
        if lacking is not None:
            phi[lacking] = 0
            gap[lacking] = -1
            served_age = np.where(lacking, -1, age)
        asked = self._asked(wave)
        served, trends_as_of_ms = self._serve(out, wave, gap, asked)

        out_of_order = wave.times_ms < out["last_time_ms"]
        unknown = wave.items < _ZERO
        all_known = not np.count_nonzero(unknown)
        self._learning.learn(out, wave, hashes, None if all_known else ~unknown)
        gap_after = gap + _ONE
        self._learning.signals(out, arm["embedding"].astype(np.float32), gap_after, all_known=all_known)
        if lacking is not None:
            phi[lacking] = 0
            gap_after[lacking] = -1
        request, reason, urgency = self._asking.ask(out, wave, has=has, gap=gap_after, age=age, asked=asked)
        return StepResult(
            records=out,
            already_applied=no_rows,
            duplicate=no_rows,
            out_of_order=out_of_order,
            unknown=unknown,
            served=wave.serve,
            rank=served.rank,
            ranked=served.ranked,
            top=served.top,
            staleness=served.staleness,
            gap=gap,
            age_ms=served_age,
            as_of=as_of,
            trends_as_of_ms=trends_as_of_ms,
            freshness_ms=arm["freshness_ms"].copy(),
            request=request,
            reason=reason,
            urgency=urgency,
        )

    def _asked(self, wave: Wave) -> Bools | None:
        """(B, A) which arms serve and decide; None: all."""
        everywhere = np.count_nonzero(wave.serve) == len(wave.serve)
        if wave.arms_active is None:
            return None if everywhere else np.repeat(wave.serve[:, None], len(self.arms), axis=1)
        return wave.arms_active if everywhere else wave.arms_active & wave.serve[:, None]

    def _serve(self, out: Records, wave: Wave, gap: Int64s, asked: Bools | None) -> tuple[Served, Int64s]:
        """Serve each device and arm that is asked: arrays of (B, A) and (B, A, k), and (B,) as_of of the tables."""
        listed: Int32s | npt.NDArray[np.uint8]
        (b, a), k, arm, items = gap.shape, self.list_length, out["arm"], wave.items
        recent, hidden, seen = self.layout.recent(out), out["srm_hidden"], out["seen"]
        last = self.layout.last_items(out, 0 if self._trends is None else NEAR)
        as_of = np.full(b, -1, np.int64)
        if asked is None and a == 1:
            listed = self._choice(arm["candidates"][:, 0], gap, seen) if self.ranking == "candidates" else seen
            pairs = Pairs(items[:, None], hidden, arm["embedding"][:, 0], recent[:, 0], gap, listed, last)
            served, as_of[:] = self._served(pairs, wave.times_ms)
            return Served(served.staleness, served.rank, served.ranked, served.top[:, None]), as_of
        rows = np.arange(b * a) if asked is None else np.flatnonzero(asked)
        device, which = np.divmod(rows, a)
        of_rows, unranked = gap[device, which][:, None], seen[device]
        listed = unranked
        if self.ranking == "candidates":
            listed = self._choice(arm["candidates"][device, which], of_rows, unranked)
        pairs = Pairs(
            items[device, None],
            hidden[device],
            arm["embedding"][device, which],
            recent[device, which],
            of_rows,
            listed,
            last[device],
        )
        whole = Served(
            np.ones((b, a), np.float32),
            np.zeros((b, a), np.int32),
            np.zeros((b, a), np.int32),
            np.full((b, a, k), -1, np.int32),
        )
        if not len(rows):
            return whole, as_of
        served, as_of[device] = self._served(pairs, wave.times_ms[device])
        for mine, theirs in zip(whole[:3], served[:3], strict=True):
            mine[device, which] = theirs[:, 0]
        whole.top[device, which] = served.top
        return whole, as_of

    def _served(self, pairs: Pairs, times_ms: Int64s) -> tuple[Served, Int64s]:
        """Serve R pairs at event times (R,), each with the table of its time; and (R,) as_of of these tables."""
        as_of = np.full(len(times_ms), -1, np.int64)
        shares = () if self._trends is None else self._trends.shares(times_ms)
        if len(shares) <= 1:
            table = shares[0].table if shares else None
            if table is not None:
                as_of[:] = table.as_of_ms
            return self._serving(pairs, table), as_of
        parts, order = [], []
        for table, rows in shares:
            at = np.arange(len(times_ms)) if rows is None else rows
            parts.append(self._serving(pairs.take(at), table))
            order.append(at)
            if table is not None:
                as_of[at] = table.as_of_ms
        back = np.argsort(np.concatenate(order))
        return Served(*(np.concatenate(columns)[back] for columns in zip(*parts, strict=True))), as_of

    def _choice(self, candidates: Int32s, gap: Int64s, seen: npt.NDArray[np.uint8]) -> Int32s:
        """(R, C) candidates, with popular items where there is no embedding, as the gaps (R, 1) say."""
        lacking = gap[:, 0] < _ZERO
        if not np.count_nonzero(lacking):
            return candidates
        popular = np.repeat(self._popular[None], np.count_nonzero(lacking), axis=0)
        candidates = candidates.copy()
        candidates[lacking] = without_seen(popular, seen[lacking]) if seen.shape[1] else popular
        return candidates
