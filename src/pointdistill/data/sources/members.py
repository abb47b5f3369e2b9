"""Sources whose shapes are the members of one or several archives.

Such a source is defined by a function from a member's name to a shape's id and label, and by the axis that points
up. Listing reads only the archives' tables of contents and notes where each member is; a worker reads from there
and needs no list.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pointdistill.data.benchmarks.records import STAND_IN_MARKER
from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.corpus.shard import UNKNOWN_LABEL
from pointdistill.data.files.archive import Archive, MemberLocation, open_archive
from pointdistill.data.files.member import read_member_at
from pointdistill.data.meshes.records import Axis, LeftOut
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
from pointdistill.errors import DataError

TURNED = {"y": "zxy", "z": "none"}
"""How a corpus records that an axis became z; see `pointdistill.data.meshes.sampling.to_z_up`."""


@dataclass(frozen=True, slots=True)
class Named:
    """What a member's name says about its shape."""

    id: str
    label: str | None = None


Namer = Callable[[str], Named | None]
"""From a member's name to its shape; None if the member is not a shape of the source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What a source's archives look like inside."""

    name: Namer
    up: Axis
    pattern: str
    """How its members are named, for people: ``<class>/train/<name>.off``."""

    labels: tuple[str, ...] | None = None
    """Label names if they are fixed; otherwise those that occur, in alphabetical order."""


class MemberSource:
    """A source whose shapes are found by the names of members."""

    def __init__(
        self,
        roots: Sequence[Path],
        facts: SourceFacts,
        *,
        up: Axis,
        layout: Layout | None = None,
    ) -> None:
        """Use `open_members`; a source that lists its shapes differently has no layout."""
        self.facts = facts
        self._roots = tuple(roots)
        self._up = up
        self._layout = layout

    def entries(self) -> Sequence[Entry]:
        """Every member that is a shape; one whose name leads outside the archive is refused when it is read."""
        assert self._layout is not None, "a worker only reads and never lists"
        number = {label: k for k, label in enumerate(self.facts.labels)}
        entries: list[Entry] = []
        for root, archive in enumerate(_opened(self._roots)):
            entries += [
                Entry(id=printable(name), where="") for name in unsafe_shapes(archive, self._layout)
            ]
            for name, shape in _shapes(archive, self._layout):
                label = UNKNOWN_LABEL if shape.label is None else number[printable(shape.label)]
                where = encode_location(root, archive.locate(name))
                entries.append(Entry(id=printable(shape.id), label=label, where=where))
        return entries

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:
        """Points of one member; see `pointdistill.data.sources.base.Source`."""
        if not entry.where:
            msg = f"the name {entry.id!r} leads out of the archive; fetch it from its own site"
            raise DataError(msg)
        root, location = decode_location(entry.where)
        return self.cloud(
            read_member_at(self._roots[root], location), location.name, count, rng=rng
        )

    def cloud(
        self, content: bytes, name: str, count: int, *, rng: np.random.Generator
    ) -> SourceCloud:
        """Points of the mesh or cloud in a member."""
        shape = read_content(content, name)
        points = draw_up_to(shape, count, up=self._up, rng=rng)
        return SourceCloud(points, left_out=LeftOut.of(shape, printable(name)))

    def __getstate__(self) -> dict[str, Any]:
        """Without the layout, which only listing needs."""
        return self.__dict__ | {"_layout": None}


def open_members(
    request: SourceRequest,
    info: SourceInfo,
    layout: Layout,
    *,
    kind: type[MemberSource] = MemberSource,
    settings: Mapping[str, Any] | None = None,
) -> MemberSource:
    """The source for the archives of a request.

    Reads each archive once for its checksum, and the names of its members.

    Args:
        request: has the path of the archive, or of a folder.
        info: the source's row.
        layout: which members are shapes, and which axis points up.
        kind: the class of the source, which turns a member into points.
        settings: everything that decides which shapes there are.

    Raises:
        DataError: if an archive is absent or damaged, or none holds a shape.
    """
    roots = archive_paths(request, info)
    labels: set[str] = set()
    checksums, shapes, stand_in = [], 0, False
    for archive in _opened(roots):
        members = list(_shapes(archive, layout))
        shapes += len(members)
        labels.update(printable(shape.label) for _, shape in members if shape.label is not None)
        stand_in |= archive.find(STAND_IN_MARKER) is not None
        checksums.append(archive.checksum([name for name, _ in members]))
    if not shapes:
        msg = f"{', '.join(map(str, roots))}: holds no {layout.pattern}; get {info.archive} from {info.origin}"
        raise DataError(msg)
    facts = source_facts(
        info,
        archive=", ".join(printable(root.name) for root in roots),
        checksum=joint_checksum(roots, checksums),
        stand_in=stand_in,
        turned=TURNED[layout.up],
        labels=tuple(sorted(labels)) if layout.labels is None else layout.labels,
        settings=settings or {},
    )
    return kind(roots, facts, up=layout.up, layout=layout)


def joint_checksum(roots: Sequence[Path], checksums: Sequence[str]) -> str:
    """The checksum of one archive; of several, the SHA-256 of the list that ``sha256sum`` would print."""
    if len(checksums) == 1:
        return checksums[0]
    lines = (f"{sha}  {root.name}\n" for sha, root in zip(checksums, roots, strict=True))
    return hashlib.sha256(os.fsencode("".join(lines))).hexdigest()


def encode_location(root: int, location: MemberLocation) -> str:
    """A location in archive number ``root`` as text, for an entry's ``where``."""
    return json.dumps([root, *astuple(location)])


def decode_location(where: str) -> tuple[int, MemberLocation]:
    """The archive number and location from `encode_location`."""
    root, *fields = json.loads(where)
    return root, MemberLocation(*fields)


def unsafe_shapes(archive: Archive, layout: Layout) -> list[str]:
    """Members that would be shapes if their names did not lead outside the archive."""
    ending = PurePosixPath(layout.pattern).suffix
    return [name for name in archive.unsafe if PurePosixPath(name).suffix.lower() == ending]


def _shapes(archive: Archive, layout: Layout) -> Iterator[tuple[str, Named]]:
    for name in archive.names:
        shape = layout.name(name)
        if shape is not None:
            yield name, shape


def _opened(roots: Sequence[Path]) -> Iterator[Archive]:
    """Each archive in turn, open while it is used, so that only one table of contents is in memory."""
    for root in roots:
        with ExitStack() as resources:
            absent = f"{root}: is gone; put it back and run the same again"
            yield resources.enter_context(open_archive(root, absent=absent, tolerate_unsafe=True))
