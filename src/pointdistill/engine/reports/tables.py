"""A table of plain text, which the command line prints and reports include."""

from __future__ import annotations

from dataclasses import dataclass

from pointdistill.errors import ConfigError, one_line


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under named columns.

    Raises:
        ConfigError: if a row has more or fewer cells than there are columns.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences to print below the table."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                msg = f"table {self.title!r}: {len(self.columns)} columns, but a row of {len(row)}"
                raise ConfigError(msg)

    def markdown(self) -> str:
        """The table in GitHub's Markdown, with its title in bold above it and its notes as a list below."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        grid = "\n".join("| " + " | ".join(map(_escape, line)) + " |" for line in lines)
        notes = "\n".join(f"- {one_line(note)}" for note in self.notes)
        return "\n\n".join(filter(None, [f"**{one_line(self.title)}**", grid, notes])) + "\n"


def _escape(cell: str) -> str:
    return one_line(cell.replace("|", "\\|").replace("\n", " "))
