"""3D-FUTURE (Fu et al., IJCV 2021): OBJ meshes of furniture in four parts, y up. Ids: the model's own."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from pointdistill.data.archive import open_archive
from pointdistill.data.sources.base import SourceInfo, SourceRequest, archive_paths
from pointdistill.data.sources.members import Layout, MemberSource, Named, open_members
from pointdistill.errors import DataError

NO_CATEGORY = "Other"
"""Label of a model whose category is null."""

_MESH = "normalized_model.obj"
_TABLE = "model_info.json"


def open_source(request: SourceRequest, info: SourceInfo) -> MemberSource:
    """The source for the four parts together, each given by the folder they lie in or by one of them.

    Raises:
        DataError: if a part is absent or damaged, or none holds the table of categories.
    """
    categories = _categories(archive_paths(request, info))
    layout = Layout(
        name=functools.partial(_named, categories=categories), up="y", pattern=f"<id>/{_MESH}"
    )
    return open_members(request, info, layout)


def _named(member: str, categories: Mapping[str, str]) -> Named | None:
    """A model, with no label where the table does not list it."""
    parts = PurePosixPath(member).parts
    if len(parts) < 2 or parts[-1] != _MESH:
        return None
    return Named(parts[-2], categories.get(parts[-2]))


def _categories(roots: tuple[Path, ...]) -> dict[str, str]:
    """The category of each model that the table in one of the parts lists.

    Raises:
        DataError: if no part has the table, or it is not as it should be.
    """
    for root in roots:
        with open_archive(root, absent=str(root), tolerate_unsafe=True) as archive:
            member = archive.find(_TABLE)
            if member is None:
                continue
            try:
                rows = json.loads(archive.read(member))
                return {str(row["model_id"]): row["category"] or NO_CATEGORY for row in rows}
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                archive.refuse(member, error)
    msg = f"{', '.join(map(str, roots))}: no {_TABLE}, which part 1 holds; fetch the parts again"
    raise DataError(msg)
