"""Objects cut out of indoor scenes along their annotations: S3DIS and SUN RGB-D, both z up.

S3DIS (Armeni et al., CVPR 2016): the points of every annotated object. Ids: ``Area_1/office_1/chair_3``.

SUN RGB-D (Song et al., CVPR 2015): the points of a training image inside each annotated box. Two MATLAB files say
which images are for training, and give the boxes of each image. Ids are the image's folder and the number of the
box: ``kv1/NYUdata/NYU0003/002``.
"""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.files.archive import MemberLocation, open_archive
from pointdistill.data.files.member import read_member_at
from pointdistill.data.files.workspace import file_checksum
from pointdistill.data.meshes.formats.content import parse_points
from pointdistill.data.sources.base import (
    Entry,
    SourceCloud,
    SourceInfo,
    SourceRequest,
    archive_paths,
    printable,
    source_facts,
)
from pointdistill.data.sources.members import (
    Layout,
    MemberSource,
    Named,
    joint_checksum,
    open_members,
)
from pointdistill.errors import DataError

FEWEST_POINTS = 2048
"""Objects with fewer points are refused."""

_S3DIS_MEMBER = re.compile(r"(?:.*/)?(Area_\d+)/([^/]+)/Annotations/([^/]+)_(\d+)\.txt")


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


def open_s3dis(request: SourceRequest, info: SourceInfo) -> MemberSource:
    """The source for a ``Stanford3dDataset_v1.2.zip``.

    Raises:
        DataError: if the archive is absent or damaged, or holds no annotated object.
    """
    pattern = "Area_<k>/<room>/Annotations/<class>_<i>.txt"
    layout = Layout(name=_s3dis_name, up="z", pattern=pattern)
    settings = {"fewest_points": FEWEST_POINTS}
    return open_members(request, info, layout, kind=S3DISSource, settings=settings)


def _s3dis_name(member: str) -> Named | None:
    match = _S3DIS_MEMBER.fullmatch(member)
    if match is None:
        return None
    area, room, label, number = match.groups()
    return Named(f"{area}/{room}/{label}_{number}", label)


SPLIT_MEMBER = "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"
_ROOT = "SUNRGBD/"

FARTHEST_METRES = 8.0
"""Larger depths are clipped to this."""

_MOST_PIXELS = 1 << 24

