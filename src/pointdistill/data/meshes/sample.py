"""Points of one file, mesh in memory or member of an archive, with the randomness that belongs to it; and of many.

Of many files the bad ones are listed, and outputs are written whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.files.archive import Archive
from pointdistill.data.files.files import write_aside
from pointdistill.data.files.packed_tars import temporary_folder
from pointdistill.data.meshes.read import (
    FORMATS,
    files_in_folders,
    from_object,
    printable_line,
    read_mesh,
)
from pointdistill.data.meshes.records import (
    AnyFloats,
    Axis,
    MeshLimits,
    PointSet,
    Surface,
    counted,
)
from pointdistill.data.meshes.sampling import check_axis, draw, draw_in_place
from pointdistill.errors import ConfigError, DataError


class RepairWarning(UserWarning):
    """A mesh was sampled without faces or points that cannot be used; says how many were dropped."""


class LeftOutWarning(UserWarning):
    """A file holds meshes that it hides or does not print; they are no part of what was sampled."""


def sample_surface(
    mesh: str | os.PathLike[str] | Surface | PointSet | Any,
    count: int,
    seed: int,
    *,
    up: str | None = None,
    repair: bool = False,
    limits: MeshLimits | None = None,
) -> AnyFloats:
    """Draw points uniformly by area over a whole scene, with all its transforms applied.

    A file without faces gives its own points, a random subset if there are more than ``count``.

    Args:
        mesh: a path, a ``trimesh.Trimesh``, ``Scene`` or ``PointCloud``, an array (N, 3) of points, or what
            `read_mesh` returned.
        count: number of points.
        seed: source of randomness, together with the file's name if ``mesh`` is a path: the points are those that
            `sample_files` writes for the same seed.
        up: the axis that points up in the file, to turn it to z; None keeps the file's frame.
        repair: leave out faces and points that cannot be used, with a `RepairWarning` that says how
            many, instead of refusing the mesh. Faces of fewer than 3 corners are always left out, with
            that warning.
        limits: largest file and scene that are accepted.

    Returns:
        (count, 3) float32, in the unit and frame of the file; float64 where float32 would distort the shape, as
        far from the origin as georeferenced scans are. Subtract a centre before such points become float32.

    Raises:
        DataError: if the mesh cannot be read or used; the message is one line that says why.
        ConfigError: if ``count``, ``seed`` or ``up`` is not accepted.
    """
    axis = None if up is None else check_axis(up)
    if isinstance(mesh, str | os.PathLike):
        path = Path(mesh)
        shape = read_mesh(path, repair=repair, limits=limits)
        _warn_of_repair(shape, str(path))
        if shape.left_out:
            msg = f"{path}: left out {counted(shape.left_out)}"
            warnings.warn(msg, LeftOutWarning, stacklevel=2)
        return draw_for_file(shape, path, count, seed=seed, up=axis)
    if isinstance(mesh, Surface | PointSet):
        shape = mesh
    else:
        shape = from_object(mesh, repair=repair, limits=limits)
        _warn_of_repair(shape, f"the given {type(mesh).__name__}")
    return draw_in_place(shape, count, rng=named_rng(seed), up=axis)


def _warn_of_repair(shape: Surface | PointSet, name: str) -> None:
    if isinstance(shape, Surface):
        dropped, kind = shape.dropped_faces, "faces"
    else:
        dropped, kind = shape.dropped_points, "points"
    if dropped:
        warnings.warn(f"{name}: dropped {dropped:,} {kind}", RepairWarning, stacklevel=3)


def draw_for_file(
    shape: Surface | PointSet, path: Path, count: int, *, seed: int, up: Axis | None
) -> AnyFloats:
    """Draw from the content of ``path``, in its frame, with the generator of its name; see `draw_in_place`.

    Raises:
        DataError: if the shape cannot give ``count`` points; names the file.
        ConfigError: if ``count`` or ``seed`` is not accepted.
    """
    try:
        return draw_in_place(shape, count, rng=named_rng(seed, path.name), up=up)
    except DataError as error:
        raise DataError(printable_line(f"{path}: {error}"), settings=error.settings) from error


def draw_up_to(
    shape: Surface | PointSet, count: int, *, up: Axis, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Points of a shape, turned from ``up`` to z up.

    Args:
        shape: a surface gives ``count`` points, uniform by area; a cloud gives a random subset of its points, or
            all if it has fewer.
        count: number of points.
        up: the axis that points up in the shape's frame.
        rng: the shape's own generator.

    Raises:
        DataError: if a cloud has fewer than 32 points.
    """
    available = len(shape.points) if isinstance(shape, PointSet) else count
    return draw(shape, min(count, available), rng=rng, up=up)


def read_member(archive: Archive, name: str) -> Surface | PointSet:
    """The mesh or cloud in one member of an archive.

    Needs a temporary file of the member's size while reading.

    Raises:
        DataError: as `read_mesh`, naming the member.
    """
    return read_content(archive.read(name), name)


def read_content(content: bytes, name: str) -> Surface | PointSet:
    """The mesh or cloud in the content of a file that is called ``name``; see `read_member`."""
    with temporary_folder() as folder:
        # The member's own name could lead anywhere, and the reader needs only its suffix.
        path = Path(folder, "member").with_suffix(PurePosixPath(name).suffix)
        try:
            path.write_bytes(content)
        except OSError as error:  # the error of a failed write does not say which disk is full
            raise OSError(error.errno, error.strerror, folder) from error
        return read_named(path, name)


