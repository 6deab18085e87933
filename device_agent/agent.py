"""The device agent's core: B devices and A arms step at once, from records and events to new records and decisions.

Nothing here reads a clock, a file or a topic, and no argument is changed: the same core runs under the Kafka worker,
in a simulation and in tests. For each interaction:

1. drop it if the device has applied its offset, or knows the hash of its event id;
2. **serve**: rank from the state before the interaction (prequential), with the calibrated embedding of each arm;
3. **learn**: history, SRM state, seen items, what was taken since each arm's embedding;
4. compute the staleness signals;
5. ask each arm's policy, and mark the request as under way: one at a time for a device and arm, until an embedding
   that knows as much arrives or the deadline is over.

Backfill (``serve`` False) only learns. An item that the bundle does not know is counted and served (its rank is 0:
it could not be ranked), but leaves history, SRM state and seen items alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from device_agent.calibration import Calibrator
from device_agent.policies.base import Signals
from device_agent.policies.registry import build_policy
from device_agent.ranking import Mode, Ranked, Ranker
from device_agent.srm import Srm
from device_agent.staleness import (
    StalenessModel,
    inverse_norms,
    recent_of_window,
    unit_vectors,
    write_age,
    write_signals,
)
from device_agent.state import RECENT_HASHES, Records, StateLayout
from streams.bundle import Bundle
from streams.experiment.arms import ArmSpec

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

# Constants are arrays without a dimension: numpy takes a microsecond to make one of a Python number at each use.
_ZERO: Final = np.array(0)
_ONE: Final = np.array(1)
_ONE_FLOAT: Final = np.array(1, np.float32)
_NO_ITEM: Final = np.array(-1, np.int32)
_FIRST_HASH: Final = np.array(1, np.uint64)
_HASHES: Final = np.array(RECENT_HASHES)

APPLIED: Final = 0
OLDER: Final = 1
REPEATED: Final = 2
FUTURE: Final = 3
NOT_FINITE: Final = 4
FATES: Final = ("applied", "older", "repeated", "future", "not-finite")
"""What became of an embedding, by the codes that `DeviceCore.apply_embeddings` returns: it was taken; it knows less
than the cached one; exactly as much; more interactions than the device has seen; it holds NaN or infinity."""


@dataclass(frozen=True, slots=True)
class Wave:
    """B events of B different devices."""

    items: Int32s
    """(B,) item index; -1: not in the bundle."""
    times_ms: Int64s
    """(B,) event times."""
    hashes: npt.NDArray[np.uint64]
    """(B,) `streams.events.event_hash` of the event ids."""
    offsets: Int64s
    """(B,) offsets in the interactions topic."""
    serve: Bools
    """(B,) False: backfill."""
    now_ms: int
    """Wall time, for the debounce."""
    arms_active: Bools | None = None
    """(B, A) which arms a device runs; None: all (a paired experiment)."""

    def take(self, rows: npt.NDArray[np.intp]) -> Wave:
        """The events at `rows`."""
        return Wave(
            self.items[rows],
            self.times_ms[rows],
            self.hashes[rows],
            self.offsets[rows],
            self.serve[rows],
            self.now_ms,
            None if self.arms_active is None else self.arms_active[rows],
        )


class StepResult(NamedTuple):
    """What a step made of a wave. Rows that were dropped, or not served, hold the defaults given in brackets."""

    records: Records
    """(B,) the devices' new records."""
    already_applied: Bools
    """(B,) the device has applied this offset: dropped."""
    duplicate: Bools
    """(B,) the device knows this event id: dropped, but for the offset."""
    out_of_order: Bools
    """(B,) older than the device's newest event; applied all the same."""
    unknown: Bools
    """(B,) an item that the bundle does not know."""
    served: Bools
    """(B,) a list was served: the arrays below mean something, for the arms that are active."""
    rank: Int32s
    """(B, A) 1-based rank of what the user then took; 0: it could not be ranked."""
    ranked: Int32s
    """(B, A) number of items that were ranked (0)."""
    top: Int32s
    """(B, A, k) the list, best first (-1, as where fewer items can be ranked)."""
    staleness: Floats
    """(B, A) s of the embedding served with (1, as without one)."""
    gap: Int64s
    """(B, A) interactions since its as_of (-1, as without one)."""
    age_ms: Int64s
    """(B, A) event time since then, at least 0 (-1, as without one)."""
    as_of: Int64s
    """(B, A) its as_of (-1, as without one)."""
    freshness_ms: Int64s
    """(B, A) wall time from its request to its use (-1, as without one)."""
    request: Bools
    """(B, A) ask for a new embedding: as_of is the new record's count, the window is `DeviceCore.history` of it."""
    reason: npt.NDArray[np.uint8]
    """(B, A) why: index into `DeviceCore.reasons` (0, the empty string)."""
    urgency: Floats
    """(B, A) the policy's score where it asks (0)."""

    @property
    def reliability(self) -> Floats:
        """(B, A) 1 - staleness."""
        return np.float32(1) - self.staleness


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

    Raises
    ------
    SettingsError
        An arm names a policy or parameter that does not exist.
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
    ) -> None:
        manifest, tensors = bundle.manifest, bundle.device
        self.bundle = bundle
        self.arms = tuple(arms)
        self.ranking: Mode = ranking
        self.list_length = list_length
        self.deadline_ms = deadline_ms
        self.layout = StateLayout(manifest, len(self.arms), candidates=candidates)
        self.policies = tuple(build_policy(arm) for arm in self.arms)
        words = [word for policy in self.policies for word in policy.reasons]
        self.reasons: tuple[str, ...] = ("", *dict.fromkeys(words))
        """Every word for why a request is made; the first is the empty string."""
        self._reason_codes = tuple(
            np.array([self.reasons.index(word) for word in policy.reasons], np.uint8) for policy in self.policies
        )
        self._srm = Srm(tensors)
        self._calibrate = Calibrator(tensors)
        self._staleness = StalenessModel(tensors)
        self._ranker = Ranker(bundle, list_length=list_length, candidates=candidates)
        self._decay = np.array(manifest.recency_decay, np.float32)
        self._window = np.array(manifest.window)
        every = np.arange(manifest.n_items)
        self._seen_byte, self._seen_bit = every >> 3, (1 << (every & 7)).astype(np.uint8)
        # The last row is zero: the direction of item -1, the last item of a device without a history.
        self._directions = np.concatenate(
            [unit_vectors(tensors["item_vectors"]), np.zeros((1, manifest.d), np.float32)]
        )

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
        whole = self._nothing(self.layout.copy(records), already, duplicate)
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
        out = self.layout.copy(records)
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
        arm["candidates"][at] = self._ranker.without_seen(
            self._clean_candidates([candidates[row] for row in rows.tolist()]), out["seen"][rows]
        )
        gap = out["count"][rows] - as_of[rows]
        mean, norm = recent_of_window(
            out["history_items"][rows], out["history_len"][rows], gap, self._directions, float(self._decay)
        )
        vector = half[rows].astype(np.float32)
        inverse_norm = inverse_norms(vector)
        arm["recent_mean"][at] = mean
        arm["recent_norm"][at] = norm
        arm["inverse_norm"][at] = inverse_norm
        phi = np.empty((len(rows), 1, arm["phi"].shape[-1]), np.float32)
        write_signals(
            phi,
            embedding=vector[:, None],
            inverse_norm=inverse_norm[:, None],
            mean=mean[:, None],
            norm=norm[:, None],
            last=self._directions.take(out["last_item"][rows], axis=0),
            gap=gap[:, None],
        )
        write_age(phi, np.maximum(out["last_time_ms"][rows] - event_time_ms[rows], 0)[:, None])
        arm["phi"][at] = phi[:, 0]
        return out, fate

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
        embedding = arm["embedding"].astype(np.float32)
        age = np.maximum(wave.times_ms[:, None] - arm["embedded_time_ms"], _ZERO)
        gap = out["count"][:, None] - as_of

        # Serve, from the state before the interaction: of the signals, only the embedding's age has moved on.
        phi = arm["phi"]
        write_age(phi, age)
        if lacking is not None:
            phi[lacking] = 0
        staleness = self._staleness(phi, None if lacking is None else has)
        asked = self._asked(wave)
        ranked = self._serve(out, wave.items, embedding, has, gap, asked)
        out_of_order = wave.times_ms < out["last_time_ms"]

        known = wave.items >= _ZERO
        all_known = np.count_nonzero(known) == len(known)
        if all_known:
            self._learn_items(out, wave.items, wave.times_ms)
        else:
            rows = np.flatnonzero(known)
            part = self.layout.take(out, rows)
            self._learn_items(part, wave.items[rows], wave.times_ms[rows])
            self.layout.put(out, rows, part)
        self._count(out, wave, hashes, None if all_known else known)

        gap_after = gap + _ONE
        write_signals(
            phi,
            embedding=embedding,
            inverse_norm=arm["inverse_norm"],
            mean=arm["recent_mean"],
            norm=None if all_known else arm["recent_norm"],
            last=self._directions.take(out["last_item"], axis=0),
            gap=gap_after,
        )
        if lacking is not None:
            phi[lacking] = 0
            gap_after[lacking] = -1
        request, reason, urgency = self._decide(out, wave, has, gap_after, age, asked)
        if lacking is not None:
            age[lacking] = -1
            gap[lacking] = -1
        return StepResult(
            records=out,
            already_applied=no_rows,
            duplicate=no_rows,
            out_of_order=out_of_order,
            unknown=~known,
            served=wave.serve,
            rank=ranked.rank,
            ranked=ranked.ranked,
            top=ranked.top,
            staleness=staleness,
            gap=gap,
            age_ms=age,
            as_of=as_of,
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

    def _serve(
        self, out: Records, items: Int32s, embedding: Floats, has: Bools, gap: Int64s, asked: Bools | None
    ) -> Ranked:
        """Rank for each device and arm that is asked: arrays of (B, A) and (B, A, k)."""
        shape, dim = has.shape, embedding.shape[-1]
        arm = out["arm"]
        pairs = None if asked is None else np.flatnonzero(asked)
        if asked is None:
            e, m, phi = embedding, arm["recent_mean"], arm["phi"]
            has, gap = has.reshape(-1), gap.reshape(-1)
        else:
            e, m, phi = (each[asked] for each in (embedding, arm["recent_mean"], arm["phi"]))
            has, gap = has[asked], gap[asked]
        e = e.reshape(-1, dim)
        embedded = np.count_nonzero(has)
        calibrated = e
        if embedded:
            calibrated = self._calibrate(e, m.reshape(-1, dim), phi.reshape(len(e), phi.shape[-1]), gap)
        hidden, targets, seen = out["srm_hidden"], items, out["seen"]
        if pairs is not None or shape[1] > 1:
            rows = (np.arange(has.size) if pairs is None else pairs) // shape[1]
            hidden, targets, seen = hidden[rows], targets[rows], seen[rows]
        queries = self._ranker.queries(calibrated, hidden, None if embedded == len(has) else has)
        if self.ranking == "catalogue":
            found = self._ranker.catalogue(queries, targets, seen)
        else:
            candidates = arm["candidates"].reshape(-1, self.layout.candidates)
            if pairs is not None:
                candidates = candidates[pairs]
            if embedded < len(has):
                candidates = candidates.copy()
                popular = np.repeat(self._ranker.popular[None], len(has) - embedded, axis=0)
                candidates[~has] = self._ranker.without_seen(popular, seen[~has])
            found = self._ranker.candidates(queries, candidates, targets)
        if asked is None:
            return Ranked(
                found.rank.reshape(shape), found.ranked.reshape(shape), found.top.reshape(*shape, self.list_length)
            )
        whole = Ranked(
            np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.full((*shape, self.list_length), -1, np.int32)
        )
        for mine, theirs in zip(whole, found, strict=True):
            mine[asked] = theirs
        return whole

    def _learn_items(self, out: Records, items: Int32s, times_ms: Int64s) -> None:
        """History, SRM state, seen items and what was taken since each embedding, of items of the bundle."""
        at = np.arange(len(out))
        slots = out["history_len"] % self._window
        out["history_items"][at, slots] = items
        out["history_times"][at, slots] = times_ms
        out["last_item"] = items
        out["srm_hidden"] = self._srm.step(out["srm_hidden"], items)
        arm = out["arm"]
        if self._ranker.exclude_seen:
            out["seen"][at, self._seen_byte.take(items)] |= self._seen_bit.take(items)
            candidates = arm["candidates"]
            np.copyto(candidates, _NO_ITEM, where=candidates == items[:, None, None])
        mean, norm = arm["recent_mean"], arm["recent_norm"]
        weight = norm * self._decay + _ONE_FLOAT
        norm[...] = weight
        change = self._directions.take(items, axis=0)[:, None] - mean
        change /= weight[..., None]
        mean += change

    def _count(self, out: Records, wave: Wave, hashes: npt.NDArray[np.uint64], known: Bools | None) -> None:
        """What every interaction leaves behind, whatever its item. `known` None: all are."""
        out["recent_hashes"][np.arange(len(out)), out["hash_count"] % _HASHES] = hashes
        counters = self.layout.counters(out)
        counters += _ONE  # count, served, history_len, hash_count
        if np.count_nonzero(wave.serve) != len(out):
            counters[~wave.serve, 1] -= 1
        if known is not None:
            counters[~known, 2] -= 1
        out["last_time_ms"] = np.maximum(out["last_time_ms"], wave.times_ms)
        out["applied"] = wave.offsets

    def _decide(
        self,
        out: Records,
        wave: Wave,
        has: Bools,
        gap: Int64s,
        age: Int64s,
        asked: Bools | None,
    ) -> tuple[Bools, npt.NDArray[np.uint8], Floats]:
        """Ask the policies and mark what leaves: (B, A) request, reason, urgency."""
        arm = out["arm"]
        phi, scratch, count = arm["phi"], arm["scratch"], out["count"]
        free = arm["inflight_until_ms"] < wave.now_ms
        in_flight = ~free
        since = count[:, None] - arm["last_request_count"]
        since_ms = np.maximum(wave.times_ms[:, None] - arm["last_request_ms"], _ZERO)

        request = np.zeros(has.shape, np.bool_)
        reason = np.zeros(has.shape, np.uint8)
        urgency = np.zeros(has.shape, np.float32)
        for a, policy in enumerate(self.policies):
            whole = asked is None or np.count_nonzero(asked[:, a]) == len(out)
            rows: Any = slice(None) if whole or asked is None else np.flatnonzero(asked[:, a])
            memory = scratch[rows, a]
            decision = policy.decide(
                Signals(
                    count=count[rows],
                    has_embedding=has[rows, a],
                    gap=gap[rows, a],
                    age_ms=age[rows, a],
                    phi=phi[rows, a],
                    score=self._staleness,
                    since_request=since[rows, a],
                    since_request_ms=since_ms[rows, a],
                    in_flight=in_flight[rows, a],
                    event_time_ms=wave.times_ms[rows],
                    event_hash=wave.hashes[rows],
                ),
                memory,
            )
            if not whole:
                scratch[rows, a] = memory
            leaves = decision.request & free[rows, a]
            if np.count_nonzero(leaves):
                request[rows, a] = leaves
                reason[rows, a] = self._reason_codes[a].take(decision.reason) * leaves
                urgency[rows, a] = np.where(leaves, np.nan_to_num(decision.score), 0)
        if np.count_nonzero(request):
            counts = np.broadcast_to(count[:, None], request.shape)
            arm["requests"][request] += 1
            arm["last_request_count"][request] = counts[request]
            arm["inflight_as_of"][request] = counts[request]
            arm["last_request_ms"][request] = np.broadcast_to(wave.times_ms[:, None], request.shape)[request]
            arm["inflight_until_ms"][request] = wave.now_ms + self.deadline_ms
        return request, reason, urgency

    def _nothing(self, records: Records, already: Bools, duplicate: Bools) -> StepResult:
        """The result of a wave in which every row was dropped."""
        b, a = len(records), len(self.arms)
        return StepResult(
            records=records,
            already_applied=already.copy(),
            duplicate=duplicate.copy(),
            out_of_order=np.zeros(b, np.bool_),
            unknown=np.zeros(b, np.bool_),
            served=np.zeros(b, np.bool_),
            rank=np.zeros((b, a), np.int32),
            ranked=np.zeros((b, a), np.int32),
            top=np.full((b, a, self.list_length), -1, np.int32),
            staleness=np.ones((b, a), np.float32),
            gap=np.full((b, a), -1, np.int64),
            age_ms=np.full((b, a), -1, np.int64),
            as_of=np.full((b, a), -1, np.int64),
            freshness_ms=np.full((b, a), -1, np.int64),
            request=np.zeros((b, a), np.bool_),
            reason=np.zeros((b, a), np.uint8),
            urgency=np.zeros((b, a), np.float32),
        )

    def _clean_candidates(self, lists: list[npt.NDArray[np.integer]]) -> Int32s:
        """(n, C) candidates, each an item of the bundle and each once, filled up with -1."""
        clean = np.full((len(lists), self.layout.candidates), -1, np.int32)
        for row, given in enumerate(lists):
            listed = np.asarray(given)
            listed = listed[(listed >= 0) & (listed < self.bundle.manifest.n_items)]
            first = np.unique(listed, return_index=True)[1]
            if len(first) != len(listed):
                listed = listed[np.sort(first)]
            kept = listed[: self.layout.candidates]
            clean[row, : len(kept)] = kept
        return clean
