"""The topics: names, keys, what they keep. Creating and verifying them is `streams.kafka_admin`'s work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from kafka.partitioner.default import murmur2

DAY_MS: Final = 86_400_000


@dataclass(frozen=True)
class TopicSpec:
    """One topic as it must be in the cluster."""

    name: str
    partitions: int
    config: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Topics:
    """The full topic names of one Driftline installation (or of one run, which has a prefix of its own).

    Parameters
    ----------
    prefix
        Put before each name, for instance ``"demo-7f3a."``.
    partitions
        Of every topic that is keyed by device; the same for all, so that everything about one device meets.
    """

    prefix: str = ""
    partitions: int = 4

    @property
    def interactions(self) -> str:
        """Users' interactions."""
        return f"{self.prefix}interactions.v1"

    @property
    def recommendations(self) -> str:
        """What each arm served."""
        return f"{self.prefix}recommendations.v1"

    @property
    def refresh_requests(self) -> str:
        """Devices' wishes for a new embedding."""
        return f"{self.prefix}refresh-requests.v1"

    @property
    def embeddings(self) -> str:
        """The cloud's answers."""
        return f"{self.prefix}embeddings.v1"

    @property
    def trends(self) -> str:
        """What people take near what, for all devices: one partition, which every device worker reads whole."""
        return f"{self.prefix}trends.v1"

    @property
    def device_state(self) -> str:
        """The changelog: device records and each partition's position."""
        return f"{self.prefix}device-state.v1"

    def group(self, name: str) -> str:
        """Full name of a consumer group: two runs on one cluster must not share one."""
        return f"{self.prefix}{name}"

    @staticmethod
    def dead_letters(topic: str) -> str:
        """Where records of `topic` go that cannot be used."""
        return f"{topic}.dlq"

    def specs(self) -> list[TopicSpec]:
        """Every topic, in the order in which they are created."""
        by_time = {"cleanup.policy": "delete", "retention.ms": str(7 * DAY_MS)}
        compacted = {"cleanup.policy": "compact"}
        kept = [
            (self.interactions, by_time),
            (self.recommendations, by_time),
            (self.refresh_requests, {"cleanup.policy": "delete", "retention.ms": str(DAY_MS)}),
            (self.embeddings, compacted),
            (self.device_state, compacted),
        ]
        forever = {"cleanup.policy": "delete", "retention.ms": "-1"}
        readable = [self.interactions, self.refresh_requests, self.embeddings]
        return [
            *(TopicSpec(name, self.partitions, config) for name, config in kept),
            # Only closed segments are compacted, and a gigabyte of tables would be read at every start.
            TopicSpec(self.trends, 1, compacted | {"segment.bytes": str(16 << 20)}),
            *(TopicSpec(self.dead_letters(name), self.partitions, forever) for name in readable),
        ]


def partition_of(device_id: str, partitions: int) -> int:
    """Partition of a device: murmur2 of its id, as Java's and everybody else's default partitioner has it."""
    return int((murmur2(device_id.encode()) & 0x7FFFFFFF) % partitions)
