"""Toys4K (Stojanov et al., CVPR 2021): OBJ meshes by class and object, y up. Ids: ``class/object/file``."""

from __future__ import annotations

from pathlib import PurePosixPath

from pointdistill.data.sources.base import SourceInfo, SourceRequest
from pointdistill.data.sources.members import Layout, MemberSource, Named, open_members


def open_source(request: SourceRequest, info: SourceInfo) -> MemberSource:
    """The source for a ``toys4k_obj_files.zip``.

    Raises:
        DataError: if the archive is absent or damaged, or holds no such mesh.
    """
    layout = Layout(name=_named, up="y", pattern="<class>/<object>/<file>.obj")
    return open_members(request, info, layout)


def _named(member: str) -> Named | None:
    path = PurePosixPath(member)
    if path.suffix.lower() != ".obj" or len(path.parts) < 3:
        return None
    label, shape = path.parts[-3:-1]
    return Named(f"{label}/{shape}/{path.stem}", label)
