"""One file, mesh in memory or member of an archive -> points, with the randomness that belongs to it."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.files.archive import Archive
from pointdistill.data.meshes.read import from_object, printable_line, read_mesh
from pointdistill.data.meshes.records import AnyFloats, Axis, MeshLimits, PointSet, Surface
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
        mesh: a path, a ``trimesh.Trimesh``, ``Scene`` or ``PointCloud``, or what `read_mesh` returned.
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
            msg = f"{path}: left out {', '.join(shape.left_out)}"
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
    with tempfile.TemporaryDirectory(prefix="pointdistill-") as folder:
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
