"""``pointdistill inspect``: what a corpus holds."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from pointdistill.cli.corpus_argument import CorpusArgument, named_corpus


def inspect(
    corpus: CorpusArgument = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON with everything instead of tables.")
    ] = False,
) -> None:
    """Count a corpus's shapes by source and label; sizes, licences, checksums, what was refused and why.

    Points are read of a sample of shapes only: `verify` reads all.
    """
    import json

    from pointdistill.cli.console import print_table
    from pointdistill.cli.task_progress import task_progress
    from pointdistill.data.corpus.inspect import inspect_corpus
    from pointdistill.engine.reporting.corpus_tables import corpus_json, corpus_tables

    folder = named_corpus(corpus)
    with task_progress() as (_, show):
        summary = inspect_corpus(folder, progress=lambda *step: show("reading shards", *step))
    if as_json:
        typer.echo(json.dumps(corpus_json(summary), indent=1, ensure_ascii=False))
        return
    for table in corpus_tables(summary):
        print_table(table)
    typer.echo(f"next: pointdistill verify {shlex.quote(str(folder))}")
