"""Dead letters: a record that cannot be used, whole, with where it came from and why in its headers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from streams.errors import RecordError
from streams.records import OutgoingRecord
from streams.topics import Topics

TOPIC: Final = "dlq.topic"
PARTITION: Final = "dlq.partition"
OFFSET: Final = "dlq.offset"
REASON: Final = "dlq.reason"
ERROR: Final = "dlq.error"

TRUNCATED: Final = "dlq.truncated"
MAX_VALUE_BYTES: Final = 512 * 1024
"""A dead letter must fit into Kafka's default message size with its headers: one that did not would hold up its
partition for good. The original is still in its own topic, at the offset that the headers name."""
MAX_ERROR_CHARS: Final = 1000
"""An error may quote the record; the header must not grow with it."""


def dead_letter(
    topic: str,
    partition: int,
    offset: int,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes]] | None,
    error: RecordError,
) -> OutgoingRecord:
    """Turn a record that cannot be used into one for `<topic>.dlq`, in the partition of the same number.

    Key, value and headers stay as they were, so that the record can be sent to its topic again once the cause is
    gone. Headers of an earlier journey through a dead-letter topic are replaced, not piled up. A record with neither
    key nor value, which Kafka's clients refuse to send, gets an empty value.

    Parameters
    ----------
    headers
        Of the original record; None is taken as none. A null header value, which Kafka allows and its Python
        clients do not send, becomes an empty one.

    Returns
    -------
    OutgoingRecord
        With the headers dlq.topic, dlq.partition, dlq.offset, dlq.reason (a short word, the label of the metric) and
        dlq.error (a sentence) added; where the value was cut to `MAX_VALUE_BYTES`, dlq.truncated (its length).
    """
    mine = (TOPIC, PARTITION, OFFSET, REASON, ERROR, TRUNCATED)
    kept = [(name, content or b"") for name, content in headers or () if name not in mine]
    added = [
        (TOPIC, topic.encode()),
        (PARTITION, str(partition).encode()),
        (OFFSET, str(offset).encode()),
        (REASON, error.reason.encode()),
        (ERROR, str(error)[:MAX_ERROR_CHARS].encode("utf-8", "replace")),
    ]
    if value is not None and len(value) > MAX_VALUE_BYTES:
        added.append((TRUNCATED, str(len(value)).encode()))
        value = value[:MAX_VALUE_BYTES]
    return OutgoingRecord(
        topic=Topics.dead_letters(topic),
        key=key,
        value=b"" if key is None and value is None else value,
        headers=kept + added,
        partition=partition,
    )
