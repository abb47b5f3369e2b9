"""Lists the shapes in files, folders, archives and corpora that a user names, and reads their points.

A list holds only names; a shape is read when it is needed, in any process. Archives are read in place.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.corpus.manifest import MANIFEST_NAME
from pointdistill.data.files.archive import open_archive
from pointdistill.data.files.files import path_from, short_name
from pointdistill.data.files.member import HeldArchive, file_state, hold_archive, unpack
from pointdistill.data.files.packed_tars import PACKED_TARS, temporary_folder
from pointdistill.data.files.schema import short_repr
from pointdistill.data.meshes import Axis, PointSet, Surface, draw, named_rng
from pointdistill.data.meshes.formats.points import is_prose_member
from pointdistill.data.meshes.read import (
    from_object,
    is_array,
    is_shape_name,
    no_shape_in,
    not_shapes,
    unread_suffixes,
)
from pointdistill.data.meshes.records import LeftOut
from pointdistill.data.meshes.sample import read_named
from pointdistill.errors import DataError

ARCHIVE_SUFFIXES = (".zip", ".tar", *PACKED_TARS)

PathKind: TypeAlias = Literal["file", "folder", "archive", "corpus"]


@dataclass(frozen=True, slots=True)
class ShapeSource:
    """A path that the user named, and the shapes in it."""

    kind: PathKind
    path: str
    """Absolute."""

    named: str
    """As the user typed it, with forward slashes; without the folders of this machine if that was absolute."""

    names: tuple[str, ...] | None = None
    """POSIX names inside a folder or archive; the file's own; None for a corpus, whose shapes have numbers."""

    count: int = 1

    prose: tuple[str, ...] = ()
    """Names of text files in a folder or archive without points, such as a readme, which are no shapes."""

    unread: tuple[str, ...] = ()
    """Names of its files in formats that are not read, see `UNREAD_SUFFIXES`."""

    stamp: str = ""
    """Changes when the shapes change: a corpus's checksum, or the sizes and times of files."""


@dataclass(frozen=True, slots=True)
class ShapeLocation:
    """Where to find one shape; small, because it is sent to worker processes."""

    kind: PathKind
    path: str
    """Path of the file, folder, archive or corpus."""

    name: str
    """Name of the file inside it; empty for a corpus."""

    row: int
    """Number of the shape within its source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadSettings:
    """How shapes become points; together with a shape's name this decides all its randomness."""

    points: int
    """Points drawn from a surface; a cloud with fewer gives all it has."""

    seed: int

    up: Axis = "z"
    """Up axis of files that do not state their own."""

    minimum: int = 32
    """Shapes with fewer points are refused."""

    shuffled: bool = False
    """Whether points are in random order instead of the file's, so that any run of them is a random sample."""


@dataclass(frozen=True, slots=True)
class ReadShape:
    """One shape, or the reason why it cannot be used. Sizes: n points."""

    name: str
    """Name within its source; for a corpus the id, preceded by the source's name if there are several."""

    points: NDArray[np.float32] | None = None
    """(n, 3), z up, in the file's unit."""

    reason: str = ""
    """Why ``points`` is None, without the file's name."""

    assumed_up: bool = False
    """Whether the up axis is that of the settings, because the file states none."""

    left_out: LeftOut = field(default_factory=LeftOut)
    """What its file holds besides."""


@dataclass(slots=True)
class ReadTask:
    """Neighbouring shapes of a list, to be read by one process."""

    chunk: int
    """The caller's own number for the task, not used here."""

    first: int
    """Number of the first of these shapes in the list."""

    locations: list[ShapeLocation]
    refused: dict[int, str] = field(default_factory=dict)
    """By position in the task: why a shape is not to be tried again."""


