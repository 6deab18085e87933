"""Options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BundleOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Bundle folder; the newest one of the dataset by default.")
]
ArmOption = Annotated[
    list[str] | None,
    typer.Option(metavar="SPEC", help="An arm, [NAME=]POLICY[:KEY=VALUE,…]; repeat for more. Default: every-n:n=20."),
]
ExperimentOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Experiment file with the arms.")]
StatusFileOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Where to write this worker's pid and url once it serves.")
]