def read_named(path: Path, name: str) -> Surface | PointSet:
    """The mesh or cloud in a file; messages call it ``name``, so that they are the same on every machine."""
    try:
        return read_mesh(path)
    except DataError as error:
        path_in_message = printable_line(str(path))
        raise DataError(
            str(error).removeprefix(f"{path_in_message}: ").replace(path_in_message, name)
        ) from error


def named_rng(seed: int, name: str = "") -> np.random.Generator:
    """The generator of one file or shape: it depends on the seed and the name alone.

    Raises:
        ConfigError: if ``seed`` is negative.
    """
    if seed < 0:
        msg = f"the seed must be 0 or more, got {seed}"
        raise ConfigError(msg)
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    words = np.frombuffer(digest, "<u4").tolist() if name else []
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))


CLOUD_SUFFIXES = (".npy", ".ply", ".xyz", ".pcd")
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
        output: ends in .npz: one archive; in .npy, .ply, .xyz or .pcd: one file for one input; else a folder.
        cloud_format: "npy", "ply", "xyz" or "pcd" for the files in a folder; None means npy.

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
        endings = ", ".join((_ARCHIVE, *CLOUD_SUFFIXES))
        msg = f"points are not written as {ending}; end the output in {endings} or name a folder"
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
        msg = f"{output} is a file; name a folder, or end the output in .npz, .npy, .ply, .xyz or .pcd"
        raise ConfigError(msg)
    inputs = {os.path.realpath(source) for source in sources}
    for source in sources:
        if os.path.realpath(destination.path(source)) in inputs:
            msg = f"{destination.path(source)} is an input and would be overwritten; name another output"
            raise ConfigError(msg)


def _check_new(sources: Sequence[Path], destination: Destination) -> None:
    """Check that no output is there already.

    Raises:
        ConfigError: if one is; names the first.
    """
    paths = dict.fromkeys(destination.path(source) for source in sources)
    existing = [path for path in paths if path.exists()]
    if existing:
        more = f" and {len(existing) - 1:,} more" if existing[1:] else ""
        exist = "exist" if more else "exists"
        msg = f"{existing[0]}{more} {exist}; have what is there replaced, or name another output"
        raise ConfigError(msg, settings=("overwrite", "output"))


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
    """Write (N, 3) points as the ending says: .npy, binary .ply or .pcd, or .xyz text that reads back exactly."""
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
    elif suffix == ".pcd":
        size, code = (8, "<f8") if points.dtype == np.float64 else (4, "<f4")
        header = (
            f"# .PCD v0.7\nVERSION 0.7\nFIELDS x y z\nSIZE {size} {size} {size}\nTYPE F F F\nCOUNT 1 1 1\n"
            f"WIDTH {len(points)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(points)}\nDATA binary\n"
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

    left_out: Mapping[str, int]
    """What the file holds besides its shape, such as hidden meshes or supports for printing: how many of each."""

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
    remarks: tuple[str, ...] = ()
    """What of folders is no shape, or of a format that is not read, in lines."""


def sample_files(
    paths: Iterable[str | os.PathLike[str]],
    *,
    points: int,
    seed: int,
    output: str | os.PathLike[str],
    cloud_format: str | None = None,
    up: str | None = None,
    repair: bool = False,
    overwrite: bool = False,
    limits: MeshLimits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SampleReport:
    """Sample every file and write its points, float32 (points, 3), in the file's own frame and unit.

    Points so far from the origin that float32 would distort the shape, as in georeferenced scans, are float64.
    A file's points depend only on the seed and its name: not on the other files, nor on their order. A path given
    twice is sampled once.

    Args:
        paths: the inputs: files, and folders with everything below them.
        points: how many points to draw from each.
        seed: source of randomness.
        output: ends in .npz: one archive with an array for each input; in .npy, .ply, .xyz or .pcd: that
            file, for one input; otherwise a folder of one file for each input. Inputs of one stem get longer
            names, with their ending and then their folders.
        cloud_format: "npy" (default), "ply", "xyz" or "pcd" for the files in a folder.
        up: the axis that points up in the files, to turn it to z; None keeps each file's frame.
        repair: leave out faces and points that cannot be used instead of refusing the file.
        overwrite: replace output that is there already.
        limits: largest file and scene that are accepted.
        progress: called after each file with the number done and the total.

    Returns:
        What was sampled, and every refused file with its cause.

    Raises:
        ConfigError: if an argument is not accepted, the inputs do not fit the output, or it is there already.
        DataError: if the output cannot be written.
    """
    axis = None if up is None else check_axis(up)
    if points < 1:
        msg = f"the number of points must be at least 1, got {points}"
        raise ConfigError(msg)
    named_rng(seed)
    named = [Path(path) for path in paths]
    remarks: list[str] = []
    sources = _distinct(files_in_folders(named, leave_out=Path(output), say=remarks.append))
    if not sources:
        msg = "no file to sample; name at least one mesh or point cloud"
        raise ConfigError(msg)
    destination = plan_output(sources, Path(output), cloud_format)
    if not overwrite:
        _check_new(sources, destination)
    results: list[SampledFile | FailedFile] = []
    with open_writer(destination) as writer:
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
        tuple(remarks),
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
