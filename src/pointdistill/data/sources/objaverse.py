"""Objaverse 1.0 (Deitke et al., CVPR 2023) as GLB: a folder of scenes with an index, y up. Ids: the bare uid."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.files.archive import MemberLocation, leads_outside, walk
from pointdistill.data.files.schema import parse_json, read_at_most
from pointdistill.data.meshes.records import Axis, LeftOut, PointSet
from pointdistill.data.meshes.sample import draw_up_to, read_content
from pointdistill.data.sources.base import (
    Entry,
    SourceCloud,
    SourceInfo,
    SourceRequest,
    archive_paths,
    printable,
    source_facts,
)
from pointdistill.data.sources.members import TURNED, MemberSource, encode_location
from pointdistill.errors import DataError

FEWEST_POINTS = 2048
"""Shapes with fewer distinct points are refused."""

_INDEXES = ("object-paths.json.gz", "object-paths.json")
_MOST_INDEX_BYTES = 128 * 2**20
"""Largest index, unfolded: 90 bytes for each of 800,000 objects are 72 MB."""
_UP: Axis = "y"


class ObjaverseSource(MemberSource):
    """Scenes that the index lists and the folder holds."""

    def entries(self) -> Sequence[Entry]:
        """One for each file that exists; a path that leads outside the folder is refused when it is read."""
        folder = self._roots[0]
        return [
            Entry(
                id=printable(uid),
                where=encode_location(0, MemberLocation(name)) if not leads_outside(name) else "",
            )
            for uid, name, _ in _present(folder)
        ]

    def cloud(
        self, content: bytes, name: str, count: int, *, rng: np.random.Generator
    ) -> SourceCloud:
        """Points of a scene's surface, or of its point sets if it has no surface.

        Raises:
            DataError: if fewer than 2,048 of them are distinct, whatever ``count`` is.
        """
        shape = read_content(content, name)
        points = draw_up_to(shape, max(count, FEWEST_POINTS), up=self._up, rng=rng)
        distinct = _distinct(shape.points if isinstance(shape, PointSet) else points)
        if distinct < FEWEST_POINTS:
            msg = f"{name}: {distinct:,} distinct points, shapes with at least {FEWEST_POINTS:,} are kept"
            raise DataError(msg)
        return SourceCloud(points, left_out=LeftOut.of(shape, printable(name)))


def open_source(request: SourceRequest, info: SourceInfo) -> ObjaverseSource:
    """The source for a folder of GLB files with ``object-paths.json.gz``.

    Its checksum covers uids, paths and sizes, because reading all files would take as long as the build.

    Raises:
        DataError: if the folder or its index is absent or damaged, or none of the files exists.
    """
    path = archive_paths(request, info)[0]
    folder = (path if path.is_dir() else path.parent).resolve()
    digest = hashlib.sha256()
    shapes = 0
    for uid, name, size in _present(folder):
        digest.update(f"{size}  {uid}  {name}\n".encode("utf-8", "backslashreplace"))
        shapes += 1
    if not shapes:
        msg = (
            f"{folder}: holds none of the files of its index; get {info.archive} from {info.origin}"
        )
        raise DataError(msg)
    facts = source_facts(
        info,
        archive=printable(folder.name),
        checksum=digest.hexdigest(),
        turned=TURNED[_UP],
        labels=(),
        settings={"fewest_points": FEWEST_POINTS},
    )
    return ObjaverseSource((folder,), facts, up=_UP)


def _present(folder: Path) -> list[tuple[str, str, int]]:
    """Uid, path and size of each indexed file that exists or whose path leads outside, sorted by uid."""
    sizes = _sizes(folder)
    return [
        (uid, name, sizes.get(name, -1))
        for uid, name in sorted(_index(folder).items())
        if name in sizes or leads_outside(name)
    ]


def _sizes(folder: Path) -> dict[str, int]:
    """Size of each GLB file below a folder, by its relative POSIX path."""
    sizes = {}
    for below, _, files in walk(folder):
        for path in (Path(below, file) for file in files if file.endswith(".glb")):
            try:
                sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
            except FileNotFoundError:
                if not path.is_symlink():
                    raise  # a broken link is a missing file; anything else is a problem of the disk
    return sizes


def _index(folder: Path) -> dict[str, str]:
    """The path of each uid, as in the index.

    Raises:
        DataError: if there is no index, or it is damaged.
    """
    path = next((folder / name for name in _INDEXES if (folder / name).is_file()), None)
    if path is None:
        msg = f"{folder}: holds no {_INDEXES[0]}, the table of uids and paths that comes with the files"
        raise DataError(msg)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = read_at_most(file, _MOST_INDEX_BYTES)
        # A uid that is no Unicode costs its own object alone.
        table = parse_json(content, most=_MOST_INDEX_BYTES, any_text=True)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        msg = f"{path}: not a table of uids and paths ({error}); fetch it again"
        raise DataError(msg) from error
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        msg = f"{path}: expected a JSON table of uid to path; fetch it again"
        raise DataError(msg)
    return table


def _distinct(points: NDArray[np.floating]) -> int:
    """Number of distinct points among (n, 3) points."""
    return len(np.unique(np.ascontiguousarray(points).view(f"V{3 * points.itemsize}")))
