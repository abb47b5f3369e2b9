"""Tables for people and for files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import rich.table

    from pointdistill.engine.reporting.tables import Table


def print_table(table: Table) -> None:
    """A table with its notes: ruled lines on a terminal, Markdown where the output goes to a file."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        typer.echo(table.markdown())
        return
    console.print(_rich_table(table))
    for note in table.notes:
        console.print(note, markup=False, highlight=False, style="dim")


def _rich_table(table: Table) -> rich.table.Table:
    """A table with ruled lines, its text as it is."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(title=Text(table.title), title_justify="left", box=SIMPLE_HEAD)
    for name in table.columns:
        drawn.add_column(Text(name), justify="right" if name.endswith("%") else "left")
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn
