"""`driftline up`: Kafka and the workers, until Ctrl-C."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.cli._context import CliContext
from infra.cli._options import ArmOption, BundleOption, ExperimentOption


def up(
    ctx: typer.Context,
    bundle: BundleOption = None,
    arm: ArmOption = None,
    experiment: ExperimentOption = None,
    devices: Annotated[int, typer.Option(min=1, max=64, help="Device workers.")] = 2,
    clouds: Annotated[int, typer.Option(min=1, max=64, help="Cloud workers.")] = 1,
) -> None:
    """Start Kafka (unless kafka.bootstrap names one), device workers and cloud workers, and keep them running.

    A second run goes on with the data and the state of the first. Feed it with `driftline replay`.
    """
    import shlex
    import threading

    from cloud_worker.training.bundles import read_manifest
    from infra.broker import broker_for
    from infra.bundles import choose_bundle
    from infra.experiments import choose_experiment
    from infra.launch import Supervisor, like_ctrl_c
    from infra.workers import worker_specs
    from infra.workspace import Workspace
    from streams.kafka_admin import ensure_topics
    from streams.topics import Topics

    context: CliContext = ctx.obj
    settings = context.settings
    chosen = choose_experiment(experiment, arm)
    folder = choose_bundle(settings, bundle)
    manifest = read_manifest(folder)
    dataset = manifest.dataset if manifest else settings.dataset  # other events would be of items it does not know
    workspace = Workspace(settings.home)
    broker = broker_for(settings.kafka, workspace.kafka, say=typer.echo)
    with like_ctrl_c():
        try:
            broker.start()
            kafka = settings.kafka.model_copy(update={"bootstrap": broker.bootstrap})
            mine = settings.model_copy(update={"kafka": kafka})
            ensure_topics(kafka, Topics(kafka.topic_prefix, kafka.partitions).specs())
            specs = worker_specs(mine, workspace.run("up"), folder, chosen, clouds=clouds, devices=devices)
            with Supervisor(specs, on_event=lambda event: typer.echo(event.message)) as supervisor:
                supervisor.wait_ready()
                typer.echo(f"Kafka {broker.version} at {broker.bootstrap}; feed it with")
                prefix = f"DRIFTLINE_KAFKA__TOPIC_PREFIX={kafka.topic_prefix} " if kafka.topic_prefix else ""
                feed = ["driftline", "--home", str(settings.home.absolute()), "replay", dataset]
                feed += ["--bootstrap", broker.bootstrap, "--bundle", str(folder.absolute())]
                typer.echo(f"  {prefix}{shlex.join(feed)} --from test --rate 250")
                for status in supervisor.statuses:
                    typer.echo(f"  {status.name}: {status.url}/metrics, log {status.log_file}")
                supervisor.run_until(threading.Event())
        finally:
            broker.stop(1.5)
