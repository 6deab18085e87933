"""Whether a process that left is started again, when, and when to give up: pure decisions, no process in sight."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace

from streams.errors import EXIT_RESTART, EXIT_USAGE

_SIGNAL_BASE = 128


@dataclass(frozen=True)
class RestartPolicy:
    """How patient the supervisor is. All times are seconds.

    Parameters
    ----------
    first_delay_s, max_delay_s
        The wait before a start doubles from the first to the second with each failure. There is no jitter: these
        are a handful of processes on one machine, and a test can say when they come back.
    give_up_after
        So many quick failures in a row end the run.
    quick_s
        A failure this soon after the start counts towards giving up.
    healthy_s
        A process that lived so long starts with a clean record.
    """

    first_delay_s: float = 0.2
    max_delay_s: float = 5.0
    give_up_after: int = 5
    quick_s: float = 10.0
    healthy_s: float = 30.0


@dataclass(frozen=True)
class Record:
    """What is remembered of a process's failures.

    Parameters
    ----------
    in_a_row
        Failures since it last lived for ``healthy_s``: they set the wait.
    quick_in_a_row
        Those of them that came within ``quick_s`` of a start: they end the run.
    """

    in_a_row: int = 0
    quick_in_a_row: int = 0


@dataclass(frozen=True)
class Finished:
    """It had nothing more to do."""


@dataclass(frozen=True)
class StartAgain:
    """Start it again after ``delay_s`` seconds."""

    delay_s: float


@dataclass(frozen=True)
class GiveUp:
    """It keeps failing, and ``failures`` in a row are enough; or it says that what it was told cannot be done."""

    failures: int


Decision = Finished | StartAgain | GiveUp


def decide(
    policy: RestartPolicy,
    record: Record,
    *,
    status: int,
    lived_s: float,
    one_shot: bool = False,
    on_request: bool = False,
) -> tuple[Record, Decision]:
    """Decide what follows when a process that was not asked to stop has left.

    Parameters
    ----------
    policy
        How patient to be.
    record
        What is remembered of its failures before this one.
    status
        Its exit status; 128 + n, or −n, where signal n ended it.
    lived_s
        Time since its start.
    one_shot
        Whether it was meant to end by itself: then status 0 is no failure.
    on_request
        Whether the supervisor was told to kill it (chaos): it starts again at once, and nothing is held against it.
    """
    if status == 0 and one_shot:
        return record, Finished()
    if lived_s >= policy.healthy_s:
        record = Record()
    if on_request:
        return record, StartAgain(policy.first_delay_s)
    if status == EXIT_USAGE:
        return record, GiveUp(1)
    record = Record(record.in_a_row + 1, record.quick_in_a_row)
    if lived_s < policy.quick_s:
        record = replace(record, quick_in_a_row=record.quick_in_a_row + 1)
    if record.quick_in_a_row >= policy.give_up_after:
        return record, GiveUp(record.quick_in_a_row)
    return record, StartAgain(delay_s(policy, record.in_a_row))


def delay_s(policy: RestartPolicy, failures: int) -> float:
    """Return the wait, in seconds, after so many failures in a row (1 or more)."""
    doublings = min(failures - 1, 62)  # beyond that a float could overflow; the limit is reached long before
    return min(policy.max_delay_s, policy.first_delay_s * 2.0**doublings)


def reason(status: int) -> str:
    """Return why it left as one word, fit for a metric's label: checkpoint, refused, signal, ended or exit."""
    if status == 0:
        return "ended"
    if status == EXIT_RESTART:
        return "checkpoint"
    if status == EXIT_USAGE:
        return "refused"
    return "exit" if _signal_number(status) is None else "signal"


def in_words(status: int) -> str:
    """Return why it left for a reader, to follow the process's name."""
    if status == 0:
        return "ended although nobody asked it to"
    if status == EXIT_RESTART:
        return "left because a checkpoint's outcome was unknown"
    if status == EXIT_USAGE:
        return "cannot do what it was told"
    number = _signal_number(status)
    if number is None:
        return f"left with exit code {status}"
    return f"was ended by signal {number} ({signal.Signals(number).name})"


def _signal_number(status: int) -> int | None:
    number = -status if status < 0 else status - _SIGNAL_BASE
    try:
        return int(signal.Signals(number))
    except ValueError:
        return None
