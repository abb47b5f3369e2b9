"""`pointdistill sample`: surface points of mesh and point files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pointdistill.cli.console import (
    console_reporter,
    echo,
    print_json,
    say_refused,
)
from pointdistill.cli.options import (
    UP_AXES,
    JsonOption,
    check_up,
    complete_one_of,
    require_paths,
)
from pointdistill.reporter import (
    plural,
)

if TYPE_CHECKING:
    from pointdistill.data.meshes import SampledFile, SampleReport


def _some_exist(paths: list[Path]) -> list[Path]:
    """The paths, if there is anything to sample among them; else the first is named, also without an output."""
    if not any(path.exists() for path in paths):
        require_paths(paths)
    return paths


def sample(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Mesh or point files, and folders.", metavar="PATH…", callback=_some_exist
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="A folder (one .npy for each file), an archive.npz, or for one file a .npy, .ply, .xyz or .pcd.",
        ),
    ],
    points: Annotated[int, typer.Option(help="Points to sample from each file.", min=1)] = 16_384,
    seed: Annotated[
        int,
        typer.Option(
            help="The same seed and file name give the same points, whatever else is sampled.",
            min=0,
        ),
    ] = 0,
    up: Annotated[
        str | None,
        typer.Option(
            help="Up axis of the files (x, y, z, -x, -y, -z), turned to z. Default: as they are.",
            callback=check_up,
            autocompletion=complete_one_of(*UP_AXES),
        ),
    ] = None,
    cloud_format: Annotated[
        str | None,
        typer.Option(
            "--format", help="npy, ply, xyz or pcd for the files in a folder. Default: npy."
        ),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Drop faces and points that cannot be used, and say how many."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace output that is there already.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn meshes into surface points, uniform by area over the whole scene.

    Reads obj, off, ply, stl, glb, gltf (Draco too), dae, 3mf, 3dxml, and
    step or stp, in millimetres, with pip install 'pointdistill[step]';
    point clouds as ply, npy, npz, xyz, txt, csv, pts, pcd, las, laz and e57.

    Of a folder, every such file below it is taken. Files that cannot be used are
    listed and the others are sampled; the exit code is then 2.
    """
    from pointdistill.data.meshes import sample_files

    with console_reporter() as reporter:
        report = sample_files(
            files,
            points=points,
            seed=seed,
            output=output,
            cloud_format=cloud_format,
            up=up,
            repair=repair,
            overwrite=overwrite,
            progress=partial(reporter.progress, "sampling"),
        )
    if as_json:
        record: dict[str, Any] = {"points": points, "seed": seed, "output": output}
        record["files"] = [_record(file) for file in report.sampled]
        record["failed"] = [{"file": f.source, "reason": f.reason} for f in report.failed]
        print_json("sample", record)
    _print(report, points, output, as_json=as_json)
    if report.failed:
        raise typer.Exit(2)


def _record(file: SampledFile) -> dict[str, Any]:
    return {
        "file": file.source,
        "output": file.output,
        "is_surface": file.is_surface,
        "dropped": file.dropped,
        "left_out": file.left_out,
        "declared_up": file.declared_up,
        "dtype": "float64" if file.is_double else "float32",
    }


def _print(report: SampleReport, points: int, output: Path, *, as_json: bool) -> None:
    from pointdistill.data.meshes.records import counted

    for file in () if as_json else report.sampled:
        if file.dropped:
            kind = "faces" if file.is_surface else "points"
            echo(f"{file.source}: dropped {file.dropped:,} {kind}")
        if file.left_out:
            echo(f"{file.source}: left out {counted(file.left_out)}")
        if file.is_double:
            echo(
                f"{file.source}: written as float64, float32 would distort it so far from the origin"
            )
    if report.sampled and not as_json:
        clouds = sum(not file.is_surface for file in report.sampled)
        note = f", {clouds:,} of them point clouds" if clouds else ""
        echo(
            f"sampled {plural(len(report.sampled), 'file')}, {points:,} points each{note}: {output}"
        )
    for line in report.remarks:
        echo(line, err=True)
    for failed in report.failed:
        say_refused(None, failed.reason, repair="leave them out with --repair")
    total = len(report.failed) + len(report.sampled)
    if report.failed and total > 1:
        were = "was" if len(report.failed) == 1 else "were"
        echo(f"{len(report.failed):,} of {plural(total, 'file')} {were} not sampled", err=True)
