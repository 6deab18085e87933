"""The policy port: what a policy is told, and what it answers.

A policy decides for one arm, for B devices at once, after they have learned from an interaction. It keeps nothing
itself: what it must remember about a device goes into that device's `scratch` (eight floats in the device record).

The agent debounces: while a request of a device and arm is under way, a wish for another is not heard. A policy sees
`Signals.in_flight` and so knows which of its wishes were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NEVER_MS = 2**61
"""An age from here on (73 million years) is that of something that has not happened."""
INITIAL = "initial"
"""Reason of a request made because the device has no embedding yet."""


class Signals(NamedTuple):
    """What a policy is told about B devices; every array has the shape (B,) unless said otherwise."""

    count: Ints  # type: ignore[assignment]
    """Interactions seen, this one included."""
    has_embedding: Bools
    gap: Ints
    """Interactions since the cached embedding's as_of; -1 without one."""
    age_ms: Ints
    """Event time since the embedding was asked for; `NEVER_MS` or more without one."""
    phi: Floats
    """(B, P) staleness signals (see `device_agent.staleness`); zero without an embedding."""
    score: Callable[[Floats, Ints], Floats]
    """The bundle's staleness model, behind `staleness`."""
    gain: Callable[[Floats, Ints], Floats]
    """The bundle's model of what a refresh gains, behind `worth`."""
    since_request: Ints
    """Interactions since this arm's last request; all of them where it never asked."""
    since_request_ms: Ints
    """Event time since this arm's last request; `NEVER_MS` or more where it never asked."""
    in_flight: Bools
    """A request is under way: a wish will not be heard."""
    event_time_ms: Ints
    event_hash: npt.NDArray[np.uint64]
    """Hash of the event's id: randomness that is the same in every run."""

    @property
    def staleness(self) -> Floats:
        """(B,) s in [0, 1]; 0 at gap 0, 1 without an embedding. Computed when it is asked for: most policies do not."""
        return self.score(self.phi, self.gap)

    @property
    def worth(self) -> Floats:
        """(B,) discounted gain that a refresh is expected to add; 0 at gap 0, 1 without an embedding."""
        return self.gain(self.phi, self.gap)

    @property
    def reliability(self) -> Floats:
        """(B,) 1 - staleness."""
        return np.float32(1) - self.staleness


class Decision(NamedTuple):
    """What a policy wants."""

    request: Bools
    """(B,) it wants a new embedding."""
    score: Floats
    """(B,) how much: the request's urgency, comparable within one policy."""
    reason: npt.NDArray[np.uint8]
    """(B,) why: index into the policy's `reasons`."""


@runtime_checkable
class Policy(Protocol):
    """What the agent needs of a policy."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Words for why it may ask; they are labels of a metric, so few and fixed."""
        ...

    def decide(self, signals: Signals, scratch: Floats) -> Decision:
        """Decide for B devices.

        Parameters
        ----------
        scratch
            (B, 8) what this policy remembers about each device, at first zero; write to it to remember.
        """
        ...


class BasePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Parent of the built-in policies: parameters are its fields, checked by msgspec when it is built.

    A subclass says when it is `due` and names itself in `reasons`; asking for the first embedding is done here.
    """

    initial: bool = True
    """Ask when the device has no embedding yet, and ask again when that request was given up."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """`INITIAL` and the word for being due."""
        return (INITIAL, self.due_reason)

    @property
    def due_reason(self) -> str:
        """Why it asks when it is due."""
        raise NotImplementedError

    def due(self, signals: Signals, scratch: Floats) -> tuple[Bools, Floats]:
        """(B,) whether a new embedding is due, and (B,) the score."""
        raise NotImplementedError

    def decide(self, signals: Signals, scratch: Floats) -> Decision:
        """See `Policy.decide`."""
        request, score = self.due(signals, scratch)
        if np.count_nonzero(signals.has_embedding) == len(request):
            return Decision(request, score, signals.has_embedding.view(np.uint8))  # all ones
        if not self.initial:
            return Decision(request, score, np.ones(len(request), np.uint8))
        return Decision(
            request | ~signals.has_embedding,
            np.where(signals.has_embedding, score, np.float32(1)),
            signals.has_embedding.astype(np.uint8),
        )
