"""``pointdistill prepare-data``: a corpus to pretrain on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pointdistill.data.build.prepare import Prepared


def prepare_data(
    source: Annotated[
        str,
        typer.Argument(
            help="builtin (objects made on the spot), folder (your own meshes and clouds), or an "
            "archive: shapenetcore, 3d-future, scanobjectnn, modelnet40, s3dis, sunrgbd, abo, "
            "omniobject3d, toys4k, google-scanned-objects, objaverse-cap3d, objaverse-xl-cap3d, objaverse."
        ),
    ] = "builtin",
    path: Annotated[
        Path | None,
        typer.Option(
            "--input",
            "--archive",
            help="The archive, or the folder that holds it; or your folder of files.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Corpus folder. Default: data/ and the source's name."),
    ] = None,
    points: Annotated[
        int, typer.Option(help="Points for a shape; a cloud with fewer keeps all.", min=32)
    ] = 16_384,
    shapes: Annotated[
        int | None, typer.Option(help="How many shapes builtin makes. Default: 10,000.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same corpus.", min=0)] = 0,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes; 0 works in one without others. Default: one a core.", min=0),
    ] = None,
    up: Annotated[
        str | None,
        typer.Option(
            help="Up axis (x, y, z, -x, -y, -z) of your files that do not state one. Default: z."
        ),
    ] = None,
    include_test: Annotated[
        bool,
        typer.Option("--include-test", help="Take a benchmark's test split in; recorded."),
    ] = False,
) -> None:
    """Make a corpus of surface points to pretrain on; stopped at any time, the same command goes on.

    Shapes that cannot be used are left out and listed in refused.jsonl beside the corpus.
    """
    from pointdistill.cli.progress import shape_progress
    from pointdistill.data.build.prepare import prepare_corpus
    from pointdistill.data.sources import SourceRequest

    request = SourceRequest(path=path, shapes=shapes, up=up, include_test=include_test)
    try:
        with shape_progress(f"preparing {source}") as progress:
            prepared = prepare_corpus(
                source,
                request,
                output=output,
                points=points,
                seed=seed,
                workers=workers,
                progress=progress,
            )
    except KeyboardInterrupt:
        typer.echo("stopped; what is done is kept, the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    _print(prepared)


def _print(prepared: Prepared) -> None:
    report = prepared.report
    for note in prepared.notes:
        typer.echo(f"note: {note}", err=True)
    for example in report.examples:
        typer.echo(f"refused: {example}", err=True)
    if report.refused > len(report.examples):
        typer.echo(f"refused: {report.refused:,} in all, see {report.path}/refused.jsonl", err=True)
    if report.resumed:
        typer.echo(f"went on from {report.resumed:,} shapes that were there already", err=True)
    state = "was complete already" if report.was_complete else "is complete"
    typer.echo(f"{report.path} {state}: {report.kept:,} shapes of {prepared.facts.name}")
    typer.echo("next: pointdistill pretrain --size small   (--size tiny without a GPU)")
