"""Policies that look at counts, clocks and dice, not at the embedding: the baselines of every comparison."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from device_agent.policies.base import NEVER_MS, BasePolicy, Bools, Floats, Signals

_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_GOLDEN = 0x9E3779B97F4A7C15


class Never(BasePolicy, frozen=True):
    """Never refresh. With ``initial=true`` a device gets one embedding and keeps it for ever."""

    initial: bool = False

    @property
    def due_reason(self) -> str:
        """It is never due."""
        return "never"

    def due(self, signals: Signals, scratch: Floats) -> tuple[Bools, Floats]:  # noqa: ARG002 - it remembers nothing
        """Never."""
        n = len(signals.count)
        return np.zeros(n, np.bool_), np.zeros(n, np.float32)


class Always(BasePolicy, frozen=True):
    """Refresh after every interaction, as far as the debounce lets it: the upper bound of quality and cost."""

    @property
    def due_reason(self) -> str:
        """Each interaction is a reason."""
        return "always"

    def due(self, signals: Signals, scratch: Floats) -> tuple[Bools, Floats]:  # noqa: ARG002 - it remembers nothing
        """Always."""
        n = len(signals.count)
        return np.ones(n, np.bool_), np.ones(n, np.float32)


class EveryN(BasePolicy, frozen=True):
    """Refresh at every n-th interaction since this arm's last request.

    It counts from request to request, not from the embedding's arrival, so as long as the cloud answers within n
    interactions its requests follow from the interactions alone: after the 1st (``initial``), the n+1st, the 2n+1st….
    An n-th interaction that meets a request still under way does not count as one: the arm asks at the first
    interaction after that request was answered or given up, and counts on from there. Scores 1 when due, less before.
    """

    n: Annotated[int, msgspec.Meta(ge=1)]

    @property
    def due_reason(self) -> str:
        """The count is full."""
        return "every-n"

    def due(self, signals: Signals, scratch: Floats) -> tuple[Bools, Floats]:  # noqa: ARG002 - it remembers nothing
        """At least n interactions since the last request."""
        return signals.since_request >= self.n, (signals.since_request / self.n).astype(np.float32)


class Ttl(BasePolicy, frozen=True):
    """Refresh when so much event time has gone by since the last request or embedding, whichever is newer.

    A device that has neither asks only with ``initial``: nothing has an age yet.
    """

    seconds: Annotated[float, msgspec.Meta(gt=0, le=1e12)]

    @property
    def due_reason(self) -> str:
        """Time is up."""
        return "ttl"

    def due(self, signals: Signals, scratch: Floats) -> tuple[Bools, Floats]:  # noqa: ARG002 - it remembers nothing
        """The newer of request and embedding is at least so old; scores the age over the limit, at most 1000."""
        age_ms = np.minimum(signals.age_ms, signals.since_request_ms)
        happened = age_ms < NEVER_MS
        share = age_ms / (self.seconds * 1000)
        return (share >= 1) & happened, (np.minimum(share, 1000) * happened).astype(np.float32)


class Random(BasePolicy, frozen=True):
    """Refresh after an interaction with probability p.

    The die is a hash of the seed and the event's id: a replay throws the same, in whatever batches.
    """

    p: Annotated[float, msgspec.Meta(gt=0, le=1)]
    seed: int = 0

    @property
    def due_reason(self) -> str:
        """The die fell."""
        return "random"

    def due(self, signals: Signals, scratch: Floats) -> tuple[Bools, Floats]:  # noqa: ARG002 - it remembers nothing
        """The die, in [0, 1), is below p; scores 1 minus it."""
        die = uniform(signals.event_hash, self.seed)
        return die < self.p, (1 - die).astype(np.float32)


def uniform(hashes: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.float64]:
    """(B,) numbers in [0, 1) that follow from hash and seed: the finaliser of splitmix64 (Steele et al. 2014)."""
    z = hashes + np.uint64((seed + 1) * _GOLDEN % 2**64)
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
