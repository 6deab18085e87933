"""Where tables are printed: as wide as the terminal, and wide enough in a file or a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

TABLE_WIDTH: Final = 170
"""Columns of a file or a pipe: rich would take it for 80 and break names apart."""


def table_console(*, stderr: bool = False) -> Console:
    """Console of standard output, or of standard error."""
    from rich.console import Console

    console = Console(stderr=stderr)
    if not console.is_terminal and console.width < TABLE_WIDTH:
        console.width = TABLE_WIDTH
    return console


def print_whole(console: Console, table: Table) -> None:
    """Print a table of figures, none of them cut off: in a narrower terminal its lines run on in the next one."""
    width = console.width
    needed = console.measure(table, options=console.options.update(max_width=10 * TABLE_WIDTH)).maximum
    if needed <= width:
        console.print(table)
        return
    console.width = needed
    console.print(table)
    console.width = width
    if console.is_terminal:
        hint = f"(the table is {needed} columns wide and the terminal {width}; --json prints it as one object)"
        console.print(hint, highlight=False, markup=False, soft_wrap=True)
