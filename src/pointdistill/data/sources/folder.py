"""A user's own folder of meshes and point clouds; the first level of sub-folders gives the labels."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.corpus.shard import UNKNOWN_LABEL
from pointdistill.data.files.archive import still_there, walk
from pointdistill.data.files.files import sha256_of
from pointdistill.data.meshes.read import FORMATS
from pointdistill.data.meshes.records import Axis, LeftOut
from pointdistill.data.meshes.sample import draw_up_to, read_named
from pointdistill.data.meshes.sampling import check_axis
from pointdistill.data.sources.base import (
    Entry,
    SourceCloud,
    SourceInfo,
    SourceRequest,
    printable,
    required_path,
)
from pointdistill.errors import DataError

ASSUMED_UP: Axis = "z"

# Part of the checksum besides the shapes: a glTF keeps its vertices in such a file.
_COMPANIONS = frozenset({".bin"})


@dataclass(frozen=True)
class FolderSource:
    """Every mesh and cloud below a folder; a shape's id is its path relative to the folder."""

    facts: SourceFacts
    path: Path
    up: Axis
    """Up axis of files that do not state their own."""

    listing: str = field(default="", repr=False)
    """What ``sha256sum`` prints of its files, sorted by name."""

    def __getstate__(self) -> dict[str, Any]:
        """Without the list, which a worker does not need and which may be long."""
        return self.__dict__ | {"listing": ""}

    def entries(self) -> Sequence[Entry]:
        """Every file of a known format."""
        number = {label: k for k, label in enumerate(self.facts.labels)}
        return [
            Entry(
                id=printable(name),
                label=number[label] if (label := _label(name)) else UNKNOWN_LABEL,
                where="" if _is_broken_link(self.path / name) else name,
            )
            for name in _files(self.path, FORMATS)
        ]

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:
        """Points of one file; see `pointdistill.data.sources.base.Source`."""
        if not entry.where:
            msg = f"{entry.id}: is a broken link; put the file there that it stands for"
            raise DataError(msg)
        path = self.path / entry.where
        with still_there(path):
            shape = read_named(path, entry.id)
        points = draw_up_to(shape, count, up=shape.declared_up or self.up, rng=rng)
        return SourceCloud(points, left_out=LeftOut.of(shape, entry.id))


def open_source(request: SourceRequest, info: SourceInfo) -> FolderSource:
    """The source for a folder; reads every file once for its checksum.

    Raises:
        ConfigError: if ``up`` is no axis.
        DataError: if there is no such folder, or nothing in it has a known format.
    """
    path = required_path(request, info)
    if not path.is_dir():
        msg = f"{path}: is a file; give the folder that holds it"
        raise DataError(msg)
    up = check_axis(request.up or ASSUMED_UP)
    names = list(_files(path, FORMATS))
    if not names:
        endings = ", ".join(ending[1:] for ending in FORMATS)
        msg = f"{path}: holds no mesh or point cloud; files that end in {endings} are read"
        raise DataError(msg)
    listing = _listing(path)
    facts = SourceFacts(
        name=info.name,
        licence=info.licence,
        origin=info.origin,
        turned=f"from the up axis that a file states, else from {up}",
        labels=tuple(sorted({label for name in names if (label := _label(name))})),
        archive=printable(path.resolve().name),
        archive_sha256=hashlib.sha256(listing.encode()).hexdigest(),
        settings={"up": up},
    )
    return FolderSource(facts, path.resolve(), up, listing)


def _files(path: Path, endings: Collection[str]) -> Iterator[str]:
    """POSIX paths of the files below ``path`` and its linked folders with one of ``endings``; no hidden ones."""
    for folder, subfolders, files in walk(path):
        subfolders[:] = [s for s in subfolders if not s.startswith(".") and s != "__MACOSX"]
        for file in files:
            if not file.startswith(".") and Path(file).suffix.lower() in endings:
                yield Path(folder, file).relative_to(path).as_posix()


def _is_broken_link(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _label(name: str) -> str | None:
    """The first sub-folder of a file's path; None for a file that is not in a sub-folder."""
    parts = PurePosixPath(name).parts
    return printable(parts[0]) if len(parts) > 1 else None


def _listing(path: Path) -> str:
    """The list that ``sha256sum`` would print, sorted by name."""
    # Only regular files: pipes and devices have no end. They are refused later, like broken links.
    files = (name for name in _files(path, {*FORMATS, *_COMPANIONS}) if (path / name).is_file())
    names = sorted((printable(name), name) for name in files)
    return "".join(f"{sha256_of(path / name)}  {printed}\n" for printed, name in names)
