"""``pointdistill preview``: some shapes of a corpus, as a picture and as a page that turns them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from pointdistill.cli.corpus_argument import CorpusArgument, named_corpus

MOST_SHAPES = 500
"""More would make a page that no browser likes to open."""


def preview(
    corpus: CorpusArgument = None,
    shapes: Annotated[
        int, typer.Option(help="Shapes to show, drawn by --seed.", min=1, max=MOST_SHAPES)
    ] = 24,
    seed: Annotated[int, typer.Option(help="Same seed, same shapes.", min=0)] = 0,
    ids: Annotated[
        list[str] | None, typer.Option(help="Show the shape of this id; again for more.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Only shapes of this label; again for more.")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Only shapes of this source; again for more.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Both files without .png and .html. Default: the corpus's name and -preview.",
        ),
    ] = None,
) -> None:
    """Draw shapes of a corpus: a contact sheet (.png), and a page that turns them (.html).

    The page needs nothing but a browser: no network, no other file.
    """
    from pointdistill.data.corpus import open_corpus
    from pointdistill.data.corpus.choose import ShapeFilter, choose_shapes
    from pointdistill.engine.reporting.preview import write_preview

    folder = named_corpus(corpus)
    wanted = ShapeFilter(
        ids=tuple(ids or ()), labels=tuple(label or ()), sources=tuple(source or ())
    )
    opened = open_corpus(folder)
    chosen = choose_shapes(opened, wanted, count=shapes, seed=seed)
    stem = output or Path(f"{folder.resolve().name}-preview")
    made = write_preview(opened, chosen, stem=stem, seed=seed)
    typer.echo(f"picture: {made.picture}, {made.shapes:,} of {len(opened):,} shapes")
    typer.echo(f"page: {made.page}, open it in a browser")
    typer.echo(
        f"next: pointdistill pretrain --size tiny --data {shlex.quote(str(folder))}   (on a GPU: --size small)"
    )
