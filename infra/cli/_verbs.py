"""The verbs, loaded when they are called: ``driftline --help`` must not wait for torch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

VERBS: Final = {
    "demo": "Replay a dataset through Kafka and compare refresh policies, from start to table.",
    "up": "Start Kafka and the workers, and keep them running.",
    "replay": "Send a dataset's interactions as a live event stream.",
    "device": "Run a device worker.",
    "cloud": "Run a cloud worker.",
    "train": "Train a model bundle.",
    "evaluate": "Measure what a bundle's models are worth on the test period.",
    "data": "List, prepare and import datasets.",
    "topics": "Show, create and verify the topics.",
    "config": "Show the settings, where they come from and what they mean.",
    "doctor": "Say what is well on this machine and what is not.",
}
"""Each verb and its line in the help, in the order of the help. A verb is the file of its name in this folder: either
a function of its name or, where it has verbs of its own, a typer app named ``app``."""

FOLDER: Final = Path(__file__).resolve().parent


def present() -> list[str]:
    """Return the verbs that this installation has."""
    return [verb for verb in VERBS if (FOLDER / f"{verb}.py").is_file()]


def load(verb: str) -> Any:
    """Import a verb and return its command (typer's own copy of click has no public name for the type)."""
    module = importlib.import_module(f"infra.cli.{verb}")
    app = getattr(module, "app", None)
    if not isinstance(app, typer.Typer):
        app = typer.Typer()
        app.command(verb)(getattr(module, verb))
    app._add_completion = False  # noqa: SLF001 - completion belongs to the whole command, not to a verb
    app.rich_markup_mode = None  # as the whole command
    command = get_command(app)
    command.name = verb
    return command


class PipeBroken(Exception):
    """A verb ended by BrokenPipeError, which typer would take for exit code 1 whatever pipe it was."""


class LazyVerbs(TyperGroup):
    """Knows its verbs by name and line of help, and imports the one that is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for verb in present():
            self.add_command(TyperCommand(verb, short_help=VERBS[verb], help=VERBS[verb]))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the verb, and only then import it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name in VERBS else command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as problem:
            raise PipeBroken from problem
