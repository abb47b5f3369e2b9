"""``pointdistill reconstruct``: hidden patches from frozen features."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from pointdistill.cli.console import console_reporter, echo, print_table
from pointdistill.cli.options import DeviceOption, EncoderOption, require_encoder, require_paths
from pointdistill.data.files.workspace import last_corpus
from pointdistill.errors import DataError


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
    if result.outcomes:
        print_table(result.table())
    if result.interrupted:
        echo(f"stopped; what is finished is in {result.output}, the same command continues")
        raise typer.Exit(130)
    echo(f"results: {result.output / RESULTS}; picture: {result.output / PICTURE}")
    encoder_option = "" if encoder is None else f" --encoder {shlex.quote(encoder)}"
    echo(f"next: pointdistill export my-encoder{encoder_option}")
