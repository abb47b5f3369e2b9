"""SUN RGB-D's two MATLAB files: which images are for training, and the boxes of each."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pointdistill.data.archive import open_archive
from pointdistill.errors import DataError

SPLIT_MEMBER = "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"
_ROOT = "SUNRGBD/"

Numbers = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """One annotated object, in the frame of the room: z up, metres."""

    label: str
    centre: Numbers  # (3,)
    axes: Numbers  # (9,), row by row a direction
    half_sizes: Numbers  # (3,), along the axes


@dataclass(frozen=True, slots=True)
class Scene:
    """One training image and its boxes."""

    name: str
    """Its folder below ``SUNRGBD/``."""

    depth: str
    """The depth image, below ``SUNRGBD/``."""

    camera: Numbers  # (9,), intrinsics K row by row, pixels
    tilt: Numbers  # (9,), Rtilt row by row: from the camera turned z up to the room
    boxes: tuple[Box, ...]


def training_scenes(meta: Path, toolbox: Path) -> tuple[Scene, ...]:
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
def _scenes(meta: Path, toolbox: Path, *states: object) -> tuple[Scene, ...]:  # noqa: ARG001  the key
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


def _scene(row: Any) -> Scene:
    depth = below_root(_text(row["depthpath"]))
    return Scene(
        name=str(PurePosixPath(depth).parent.parent),
        depth=depth,
        camera=_numbers(row["K"], 9),
        tilt=_numbers(row["Rtilt"], 9),
        boxes=tuple(_boxes(row["groundtruth3DBB"])),
    )


def _boxes(found: Any) -> Iterator[Box]:
    """The boxes of an image; an image without boxes has an empty matrix instead."""
    for box in found.ravel():
        yield Box(
            label=_text(box["classname"]),
            centre=_numbers(box["centroid"], 3),
            axes=_numbers(box["basis"], 9),
            half_sizes=_numbers(box["coeffs"], 3),
        )


def _variable(file: Any, name: str, called: str) -> Any:
    """One variable of a MATLAB file, given by its path or as a stream, as an object array.

    Raises:
        DataError: if the file is damaged, or has no such variable.
    """
    import scipy.io  # heavy, and needed for this source alone

    try:
        return scipy.io.loadmat(file, variable_names=[name])[name]
    # NotImplementedError: a file of version 7.3. Others: a damaged file can lead the reader into any error.
    except Exception as error:
        msg = f"{called}: no MATLAB file with {name} ({type(error).__name__}: {error}); fetch it again"
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
