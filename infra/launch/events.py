"""What the supervisor tells: events as they happen, and how each process is at a moment."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_log = logging.getLogger("driftline.launch")

State = Literal["new", "starting", "ready", "waiting", "finished", "stopped"]
EventKind = Literal["started", "ready", "restarting", "finished", "failed", "stopped", "killed"]


@dataclass(frozen=True)
class SupervisorEvent:
    """Something to tell the user.

    Parameters
    ----------
    kind
        What happened.
    process
        Name of the process.
    reason
        One word: checkpoint, refused, signal, exit, ended, not-ready; empty where nothing failed.
    message
        A sentence.
    pid
        Of the process concerned; 0 when it has none.
    restarts
        How often it was started again so far.
    delay_s
        With "restarting": the wait until the next start.
    """

    kind: EventKind
    process: str
    reason: str
    message: str
    pid: int = 0
    restarts: int = 0
    delay_s: float = 0.0


@dataclass(frozen=True)
class ProcessStatus:
    """How a process is at this moment.

    Parameters
    ----------
    name
        As in its spec.
    state
        "waiting" is between a failure and the next start.
    pid
        None while it does not run.
    url
        Where it serves /metrics, /livez and /readyz; None until it is ready.
    restarts
        How often it was started again.
    log_file
        Its output, from all its starts.
    """

    name: str
    state: State
    pid: int | None
    url: str | None
    restarts: int
    log_file: Path


def to_log(event: SupervisorEvent) -> None:
    """Log an event: what a supervisor without a listener does."""
    level = {"restarting": logging.WARNING, "failed": logging.ERROR, "killed": logging.WARNING}
    _log.log(level.get(event.kind, logging.INFO), event.message)
