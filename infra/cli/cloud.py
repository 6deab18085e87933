"""``driftline cloud``: one cloud worker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra.cli._context import CliContext


def cloud(
    ctx: typer.Context,
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Bundle folder; the newest one of the dataset by default.")
    ] = None,
    status_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write this worker's pid and url once it serves.")
    ] = None,
) -> None:
    """Run a cloud worker: it answers refresh requests with embeddings. Several share the partitions among them."""
    from cloud_worker.worker import run_cloud_worker
    from infra.bundles import choose_bundle
    from streams.log import configure_logging

    context: CliContext = ctx.obj
    settings = context.settings
    configure_logging(settings.log_level, status_file.stem if status_file else "cloud")
    run_cloud_worker(settings, choose_bundle(settings, bundle), status_file=status_file)
