"""``driftline topics``: list, create and delete Driftline's topics."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli._console import table_console

if TYPE_CHECKING:
    from streams.settings import KafkaSettings
    from streams.topics import Topics

app = typer.Typer(help="List, create and delete Driftline's topics.", no_args_is_help=True)

Bootstrap = Annotated[str | None, typer.Option("--bootstrap", help="host:port[,host:port] of the cluster.")]
Prefix = Annotated[str | None, typer.Option("--topic-prefix", help="Put before every topic name.")]
Partitions = Annotated[int | None, typer.Option("--partitions", min=1, help="Of every topic keyed by device.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]

WAIT_S = 10.0
COLUMNS = ("topic", "state", "partitions", "replication", "cleanup.policy", "retention.ms", "records")


@app.command("list")
def list_topics(
    bootstrap: Bootstrap = None, topic_prefix: Prefix = None, partitions: Partitions = None, json: Json = False
) -> None:
    """Show what the cluster has of each topic, and whether it is as it must be."""
    kafka, topics = _settings(bootstrap, topic_prefix, partitions)
    rows = _rows(kafka, topics)
    _print(kafka, rows, json=json)


@app.command("create")
def create_topics(
    bootstrap: Bootstrap = None, topic_prefix: Prefix = None, partitions: Partitions = None, json: Json = False
) -> None:
    """Create what is missing and verify what is there; workers do the same when they start."""
    from streams.kafka_admin import ensure_topics

    kafka, topics = _settings(bootstrap, topic_prefix, partitions)
    created = set(ensure_topics(kafka, topics.specs()))
    rows = _rows(kafka, topics)
    for row in rows:
        if row["topic"] in created:
            row["state"] = "created"
    _print(kafka, rows, json=json)


@app.command("delete")
def delete_topics(
    bootstrap: Bootstrap = None,
    topic_prefix: Prefix = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Delete the topics of this installation with every record in them."""
    from streams.kafka_admin import delete_topics as delete
    from streams.kafka_admin import describe_topics

    kafka, topics = _settings(bootstrap, topic_prefix, None)
    present = list(describe_topics(kafka, [spec.name for spec in topics.specs()]))
    if present and not yes:
        typer.echo(f"On {kafka.bootstrap}: {', '.join(present)}", err=True)
        typer.confirm(f"Delete these {len(present)} topics with all their records?", abort=True, err=True)
    deleted = delete(kafka, present)
    rows = [{"topic": name, "state": "deleted"} for name in deleted]
    _print(kafka, rows, json=json, columns=("topic", "state"))


def _settings(bootstrap: str | None, prefix: str | None, partitions: int | None) -> tuple[KafkaSettings, Topics]:
    from streams.kafka_clients import wait_for_broker
    from streams.settings import load_settings
    from streams.topics import Topics

    flags = {"kafka.bootstrap": bootstrap, "kafka.topic_prefix": prefix, "kafka.partitions": partitions}
    kafka = load_settings(flags=flags).kafka
    wait_for_broker(kafka, WAIT_S)
    return kafka, Topics(kafka.topic_prefix, kafka.partitions)


def _rows(kafka: KafkaSettings, topics: Topics) -> list[dict[str, Any]]:
    from streams.kafka_admin import describe_topics, mismatch, retained_records

    specs = topics.specs()
    found = describe_topics(kafka, [spec.name for spec in specs])
    records = retained_records(kafka, found.values())
    rows: list[dict[str, Any]] = []
    for spec in specs:
        info = found.get(spec.name)
        if info is None:
            rows.append(dict.fromkeys(COLUMNS) | {"topic": spec.name, "state": "missing"})
            continue
        problem = mismatch(spec, info)
        rows.append(
            {
                "topic": spec.name,
                "state": "ok" if problem is None else problem.message,
                "partitions": info.partitions,
                "replication": info.replication,
                "cleanup.policy": info.config.get("cleanup.policy"),
                "retention.ms": int(info.config.get("retention.ms") or -1),
                "records": records[spec.name],
            }
        )
    return rows


def _print(kafka: KafkaSettings, rows: list[dict[str, Any]], *, json: bool, columns: tuple[str, ...] = COLUMNS) -> None:
    if json:
        meta = {"bootstrap": kafka.bootstrap, "topic_prefix": kafka.topic_prefix}
        typer.echo(json_module.dumps({"meta": meta, "rows": rows}))
        return
    from rich.table import Table

    table = Table(title=f"topics on {kafka.bootstrap}")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == columns[0])
    for row in rows:
        table.add_row(*("" if row[column] is None else str(row[column]) for column in columns))
    table_console().print(table)
