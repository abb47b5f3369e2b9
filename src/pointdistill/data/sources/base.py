"""The interface between a source and a build: facts, the list of shapes, and the points of one shape at a time.

Beside it is what sources share: finding the archives of a request, a source that is one archive and opens it once
in each process, and the facts that a corpus records of a source.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.benchmarks.records import STAND_IN_MARKER
from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.corpus.shard import UNKNOWN_LABEL
from pointdistill.data.files.archive import Archive, open_archive, still_there
from pointdistill.data.files.packed_tars import tar_names
from pointdistill.data.meshes.records import LeftOut
from pointdistill.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Entry:
    """One shape of a source, before it is read."""

    id: str
    """Unique within the source and the same on every machine; never used as a path."""

    label: int = UNKNOWN_LABEL
    """Index into the source's ``labels``; -1 if it is not known."""

    where: str = ""
    """Where the source finds it, in the source's own format: a path in a folder, or the location of a member."""


@dataclass(frozen=True, slots=True)
class SourceCloud:
    """The points of one shape of a source. Sizes: n points."""

    points: NDArray[np.floating]
    """(n, 3), z up, in the source's own unit and position."""

    part: NDArray[np.uint8] | None = None
    """(n,), the part that each point belongs to; None if it is not known."""

    left_out: LeftOut = field(default_factory=LeftOut)
    """What its file holds besides; the file is called by the shape's id."""


class Source(Protocol):
    """A set of shapes that can be listed, and then read one by one, in any process and any order.

    A source is pickled for every worker, so it opens its archive only at the first read and keeps no list of
    shapes.
    """

    @property
    def facts(self) -> SourceFacts:
        """Name, licence, checksum and settings, known before any shape is read."""

    def entries(self) -> Sequence[Entry]:
        """All its shapes in any order; reads the archive's table of contents, not the shapes.

        Raises:
            DataError: if the archive cannot be listed.
        """

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:
        """One shape's points.

        Args:
            entry: one of `entries`.
            count: number of points; a mesh gives as many, a cloud what it has.
            rng: the shape's own generator, see `source_shape_rng`.

        Raises:
            DataError: if the shape cannot be used; the message names no path of this machine.
            OSError: if the machine is to blame; ESTALE if the file or its archive is gone.
        """


@runtime_checkable
class ListedFiles(Protocol):
    """A source that knows the checksum of each of its files, so that a corpus of it can grow."""

    @property
    def listing(self) -> str:
        """What ``sha256sum`` prints of its files, sorted by name; its SHA-256 is ``archive_sha256``."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What of the folder is no shape, or of a format that is not read, in lines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRequest:
    """What the user wants of a source; options that stay None or False were not given."""

    path: Path | None = None
    """The archive or folder."""

    shapes: int | None = None
    """Number of shapes, for sources that make them."""

    categories: Sequence[str] | None = None
    """Categories, for sources that make them."""

    procedural: float | None = None
    """Share of the shapes that are procedural, from 0 to 1, for sources that make them."""

    up: str | None = None
    """The axis that points up in files that do not say so themselves."""

    include_test: bool = False
    """Whether the test split is included besides the training split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceInfo:
    """One row of the table of sources."""

    name: str
    module: str
    """Module that opens it; imported only when the source is used."""

    title: str
    """What it is, in a few words."""

    licence: str
    up: str
    """The axis that points up in its files."""

    origin: str
    """Where people can get it."""

    archive: str | None
    """Usual name of its archive, for people; None if it has none."""

    files: tuple[str, ...] = ()
    """Names of its archives in a folder. A name with ``*`` or ``?`` stands for one or more files, every other name
    for one file that is required."""

    access: str = ""
    """What it takes to get the archive, such as ``no login``."""

    commercial: bool | None = None
    """Whether the licence allows commercial use; None if that is unknown or differs between shapes."""

    official: int | None = None
    """Number of shapes in the complete archive; None if there is no such number."""

    official_test: int = 0
    """Additional shapes with the test split."""

    opener: str = "open_source"
    """The function of that module, ``(request, info) -> Source``."""

    options: frozenset[str] = field(default_factory=frozenset)
    """Fields of `SourceRequest` that it understands besides ``path``."""


