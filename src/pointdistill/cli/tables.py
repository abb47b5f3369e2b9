"""Tables on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.table

    from pointdistill.engine.tables import Table


def rich_table(table: Table) -> rich.table.Table:
    """A table with ruled lines, its text as it is; the notes are the caller's to print."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(title=Text(table.title), title_justify="left", box=SIMPLE_HEAD)
    for name in table.columns:
        drawn.add_column(Text(name), justify="right" if name.endswith("%") else "left")
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn
