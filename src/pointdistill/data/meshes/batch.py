"""Many files -> points: each with its own randomness, bad files listed, outputs written whole or not at all."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointdistill.data.files.files import write_aside
from pointdistill.data.meshes.read import FORMATS, read_mesh
from pointdistill.data.meshes.records import AnyFloats, Axis, MeshLimits, PointSet, Surface
from pointdistill.data.meshes.sample import draw_for_file, named_rng
from pointdistill.data.meshes.sampling import check_axis
from pointdistill.errors import ConfigError, DataError

CLOUD_SUFFIXES = (".npy", ".ply", ".xyz")
_ARCHIVE = ".npz"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the points of each input go."""

    output: Path
    names: dict[Path, str]  # input -> name without ending; its key in an archive
    suffix: str  # of each file, or .npz

    def path(self, source: Path) -> Path:
        """The file that will hold the points of one input."""
        if self.suffix == _ARCHIVE or self.output.suffix.lower() == self.suffix:
            return self.output
        return self.output / f"{self.names[source]}{self.suffix}"


def plan_output(sources: Sequence[Path], output: Path, cloud_format: str | None) -> Destination:
    """Decide where everything goes before anything is read.

    Args:
        sources: the inputs, each once.
        output: ends in .npz: one archive; in .npy, .ply or .xyz: one file for one input; else a folder.
        cloud_format: "npy", "ply" or "xyz" for the files in a folder; None means npy.

    Raises:
        ConfigError: if the inputs do not fit the output, or one would be overwritten.
    """
    ending = output.suffix.lower()
    suffix = f".{cloud_format.lower().lstrip('.')}" if cloud_format else None
    if suffix is not None and suffix not in CLOUD_SUFFIXES:
        accepted = ", ".join(suffix[1:] for suffix in CLOUD_SUFFIXES)
        msg = f"the format must be one of {accepted}, got {cloud_format!r}"
        raise ConfigError(msg)
    single = ending in (*CLOUD_SUFFIXES, _ARCHIVE)
    if single and suffix not in (None, ending):
        msg = f"format {cloud_format} contradicts the output {output}; leave one of them out"
        raise ConfigError(msg)
    if not single and ending in FORMATS:
        msg = f"points are not written as {ending}; end the output in .npz, .npy, .ply, .xyz or name a folder"
        raise ConfigError(msg)
    if ending in CLOUD_SUFFIXES and len(sources) != 1:
        msg = f"{len(sources)} inputs do not fit one {ending} file; name a folder or a .npz archive"
        raise ConfigError(msg)
    destination = Destination(output, _names(sources), ending if single else suffix or ".npy")
    _check_places(sources, destination, single=single)
    return destination


def _check_places(sources: Sequence[Path], destination: Destination, *, single: bool) -> None:
    output = destination.output
    if single and output.is_dir():
        msg = f"{output} is a folder; name a file, or a folder without an ending"
        raise ConfigError(msg)
    if not single and output.exists() and not output.is_dir():
        msg = f"{output} is a file; name a folder, or end the output in .npz, .npy, .ply or .xyz"
        raise ConfigError(msg)
    inputs = {os.path.realpath(source) for source in sources}
    for source in sources:
        if os.path.realpath(destination.path(source)) in inputs:
            msg = f"{destination.path(source)} is an input and would be overwritten; name another output"
            raise ConfigError(msg)


def _names(sources: Sequence[Path]) -> dict[Path, str]:
    """The shortest name that tells each input apart: its stem, its file name, or that with folders before it."""
    parts = {source: source.absolute().parts for source in sources}
    levels = dict.fromkeys(sources, 0)

    def name(source: Path) -> str:
        level = levels[source]
        return source.stem if level == 0 else "__".join(parts[source][1:][-level:])

    while True:
        # Some file systems do not distinguish upper from lower case.
        used = Counter(name(source).lower() for source in sources)
        clashing = [source for source in sources if used[name(source).lower()] > 1]
        if not clashing:
            return {source: name(source) for source in sources}
        if all(levels[source] >= len(parts[source]) for source in clashing):
            msg = (
                f"{clashing[0]} and {clashing[1]} would get one name; sample them into two folders"
            )
            raise ConfigError(msg)
        for source in clashing:
            levels[source] += 1


class Writer:
    """Writes the points of one input after another."""

    def __init__(self, destination: Destination, stack: ExitStack) -> None:
        self._destination = destination
        self._stack = stack
        self._archive: zipfile.ZipFile | None = None

    def write(self, source: Path, points: AnyFloats) -> Path:
        """Write one cloud, (N, 3), and return the path of the file that holds it."""
        path = self._destination.path(source)
        if self._destination.suffix == _ARCHIVE:
            self._append(self._destination.names[source], points)
        else:
            with write_aside(path) as aside:
                write_cloud(aside, points)
        return path

    def _append(self, name: str, points: AnyFloats) -> None:
        if self._archive is None:
            aside = self._stack.enter_context(write_aside(self._destination.output))
            self._archive = self._stack.enter_context(zipfile.ZipFile(aside, "w"))
        # Without a date in the member, the same points give the same bytes.
        member = zipfile.ZipInfo(f"{name}.npy")
        with self._archive.open(member, "w", force_zip64=True) as stream:
            np.lib.format.write_array(stream, points, allow_pickle=False)


@contextmanager
def open_writer(destination: Destination) -> Iterator[Writer]:
    """A writer; an archive appears under its name when the block ends, and only if anything was written to it.

    Raises:
        DataError: if the output cannot be written.
    """
    try:
        with ExitStack() as stack:
            yield Writer(destination, stack)
    except OSError as error:
        msg = f"{destination.output}: cannot be written ({error.strerror or error}); choose another output"
        raise DataError(msg) from error


def write_cloud(path: Path, points: AnyFloats) -> None:
    """Write (N, 3) points as the ending says: .npy, binary .ply, or .xyz text that reads back exactly."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        with path.open("wb") as file:
            np.lib.format.write_array(file, points, allow_pickle=False)
    elif suffix == ".ply":
        kind, code = ("double", "<f8") if points.dtype == np.float64 else ("float", "<f4")
        header = (
            f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n"
            f"property {kind} x\nproperty {kind} y\nproperty {kind} z\nend_header\n"
        )
        path.write_bytes(header.encode() + points.astype(code).tobytes())
    else:
        np.savetxt(path, points, fmt="%.17g" if points.dtype == np.float64 else "%.9g")


@dataclass(frozen=True, slots=True)
class SampledFile:
    """One input that was sampled."""

    source: Path
    output: Path
    """The file that holds its points; the archive where the output is one."""

    is_surface: bool
    """False if the file had no faces, so that its own points were taken."""

    dropped: int
    """Faces, or points of a cloud, that ``repair`` left out."""

    left_out: tuple[str, ...]
    """What the file holds besides its shape, such as hidden meshes or supports for printing."""

    declared_up: Axis | None
    """The up axis that the file states; the points are turned only if the caller asks for it."""

    is_double: bool
    """The points are float64, because the shape is so far from the origin that float32 would distort it."""


@dataclass(frozen=True, slots=True)
class FailedFile:
    """One input that was refused."""

    source: Path
    reason: str
    """One line that names the file and the cause."""

    settings: tuple[str, ...] = ()
    """Parameters that would change the outcome, see `PointDistillError`."""


@dataclass(frozen=True, slots=True)
class SampleReport:
    """The outcome for every input, in the order given."""

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

    Points so far from the origin that float32 would distort the shape, as in georeferenced scans, are float64.
    A file's points depend only on the seed and its name: not on the other files, nor on their order. A path given
    twice is sampled once. Existing output is replaced.

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
        progress: called after each file with the number done and the total.

    Returns:
        What was sampled, and every refused file with its cause.

    Raises:
        ConfigError: if an argument is not accepted, or the inputs do not fit the output.
        DataError: if the output cannot be written.
    """
    axis = None if up is None else check_axis(up)
    if points < 1:
        msg = f"the number of points must be at least 1, got {points}"
        raise ConfigError(msg)
    named_rng(seed)
    sources = _distinct([Path(path) for path in paths])
    if not sources:
        msg = "no file to sample; name at least one mesh or point cloud"
        raise ConfigError(msg)
    results: list[SampledFile | FailedFile] = []
    with open_writer(plan_output(sources, Path(output), cloud_format)) as writer:
        for done, source in enumerate(sources, start=1):
            try:
                shape = read_mesh(source, repair=repair, limits=limits)
                cloud = draw_for_file(shape, source, points, seed=seed, up=axis)
            except DataError as error:
                results.append(FailedFile(source, str(error), error.settings))
            else:
                written = writer.write(source, cloud)
                results.append(_sampled(source, written, shape, cloud.dtype == np.float64))
            if progress is not None:
                progress(done, len(sources))
    return SampleReport(
        tuple(result for result in results if isinstance(result, SampledFile)),
        tuple(result for result in results if isinstance(result, FailedFile)),
    )


def _sampled(source: Path, output: Path, shape: Surface | PointSet, is_double: bool) -> SampledFile:
    is_surface = isinstance(shape, Surface)
    dropped = shape.dropped_faces if isinstance(shape, Surface) else shape.dropped_points
    return SampledFile(
        source, output, is_surface, dropped, shape.left_out, shape.declared_up, is_double
    )


def _distinct(paths: list[Path]) -> list[Path]:
    """Each file once, as it was first spelled, in the order given."""
    first: dict[str, Path] = {}
    for path in paths:
        first.setdefault(os.path.realpath(path), path)
    return list(first.values())