def source_shape_rng(*, seed: int, source: str, shape_id: str) -> np.random.Generator:
    """The generator of one shape: independent of workers, order, and the other shapes."""
    digest = hashlib.sha256(f"{seed}\0{source}\0{shape_id}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, "<u4"))


def check_request(request: SourceRequest, info: SourceInfo) -> None:
    """Raise if the request has an option that this source does not have.

    Raises:
        ConfigError: names the option and those that the source has.
    """
    options: Mapping[str, Any] = {
        "shapes": request.shapes,
        "categories": request.categories,
        "procedural": request.procedural,
        "up": request.up,
        "include_test": request.include_test or None,
    }
    for option, value in options.items():
        if value is not None and option not in info.options:
            known = ", ".join(sorted(info.options)) or "none"
            msg = f"{option}={value!r} has no meaning for {info.name}; its options are: {known}"
            raise ConfigError(msg)
    if request.path is not None and info.archive is None:
        msg = f"{info.name} is made on the spot and reads no file, got {str(request.path)!r}"
        raise ConfigError(msg)


def required_path(request: SourceRequest, info: SourceInfo) -> Path:
    """The archive or folder of a request.

    Raises:
        DataError: if none was given or it does not exist; says where to get the archive.
    """
    path = request.path
    if path is not None and path.exists():
        return path
    problem = (
        f"{path}: no such file or folder" if path else f"{info.name} needs the path of its data"
    )
    access = f" ({info.access})" if info.access else ""
    msg = f"{problem}; give {info.archive}, from {info.origin}{access}"
    raise DataError(msg, settings=("archive" if info.files else "input",))


def archive_paths(request: SourceRequest, info: SourceInfo) -> tuple[Path, ...]:
    """The archives of a request: those named, those in a folder, or the folder that they were extracted to.

    If a source needs several archives, one of them is enough to find the others beside it.

    Raises:
        DataError: if there is nothing at the path, or one of several archives is missing.
    """
    path = required_path(request, info)
    several = len(info.files) > 1
    if not path.is_dir() and not several:
        return (path,)
    folder = path if path.is_dir() else path.parent
    archives, missing = find_archives(info, folder)
    if missing and (archives or not path.is_dir()):
        msg = f"{folder}: {', '.join(missing)} missing; {info.name} is {info.archive}, from {info.origin}"
        raise DataError(msg)
    return archives or (path,)


def find_archives(info: SourceInfo, folder: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """A source's archives in a folder, sorted by name, and which of ``info.files`` are missing.

    Where a ``.tar`` is missing, a ``.tgz`` or ``.tar.gz`` of the same name stands for it.
    """
    archives: set[Path] = set()
    missing = []
    for pattern in info.files:
        found = (list(folder.glob(name)) for name in tar_names(pattern))
        matches: list[Path] = next(filter(None, found), [])
        archives.update(matches)
        missing += [] if matches else [pattern]
    return tuple(sorted(archives)), tuple(missing)


def printable(name: str) -> str:
    """The name with escapes for bytes that are not UTF-8 and for characters that cannot be printed."""
    try:
        stored = os.fsencode(name)
    except UnicodeEncodeError:
        # Not the name of a file, but text from JSON with unpaired surrogates.
        stored = name.encode("utf-8", "surrogatepass")
    text = stored.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ArchiveSource:
    """A source that is one zip file, or the folder extracted from it, read in place."""

    def __init__(self, path: Path, facts: SourceFacts) -> None:
        self.facts = facts
        self._path = path
        self._open: tuple[Archive, ExitStack] | None = None

    @property
    def archive(self) -> Archive:
        """The archive, opened when it is first used in this process.

        Raises:
            DataError: if it is damaged.
            OSError: ESTALE, if it is gone.
        """
        if self._open is None:
            resources = ExitStack()
            with still_there(self._path):
                archive = resources.enter_context(open_archive(self._path, absent=str(self._path)))
            self._open = archive, resources
        return self._open[0]

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file, whose position two processes would share."""
        return self.__dict__ | {"_open": None}


def archive_facts(
    archive: Archive,
    info: SourceInfo,
    *,
    names: Sequence[str],
    turned: str,
    labels: tuple[str, ...],
    settings: Mapping[str, Any],
) -> SourceFacts:
    """The facts of a source that is one archive.

    Args:
        archive: the open archive.
        info: the source's row.
        names: members that hold shapes; for a folder, the checksum covers only these.
        turned: how the axes become z up.
        labels: label names.
        settings: everything that decides which shapes there are.
    """
    return source_facts(
        info,
        archive=printable(archive.path.name),
        checksum=archive.checksum(names),
        stand_in=archive.find(STAND_IN_MARKER) is not None,
        turned=turned,
        labels=labels,
        settings=settings,
    )


def source_facts(
    info: SourceInfo,
    *,
    archive: str,
    checksum: str,
    turned: str,
    labels: tuple[str, ...],
    settings: Mapping[str, Any],
    stand_in: bool = False,
) -> SourceFacts:
    """The facts of a source, from its row and its archive; a stand-in's name says that it is one."""
    return SourceFacts(
        name=f"{info.name}-stand-in" if stand_in else info.name,
        licence="CC0-1.0 (made on the spot)" if stand_in else info.licence,
        origin="this program" if stand_in else info.origin,
        turned=turned,
        labels=labels,
        stand_in=stand_in,
        archive=archive,
        archive_sha256=checksum,
        settings=settings,
    )
