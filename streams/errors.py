"""Every error Driftline raises on purpose.

::

    DriftlineError
    ├── SettingsError          a setting is unknown, missing or contradicts another
    ├── EnvironmentProblem     the machine lacks something (Java, Maven, a package, a free port, disk)
    ├── BrokerError            the Kafka broker did not start, is gone, or is not the one we expect
    │   └── TopicMismatch      a topic exists with other partitions or another configuration
    ├── DatasetError           a dataset is missing, empty or not of the declared shape
    ├── RecordError            a record cannot be used; it goes to the dead-letter topic
    │   ├── UndecodableRecord  the bytes are not what the topic holds
    │   └── UnknownSchema      a schema version newer than this reader
    ├── BundleError            a model bundle is missing, changed, or made for something else
    ├── EncoderError           a text encoder could not be loaded or answered wrongly
    ├── StoreError             the device store could not be read or written (disk full, map full)
    ├── CheckpointFailed       the outcome of a checkpoint is unknown; the process must start again
    ├── TrainingError          training cannot start or go on
    └── ProcessFailed          a supervised process keeps failing

A message says what was wrong, where, and what to do.
"""

from __future__ import annotations


class DriftlineError(Exception):
    """Root of the tree. ``remedy`` is a sentence that tells the reader what to do.

    Parameters
    ----------
    message
        What was wrong, and where.
    remedy
        What to do about it; empty when the message already says so.
    """

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} — {self.remedy}" if self.remedy else self.message


class SettingsError(DriftlineError):
    """A setting is unknown, missing or contradicts another."""


class EnvironmentProblem(DriftlineError):
    """The machine lacks something: Java, Maven, a package, a free port, disk."""


class BrokerError(DriftlineError):
    """The Kafka broker did not start, is gone, or is not the one we expect."""


class TopicMismatch(BrokerError):
    """A topic exists with other partitions or another configuration."""


class DatasetError(DriftlineError):
    """A dataset is missing, empty or not of the declared shape."""


class RecordError(DriftlineError):
    """A record cannot be used; it goes to the dead-letter topic.

    ``reason`` is a short machine-readable word: it is the label of the metric and a header of the dead letter.
    """

    reason = "unusable"

    def __init__(self, message: str, *, remedy: str = "", reason: str = "") -> None:
        super().__init__(message, remedy=remedy)
        if reason:
            self.reason = reason


class UndecodableRecord(RecordError):
    """The bytes are not what the topic holds."""

    reason = "undecodable"


class UnknownSchema(RecordError):
    """A schema version newer than this reader."""

    reason = "unknown-schema"


class BundleError(DriftlineError):
    """A model bundle is missing, changed, or made for something else."""


class EncoderError(DriftlineError):
    """A text encoder could not be loaded or answered wrongly."""


class StoreError(DriftlineError):
    """The device store could not be read or written: disk full, map full, no permission."""


class CheckpointFailed(DriftlineError):
    """The outcome of a checkpoint is unknown; the process must start again from the changelog."""


class TrainingError(DriftlineError):
    """Training cannot start or go on."""


class ProcessFailed(DriftlineError):
    """A supervised process keeps failing."""


EXIT_RESTART = 70
"""A process that ends by CheckpointFailed leaves with this code, and its supervisor starts it again."""

EXIT_USAGE = 2
"""A process that ends by SettingsError leaves with this code: what it was told cannot be done, however often."""
