"""Commands that examine corpora: ``inspect``, ``verify``, ``preview``, ``leaks`` and ``duplicates``."""

from __future__ import annotations

import json
import shlex
import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pointdistill.cli.console import console_reporter, echo, echo_lines, print_table
from pointdistill.cli.options import CorpusArgument, named_corpus, require_paths
from pointdistill.data.benchmarks.registry import BENCHMARKS

if TYPE_CHECKING:
    from pointdistill.data.leaks.duplicates import DuplicateReport
    from pointdistill.engine.reports.tables import Table

MOST_SHAPES = 500
"""Most shapes on a page; browsers are slow to open larger ones."""

MOST_SHOWN = 20
"""Most files that could not be read, and most groups of duplicates, to print."""


def inspect(
    corpus: CorpusArgument = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON instead of tables.")
    ] = False,
) -> None:
    """Summarise a corpus: shapes by source and label, sizes, licences, checksums, what was refused and why.

    Points are read from a sample of the shapes only; `verify` reads them all.
    """
    from pointdistill.data.corpus.inspect import inspect_corpus
    from pointdistill.engine.reports.tables import corpus_json, corpus_tables

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
    from pointdistill.data.corpus.inspect import find_damage
    from pointdistill.data.corpus.manifest import read_manifest
    from pointdistill.data.corpus_building.export import find_export_damage, is_export

    folder = named_corpus(corpus)
    exported = is_export(folder)
    manifest = None if exported else read_manifest(folder)
    find, unit = (
        (find_export_damage, "checking files") if exported else (find_damage, "checking shards")
    )
    faults = 0
    # On a terminal that shows the bar too, lines are printed above it; a file or a pipe gets them directly.
    share_terminal = sys.stdout.isatty() and sys.stderr.isatty()
    with console_reporter() as reporter:
        for line in find(folder, progress=partial(reporter.progress, unit)):
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
    if manifest is None:
        echo(f"{folder} is whole: every file of the export is as it was written")
        return
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


def duplicates(
    folder: Annotated[
        Path,
        typer.Argument(help="A folder of mesh and point files, or a corpus.", metavar="FOLDER"),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write all groups to: .csv or .json."),
    ] = None,
    up: Annotated[
        str | None,
        typer.Option(
            help="Up axis (x, y, z, -x, -y, -z) of files that do not state one. Default: z."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes. Default: one per core.")
    ] = None,
) -> None:
    """Find shapes that a folder holds several times: the same surface, whatever its mesh, scale, place and turn.

    Turns about the up axis are recognised. Files that cannot be used are listed and the
    others are compared; the exit code is then 2.
    """
    from pointdistill.data.leaks.duplicates import (
        check_report_path,
        find_duplicates_in,
        write_report,
    )

    if output is not None:
        check_report_path(output)
    require_paths([folder])
    try:
        with console_reporter() as reporter:
            report = find_duplicates_in(folder, up=up, workers=workers, reporter=reporter)
    except KeyboardInterrupt:
        echo(
            "stopped, nothing was written; a corpus of the folder can be searched too, "
            "and keeps what was done",
            err=True,
        )
        raise typer.Exit(130) from None
    if report.groups:
        print_table(_duplicates_table(folder, report))
    extra = sum(len(group) - 1 for group in report.groups)
    echo(
        f"{folder}: {extra:,} of {report.shapes:,} shapes repeat another one; groups of the same shape: "
        f"{len(report.groups):,}"
        if extra
        else f"{folder}: no duplicates among {report.shapes:,} shapes"
    )
    if output is not None:
        write_report(output, report)
        echo(f"written: {output}")
    for shape in report.refused[:MOST_SHOWN]:
        echo(f"error: {shape.id}: {shape.cause}", err=True)
    if report.refused:
        total = report.shapes + len(report.refused)
        echo(f"{len(report.refused):,} of {total:,} files were not compared", err=True)
        raise typer.Exit(2)


def _duplicates_table(folder: Path, report: DuplicateReport) -> Table:
    from pointdistill.engine.reports.tables import Table

    rows = tuple(
        (str(number), duplicate.id, "" if duplicate.gap is None else f"{duplicate.gap:.2f}")
        for number, group in enumerate(report.groups[:MOST_SHOWN], start=1)
        for duplicate in group
    )
    more = len(report.groups) - MOST_SHOWN
    gap = "gap: how far two surfaces are apart; about 1 for two samples of one surface"
    notes = (gap, *([f"{more:,} more groups; --output writes all"] if more > 0 else []))
    return Table(f"Duplicates in {folder}", ("group", "shape", "gap"), rows, notes)
