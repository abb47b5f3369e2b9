"""Commands that examine corpora: ``inspect``, ``verify``, ``preview``, ``leaks`` and ``duplicates``."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pointdistill.cli.console import (
    console_reporter,
    echo,
    print_json,
    print_table,
    say_refused,
)
from pointdistill.cli.options import (
    UP_AXES,
    CorpusArgument,
    JsonOption,
    check_up,
    complete_one_of,
    named_corpus,
    require_paths,
)
from pointdistill.data.benchmarks.registry import BENCHMARKS
from pointdistill.data.files.workspace import given_or_last_run
from pointdistill.reporter import plural

if TYPE_CHECKING:
    from pointdistill.data.leaks.duplicates import DuplicateReport
    from pointdistill.engine.reports.tables import Table

MOST_SHAPES = 500
"""Most shapes on a page; browsers are slow to open larger ones."""

MOST_SHOWN = 20
"""Most files that could not be read, and most groups of duplicates, to print."""


def inspect(
    corpus: CorpusArgument = None,
    as_json: JsonOption = False,
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
        print_json("inspect", corpus_json(summary))
        return
    for table in corpus_tables(summary):
        print_table(table)
    echo(f"next: pointdistill verify {shlex.quote(str(folder))}")


def verify(corpus: CorpusArgument = None, as_json: JsonOption = False) -> None:
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
    faults: list[str] = []
    # On a terminal that shows the bar too, lines are printed above it; a file or a pipe gets them directly.
    share_terminal = sys.stdout.isatty() and sys.stderr.isatty()
    with console_reporter() as reporter:
        for line in find(folder, progress=partial(reporter.progress, unit)):
            faults.append(line)
            if as_json:
                continue
            if share_terminal:
                reporter.say(line)
            else:
                echo(line)
    if as_json:
        facts: dict[str, Any] = {"corpus": folder, "whole": not faults}
        if manifest is not None:
            facts["content"] = manifest.content
            facts |= {"shapes": manifest.shapes, "shards": len(manifest.shards)}
        print_json("verify", facts | {"faults": faults})
    if faults:
        things = "thing is" if len(faults) == 1 else "things are"
        echo(
            f"{folder}: {len(faults):,} {things} wrong; copy it again from where it is whole, "
            "or prepare it again in another folder",
            err=True,
        )
        raise typer.Exit(2)
    if as_json:
        return
    if manifest is None:
        echo(f"{folder} is whole: every file of the export is as it was written")
        return
    shapes, shards = plural(manifest.shapes, "shape"), plural(len(manifest.shards), "shard")
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
    as_json: JsonOption = False,
) -> None:
    """Draw shapes of a corpus: a contact sheet (.png) and a web page to rotate them (.html).

    The page needs only a browser: no network, no other file.
    """
    from pointdistill.data.corpus import open_corpus
    from pointdistill.data.corpus.rows import ShapeFilter, choose_shapes
    from pointdistill.engine.reports.preview import write_preview

    folder = named_corpus(corpus)
    selection = ShapeFilter(
        ids=tuple(ids or ()), labels=tuple(label or ()), sources=tuple(source or ())
    )
    opened = open_corpus(folder)
    chosen = choose_shapes(opened, selection, count=shapes, seed=seed)
    stem = output or Path(f"{folder.resolve().name}-preview")
    written = write_preview(opened, chosen, stem=stem, seed=seed)
    if as_json:
        shown = {"shapes": written.shapes, "of": len(opened)}
        print_json("preview", {"picture": written.picture, "page": written.page} | shown)
        return
    echo(f"picture: {written.picture}, {written.shapes:,} of {plural(len(opened), 'shape')}")
    echo(f"page: {written.page}, open it in a browser")
    echo(
        f"next: pointdistill pretrain --size tiny --data {shlex.quote(str(folder))}   (on a GPU: --size small)"
    )


class BenchmarkName(StrEnum):
    """The benchmarks whose test shapes can be looked for."""

    _ignore_ = "name"
    for name in BENCHMARKS:
        vars()[name.upper()] = name


def require_leak_corpus(corpus: Path | None, encoder: Path | None) -> None:
    """Check that there may be a corpus to look in, before torch is loaded.

    Raises:
        CorpusError: if the named one is absent or damaged.
        CheckpointError: if none was named and no run was made.
        DataError: if the named encoder is absent.
    """
    from pointdistill.data.corpus.manifest import read_manifest

    if corpus is not None:
        from pointdistill.data.corpus.manifest import read_manifest

        read_manifest(corpus)
        return
    given_or_last_run(encoder, what="a corpus or an encoder", settings=("corpus", "encoder"))
    require_paths([encoder], "encoder")


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
    as_json: JsonOption = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes. Default: one per core.")
    ] = None,
) -> None:
    """List the test shapes of a benchmark that are in a corpus, by id and by the shapes themselves.

    Fingerprints of the corpus are kept in its folder; if it is stopped, the same command continues.
    """
    require_leak_corpus(corpus, encoder)

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
        print_json("leaks", checked.plain())
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
            help="Up axis (x, y, z, -x, -y, -z) of files that do not state one. Default: z.",
            callback=check_up,
            autocompletion=complete_one_of(*UP_AXES),
        ),
    ] = None,
    same_size: Annotated[
        bool,
        typer.Option(
            "--same-size", help="Take copies whose size differs by more than 4 % for other shapes."
        ),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes. Default: one per core.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find shapes that a folder holds several times: the same surface, whatever its mesh, scale, place and turn.

    Turns about the up axis are recognised. A copy of twice the size, or in other units,
    is found too, and its scale is shown; --same-size leaves those out.

    Files that cannot be used are listed and the others are compared; the exit code is
    then 2.
    """
    require_paths([folder])

    from pointdistill.data.leaks.duplicates import (
        check_report_path,
        find_duplicates_in,
        write_report,
    )

    if output is not None:
        check_report_path(output)
    if up is None and not (folder / "corpus.json").exists():
        echo(
            "note: z is taken as the up axis of files that state none; --up sets another", err=True
        )
    try:
        with console_reporter() as reporter:
            report = find_duplicates_in(
                folder, up=up, same_size=same_size, workers=workers, reporter=reporter
            )
    except KeyboardInterrupt:
        echo(
            "stopped, nothing was written; a corpus of the folder can be searched too, "
            "and keeps what was done",
            err=True,
        )
        raise typer.Exit(130) from None
    if as_json:
        print_json("duplicates", {"folder": folder} | report.plain())
    elif report.groups:
        print_table(_duplicates_table(folder, report))
    extra = sum(len(group) - 1 for group in report.groups)
    echo(
        f"{folder}: {extra:,} of {plural(report.shapes, 'shape')} repeat another one; groups of the same shape: "
        f"{len(report.groups):,}"
        if extra
        else f"{folder}: no duplicates among {plural(report.shapes, 'shape')}",
        err=as_json,
    )
    if output is not None:
        write_report(output, report)
        echo(f"written: {output}", err=as_json)
    refused = report.refused
    for shape in refused[:MOST_SHOWN]:
        say_refused(f"{folder}/{shape.id}", shape.cause)
    if refused:
        total = report.shapes + len(refused)
        were = "was" if len(refused) == 1 else "were"
        echo(f"{len(refused):,} of {plural(total, 'file')} {were} not compared", err=True)
        raise typer.Exit(2)


def _duplicates_table(folder: Path, report: DuplicateReport) -> Table:
    from pointdistill.engine.reports.tables import Table

    rows = tuple(
        (
            str(number),
            duplicate.id,
            "" if duplicate.gap is None else f"{duplicate.gap:.2f}",
            "" if duplicate.scale is None else f"{duplicate.scale:.3g}",
        )
        for number, group in enumerate(report.groups[:MOST_SHOWN], start=1)
        for duplicate in group
    )
    more = len(report.groups) - MOST_SHOWN
    gap = "gap: how far two surfaces are apart; about 1 for two samples of one surface"
    scale = "scale: how many times as large as the first of its group, in the units of the files"
    notes = (gap, scale, *([f"{more:,} more groups; --output writes all"] if more > 0 else []))
    return Table(f"Duplicates in {folder}", ("group", "shape", "gap", "scale"), rows, notes)
