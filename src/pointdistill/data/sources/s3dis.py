"""Objects of S3DIS (Armeni et al., CVPR 2016): the points of every annotated object, z up.

Ids: ``Area_1/office_1/chair_3``.
"""

from __future__ import annotations

import re

import numpy as np

from pointdistill.data.meshes.formats.content import parse_points
from pointdistill.data.sources.base import SourceCloud, SourceInfo, SourceRequest
from pointdistill.data.sources.members import Layout, MemberSource, Named, open_members
from pointdistill.errors import DataError

FEWEST_POINTS = 2048
"""Objects with fewer points are refused."""

_MEMBER = re.compile(r"(?:.*/)?(Area_\d+)/([^/]+)/Annotations/([^/]+)_(\d+)\.txt")


class S3DISSource(MemberSource):
    """Clouds of a few thousand to millions of rows ``x y z r g b``."""

    def cloud(
        self, content: bytes, name: str, count: int, *, rng: np.random.Generator
    ) -> SourceCloud:
        """A random subset of the rows; only these are parsed, because parsing is what takes time.

        Only x, y and z of each row are read: one row in the archive has a control byte inside a colour.

        Raises:
            DataError: if there are fewer than 2,048 rows, or one does not begin with three numbers.
        """
        rows = [row for row in content.splitlines() if row and not row.isspace()]
        if len(rows) < FEWEST_POINTS:
            msg = f"{name}: {len(rows):,} points, objects with at least {FEWEST_POINTS:,} are kept"
            raise DataError(msg)
        if len(rows) > count:
            chosen = np.sort(rng.choice(len(rows), size=count, replace=False, shuffle=False))
            rows = [rows[k] for k in chosen]
        return SourceCloud(parse_points(rows))


def open_source(request: SourceRequest, info: SourceInfo) -> MemberSource:
    """The source for a ``Stanford3dDataset_v1.2.zip``.

    Raises:
        DataError: if the archive is absent or damaged, or holds no annotated object.
    """
    pattern = "Area_<k>/<room>/Annotations/<class>_<i>.txt"
    layout = Layout(name=_named, up="z", pattern=pattern)
    settings = {"fewest_points": FEWEST_POINTS}
    return open_members(request, info, layout, kind=S3DISSource, settings=settings)


def _named(member: str) -> Named | None:
    match = _MEMBER.fullmatch(member)
    if match is None:
        return None
    area, room, label, number = match.groups()
    return Named(f"{area}/{room}/{label}_{number}", label)
