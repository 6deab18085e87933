"""Where tables are printed: as wide as the terminal, and wide enough in a file or a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

TABLE_WIDTH: Final = 170
"""Columns of a file or a pipe: rich would take it for 80 and break names apart."""


def table_console(*, stderr: bool = False) -> Console:
    """Console of standard output, or of standard error."""
    from rich.console import Console

    console = Console(stderr=stderr)
    if not console.is_terminal and console.width < TABLE_WIDTH:
        console.width = TABLE_WIDTH
    return console
