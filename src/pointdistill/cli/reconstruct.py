"""``pointdistill report`` and ``reconstruct``: pages and pictures of what runs learned."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from pointdistill.cli.console import (
    console_reporter,
    echo,
    print_json,
    print_table,
)
from pointdistill.cli.options import (
    DeviceOption,
    EncoderOption,
    JsonOption,
    require_encoder,
    require_paths,
)
from pointdistill.data.files.workspace import (
    last_corpus,
)
from pointdistill.errors import (
    DataError,
)


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN…",
            help="Run folders, at most six. Default: the last run made in this folder.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Page to write. Default: report.html in the run; in this folder for several runs.",
        ),
    ] = None,
    probe: Annotated[
        str,
        typer.Option(
            help="Labelled shapes to search and colour: builtin, a corpus with labels, or a benchmark's archive."
        ),
    ] = "builtin",
    device: DeviceOption = "auto",
) -> None:
    """Write one page about runs: learning curves, online probe, scores, neighbours, features as colours.

    Scores are those that `evaluate` left in the runs' folders. The page is one file
    that loads nothing and can be sent around.
    """
    require_paths(runs or [])

    from pointdistill.engine.run_report import ReportRequest
    from pointdistill.engine.run_report import report as write

    first = shlex.quote(str(runs[0])) if runs else "RUN"
    next_steps = (
        (
            f"pointdistill evaluate scanobjectnn --encoder {first}",
            "Scores for this page, measured once.",
        ),
        (f"pointdistill embed my-meshes --encoder {first}", "Features of your own shapes."),
        (f"pointdistill export my-encoder --encoder {first}", "The encoder as a folder to share."),
    )
    request = ReportRequest(
        runs=tuple(runs or ()), output=output, probe=probe, device=device, next_steps=next_steps
    )
    with console_reporter() as reporter:
        page = write(request, reporter=reporter)
    echo(f"page: {page}, open it in a browser")


def reconstruct(
    encoder: EncoderOption = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Corpus folder; by default the last one made in this folder."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of each decoder. Default: 1000.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs with seeds 0, 1, ...; mean and deviation are printed.")
    ] = 1,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for results.json and the picture; by default inside the run."),
    ] = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Reconstruct masked patches from frozen features, and from random ones for comparison; draw both.

    Ctrl-C keeps what is finished.
    """
    require_paths([data], "data")
    require_encoder(encoder, "encoder")
    if data is None and encoder is None and last_corpus() is None:
        msg = "no corpus was made in this folder yet; run `pointdistill prepare-data`, or name one"
        raise DataError(msg, settings=("data",))

    from pointdistill.engine.reconstruction.reconstruct import PICTURE, RESULTS, ReconstructRequest
    from pointdistill.engine.reconstruction.reconstruct import reconstruct as run

    request = ReconstructRequest(
        encoder=encoder, data=data, steps=steps, seeds=seeds, output=output, device=device
    )
    with console_reporter() as reporter:
        result = run(request, reporter=reporter)
    if as_json:
        files = {"results": result.output / RESULTS, "picture": result.output / PICTURE}
        found = {"outcomes": list(result.outcomes), "interrupted": result.interrupted}
        print_json("reconstruct", found | files)
        if result.interrupted:
            raise typer.Exit(130)
        return
    if result.outcomes:
        print_table(result.table())
    if result.interrupted:
        echo(f"stopped; what is finished is in {result.output}, the same command continues")
        raise typer.Exit(130)
    echo(f"results: {result.output / RESULTS}; picture: {result.output / PICTURE}")
    encoder_option = "" if encoder is None else f" --encoder {shlex.quote(encoder)}"
    echo(f"next: pointdistill export my-encoder{encoder_option}")
