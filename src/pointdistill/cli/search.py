"""``pointdistill search``: the nearest shapes of an embedding, as a table and a picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pointdistill.cli.console import confirm, console_reporter, echo, print_table
from pointdistill.cli.options import DeviceOption, require_encoder, require_paths
from pointdistill.errors import ConfigError

if TYPE_CHECKING:
    from pointdistill.engine.embedding.search import SearchResult
    from pointdistill.engine.reports.tables import Table


def search(
    query: Annotated[Path, typer.Argument(help="A mesh or point file.")],
    index: Annotated[
        Path | None,
        typer.Argument(
            help="A file that `embed` wrote, or a folder or corpus embedded here. Default: the last one."
        ),
    ] = None,
    count: Annotated[int, typer.Option(help="Number of shapes to find.", min=1)] = 10,
    sheet: Annotated[
        Path | None,
        typer.Option(help="Picture to write. Default: the query's name and -neighbours.png."),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="The encoder that made the index, if it has moved since."),
    ] = None,
    up: Annotated[
        str | None,
        typer.Option(
            help="Up axis of a query that does not state its own. Default: as in the index."
        ),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Find the shapes of an embedding nearest to a file, by cosine similarity of features."""
    picture = sheet or Path(f"{query.stem}-neighbours.png")
    if picture.suffix.lower() != ".png":
        msg = f"the sheet must end in .png, got {str(picture)!r}"
        raise ConfigError(msg, settings=("sheet",))
    require_paths([query, index])
    if encoder is not None:
        require_encoder(encoder, "encoder")

    from pointdistill.engine.embedding.file import open_index
    from pointdistill.engine.embedding.search import draw_sheet, find_index
    from pointdistill.engine.embedding.search import search as run

    opened = open_index(find_index(index))
    with console_reporter() as reporter:
        result = run(
            query,
            opened,
            count=count,
            encoder=encoder,
            up=up,
            device=device,
            may_fetch=_ask,
            reporter=reporter,
        )
    if result.assumed_up and up is None:
        axis = result.settings.up
        echo(
            f"note: {query} does not state its up axis, so {axis} was assumed as for the index; "
            "--up sets another",
            err=True,
        )
    print_table(_table(query, opened.path, result))
    for name in draw_sheet(picture, query, result):
        echo(f"note: {name} is no longer where it was embedded from; not drawn", err=True)
    echo(f"picture: {picture}")


def _ask(repository: str) -> bool:
    """Ask on a terminal; without one, nothing is fetched."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    return confirm(
        f"the index names the encoder {repository}; download it from the Hugging Face Hub?"
    )


def _table(query: Path, index: Path, result: SearchResult) -> Table:
    from pointdistill.engine.reports.tables import Table

    rows = tuple(
        (str(rank), neighbour.id, f"{neighbour.similarity:.4f}")
        for rank, neighbour in enumerate(result.neighbours, start=1)
    )
    return Table(f"Nearest to {query} in {index}", ("rank", "shape", "similarity"), rows)
