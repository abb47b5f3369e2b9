"""Commands that examine a corpus: ``pointdistill inspect``, ``verify``, ``preview`` and ``leaks``."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pointdistill.cli.console import console_reporter, echo, echo_lines, print_table
from pointdistill.cli.options import CorpusArgument, named_corpus
from pointdistill.data.benchmarks.registry import BENCHMARKS

MOST_SHAPES = 500
"""Most shapes on a page; browsers are slow to open larger ones."""


def inspect(
    corpus: CorpusArgument = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON instead of tables.")
    ] = False,
) -> None:
    """Summarise a corpus: shapes by source and label, sizes, licences, checksums, what was refused and why.

    Points are read from a sample of the shapes only; `verify` reads them all.
    """
    import json

    from pointdistill.data.corpus.inspect import inspect_corpus
    from pointdistill.engine.reports.corpus_tables import corpus_json, corpus_tables

    folder = named_corpus(corpus)
    with console_reporter() as reporter:
        summary = inspect_corpus(folder, progress=partial(reporter.progress, "reading shards"))
    if as_json:
        echo_lines(json.dumps(corpus_json(summary), indent=1, ensure_ascii=False))
        return
    for table in corpus_tables(summary):
        print_table(table)
    echo(f"next: pointdistill verify {shlex.quote(str(folder))}")


def verify(corpus: CorpusArgument = None) -> None:
    """Check every checksum of a corpus, and that every coordinate is finite.

    Prints a line for each fault as soon as it is found, naming the shard and the shape;
    the exit code is then 2.
    """
    from pointdistill.data.corpus.manifest import read_manifest
    from pointdistill.data.corpus.verify import find_damage

    folder = named_corpus(corpus)
    manifest = read_manifest(folder)
    faults = 0
    # On a terminal that shows the bar too, lines are printed above it; a file or a pipe gets them directly.
    share_terminal = sys.stdout.isatty() and sys.stderr.isatty()
    with console_reporter() as reporter:
        for line in find_damage(folder, progress=partial(reporter.progress, "checking shards")):
            faults += 1
            if share_terminal:
                reporter.say(line)
            else:
                echo(line)
    if faults:
        things = "thing is" if faults == 1 else "things are"
        echo(
            f"{folder}: {faults:,} {things} wrong; copy it again from where it is whole, "
            "or prepare it again in another folder",
            err=True,
        )
        raise typer.Exit(2)
    shapes = f"{manifest.shapes:,} shape{'s' if manifest.shapes != 1 else ''}"
    shards = f"{len(manifest.shards):,} shard{'s' if len(manifest.shards) != 1 else ''}"
    echo(f"{folder} is whole: {shapes} in {shards}, content {manifest.content}")
    echo(f"next: pointdistill preview {shlex.quote(str(folder))}")


def preview(
    corpus: CorpusArgument = None,
    shapes: Annotated[
        int,
        typer.Option(
            help="Number of shapes to show, chosen at random by --seed.", min=1, max=MOST_SHAPES
        ),
    ] = 24,
    seed: Annotated[int, typer.Option(help="The same seed shows the same shapes.", min=0)] = 0,
    ids: Annotated[
        list[str] | None, typer.Option(help="Show the shape with this id; repeat for more.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Only shapes with this label; repeat for more.")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Only shapes from this source; repeat for more.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Path of both files without .png and .html. Default: the corpus's name and -preview.",
        ),
    ] = None,
) -> None:
    """Draw shapes of a corpus: a contact sheet (.png) and a web page to rotate them (.html).

    The page needs only a browser: no network, no other file.
    """
    from pointdistill.data.corpus import open_corpus
    from pointdistill.data.corpus.choose import ShapeFilter, choose_shapes
    from pointdistill.engine.reports.preview import write_preview

    folder = named_corpus(corpus)
    selection = ShapeFilter(
        ids=tuple(ids or ()), labels=tuple(label or ()), sources=tuple(source or ())
    )
    opened = open_corpus(folder)
    chosen = choose_shapes(opened, selection, count=shapes, seed=seed)
    stem = output or Path(f"{folder.resolve().name}-preview")
    written = write_preview(opened, chosen, stem=stem, seed=seed)
    echo(f"picture: {written.picture}, {written.shapes:,} of {len(opened):,} shapes")
    echo(f"page: {written.page}, open it in a browser")
    echo(
        f"next: pointdistill pretrain --size tiny --data {shlex.quote(str(folder))}   (on a GPU: --size small)"
    )


class BenchmarkName(StrEnum):
    """The benchmarks whose test shapes can be looked for."""

    _ignore_ = "name"
    for name in BENCHMARKS:
        vars()[name.upper()] = name


def leaks(
    benchmark: Annotated[BenchmarkName, typer.Argument(help="Whose test shapes to look for.")],
    corpus: Annotated[Path | None, typer.Option(help="The corpus to look in.")] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(
            help="Instead of a corpus, a run: the corpus it used. Default: the last run here."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The archive; by default it is looked for under data/.")
    ] = None,
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="Check a stand-in, made on first use.")
    ] = False,
    split: Annotated[
        list[str] | None, typer.Option(help="Such as OBJ-BG; repeat for more. Default: all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes. Default: one per core.")
    ] = None,
) -> None:
    """List the test shapes of a benchmark that are in a corpus, by id and by the shapes themselves.

    Fingerprints of the corpus are kept in its folder; if it is stopped, the same command continues.
    """
    import json

    from pointdistill.engine.evaluation.leak_check import LeakRequest, check_leaks, leaks_table

    request = LeakRequest(
        benchmark=benchmark.value,
        corpus=corpus,
        encoder=encoder,
        data=data,
        stand_in=stand_in,
        splits=tuple(split or ()),
        workers=workers,
    )
    with console_reporter() as reporter:
        checked = check_leaks(request, reporter)
    if as_json:
        echo_lines(json.dumps(checked.plain(), indent=1, ensure_ascii=False))
        return
    table = leaks_table(checked)
    if table.rows:
        print_table(table)
    else:
        for line in table.notes:
            echo(line)
    command = ["pointdistill", "evaluate", benchmark.value]
    command += [] if encoder is None else ["--encoder", str(encoder)]
    command += [] if data is None else ["--data", str(data)]
    echo(f"next: {shlex.join([*command, *(['--stand-in'] if stand_in else [])])}")