Numbers = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """One annotated object, in the frame of the room: z up, metres."""

    label: str
    centre: Numbers  # (3,)
    axes: Numbers  # (9,), row by row a direction
    half_sizes: Numbers  # (3,), along the axes


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One training image and its boxes."""

    name: str
    """Its folder below ``SUNRGBD/``."""

    depth: str
    """The depth image, below ``SUNRGBD/``."""

    camera: Numbers  # (9,), intrinsics K row by row, pixels
    tilt: Numbers  # (9,), Rtilt row by row: from the camera turned z up to the room
    boxes: tuple[Box, ...]


def training_scenes(meta: Path, toolbox: Path) -> tuple[AnnotatedImage, ...]:
    """The scenes of the official training split, in the annotation's order.

    Takes half a minute for the real files, once per process.

    Args:
        meta: ``SUNRGBDMeta3DBB_v2.mat``.
        toolbox: ``SUNRGBDtoolbox.zip``, which holds the split.

    Raises:
        DataError: if one is damaged or has another layout.
    """
    states = [(file.stat().st_size, file.stat().st_mtime_ns) for file in (meta, toolbox)]
    return _scenes(meta, toolbox, *states)


def below_root(path: str) -> str:
    """A path of the annotation, where it is absolute, or of the archive, relative to ``SUNRGBD/``."""
    return path.rpartition(f"/{_ROOT}")[2].removeprefix(_ROOT).strip("/")


@functools.lru_cache(maxsize=1)
def _scenes(meta: Path, toolbox: Path, *states: object) -> tuple[AnnotatedImage, ...]:  # noqa: ARG001  the key
    with open_archive(toolbox, absent=str(toolbox), tolerate_unsafe=True) as archive:
        member = archive.find(SPLIT_MEMBER)
        if member is None:
            msg = f"{toolbox}: holds no {SPLIT_MEMBER}; fetch the archive again"
            raise DataError(msg)
        split = _variable(io.BytesIO(archive.read(member)), "alltrain", f"{toolbox}: {member}")
    train = {below_root(_text(folder)) for folder in split.ravel()}
    rows = _variable(str(meta), "SUNRGBDMeta", str(meta))
    try:
        scenes = tuple(scene for scene in map(_scene, rows.ravel()) if scene.name in train)
    except (ValueError, IndexError, TypeError) as error:
        msg = f"{meta}: SUNRGBDMeta is not as expected ({error}); fetch the file again"
        raise DataError(msg) from error
    if not scenes:
        msg = f"{meta}: none of its images is in the training split of {toolbox.name}; fetch both again"
        raise DataError(msg)
    return scenes


def _scene(row: Any) -> AnnotatedImage:
    depth = below_root(_text(row["depthpath"]))
    return AnnotatedImage(
        name=str(PurePosixPath(depth).parent.parent),
        depth=depth,
        camera=_numbers(row["K"], 9),
        tilt=_numbers(row["Rtilt"], 9),
        boxes=tuple(_boxes(row["groundtruth3DBB"])),
    )


def _boxes(matrix: Any) -> Iterator[Box]:
    """The boxes of an image; an image without boxes has an empty matrix instead."""
    for box in matrix.ravel():
        yield Box(
            label=_text(box["classname"]),
            centre=_numbers(box["centroid"], 3),
            axes=_numbers(box["basis"], 9),
            half_sizes=_numbers(box["coeffs"], 3),
        )


def _variable(file: Any, name: str, file_name: str) -> Any:
    """One variable of a MATLAB file, given by its path or as a stream, as an object array.

    Raises:
        DataError: if the file is damaged, or has no such variable.
    """
    import scipy.io  # heavy, and needed for this source alone

    try:
        return scipy.io.loadmat(file, variable_names=[name])[name]
    # NotImplementedError for a file of version 7.3; a damaged file can make the reader raise anything.
    except Exception as error:
        msg = f"{file_name}: no MATLAB file with {name} ({type(error).__name__}: {error}); fetch it again"
        raise DataError(" ".join(msg.split())) from error


def _text(value: Any) -> str:
    """The text in a MATLAB cell or char array."""
    while isinstance(value, np.ndarray):
        value = value.ravel()[0]
    return str(value)


def _numbers(value: Any, count: int) -> Numbers:
    """The finite numbers of a small matrix, row by row.

    Raises:
        ValueError: if there are not ``count`` of them.
    """
    numbers = np.asarray(value, dtype=np.float64).ravel()
    if len(numbers) != count or not np.isfinite(numbers).all():
        msg = f"expected {count} finite numbers, got {numbers.tolist()[:12]}"
        raise ValueError(msg)
    return tuple(numbers.tolist())


@dataclass(frozen=True, slots=True)
class _Where:
    """Everything needed to cut out one object."""

    location: tuple[Any, ...] | None  # of the depth image; None if the archive lacks it
    camera: Numbers
    tilt: Numbers
    box: Box


class SunRGBDSource:
    """Boxes of the training images; a worker keeps the points of one image in memory, 5 MB."""

    def __init__(self, images: Path, meta: Path, toolbox: Path, facts: SourceFacts) -> None:
        """Use `open_sunrgbd`."""
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
            entries: list[Entry] = []
            for scene in training_scenes(self._meta, self._toolbox):
                member = members.get(scene.depth)
                location = None if member is None else archive.locate(member)
                entries += _entries(scene, location, number)
        return entries

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


def open_sunrgbd(request: SourceRequest, info: SourceInfo) -> SunRGBDSource:
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
                properties = f"{image.width} x {image.height} pixels of kind {image.mode}"
                msg = f"{name} is no depth image ({properties}, expected 16 bits); fetch the archive again"
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
    """Those of (n, 3) points that lie inside an oriented box, in the same frame and unit."""
    axes = np.reshape(box.axes, (3, 3))
    lengths = np.linalg.norm(axes, axis=1, keepdims=True)
    along = (points - np.asarray(box.centre)) @ (axes / np.where(lengths > 0, lengths, 1.0)).T
    return points[(np.abs(along) <= np.abs(box.half_sizes)).all(axis=1)]


def _entries(
    scene: AnnotatedImage, location: MemberLocation | None, number: dict[str, int]
) -> list[Entry]:
    member = None if location is None else astuple(location)
    return [
        Entry(
            id=printable(f"{scene.name}/{k:03d}"),
            label=number[printable(box.label)],
            where=json.dumps(asdict(_Where(member, scene.camera, scene.tilt, box))),
        )
        for k, box in enumerate(scene.boxes)
    ]
