"""The corpus that a command looks at: the one named, or the last one made here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CorpusArgument = Annotated[
    Path | None,
    typer.Argument(help="The corpus folder. Default: the last one made in this folder."),
]


def named_corpus(corpus: Path | None) -> Path:
    """The folder that was named, or the last corpus made in this folder, said on stderr.

    Raises:
        DataError: if none was named and none was made.
    """
    if corpus is not None:
        return corpus
    from pointdistill.data.workspace import last_corpus
    from pointdistill.errors import DataError

    last = last_corpus()
    if last is None:
        msg = "no corpus was made in this folder yet; run `pointdistill prepare-data`, or name one"
        raise DataError(msg)
    typer.echo(f"corpus: {last} (the last one made in this folder)", err=True)
    return last
