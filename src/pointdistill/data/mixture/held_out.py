"""Test shapes of benchmarks that a source contains under the same ids: found in a list and left out on request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pointdistill.data.archive import open_archive
from pointdistill.data.benchmarks.lvis import ANNOTATION_NAME, annotated_uids
from pointdistill.data.benchmarks.shapenetpart import ARCHIVE_STEM
from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.files import sha256_of
from pointdistill.data.sources.base import Entry, Source, SourceCloud
from pointdistill.errors import DataError

_PART_LIST = "shuffled_test_file_list.json"


@dataclass(frozen=True, slots=True)
class HeldOutList:
    """The test shapes of a benchmark."""

    benchmark: str
    ids: frozenset[str]
    """Last part of each shape's id: a model's hash or uid, the same in every version of the source."""

    sha256: str
    """SHA-256 of the list or of the annotation."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A benchmark whose test shapes some sources contain."""

    benchmark: str
    sources: tuple[str, ...]
    files: tuple[str, ...]
    """File names of its list, in the order in which they are tried."""

    origin: str
    read: Callable[[Path], tuple[frozenset[str], str]]
    """Reads ids and checksum from a file."""


class PartlyHeldOut:
    """A source with or without the shapes of a list; its settings record which."""

    def __init__(self, source: Source, benchmark: str, left_out: HeldOutList | None) -> None:
        """Wrap ``source``; None leaves nothing out."""
        noted: dict[str, Any] = {"benchmark": benchmark, "left_out": left_out is not None}
        if left_out is not None:
            noted |= {"listed": len(left_out.ids), "list_sha256": left_out.sha256}
        settings = {**source.facts.settings, "test_shapes": noted}
        self.facts: SourceFacts = replace(source.facts, settings=settings)
        self._source = source
        self._ids = left_out.ids if left_out else frozenset()

    def entries(self) -> Sequence[Entry]:
        """The source's shapes that are not on the list."""
        every = self._source.entries()
        return [entry for entry in every if _last_part(entry.id) not in self._ids]

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:
        """One shape's points; see `pointdistill.data.sources.base.Source`."""
        return self._source.read(entry, count, rng=rng)

    def __getstate__(self) -> dict[str, Any]:
        """Without the list, which a worker does not need."""
        return self.__dict__ | {"_ids": frozenset()}


def held_out_of(source: str) -> HeldOut | None:
    """The benchmark whose test shapes a source contains under the same ids; None if there is none."""
    return next((row for row in HELD_OUT if source in row.sources), None)


def find_list(held_out: HeldOut, folder: Path) -> HeldOutList:
    """Read a benchmark's list from the folder of archives.

    Raises:
        DataError: if none of its files exists, or the one that does is damaged.
    """
    path = next((folder / name for name in held_out.files if (folder / name).exists()), None)
    if path is None:
        msg = (
            f"{folder}: to leave out {held_out.benchmark}'s shapes their list is needed; put one of "
            f"{', '.join(held_out.files)} there, from {held_out.origin}"
        )
        raise DataError(msg)
    ids, checksum = held_out.read(path)
    return HeldOutList(held_out.benchmark, ids, checksum)


def _read_part_list(path: Path) -> tuple[frozenset[str], str]:
    """ShapeNetPart's test ids, from the list itself or from the archive or folder that holds it."""
    if path.name == _PART_LIST:
        content = path.read_bytes()
    else:
        with open_archive(path, absent=str(path)) as archive:
            member = archive.find(f"train_test_split/{_PART_LIST}")
            if member is None:
                msg = f"{path}: holds no train_test_split/{_PART_LIST}; fetch the archive again"
                raise DataError(msg)
            content = archive.read(member)
    try:
        entries = json.loads(content)
    except ValueError as error:
        msg = f"{path}: its {_PART_LIST} is damaged ({error}); fetch it again"
        raise DataError(msg) from error
    if not isinstance(entries, list) or not entries or not all("/" in str(e) for e in entries):
        msg = f"{path}: its {_PART_LIST} is no list of shape_data/<synset>/<id>; fetch it again"
        raise DataError(msg)
    ids = frozenset(_last_part(str(entry)) for entry in entries)
    return ids, hashlib.sha256(content).hexdigest()


def _read_annotation(path: Path) -> tuple[frozenset[str], str]:
    return annotated_uids(path), sha256_of(path)


def _last_part(name: str) -> str:
    return name.rpartition("/")[2]


HELD_OUT = (
    HeldOut(
        benchmark="ShapeNetPart",
        sources=("shapenetcore",),
        files=(f"{ARCHIVE_STEM}.zip", f"{ARCHIVE_STEM}.tar", ARCHIVE_STEM, _PART_LIST),
        origin="https://shapenet.org",
        read=_read_part_list,
    ),
    HeldOut(
        benchmark="Objaverse-LVIS",
        sources=("objaverse", "objaverse-cap3d", "objaverse-xl-cap3d"),
        files=(ANNOTATION_NAME,),
        origin="https://huggingface.co/datasets/allenai/objaverse",
        read=_read_annotation,
    ),
)
