"""A record on its way out: what a pure core hands to whoever holds the producer."""

from __future__ import annotations

from dataclasses import dataclass, field

from streams.events import Headers


@dataclass(frozen=True, slots=True)
class OutgoingRecord:
    """One record to send.

    Parameters
    ----------
    partition
        None: the default partitioner chooses by key.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = field(default_factory=list)
    partition: int | None = None
