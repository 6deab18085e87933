"""The command ``driftline``: global options, the verbs, and what an error looks like.

A verb is a file of its name in this folder (see ``_verbs``). It raises ``DriftlineError``; here that becomes a message
and an exit code: 0 good, 1 failure, 2 usage, 70 a checkpoint's outcome is unknown, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import select
import sys
import tempfile
import traceback
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from infra.cli._context import PROCESS_NAME, CliContext
from infra.cli._verbs import LazyVerbs, PipeBroken
from streams.errors import EXIT_RESTART, EXIT_USAGE, CheckpointFailed, DriftlineError, SettingsError

__all__ = ["CliContext", "app", "main"]

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT}
_OURS = {"streams", "device_agent", "cloud_worker", "infra"}

app = typer.Typer(
    cls=LazyVerbs,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: to draw boxes costs a third of a second at each --help and usage error
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class LogLevel(enum.StrEnum):
    """As the setting log_level."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"driftline {_version()}")
        raise typer.Exit


def _version() -> str:
    try:
        return metadata.version("driftline")
    except metadata.PackageNotFoundError:  # run from the source tree without an installation
        import tomllib

        pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
        with contextlib.suppress(OSError, ValueError, KeyError):
            return str(tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["version"])
        return "(version unknown)"


@app.callback()
def _options(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings file; driftline.toml here, if there is one.")
    ] = None,
    home: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where everything that Driftline writes lives.")
    ] = None,
    log_level: Annotated[LogLevel | None, typer.Option(help="Of this and of every process it starts.")] = None,
    version: Annotated[  # noqa: ARG001 - the callback answers
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Measure how stale a cached user embedding is, repair it on the device, decide when a new one is worth its cost.

    Settings come from a TOML file, then DRIFTLINE_* in the environment, then these options, which go before the verb.
    """
    context = ctx.ensure_object(CliContext)
    context.apply(
        {
            "DRIFTLINE_CONFIG": None if config is None else str(config),
            "DRIFTLINE_HOME": None if home is None else str(home),
            "DRIFTLINE_LOG_LEVEL": None if log_level is None else log_level.value,
        }
    )
    ctx.call_on_close(context.restore)
    # Without this structlog writes to stdout, where a table or one JSON object is expected.
    from streams.log import configure_logging

    level = os.environ.get("DRIFTLINE_LOG_LEVEL", "")
    configure_logging(level if level in set(LogLevel) else "info", PROCESS_NAME)


def main() -> None:
    """Run the command and end the process with its exit code."""
    context = CliContext()
    try:
        code = _run(context)
        sys.stdout.flush()
    except (PipeBroken, BrokenPipeError) as problem:
        code = 0
        if not _stdout_is_gone():  # then it was another pipe, a socket say
            _unexpected(problem.__cause__ or problem, context)
            code = EXIT_FAILURE
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except DriftlineError as problem:
        _say(problem.message, problem.remedy)
        if isinstance(problem, CheckpointFailed):
            code = EXIT_RESTART
        else:
            code = EXIT_USAGE if isinstance(problem, SettingsError) else EXIT_FAILURE
        if _debugging(context):
            traceback.print_exc()
    except ModuleNotFoundError as problem:
        package = (problem.name or "").partition(".")[0]
        if package in _OURS:
            _unexpected(problem, context)
        else:
            remedy = "install Driftline with its extras: uv pip install 'driftline[device,cloud,evaluate]'"
            _say(f"this command needs the Python package {package}, which is not installed", remedy)
        code = EXIT_FAILURE
    except OSError as problem:
        if problem.errno in _UNWRITABLE and problem.filename:
            remedy = "name a folder that can be written with --home (or with --out, where a verb has it), or make room"
            _say(f"{problem.filename}: {problem.strerror}", remedy)
            if _debugging(context):
                traceback.print_exc()
        else:
            _unexpected(problem, context)
        code = EXIT_FAILURE
    except Exception as problem:  # noqa: BLE001 - the edge of the process: whatever it is, it is said and counted as 1
        _unexpected(problem, context)
        code = EXIT_FAILURE
    sys.exit(code)


def _run(context: CliContext) -> int:
    """Run the command line; usage errors are printed by typer."""
    from typer.main import get_command

    try:
        get_command(app).main(prog_name="driftline", obj=context)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_FAILURE * bool(end.code)
    return 0


def _say(message: str, remedy: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads stderr either
        print(f"error: {message}", file=sys.stderr)
        if remedy:
            print(f"remedy: {remedy}", file=sys.stderr)


def _debugging(context: CliContext) -> bool:
    level = context.given.get("DRIFTLINE_LOG_LEVEL") or os.environ.get("DRIFTLINE_LOG_LEVEL", "")
    return level.lower() == LogLevel.debug


def _unexpected(problem: BaseException, context: CliContext) -> None:
    if _debugging(context):
        traceback.print_exception(problem)
        _say(f"unexpected {type(problem).__name__}: {problem}", "")
        return
    remedy = "--log-level debug, before the verb, shows where"
    with (
        contextlib.suppress(OSError),
        tempfile.NamedTemporaryFile("w", prefix="driftline-", suffix=".trace", delete=False, encoding="utf-8") as file,
    ):
        traceback.print_exception(problem, file=file)
        remedy = f"where it happened is in {file.name}; --log-level debug, before the verb, prints it"
    _say(f"unexpected {type(problem).__name__}: {problem}", remedy)


def _stdout_is_gone() -> bool:
    """Whether the reader of our output has left, as in ``driftline … | head``; then stdout is pointed at nothing.

    Python would otherwise complain of the broken pipe once more as it ends.
    """
    number = sys.stdout.fileno()
    end = select.poll()
    end.register(number, 0)
    if not any(state & (select.POLLERR | select.POLLHUP) for _, state in end.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return True
