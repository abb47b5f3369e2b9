"""Many files -> points: each by its own seed, the bad ones listed, the good ones done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pointdistill.data.meshes.clouds import open_writer, plan
from pointdistill.data.meshes.read import read_mesh
from pointdistill.data.meshes.records import Axis, MeshLimits, PointSet, Surface
from pointdistill.data.meshes.sample import draw_for_file, named_shape_rng
from pointdistill.data.meshes.sampling import check_axis
from pointdistill.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class SampledFile:
    """One input that was sampled."""

    source: Path
    output: Path
    """The file that holds its points; the archive where the output is one."""

    is_surface: bool
    """False: the file had no faces, and its own points were taken."""

    dropped: int
    """Faces, or points of a cloud, that ``repair`` left out."""

    declared_up: Axis | None
    """The up axis that the file states; the points are turned only where the caller says so."""


@dataclass(frozen=True, slots=True)
class FailedFile:
    """One input that was refused."""

    source: Path
    reason: str
    """One line that names the file and the cause."""


@dataclass(frozen=True, slots=True)
class SampleReport:
    """What became of every input, in the order given."""

    sampled: tuple[SampledFile, ...]
    failed: tuple[FailedFile, ...]


def sample_files(
    paths: Iterable[str | os.PathLike[str]],
    *,
    points: int,
    seed: int,
    output: str | os.PathLike[str],
    cloud_format: str | None = None,
    up: str | None = None,
    repair: bool = False,
    limits: MeshLimits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SampleReport:
    """Sample every file and write its points, float32 (points, 3), in the file's own frame and unit.

    A file's points depend on the seed and its name alone: not on the other files, nor on their order. A
    path that is given twice is sampled once. Files of the same output are replaced.

    Args:
        paths: the inputs.
        points: how many points to draw from each.
        seed: source of randomness.
        output: ends in .npz: one archive with an array for each input; in .npy, .ply or .xyz: that file,
            for one input; otherwise a folder of one file for each input. Inputs of one stem get longer
            names, with their ending and then their folders.
        cloud_format: "npy" (default), "ply" or "xyz" for the files in a folder.
        up: the axis that points up in the files, to turn it to z; None keeps each file's frame.
        repair: leave out faces and points that cannot be used instead of refusing the file.
        limits: largest file and scene that are accepted.
        progress: called with the files done and their total, after each.

    Returns:
        What was sampled, and every file that was refused with its cause.

    Raises:
        ConfigError: if an argument is not accepted, or the inputs do not fit the output.
        DataError: if the output cannot be written.
    """
    axis = None if up is None else check_axis(up)
    if points < 1:
        msg = f"the number of points must be at least 1, got {points}"
        raise ConfigError(msg)
    named_shape_rng(seed)
    sources = _distinct([Path(path) for path in paths])
    if not sources:
        msg = "no file to sample; name at least one mesh or point cloud"
        raise ConfigError(msg)
    results: list[SampledFile | FailedFile] = []
    with open_writer(plan(sources, Path(output), cloud_format)) as writer:
        for done, source in enumerate(sources, start=1):
            try:
                shape = read_mesh(source, repair=repair, limits=limits)
                cloud = draw_for_file(shape, source, points, seed=seed, up=axis)
            except DataError as error:
                results.append(FailedFile(source, str(error)))
            else:
                results.append(_sampled(source, writer.write(source, cloud), shape))
            if progress is not None:
                progress(done, len(sources))
    return SampleReport(
        tuple(result for result in results if isinstance(result, SampledFile)),
        tuple(result for result in results if isinstance(result, FailedFile)),
    )


def _sampled(source: Path, output: Path, shape: Surface | PointSet) -> SampledFile:
    is_surface = isinstance(shape, Surface)
    dropped = shape.dropped_faces if isinstance(shape, Surface) else shape.dropped_points
    return SampledFile(source, output, is_surface, dropped, shape.declared_up)


def _distinct(paths: list[Path]) -> list[Path]:
    """Each file once, as it was first spelled, in the order given."""
    first: dict[str, Path] = {}
    for path in paths:
        first.setdefault(os.path.realpath(path), path)
    return list(first.values())