class ShapeList:
    """Shapes by number, 0 to ``len(shapes) - 1``, in the order of the sources and of their names."""

    def __init__(self, sources: Sequence[ShapeSource]) -> None:
        """Use `list_shapes`, which looks at the paths first."""
        self.sources = tuple(sources)
        self._ends = list(itertools.accumulate(source.count for source in sources))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> tuple[int, ShapeLocation]:
        """Number of the source and location of shape ``index``."""
        if not 0 <= index < len(self):
            msg = f"shape {index} of a list of {len(self):,}; the first is 0"
            raise IndexError(msg)
        number = bisect.bisect_right(self._ends, index)
        source = self.sources[number]
        row = index - (self._ends[number] - source.count)
        name = "" if source.names is None else source.names[row]
        return number, ShapeLocation(source.kind, source.path, name, row)

    def not_shapes(self) -> list[str]:
        """What of folders and archives is not read: text files without points, and other formats."""
        prose = [f"{source.named}/{name}" for source in self.sources for name in source.prose]
        return not_shapes(prose, [name for source in self.sources for name in source.unread])

    def shape_id(self, number: int, name: str) -> str:
        """Id of a shape of source ``number``: its name there, preceded by the source if there are several."""
        source = self.sources[number]
        if len(self.sources) == 1:
            return name
        return source.named if source.kind == "file" else f"{source.named}/{name}"

    def stamp(self) -> str:
        """Hexadecimal SHA-256 of the list: equal for the same shapes in the same order."""
        whole = hashlib.sha256()
        for source in self.sources:
            line = (source.kind, source.path, source.named, source.count, source.stamp)
            whole.update(json.dumps(line).encode())
        return whole.hexdigest()


def shown_id(shape_id: str) -> str:
    """An id as embeddings store it: bytes of a file name that are not valid UTF-8 are escaped."""
    return shape_id.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def list_shapes(paths: Sequence[Path], *, leave_out: Path | None = None) -> ShapeList:
    """List the shapes in every path; a file that is missing or of an unknown format is refused when it is read.

    Args:
        paths: files, folders with everything below them, zip and tar archives, corpora; duplicates count once.
        leave_out: a file to ignore in folders: the output of the command itself.

    Raises:
        DataError: if there is no path, a folder or archive holds no shape, or a corpus or archive is damaged.
    """
    distinct = {os.path.realpath(path): path for path in reversed(paths)}
    unique = [path for path in dict.fromkeys(paths) if distinct[os.path.realpath(path)] == path]
    if not unique:
        msg = "nothing was named; give mesh or point files, folders, zips or a corpus"
        raise DataError(msg)
    short = [short_name(path) for path in unique]
    names = [
        # Two that would be called alike are called by their way from here.
        (name if short.count(name) == 1 else Path(path_from(Path(), path))).as_posix()
        for name, path in zip(short, unique, strict=True)
    ]
    return ShapeList(
        [_source(path, name, leave_out) for path, name in zip(unique, names, strict=True)]
    )


def _source(path: Path, named: str, leave_out: Path | None) -> ShapeSource:
    whole = str(path.resolve())
    if path.is_dir() and (path / MANIFEST_NAME).is_file():
        corpus = open_corpus(path)
        return ShapeSource("corpus", whole, named, None, len(corpus), stamp=corpus.content)
    if not path.is_dir() and not path.name.lower().endswith(ARCHIVE_SUFFIXES):
        return ShapeSource("file", whole, named, (path.name,), stamp=_stamp([path]))
    absent = f"{path}: no such file or folder; check its name"
    with open_archive(path, absent=absent) as archive:
        # What cannot be read is refused one by one, and not missing without a word.
        everything = tuple(sorted((*archive.names, *archive.irregular)))
        names = tuple(name for name in everything if is_shape_name(name))
        regular = (name for name in archive.names if is_shape_name(name))
        prose = tuple(name for name in regular if is_prose_member(archive, name))
    unread = tuple(name for name in everything if unread_suffixes([name]))
    if path.is_dir() and leave_out is not None:
        output = leave_out.resolve()
        names = tuple(name for name in names if Path(whole, name) != output)
    words = frozenset(prose)
    names = tuple(name for name in names if name not in words)
    if not names:
        raise DataError(no_shape_in(path, everything))
    if path.is_dir():
        stamp = _stamp([path / name for name in names])
        return ShapeSource("folder", whole, named, names, len(names), prose, unread, stamp)
    stamp = _stamp([path])
    return ShapeSource("archive", whole, named, names, len(names), prose, unread, stamp)


