"""``--from`` and ``--to``: a moment of a dataset's time as a user writes it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import polars as pl

from streams.datasets.split import Split, global_time_split
from streams.errors import SettingsError

Edge = Literal["from", "to"]


def parse_moment(text: str, events: pl.DataFrame, edge: Edge, split: Split | None = None) -> int:
    """Read a moment as event time in milliseconds; both edges of a stretch are half-open bounds.

    Parameters
    ----------
    text
        ``train``, ``valid`` or ``test`` (where that period starts, or ends for ``to``); a fraction of the events, such
        as ``0.8``; or a date or date and time, UTC where it has no offset.
    events
        Prepared events, in time order.
    split
        Whose periods are meant; None: those of the default split.

    Raises
    ------
    SettingsError
        It is none of these.
    """
    text = text.strip()
    if text in {"train", "valid", "test"}:
        period = getattr(split or global_time_split(events), text)
        return int(period.start_ms if edge == "from" else period.end_ms)
    try:
        share = float(text)
    except ValueError:
        pass
    else:
        if not 0 <= share <= 1:
            raise SettingsError(f"--{edge} {text}: a fraction lies between 0 and 1", remedy=_FORMS)
        row = int(share * len(events))
        times = events["event_time_ms"]
        return int(times[row]) if row < len(times) else int(times[-1]) + 1
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise SettingsError(f"--{edge} {text!r} is no moment", remedy=_FORMS) from exc
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


_FORMS = "write a date (1998-03-01, 1998-03-01T12:00), a fraction of the events (0.8), or train, valid or test"
