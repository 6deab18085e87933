"""``driftline evaluate``: what a bundle's models are worth on the test period, which none of them has seen."""

from __future__ import annotations

import typer

from infra.cli._evaluate_collaborative import collaborative
from infra.cli._evaluate_demo import demo
from infra.cli._evaluate_profiles import profiles
from infra.cli._evaluate_references import references
from infra.cli._evaluate_reliability import reliability
from infra.cli._evaluate_runtime import runtime
from infra.cli._evaluate_staleness import staleness
from infra.cli._evaluate_trends import trends

app = typer.Typer(no_args_is_help=True)
app.command("staleness")(staleness)
app.command("reliability")(reliability)
app.command("collaborative")(collaborative)
app.command("runtime")(runtime)
app.command("references")(references)
app.command("profiles")(profiles)
app.command("trends")(trends)
app.command("demo")(demo)


@app.callback()
def evaluate() -> None:
    """Measure what a bundle's models are worth on the test period, which none of them has seen."""