def _stamp(files: Sequence[Path]) -> str:
    """Digest of names, sizes and modification times."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(os.fsencode(f"{file}\0{file_state(file)[1:]}\n"))
    return whole.hexdigest()


def read_shape(location: ShapeLocation, settings: ReadSettings) -> ReadShape:
    """The points of one shape, or the reason why it has none.

    The sample depends only on the seed and the file's own name, as in `sample_surface`; for a corpus on the seed,
    the source and the id.

    Raises:
        DataError: if the corpus, archive or folder as a whole cannot be read.
    """
    if location.kind == "corpus":
        return _from_corpus(
            _corpus(location.path, file_state(Path(location.path, MANIFEST_NAME))),
            location.row,
            settings,
        )
    archive = _open_archive(location)
    try:
        shape = _read(location, archive)
        file = PurePosixPath(location.name).name
        return _drawn(shape, location.name, settings, named_rng(settings.seed, file))
    except DataError as error:
        return ReadShape(location.name, reason=str(error))


@dataclass(frozen=True, slots=True)
class MemoryShape:
    """A cloud or mesh in memory, among the shapes that a caller gives."""

    name: str
    content: Any
    """An array (N, 3), or a mesh as `from_object` takes it."""

    is_named: bool = False
    """Whether the name is the caller's: then it decides which points are drawn, as a file's name does."""

    def read(self) -> Surface | PointSet:
        """The cloud or mesh.

        Raises:
            DataError: if it cannot be used; does not name it.
        """
        try:
            return from_object(self.content)
        except DataError as error:
            reason = str(error).removeprefix(f"the given {type(self.content).__name__}: ")
            raise DataError(reason, settings=error.settings) from error


def given_shapes(shapes: Any) -> list[Path | MemoryShape]:
    """What a caller gave, as paths and shapes in memory, in order.

    Args:
        shapes: a path; an array (N, 3), or (B, N, 3) for B clouds; a mesh of trimesh or Open3D; a sequence of
            these; or a mapping from names to arrays or meshes. A tensor counts as an array.

    Raises:
        DataError: if there is none, or it is of another kind.
    """
    if isinstance(shapes, Mapping) and shapes:
        return [MemoryShape(str(name), _array(value), True) for name, value in shapes.items()]
    items = [shapes] if _is_shape_or_path(shapes) else shapes
    if is_array(items) and np.ndim(_array(items)) == 3:
        items = list(_array(items))
    if not isinstance(items, Iterable):
        items = [items]
    given: list[Path | MemoryShape] = []
    for number, item in enumerate(items):
        if isinstance(item, str | os.PathLike):
            given.append(Path(item))
        elif _is_shape_or_path(item):
            given.append(MemoryShape(f"array {number}", _array(item)))
        else:
            msg = f"expected paths, arrays (N, 3) or meshes, got {type(item).__name__} {short_repr(item)}"
            raise DataError(msg)
    if not given:
        msg = "no shapes were given; give paths, or arrays (N, 3)"
        raise DataError(msg)
    return given


def _is_shape_or_path(value: Any) -> bool:
    """Whether it is a single path, cloud or mesh."""
    if is_array(value):
        return np.ndim(_array(value)) == 2
    return isinstance(value, str | os.PathLike) or any(
        hasattr(value, name) for name in ("vertices", "geometry")
    )


def _array(value: Any) -> Any:
    """A tensor as an array, also one with a gradient or on a device; anything else as it is."""
    return value.detach().cpu() if hasattr(value, "detach") else value


def read_in_memory(shape: MemoryShape, settings: ReadSettings) -> ReadShape:
    """The points of a shape in memory, or the reason why it has none; as `read_shape` for a file.

    The sample depends only on the seed and, if the caller gave one, the name: a cloud has the points that a file
    with that name and the same points would have.
    """
    try:
        content = shape.read()
        rng = named_rng(settings.seed, shape.name if shape.is_named else "")
        # Nobody can state an up axis in an array, so that of the settings is no assumption.
        return replace(_drawn(content, shape.name, settings, rng), assumed_up=False)
    except DataError as error:
        return ReadShape(shape.name, reason=str(error))


def _drawn(
    shape: Surface | PointSet, name: str, settings: ReadSettings, rng: np.random.Generator
) -> ReadShape:
    up = shape.declared_up or settings.up
    available = len(shape.points) if isinstance(shape, PointSet) else settings.points
    points = draw(shape, min(settings.points, available), rng=rng, up=up)
    if settings.shuffled:
        points = rng.permutation(points)
    read = _enough(name, points, settings, assumed_up=shape.declared_up is None)
    return replace(read, left_out=LeftOut.of(shape, name))


def read_task(
    settings: ReadSettings, task: ReadTask, step: Callable[[int], None]
) -> list[ReadShape]:
    """Read all shapes of a task; calls ``step`` with the position of each before reading it.

    It is here because this module is free of torch, which worker processes that only read should not import.

    Raises:
        DataError: if the corpus, archive or folder as a whole cannot be read.
    """
    shapes = []
    for number, location in enumerate(task.locations):
        step(number)
        if number in task.refused:
            shapes.append(ReadShape(location.name, reason=task.refused[number]))
        else:
            shapes.append(read_shape(location, settings))
    return shapes


def _from_corpus(corpus: Corpus, row: int, settings: ReadSettings) -> ReadShape:
    shape = corpus[row]
    name = shape.id if len(corpus.sources) == 1 else f"{shape.source}/{shape.id}"
    points = shape.points
    rng = named_rng(settings.seed, f"{shape.source}/{shape.id}")
    if len(points) > settings.points:
        keep = rng.choice(len(points), settings.points, replace=False, shuffle=False)
        points = points[np.sort(keep)]
    if settings.shuffled:
        points = rng.permutation(points)
    try:
        return _enough(name, points, settings, assumed_up=False)
    except DataError as error:
        return ReadShape(name, reason=str(error))


def _enough(
    name: str, points: NDArray[np.float32], settings: ReadSettings, *, assumed_up: bool
) -> ReadShape:
    if len(points) < settings.minimum:
        msg = f"{len(points):,} points, {settings.minimum:,} are needed; use a denser scan"
        raise DataError(msg)
    return ReadShape(name, points, assumed_up=assumed_up)


def _open_archive(location: ShapeLocation) -> HeldArchive | None:
    """The open archive that holds a shape; None for a shape that is not in an archive.

    Raises:
        DataError: if an archive or folder is gone, or the archive is no longer the one that was listed.
    """
    if location.kind == "folder" and not Path(location.path).is_dir():
        msg = f"{location.path}: is gone; put it back and go on"
        raise DataError(msg)
    if location.kind != "archive":
        return None
    archive = hold_archive(Path(location.path))
    if location.name not in archive.names:
        msg = f"{location.path}: lost {location.name} meanwhile; put the archive back as it was and go on"
        raise DataError(msg)
    return archive


def _read(location: ShapeLocation, archive: HeldArchive | None) -> Surface | PointSet:
    path = Path(location.path)
    if archive is None:
        return read_named(path if location.kind == "file" else path / location.name, location.name)
    with temporary_folder() as folder:
        return read_named(unpack(archive, location.name, Path(folder)), location.name)


@functools.lru_cache(maxsize=4)
def _corpus(path: str, state: tuple[int, ...]) -> Corpus:  # noqa: ARG001  part of the key
    # Shapes are read in order, so the memory of earlier shards can be given back.
    return open_corpus(path, most_shards=2)
