"""Objects of SUN RGB-D (Song et al., CVPR 2015): the points of a training image inside each annotated box, z up.

Ids: the image's folder and the number of the box, ``kv1/NYUdata/NYU0003/002``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.archive import MemberLocation, open_archive
from pointdistill.data.checksums import file_checksum
from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.places import read_member_at
from pointdistill.data.sources.archived import source_facts
from pointdistill.data.sources.base import (
    Entry,
    SourceCloud,
    SourceInfo,
    SourceRequest,
    archive_paths,
    printable,
)
from pointdistill.data.sources.members import joint_checksum
from pointdistill.data.sources.sunrgbd_boxes import Box, Numbers, Scene, below_root, training_scenes
from pointdistill.errors import DataError

FEWEST_POINTS = 2048
"""Objects with fewer points are refused."""

FARTHEST_METRES = 8.0
"""Larger depths are clipped to this."""

_MOST_PIXELS = 1 << 24


@dataclass(frozen=True, slots=True)
class _Where:
    """Everything needed to cut out one object."""

    location: tuple[Any, ...] | None  # of the depth image; None if the archive lacks it
    camera: Numbers
    tilt: Numbers
    box: Box


class SunRGBDSource:
    """Boxes of the training images; a worker keeps the points of one image, 5 MB."""

    def __init__(self, images: Path, meta: Path, toolbox: Path, facts: SourceFacts) -> None:
        """Use `open_source`."""
        self.facts = facts
        self._images = images
        self._meta = meta
        self._toolbox = toolbox
        self._held: tuple[str, NDArray[np.float64]] | None = None

    def entries(self) -> Sequence[Entry]:
        """One for each box; reads the archive's table of contents, not the images."""
        number = {label: k for k, label in enumerate(self.facts.labels)}
        absent = f"{self._images}: is gone; put it back and run the same again"
        with open_archive(self._images, absent=absent, tolerate_unsafe=True) as archive:
            members = {below_root(name): name for name in archive.names if name.endswith(".png")}
            found: list[Entry] = []
            for scene in training_scenes(self._meta, self._toolbox):
                member = members.get(scene.depth)
                location = None if member is None else archive.locate(member)
                found += _entries(scene, location, number)
        return found

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:  # noqa: ARG002
        """The points inside one box; see `pointdistill.data.sources.base.Source`."""
        where = json.loads(entry.where)
        if where["location"] is None:
            msg = f"the depth image of {entry.id} is not in {self._images.name}; fetch the archive again"
            raise DataError(msg)
        image = json.dumps([where["location"], where["camera"], where["tilt"]])
        if self._held is None or self._held[0] != image:
            location = MemberLocation(*where["location"])
            depth = depth_metres(read_member_at(self._images, location), location.name)
            self._held = image, room_points(depth, where["camera"], where["tilt"])
        points = inside_box(self._held[1], Box(**where["box"]))
        if len(points) < FEWEST_POINTS:
            msg = f"{entry.id}: {len(points):,} points, objects with at least {FEWEST_POINTS:,} are kept"
            raise DataError(msg)
        return SourceCloud(points)

    def __getstate__(self) -> dict[str, Any]:
        """Without the image that this process keeps."""
        return self.__dict__ | {"_held": None}


def open_source(request: SourceRequest, info: SourceInfo) -> SunRGBDSource:
    """The source for the three files, named by their folder or by one of them.

    Raises:
        DataError: if one is absent or damaged.
    """
    paths = {path.name: path for path in archive_paths(request, info)}
    if not set(info.files) <= set(paths):
        msg = f"{request.path}: holds none of {', '.join(info.files)}; get them from {info.origin}"
        raise DataError(msg)
    images, toolbox, meta = (paths[name] for name in info.files)
    scenes = training_scenes(meta, toolbox)
    labels = sorted({printable(box.label) for scene in scenes for box in scene.boxes})
    facts = source_facts(
        info,
        archive=", ".join(info.files),
        checksum=joint_checksum(
            (images, toolbox, meta), [file_checksum(path) for path in (images, toolbox, meta)]
        ),
        turned="Rtilt",
        labels=tuple(labels),
        settings={"fewest_points": FEWEST_POINTS, "farthest_metres": FARTHEST_METRES},
    )
    return SunRGBDSource(images, meta, toolbox, facts)


def depth_metres(content: bytes, name: str) -> NDArray[np.float64]:
    """(h, w) metres of a depth image; 0 where nothing was measured.

    It stores millimetres as 16 bits that are rotated left by 3.

    Raises:
        DataError: if it is not a 16-bit PNG.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.width * image.height > _MOST_PIXELS or not image.mode.startswith("I"):
                found = f"{image.width} x {image.height} pixels of kind {image.mode}"
                msg = (
                    f"{name} is no depth image ({found}, expected 16 bits); fetch the archive again"
                )
                raise DataError(msg)
            stored = np.asarray(image).astype(np.uint16)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Without Pillow's message, which differs between versions and processes.
        msg = f"{name} is no depth image that can be read; fetch the archive again"
        raise DataError(msg) from error
    millimetres = (stored >> 3) | (stored << 13)
    return np.minimum(millimetres / 1000.0, FARTHEST_METRES)


def room_points(depth: NDArray[np.float64], camera: Numbers, tilt: Numbers) -> NDArray[np.float64]:
    """(n, 3) points of the pixels that were measured, in metres, z up.

    Args:
        depth: (h, w) metres, 0 where nothing was measured.
        camera: K row by row; its principal point counts pixels from 1, as MATLAB does.
        tilt: Rtilt row by row, the rotation that makes the floor level.
    """
    focal_x, _, centre_x, _, focal_y, centre_y = camera[:6]
    row, column = np.nonzero(depth)
    away = depth[row, column]
    right = (column + 1 - centre_x) * away / focal_x
    down = (row + 1 - centre_y) * away / focal_y
    # From the camera's axes (right, down, away) to (right, away, up): a rotation.
    points: NDArray[np.float64] = np.stack([right, away, -down], axis=1)
    return points @ np.reshape(tilt, (3, 3)).T


def inside_box(points: NDArray[np.float64], box: Box) -> NDArray[np.float64]:
    """The points inside an oriented box."""
    axes = np.reshape(box.axes, (3, 3))
    lengths = np.linalg.norm(axes, axis=1, keepdims=True)
    along = (points - np.asarray(box.centre)) @ (axes / np.where(lengths > 0, lengths, 1.0)).T
    return points[(np.abs(along) <= np.abs(box.half_sizes)).all(axis=1)]


def _entries(scene: Scene, location: MemberLocation | None, number: dict[str, int]) -> list[Entry]:
    noted = None if location is None else astuple(location)
    return [
        Entry(
            id=printable(f"{scene.name}/{k:03d}"),
            label=number[printable(box.label)],
            where=json.dumps(asdict(_Where(noted, scene.camera, scene.tilt, box))),
        )
        for k, box in enumerate(scene.boxes)
    ]
