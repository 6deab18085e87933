"""What the embedded broker is configured with."""

from __future__ import annotations

LOOPBACK = "127.0.0.1"

_FIXED = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "PLAINTEXT",
    "controller.listener.names": "CONTROLLER",
    # One node: every internal topic has one replica and few partitions, or start-up creates hundreds of files.
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    # A topic that nobody declared is a misspelt one.
    "auto.create.topics.enable": "false",
    # Groups form at once, and tests may use short sessions.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # A worker that was killed leaves an open transaction, which holds back every read_committed reader of the
    # partition until the broker aborts it; its successor's fencing does so at once, this is for the rest.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "log.cleaner.enable": "true",
    "remote.log.storage.system.enable": "false",
    # A small heap: Kafka's own defaults (128 MB for the cleaner alone) are for a server of its own.
    "log.cleaner.dedupe.buffer.size": "16777216",
    "log.cleaner.threads": "1",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "4",
    "num.recovery.threads.per.data.dir": "2",
    "group.coordinator.threads": "1",
    "log.index.size.max.bytes": "2097152",
    # After a crash the controller lets the broker back in when its former session is over: 9 s by default.
    "broker.session.timeout.ms": "6000",
    "broker.heartbeat.interval.ms": "1000",
    "initial.broker.registration.timeout.ms": "120000",
}


def server_properties(log_dir: str, port: int, controller_port: int) -> str:
    """Return the server's properties file for these ports.

    Parameters
    ----------
    log_dir
        Where Kafka keeps its data, relative to the directory that it runs in.
    port
        The port that clients use.
    controller_port
        The port of the node's own KRaft controller.
    """
    settings = {
        **_FIXED,
        "log.dirs": log_dir,
        "listeners": f"PLAINTEXT://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port}",
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller_port}",
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


LOG4J = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="WARN">
  <Appenders>
    <RollingFile name="file" fileName="${sys:driftline.log}" filePattern="${sys:driftline.log}.%i">
      <PatternLayout pattern="%d %p %m (%c{1})%n"/>
      <Policies><SizeBasedTriggeringPolicy size="16 MB"/></Policies>
      <DefaultRolloverStrategy max="2"/>
    </RollingFile>
  </Appenders>
  <Loggers>
    <Root level="INFO"><AppenderRef ref="file"/></Root>
    <Logger name="org.apache.kafka.common.config.AbstractConfig" level="WARN"/>
  </Loggers>
</Configuration>
"""
"""The server's log: one file that cannot fill the disk, without the hundreds of lines of effective settings."""
