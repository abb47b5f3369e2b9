"""``pointdistill leaks``: test shapes of a benchmark that lie in a corpus."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pointdistill.data.benchmarks.registry import BENCHMARKS


class BenchmarkName(StrEnum):
    """What can be checked."""

    _ignore_ = "name"
    for name in BENCHMARKS:
        vars()[name.upper()] = name


def leaks(
    benchmark: Annotated[BenchmarkName, typer.Argument(help="Whose test shapes are looked for.")],
    corpus: Annotated[Path | None, typer.Option(help="The corpus to look in.")] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(
            help="Instead of a corpus, a run: the corpus it saw. Default: the last run here."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The archive; by default it is looked for under data/.")
    ] = None,
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="Check a stand-in, made on first use.")
    ] = False,
    split: Annotated[
        list[str] | None, typer.Option(help="Such as OBJ-BG; again for more. Default: all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes. Default: one a core.")
    ] = None,
) -> None:
    """List the test shapes of a benchmark that a corpus has: by id, and by the shapes themselves.

    Fingerprints of the corpus are kept in its folder; stopped at any time, the same command goes on.
    """
    import json

    from pointdistill.cli.console import console_reporter, print_table
    from pointdistill.engine.leaks import LeakRequest, check_leaks, leaks_table

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
        typer.echo(json.dumps(checked.plain(), indent=1, ensure_ascii=False))
        return
    table = leaks_table(checked)
    if table.rows:
        print_table(table)
    else:
        for line in table.notes:
            typer.echo(line)
    command = ["pointdistill", "evaluate", benchmark.value]
    command += [] if encoder is None else ["--encoder", str(encoder)]
    command += [] if data is None else ["--data", str(data)]
    typer.echo(f"next: {shlex.join([*command, *(['--stand-in'] if stand_in else [])])}")
