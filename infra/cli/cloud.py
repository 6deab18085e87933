"""``driftline cloud``: one cloud worker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def cloud(  # noqa: PLR0917 - typer calls it by name
    bundle: Annotated[Path | None, typer.Option(metavar="DIR", help="Bundle folder; the setting bundle.")] = None,
    bootstrap: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The Kafka cluster.")] = None,
    prefix: Annotated[str | None, typer.Option(metavar="TEXT", help="Put before every topic name.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="sentence-transformers, onnx or openai; the bundle's model.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=0, help="CPU threads of the encoder; 0: all cores.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Of /metrics; 0: a free one.")] = None,
    status_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Gets this worker's pid and URL.")] = None,
) -> None:
    """Answer devices' refresh requests with embeddings until SIGTERM or Ctrl-C.

    Several workers share the load: start as many as there are partitions at most.
    """
    from cloud_worker.worker import run_cloud_worker
    from streams.errors import SettingsError
    from streams.log import configure_logging
    from streams.settings import load_settings

    settings = load_settings(
        flags={
            "bundle": bundle,
            "kafka.bootstrap": bootstrap,
            "kafka.topic_prefix": prefix,
            "cloud.encoder": encoder,
            "cloud.encoder_threads": threads,
            "http.port": port,
        }
    )
    configure_logging(settings.log_level, "cloud")
    if settings.bundle is None:
        raise SettingsError("no bundle is named", remedy="name one with --bundle, or make one with `driftline train`")
    run_cloud_worker(settings, settings.bundle, status_file=status_file)
