"""Asking the arms' policies for a refresh, and marking in the records what leaves: one request at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from device_agent.policies.base import Signals
from device_agent.policies.registry import build_policy
from device_agent.staleness import StalenessModel
from device_agent.state import Records
from device_agent.step import Wave
from device_agent.worth import WorthModel
from streams.experiment.arms import ArmSpec

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]

_ZERO: Final = np.array(0)


class Asking:
    """The policies of an experiment's arms, told with the heads of a bundle's device part.

    Raises
    ------
    SettingsError
        An arm names a policy or parameter that does not exist.
    """

    def __init__(self, arms: Sequence[ArmSpec], tensors: Mapping[str, Floats], deadline_ms: int) -> None:
        self.policies = tuple(build_policy(arm) for arm in arms)
        words = [word for policy in self.policies for word in policy.reasons]
        self.reasons: tuple[str, ...] = ("", *dict.fromkeys(words))
        self._reason_codes = tuple(
            np.array([self.reasons.index(word) for word in policy.reasons], np.uint8) for policy in self.policies
        )
        self._staleness, self._worth = StalenessModel(tensors), WorthModel(tensors)
        self._deadline_ms = deadline_ms

    def ask(
        self, out: Records, wave: Wave, *, has: Bools, gap: Int64s, age: Int64s, asked: Bools | None
    ) -> tuple[Bools, npt.NDArray[np.uint8], Floats]:
        """(B, A) request, reason, urgency; `asked` (B, A) says which arms decide, None: all."""
        arm = out["arm"]
        phi, scratch, count = arm["phi"], arm["scratch"], out["count"]
        in_flight = arm["inflight_until_ms"] >= wave.now_ms
        since = count[:, None] - arm["last_request_count"]
        since_ms = np.maximum(wave.times_ms[:, None] - arm["last_request_ms"], _ZERO)

        request = np.zeros(has.shape, np.bool_)
        reason = np.zeros(has.shape, np.uint8)
        urgency = np.zeros(has.shape, np.float32)
        leaving = False
        for a, policy in enumerate(self.policies):
            whole = asked is None or np.count_nonzero(asked[:, a]) == len(out)
            rows: Any = slice(None) if whole or asked is None else np.flatnonzero(asked[:, a])
            memory = scratch[rows, a]
            busy = in_flight[rows, a]
            decision = policy.decide(
                Signals(
                    count=count[rows],
                    has_embedding=has[rows, a],
                    gap=gap[rows, a],
                    age_ms=age[rows, a],
                    phi=phi[rows, a],
                    score=self._staleness,
                    gain=self._worth,
                    since_request=since[rows, a],
                    since_request_ms=since_ms[rows, a],
                    in_flight=busy,
                    event_time_ms=wave.times_ms[rows],
                    event_hash=wave.hashes[rows],
                ),
                memory,
            )
            if not whole:
                scratch[rows, a] = memory
            leaves = decision.request > busy
            if np.count_nonzero(leaves):
                leaving = True
                request[rows, a] = leaves
                reason[rows, a] = self._reason_codes[a].take(decision.reason) * leaves
                urgency[rows, a] = np.where(leaves, np.nan_to_num(decision.score), 0)
        if leaving:
            counts = np.broadcast_to(count[:, None], request.shape)
            arm["requests"][request] += 1
            arm["last_request_count"][request] = counts[request]
            arm["inflight_as_of"][request] = counts[request]
            arm["last_request_ms"][request] = np.broadcast_to(wave.times_ms[:, None], request.shape)[request]
            arm["inflight_until_ms"][request] = wave.now_ms + self._deadline_ms
        return request, reason, urgency
