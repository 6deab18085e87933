"""Replaying a prepared dataset as a live event stream.

``plan`` says what is sent and in which order, ``pacing`` when, ``runner`` drives it through a port, ``kafka`` is that
port on Kafka. A replay is named; started again under its name it goes on where the topic says it stopped.
"""

from streams.replay.kafka import GroupLag, KafkaSink, sent_rows
from streams.replay.pacing import AtMostRate, AtSpeed, Flat, Pace
from streams.replay.plan import ReplayPlan, Schedule, make_schedule
from streams.replay.runner import Replay, ReplayProgress, ReplayReport

__all__ = [
    "AtMostRate",
    "AtSpeed",
    "Flat",
    "GroupLag",
    "KafkaSink",
    "Pace",
    "Replay",
    "ReplayPlan",
    "ReplayProgress",
    "ReplayReport",
    "Schedule",
    "make_schedule",
    "sent_rows",
]
