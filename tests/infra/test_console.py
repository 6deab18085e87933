"""Tables of figures come out whole, however narrow the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from infra.cli._console import print_whole


@pytest.mark.parametrize("width", [20, 80, 300])
def test_no_figure_is_cut_off_in_a_narrow_terminal(width: int) -> None:
    table = Table(title="arms")
    table.add_column("arm")
    for column in range(12):
        table.add_column(f"figure {column}", justify="right", no_wrap=True)
    for arm in ("never", "worth:rate=0.1"):
        table.add_row(arm, *(f"+0.{column:04} [+0.0001, +0.0002]" for column in range(12)))
    printed = io.StringIO()
    console = Console(file=printed, width=width, force_terminal=True, color_system=None)
    print_whole(console, table)
    lines = printed.getvalue().splitlines()
    for arm in ("never", "worth:rate=0.1"):
        (row,) = (line for line in lines if arm in line)
        assert all(f"+0.{column:04} [+0.0001, +0.0002]" in row for column in range(12))
    assert console.width == width
    assert f"columns wide and the terminal {width}; --json" in lines[-1]


def test_a_table_that_fits_is_printed_as_it_is() -> None:
    printed = io.StringIO()
    table = Table("arm", "figure")
    table.add_row("never", "1")
    print_whole(Console(file=printed, width=80), table)
    assert "--json" not in printed.getvalue()
