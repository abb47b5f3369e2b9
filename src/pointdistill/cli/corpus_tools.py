"""``pointdistill corpus merge | subset | split | export``: corpora of corpora, and other formats."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pointdistill.cli.console import console_reporter, echo, echo_lines, print_json
from pointdistill.cli.help import PROGRAM, GroupHelp
from pointdistill.cli.options import CorpusArgument, JsonOption, named_corpus
from pointdistill.errors import ConfigError

if TYPE_CHECKING:
    from pointdistill.data.corpus_building import BuildReport
    from pointdistill.reporter import Reporter

corpus_app = typer.Typer(
    name="corpus",
    cls=GroupHelp,
    epilog=f"{PROGRAM} corpus split data/own -o parts",
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
)

OutputOption = Annotated[
    Path, typer.Option("--output", "-o", help="Folder to make. An interrupted command continues.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, help="Processes; the bytes do not depend on it. Default: one per core."),
]


@corpus_app.callback()
def show_commands(context: typer.Context) -> None:
    """Merge, divide or export corpora. Licences and origins are kept; points are copied as they are stored."""
    if context.invoked_subcommand is None:
        echo_lines(context.get_help())


class ExportFormat(StrEnum):
    """The formats of `pointdistill.data.corpus_building.export`, repeated for ``--help``; a test compares them."""

    NPZ = "npz"
    PLY = "ply"
    WEBDATASET = "webdataset"
    PARQUET = "parquet"


def merge(
    corpora: Annotated[
        list[Path], typer.Argument(help="Two or more corpus folders.", metavar="CORPUS…")
    ],
    output: OutputOption,
    as_json: JsonOption = False,
    workers: WorkersOption = None,
) -> None:
    """Join corpora to one.

    A source that several of them hold is one source, and a shape that is in several is kept
    once. Different sources of the same name get a number behind it.
    """
    from pointdistill.data.corpus_building.derive import merge_corpora

    with _work() as reporter:
        report = merge_corpora(corpora, output, workers=workers, reporter=reporter)
    _report_one("merge", report, as_json=as_json)


def subset(
    output: OutputOption,
    corpus: CorpusArgument = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Only shapes from this source; repeat for more.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Only shapes with this label; repeat for more.")
    ] = None,
    ids: Annotated[
        Path | None, typer.Option(help="Only the shapes whose ids are in this file, one a line.")
    ] = None,
    shapes: Annotated[
        int | None, typer.Option(help="So many of them, drawn by --seed. Default: all.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same shapes.", min=0)] = 0,
    as_json: JsonOption = False,
    workers: WorkersOption = None,
) -> None:
    """Make a corpus of some shapes of another: by source, by label, by name, or a random few."""
    from pointdistill.data.corpus.rows import ShapeFilter
    from pointdistill.data.corpus_building.derive import read_names, subset_corpus

    folder = named_corpus(corpus)
    choice = ShapeFilter(
        sources=tuple(source or ()),
        labels=tuple(label or ()),
        ids=read_names(ids) if ids is not None else (),
    )
    with _work() as reporter:
        report = subset_corpus(
            folder,
            output,
            choice=choice,
            shapes=shapes,
            seed=seed,
            workers=workers,
            reporter=reporter,
        )
    _report_one("subset", report, as_json=as_json)


def split(
    output: OutputOption,
    corpus: CorpusArgument = None,
    shares: Annotated[
        str, typer.Option(help="Name and share of each part; the shares add up to 1.")
    ] = "train=0.8,test=0.2",
    seed: Annotated[int, typer.Option(help="Same seed, same parts.", min=0)] = 0,
    as_json: JsonOption = False,
    workers: WorkersOption = None,
) -> None:
    """Divide a corpus into parts, each a corpus in a folder of its name; every label is divided alike."""
    from pointdistill.data.corpus_building.derive import split_corpus

    folder = named_corpus(corpus)
    with _work() as reporter:
        reports = split_corpus(
            folder, output, shares=_shares(shares), seed=seed, workers=workers, reporter=reporter
        )
    _report("split", reports, as_json=as_json)


def export_corpus(
    output: OutputOption,
    corpus: CorpusArgument = None,
    layout: Annotated[
        ExportFormat, typer.Option("--format", help="How the shapes are written.")
    ] = ExportFormat.NPZ,
    as_json: JsonOption = False,
    workers: WorkersOption = None,
) -> None:
    """Write a corpus for other programs, with its licences and a checksum of every file.

    npz: arrays, a file for each shard. ply: a file for each shape. webdataset: tar files.
    parquet: a row for each shape; needs the extra "parquet".
    """
    from pointdistill.data.corpus_building.export import export_corpus as write

    folder = named_corpus(corpus)
    with _work() as reporter:
        report = write(folder, output, layout=layout.value, workers=workers, reporter=reporter)
    if report.resumed:
        echo(f"went on from {_count(report.resumed, 'shape')} already there", err=True)
    if as_json:
        made: dict[str, Any] = {"output": report.path, "layout": layout, "shapes": report.shapes}
        made |= {"files": report.files, "resumed": report.resumed}
        print_json("corpus-export", made | {"was_complete": report.was_complete})
        return
    state = "was complete already" if report.was_complete else "is complete"
    files = _count(report.files, "file")
    echo(f"{report.path} {state}: {_count(report.shapes, 'shape')} in {files}")
    echo(f"next: {shlex.join(['pointdistill', 'verify', str(report.path)])}")


@contextmanager
def _work() -> Iterator[Reporter]:
    """Show progress; Ctrl-C ends in one line and exit code 130."""
    try:
        with console_reporter() as reporter:
            yield reporter
    except KeyboardInterrupt:
        echo("stopped; what is done is kept, the same command goes on from there", err=True)
        raise typer.Exit(130) from None


def _shares(text: str) -> dict[str, float]:
    """Shares by name, of ``train=0.8,test=0.2``."""
    shares: dict[str, float] = {}
    for item in text.split(","):
        name, sign, share = (word.strip() for word in item.partition("="))
        try:
            # Names of folders, which some file systems do not tell apart by case.
            if not sign or name.casefold() in {known.casefold() for known in shares}:
                raise ValueError
            shares[name] = float(share)
        except ValueError:
            msg = f"expected a list of different names with shares, such as train=0.8,test=0.2, got {text!r}"
            raise ConfigError(msg, settings=("shares",)) from None
    return shares


def _report_one(command: str, report: BuildReport, *, as_json: bool) -> None:
    """Report the one corpus that a command made, which is then the last one made in this folder."""
    from pointdistill.data.files.workspace import remember_corpus

    remember_corpus(report.path)
    _report(command, {"": report}, as_json=as_json)


def _report(command: str, reports: Mapping[str, BuildReport], *, as_json: bool) -> None:
    """Report the corpora that a command made, each under the name of its part."""
    from pointdistill.data.corpus.manifest import read_manifest

    records: list[dict[str, Any]] = []
    for part, report in reports.items():
        if report.resumed:
            echo(f"went on from {_count(report.resumed, 'shape')} already there", err=True)
        manifest = read_manifest(report.path)
        records.append(
            {
                "corpus": report.path,
                "part": part or None,
                "shapes": report.kept,
                "sources": {source.name: source.kept for source in manifest.sources},
                "content": manifest.content,
                "resumed": report.resumed,
                "was_complete": report.was_complete,
            }
        )
        if not as_json:
            _print_state(records[-1])
    if as_json:
        print_json("corpora", {"command": command, "corpora": records})
    else:
        echo(f"next: {shlex.join(['pointdistill', 'verify', str(records[0]['corpus'])])}")


def _print_state(made: Mapping[str, Any]) -> None:
    state = "was complete already" if made["was_complete"] else "is complete"
    sources = made["sources"]
    listed = ", ".join(f"{name} {kept:,}" for name, kept in list(sources.items())[:8])
    more = f" and {len(sources) - 8:,} more" if len(sources) > 8 else ""
    echo(f"{made['corpus']} {state}: {_count(made['shapes'], 'shape')} ({listed}{more})")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
