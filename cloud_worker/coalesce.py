"""Which of a batch of refresh requests need work, and which work serves several of them: a pure function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streams.events import RefreshRequest


@dataclass(frozen=True)
class Unit:
    """Requests that one embedding answers: the same device and history, other arms."""

    requests: tuple[int, ...]
    """Positions in the batch, in its order; never empty."""


@dataclass(frozen=True)
class Plan:
    """The fate of every request of a batch; each position occurs exactly once."""

    units: tuple[Unit, ...]
    """To be answered."""
    expired: tuple[int, ...]
    """Past their deadline: the device has given up on them and may have asked again."""
    superseded: tuple[int, ...]
    """A newer request of the same device and arm is answered instead, and its answer is the one the device would keep
    of the two anyhow."""


def plan(requests: Sequence[RefreshRequest], now_ms: int) -> Plan:
    """Decide what to do with a batch.

    Deadlines go first: a request is superseded only by one that will be answered. Of requests with the same `as_of`
    (one that was delivered twice) the later in the batch is answered.

    Parameters
    ----------
    requests
        In the order read.
    now_ms
        Wall time.
    """
    expired = tuple(index for index, request in enumerate(requests) if request.deadline_ms < now_ms)
    gone = set(expired)
    newest: dict[tuple[str, str], int] = {}
    superseded: list[int] = []
    for index, request in enumerate(requests):
        if index in gone:
            continue
        asker = (request.device_id, request.arm)
        rival = newest.get(asker)
        if rival is None:
            newest[asker] = index
        elif request.as_of >= requests[rival].as_of:
            superseded.append(rival)
            newest[asker] = index
        else:
            superseded.append(index)
    units: dict[tuple[str, bytes, bytes], list[int]] = {}
    for index in sorted(newest.values()):
        request = requests[index]
        units.setdefault((request.device_id, request.items, request.times_ms), []).append(index)
    return Plan(tuple(Unit(tuple(each)) for each in units.values()), expired, tuple(sorted(superseded)))
