"""Amazon Berkeley Objects (Collins et al., CVPR 2022): GLB scenes in a tar, y up. Ids: the item's own."""

from __future__ import annotations

from pathlib import PurePosixPath

from pointdistill.data.sources.base import SourceInfo, SourceRequest
from pointdistill.data.sources.members import Layout, MemberSource, Named, open_members


def open_source(request: SourceRequest, info: SourceInfo) -> MemberSource:
    """The source for an ``abo-3dmodels.tar``.

    Raises:
        DataError: if the archive is absent or damaged, or holds no such scene.
    """
    return open_members(request, info, Layout(name=_named, up="y", pattern="original/<c>/<id>.glb"))


def _named(member: str) -> Named | None:
    path = PurePosixPath(member)
    if path.suffix.lower() != ".glb" or path.parts[-3:-2] != ("original",):
        return None
    return Named(path.stem)
