"""The Kafka broker: an embedded Apache Kafka on loopback, or one that runs elsewhere.

Rooms: ``java`` finds a Java, ``jars`` finds or fetches Kafka, ``config`` says how it is set up, ``probe`` asks
whether it is ready, ``guard`` ends it when its parent is gone, ``server`` is the broker itself.
"""

from infra.broker.external import ExternalBroker, RunningKafka, broker_for
from infra.broker.jars import KafkaJars, cache_dir, find_jars, get_jars, pinned_version
from infra.broker.java import JAVA_NEEDED, Java, find_java
from infra.broker.server import Broker, free_port, port_is_free

__all__ = [
    "JAVA_NEEDED",
    "Broker",
    "ExternalBroker",
    "Java",
    "KafkaJars",
    "RunningKafka",
    "broker_for",
    "cache_dir",
    "find_jars",
    "find_java",
    "free_port",
    "get_jars",
    "pinned_version",
    "port_is_free",
]
