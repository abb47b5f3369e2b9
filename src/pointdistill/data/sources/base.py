"""What the build asks of a source: its facts, the list of its shapes, and one shape at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.corpus.shard import UNKNOWN_LABEL
from pointdistill.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Entry:
    """One shape of a source, before it is read."""

    id: str
    """Unique within the source, the same on every machine; never used as a path."""

    label: int = UNKNOWN_LABEL
    """Index into the source's ``labels``; -1 where it is not known."""

    where: str = ""
    """Where the source finds it: a member of an archive, a path inside a folder."""


@dataclass(frozen=True, slots=True)
class Cloud:
    """What a source gives for one shape. Sizes: n points."""

    points: NDArray[np.floating]
    """(n, 3), z up, in the source's own unit and place."""

    part: NDArray[np.uint8] | None = None
    """(n,), the part each point belongs to; None where that is not known."""


class Source(Protocol):
    """A set of shapes that can be listed, and read one by one in any process and order.

    A source is pickled into every worker: it opens its archive when it first reads, and holds no
    list.
    """

    @property
    def facts(self) -> SourceFacts:
        """Name, licence, checksum and settings, known before any shape is read."""

    def entries(self) -> Sequence[Entry]:
        """All its shapes, in any order; costs a look at the archive's directory, not at the shapes.

        Raises:
            DataError: if the archive cannot be listed.
        """

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> Cloud:
        """One shape's points.

        Args:
            entry: one of `entries`.
            count: points wanted: a mesh gives as many, a cloud what it has.
            rng: the shape's own generator, see `shape_rng`.

        Raises:
            DataError: if the shape cannot be used; the message names no path of this machine.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRequest:
    """What the user asked of a source; what stays None or False was not asked for."""

    path: Path | None = None
    """The archive or folder."""

    shapes: int | None = None
    """How many shapes; for sources that make them."""

    categories: Sequence[str] | None = None
    """Which categories; for sources that make them."""

    up: str | None = None
    """The axis that points up in files that do not say so themselves."""

    include_test: bool = False
    """Whether the test split is taken in beside the training split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceInfo:
    """One row of the table of sources."""

    name: str
    module: str
    """Module that has ``open_source(request) -> Source``."""

    title: str
    """What it is, in a few words."""

    licence: str
    up: str
    """The axis that points up in its files."""

    origin: str
    """Where it is to be had, for people."""

    archive: str | None
    """Usual name of its archive; None where there is none."""

    options: frozenset[str] = field(default_factory=frozenset)
    """Fields of `SourceRequest`, beside ``path``, that it understands."""


def shape_rng(*, seed: int, source: str, shape_id: str) -> np.random.Generator:
    """The generator of one shape: the same whatever the workers, the order, or the shapes beside it."""
    words = hashlib.sha256(f"{seed}\0{source}\0{shape_id}".encode()).digest()
    return np.random.default_rng(np.frombuffer(words, "<u4"))


def check_request(request: SourceRequest, info: SourceInfo) -> None:
    """Raise where the user asked for something that this source does not have.

    Raises:
        ConfigError: naming the option and the sources' own ones.
    """
    asked: Mapping[str, Any] = {
        "shapes": request.shapes,
        "categories": request.categories,
        "up": request.up,
        "include_test": request.include_test or None,
    }
    for option, value in asked.items():
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
        DataError: if none was given or there is nothing at it; says where the archive is to be had.
    """
    path = request.path
    if path is not None and path.exists():
        return path
    given = f"{path}: no such file or folder" if path else f"{info.name} needs the path of its data"
    msg = f"{given}; with --input give {info.archive}, from {info.origin}"
    raise DataError(msg)
