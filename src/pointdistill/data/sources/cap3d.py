"""Objaverse as the point clouds of Cap3D (Luo et al., NeurIPS 2023): PLY, taken as z up. Ids: the bare uid.

The index that comes with the zips is a pickle; the zips list their own members, so it is not needed.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from pointdistill.data.sources.base import SourceInfo, SourceRequest, archive_paths
from pointdistill.data.sources.members import Layout, MemberSource, Named, open_members
from pointdistill.errors import DataError


def open_source(request: SourceRequest, info: SourceInfo) -> MemberSource:
    """The source for those of the zips that are there; which they are is recorded as the archive.

    Raises:
        DataError: if none is there, one is damaged or belongs to another part of Objaverse, or none holds a
            cloud.
    """
    for path in archive_paths(request, info):
        if path.is_file() and not path.match(info.files[0]):
            msg = f"{path}: {info.name} is {info.archive}; rename the file if it is one of them"
            raise DataError(msg)
    return open_members(request, info, Layout(name=_named, up="z", pattern="Cap3D_pcs/<uid>.ply"))


def _named(member: str) -> Named | None:
    path = PurePosixPath(member)
    return Named(path.stem) if path.suffix.lower() == ".ply" else None
