"""``driftline cloud``: one cloud worker."""

from __future__ import annotations

import os
import sys

import typer

from infra.cli._context import CliContext
from infra.cli._options import BundleOption, StatusFileOption


def cloud(
    ctx: typer.Context,
    bundle: BundleOption = None,
    status_file: StatusFileOption = None,
) -> None:
    """Run a cloud worker: it answers refresh requests with embeddings. Several share the partitions among them."""
    from cloud_worker.worker import run_cloud_worker
    from infra.bundles import choose_bundle
    from streams.log import configure_logging

    context: CliContext = ctx.obj
    settings = context.settings
    configure_logging(settings.log_level, status_file.stem if status_file else "cloud")
    run_cloud_worker(settings, choose_bundle(settings, bundle), status_file=status_file)
    # It has let go of all and said so. Python would take torch apart now, for seconds on a busy machine, while a
    # supervisor waits and then kills.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
