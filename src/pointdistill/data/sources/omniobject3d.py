"""OmniObject3D (Wu et al., CVPR 2023): clouds of 16,384 points, one HDF5 file per category, y up.

Ids: the file and the row in it, ``apple_10/00003``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.files.archive import MEMBER_LIMIT_BYTES
from pointdistill.data.files.hdf5 import open_hdf5
from pointdistill.data.files.member import read_member_at
from pointdistill.data.meshes.sampling import to_z_up
from pointdistill.data.sources.base import Entry, SourceCloud, SourceInfo, SourceRequest
from pointdistill.data.sources.members import (
    Layout,
    MemberSource,
    Named,
    decode_location,
    open_members,
)
from pointdistill.errors import DataError

_KEY = "data"
_MOST_ROWS = MEMBER_LIMIT_BYTES // (16_384 * 3 * 4)


class OmniObject3DSource(MemberSource):
    """Rows of HDF5 members; a worker holds one member, 20 MB for the largest."""

    _held: tuple[str, NDArray[np.floating]] | None = None

    def entries(self) -> Sequence[Entry]:
        """As many rows per member as its name says; no member is opened."""
        entries: list[Entry] = []
        for member in super().entries():
            if not member.where:
                entries.append(member)
                continue
            # A name that claims no rows or millions is refused when the first row is read.
            rows = min(max(int(member.id.rpartition("_")[2]), 1), _MOST_ROWS)
            entries += [replace(member, id=f"{member.id}/{row:05d}") for row in range(rows)]
        return entries

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:
        """One row's points; see `pointdistill.data.sources.base.Source`."""
        if not entry.where:
            return super().read(entry, count, rng=rng)
        if self._held is None or self._held[0] != entry.where:
            self._held = None  # first, so that two are never in memory
            root, location = decode_location(entry.where)
            self._held = (
                entry.where,
                _clouds(read_member_at(self._roots[root], location), location.name),
            )
        clouds = self._held[1]
        row = int(entry.id.rpartition("/")[2])
        return SourceCloud(to_z_up(clouds[row].astype(np.float64), self._up))

    def __getstate__(self) -> dict[str, Any]:
        """Without the member that this process holds."""
        return super().__getstate__() | {"_held": None}


def open_source(request: SourceRequest, info: SourceInfo) -> MemberSource:
    """The source for a zip of the 16,384-point files.

    Raises:
        DataError: if the archive is absent or damaged, or holds no such file.
    """
    layout = Layout(name=_named, up="y", pattern="<category>_<n>.hdf5")
    return open_members(request, info, layout, kind=OmniObject3DSource)


def _named(member: str) -> Named | None:
    path = PurePosixPath(member)
    category, _, number = path.stem.rpartition("_")
    if path.suffix.lower() not in {".hdf5", ".h5"} or not category or not number.isdigit():
        return None
    return Named(path.stem, category)


def _clouds(content: bytes, name: str) -> NDArray[np.floating]:
    """(n, N, 3) points of a member, y up.

    Raises:
        DataError: if it is damaged, has another layout, or does not hold as many clouds as its name says.
    """
    stated = int(PurePosixPath(name).stem.rpartition("_")[2])
    with open_hdf5(content, name, advice="fetch the archive again") as file:
        dataset = file.dataset(_KEY, "f")
        shape = dataset.shape
        if shape[:1] != (stated,) or len(shape) != 3 or shape[2] != 3:
            msg = f"{name}: expected {_KEY!r} of shape ({stated}, 16384, 3), got {shape}; fetch it again"
            raise DataError(msg)
        return dataset.read()
