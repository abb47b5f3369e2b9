"""ModelNet40 as a source: OFF meshes by class and split, z up. Ids: ``chair/train/chair_0001``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import PurePosixPath

from pointdistill.data.sources.base import SourceInfo, SourceRequest
from pointdistill.data.sources.members import Layout, MemberSource, Named, open_members

_SPLITS = ("train", "test")


def open_source(request: SourceRequest, info: SourceInfo) -> MemberSource:
    """The source for a ``ModelNet40.zip``: its training split, and its test split if asked for.

    Raises:
        DataError: if the archive is absent, damaged, or in another of ModelNet40's forms.
    """
    splits = _SPLITS if request.include_test else _SPLITS[:1]
    layout = Layout(
        name=functools.partial(_named, splits=splits), up="z", pattern="<class>/train/<name>.off"
    )
    return open_members(request, info, layout, settings={"splits": list(splits)})


def _named(member: str, splits: Sequence[str]) -> Named | None:
    """Class, split and name, whatever folder they lie in."""
    path = PurePosixPath(member)
    if path.suffix.lower() != ".off" or len(path.parts) < 3 or path.parts[-2] not in splits:
        return None
    label, split = path.parts[-3:-1]
    return Named(f"{label}/{split}/{path.stem}", label)
