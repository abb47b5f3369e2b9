"""``pointdistill embed``: features of any shapes, as one file."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pointdistill.engine.embedding.embed import EmbedReport

MOST_SHOWN = 20
"""Refused shapes that are printed; all of them are recorded in the output."""


class FeatureName(StrEnum):
    """Kinds of features; repeated here so that ``--help`` does not load torch."""

    CLS = "cls"
    POOLED = "pooled"
    PATCHES = "patches"
    POINTS = "points"


def embed(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Mesh and point files, folders, zips, corpora.", metavar="PATH…"),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .npz or .parquet.")
    ] = Path("embedding.npz"),
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Run or encoder folder, or Hub repository; by default the last run made in this folder."
        ),
    ] = None,
    features: Annotated[
        FeatureName,
        typer.Option(help="One vector a shape (cls; pooled: CLS, mean, max), a patch, or a point."),
    ] = FeatureName.POOLED,
    points: Annotated[
        int | None,
        typer.Option(help="Points drawn from a shape. Default: as in pretraining.", min=1),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(
            help="Draws averaged. Default: 1; 2,048 points in all for encoders of fewer than 1,024.",
            min=1,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the points that are drawn.", min=0)] = 0,
    up: Annotated[
        str | None,
        typer.Option(
            help="Up axis (x, y, z, -x, -y, -z) of your files that do not state one. Default: z."
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Clouds a forward pass; the features are the same for any.", min=1),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Features of every shape in files, folders, zips and corpora, as one .npz or Parquet file.

    Stopped at any time, the same command goes on. Files that cannot be used are
    listed, the others are done; the exit code is then 2.
    """
    from pointdistill.cli.console import console_reporter
    from pointdistill.engine.embedding.embed import EmbedRequest
    from pointdistill.engine.embedding.embed import embed as run

    request = EmbedRequest(
        paths=paths,
        output=output,
        encoder=encoder,
        features=features.value,
        points=points,
        draws=draws,
        seed=seed,
        up=up or "z",
        batch_size=batch_size,
        device=device,
    )
    with console_reporter() as reporter:
        report = run(request, reporter=reporter)
    _print(report, features, up)


def _print(report: EmbedReport, features: FeatureName, up: str | None) -> None:
    if report.interrupted:
        typer.echo(
            f"stopped with {report.shapes:,} of {report.total:,} shapes done and kept; "
            "the same command goes on from there",
            err=True,
        )
        raise typer.Exit(130)
    if report.assumed_up and up is None:
        typer.echo(
            f"note: {report.assumed_up:,} files do not state their up axis, z was assumed; "
            "say --up y if theirs is y",
            err=True,
        )
    for name, reason in report.failed[:MOST_SHOWN]:
        typer.echo(f"error: {name}: {reason}", err=True)
    if report.failed:
        failed = f"{len(report.failed):,} of {report.total:,} shapes were not embedded"
        typer.echo(f"{failed}; all are listed in the output" if report.shapes else failed, err=True)
    if report.shapes:
        state = ", complete already" if report.was_complete else ""
        typer.echo(f"{report.output}: {features.value} features of {report.shapes:,} shapes{state}")
        if features in (FeatureName.CLS, FeatureName.POOLED):
            typer.echo(f"next: pointdistill search FILE {shlex.quote(str(report.output))}")
    if report.failed:
        raise typer.Exit(2)
