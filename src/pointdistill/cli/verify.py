"""``pointdistill verify``: whether a corpus is as it was written."""

from __future__ import annotations

import shlex
import sys

import typer

from pointdistill.cli.corpus_argument import CorpusArgument, named_corpus


def verify(corpus: CorpusArgument = None) -> None:
    """Check every checksum of a corpus, and that every shape is finite.

    Prints a line for each damage, with the shard and the shape, as soon as it is found;
    the exit code is then 2.
    """
    from pointdistill.cli.task_progress import task_progress
    from pointdistill.data.corpus.manifest import read_manifest
    from pointdistill.data.corpus.verify import find_damage

    folder = named_corpus(corpus)
    manifest = read_manifest(folder)
    damages = 0
    output = sys.stdout
    # Where bar and lines share a terminal, the lines go above the bar; a file or a pipe gets them itself.
    together = output.isatty() and sys.stderr.isatty()
    with task_progress() as (say, show):
        for line in find_damage(folder, progress=lambda *step: show("checking shards", *step)):
            damages += 1
            if together:
                say(line)
            else:
                typer.echo(line, file=output)
    if damages:
        things = "thing is" if damages == 1 else "things are"
        typer.echo(
            f"{folder}: {damages:,} {things} wrong; copy it again from where it is whole, "
            "or prepare it again in another folder",
            err=True,
        )
        raise typer.Exit(2)
    shapes = f"{manifest.shapes:,} shape{'s' if manifest.shapes != 1 else ''}"
    shards = f"{len(manifest.shards):,} shard{'s' if len(manifest.shards) != 1 else ''}"
    typer.echo(f"{folder} is whole: {shapes} in {shards}, content {manifest.content}")
    typer.echo(f"next: pointdistill preview {shlex.quote(str(folder))}")
