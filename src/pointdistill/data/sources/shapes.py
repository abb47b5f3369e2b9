"""From the content of a mesh file to the points of a shape, shared by all sources of meshes."""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.archive import Archive
from pointdistill.data.meshes.read import printable_line, read_mesh
from pointdistill.data.meshes.records import Axis, PointSet, Surface
from pointdistill.data.meshes.sampling import draw
from pointdistill.errors import DataError


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
    """The mesh or cloud in the bytes of a file that is called ``name``; as `read_member`."""
    with tempfile.TemporaryDirectory(prefix="pointdistill-") as folder:
        # The member's own name could lead anywhere, and the reader needs only its suffix.
        path = Path(folder, "member").with_suffix(PurePosixPath(name).suffix)
        try:
            path.write_bytes(content)
        except OSError as error:  # the error of a failed write does not say which disk is full
            raise OSError(error.errno, error.strerror, folder) from error
        return read_named(path, name)


def read_named(path: Path, name: str) -> Surface | PointSet:
    """The mesh or cloud in a file that messages call ``name``, so that they are the same on every machine."""
    try:
        return read_mesh(path)
    except DataError as error:
        shown = printable_line(str(path))  # as messages have it
        raise DataError(str(error).removeprefix(f"{shown}: ").replace(shown, name)) from error
