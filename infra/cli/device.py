"""`driftline device`: one device worker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra.cli._context import CliContext
from infra.cli._options import ArmOption, BundleOption, ExperimentOption, StatusFileOption


def device(
    ctx: typer.Context,
    bundle: BundleOption = None,
    arm: ArmOption = None,
    experiment: ExperimentOption = None,
    design: Annotated[
        str, typer.Option(help="paired: each device runs all arms. split: each device has one.")
    ] = "paired",
    salt: Annotated[str, typer.Option(help="Of the split, so that two experiments split differently.")] = "",
    state_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="LMDB state of this worker; two workers must not share one.")
    ] = None,
    status_file: StatusFileOption = None,
) -> None:
    """Run a device worker: it applies interactions, serves, scores staleness, asks for refreshes."""
    from device_agent.worker import WorkerOptions, run_device_worker
    from infra.bundles import choose_bundle
    from infra.experiments import choose_experiment
    from streams.log import configure_logging

    context: CliContext = ctx.obj
    settings = context.settings
    chosen = choose_experiment(experiment, arm, design=design, salt=salt)
    configure_logging(settings.log_level, status_file.stem if status_file else "device")
    options = WorkerOptions(
        bundle=choose_bundle(settings, bundle),
        experiment=chosen,
        state_dir=state_dir or settings.home / "state" / "device",
        status_file=status_file,
    )
    run_device_worker(settings, options)
