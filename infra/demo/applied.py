"""How many interactions each device has applied, from the newest committed record of each in the changelog."""

from __future__ import annotations

from device_agent.checkpoint import POSITION_KEY
from device_agent.state import StateLayout
from infra.demo.whole_topic import records_of
from streams.settings import KafkaSettings
from streams.topics import Topics


def applied_counts(kafka: KafkaSettings, topics: Topics, layout: StateLayout) -> dict[str, int]:
    """Device id to the count in its newest record.

    Raises
    ------
    BrokerError
        The changelog could not be read to its end.
    """
    changelog = records_of(kafka, topics.device_state, topics.partitions)
    newest: dict[bytes, bytes] = {record.key: record.value for record in changelog if record.key != POSITION_KEY}
    if not newest:
        return {}
    counts = layout.unpack(list(newest.values()))["count"].tolist()
    return {key.decode(): count for key, count in zip(newest, counts, strict=True)}
