"""``pointdistill embed``: features of any shapes, in one file."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pointdistill.cli.console import console_reporter, echo
from pointdistill.cli.options import DeviceOption, require_encoder, require_paths

if TYPE_CHECKING:
    from pointdistill.engine.embedding.embed import EmbedReport

MOST_SHOWN = 20
"""Most refused shapes to print; all of them are recorded in the output."""


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
            help="Run, encoder folder or file, owner/name on the Hub, or a name that `weights` lists. "
            "Default: the last run made here."
        ),
    ] = None,
    features: Annotated[
        FeatureName,
        typer.Option(
            help="One vector per shape (cls, or pooled: CLS, mean and max), per patch, or per point."
        ),
    ] = FeatureName.POOLED,
    points: Annotated[
        int | None,
        typer.Option(help="Points sampled from each shape. Default: as in pretraining.", min=1),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(
            help="Samplings to average over at each angle. Default: as many as make 8,192 points in all, "
            "or 4,096 for encoders of 1,024 points and more.",
            min=1,
        ),
    ] = None,
    turns: Annotated[
        int | None,
        typer.Option(
            help="Angles about the vertical axis to average over. Default: 8, or as many as there are samplings.",
            min=1,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the points that are sampled.", min=0)] = 0,
    up: Annotated[
        str | None,
        typer.Option(
            help="Up axis (x, y, z, -x, -y, -z) of your files that do not state one. Default: z."
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Clouds per forward pass; it does not change the features.", min=1),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Compute features of every shape in files, folders, zips and corpora, into one .npz or Parquet file.

    If it is stopped, the same command continues. Files that cannot be used are
    listed and the others are embedded; the exit code is then 2.
    """
    require_paths(paths)
    require_encoder(encoder, "encoder")

    from pointdistill.engine.embedding.embed import EmbedRequest
    from pointdistill.engine.embedding.embed import embed as run

    request = EmbedRequest(
        paths=paths,
        output=output,
        encoder=encoder,
        features=features.value,
        points=points,
        draws=draws,
        turns=turns,
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
        echo(
            f"stopped with {report.shapes:,} of {report.total:,} shapes done and saved; "
            "the same command continues from there",
            err=True,
        )
        raise typer.Exit(130)
    if report.assumed_up and up is None:
        echo(
            f"note: {report.assumed_up:,} files do not state their up axis, so z was assumed; "
            "use --up y if theirs is y",
            err=True,
        )
    for name, reason in report.failed[:MOST_SHOWN]:
        echo(f"error: {name}: {reason}", err=True)
    if report.failed:
        failed = f"{len(report.failed):,} of {report.total:,} shapes were not embedded"
        echo(f"{failed}; all are listed in the output" if report.shapes else failed, err=True)
    if report.shapes:
        state = ", complete already" if report.was_complete else ""
        echo(f"{report.output}: {features.value} features of {report.shapes:,} shapes{state}")
        if features in (FeatureName.CLS, FeatureName.POOLED):
            echo(f"next: pointdistill search FILE {shlex.quote(str(report.output))}")
    if report.failed:
        raise typer.Exit(2)
