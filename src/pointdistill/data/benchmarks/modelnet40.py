"""ModelNet40: 40 classes of CAD models (Wu et al., CVPR 2015), read from its meshes.

Layout of ``ModelNet40.zip``: ``ModelNet40/<class>/{train,test}/<class>_0001.off``, z up. Two more
forms of the benchmark go round, points sampled by others; results on them are not comparable.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import h5py
import numpy as np
from numpy.typing import NDArray

from pointdistill.data.archive import Archive, open_archive
from pointdistill.data.benchmarks.records import (
    Benchmark,
    LabelledClouds,
    check_clouds,
    is_stand_in,
    named_data,
)
from pointdistill.data.files import write_aside
from pointdistill.data.meshes import draw, shape_rng
from pointdistill.data.sources.shapes import read_member
from pointdistill.data.workers import Progress, ordered_map
from pointdistill.errors import ConfigError, DataError

NAME = "ModelNet40"
ARCHIVE_NAME = "ModelNet40.zip"
OFFICIAL = (9843, 2468)
POINTS = 4096
"""Points a mesh by default: four times what the protocol then keeps by farthest point sampling."""

CLASSES = (
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone",
    "cup", "curtain", "desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard",
    "lamp", "laptop", "mantel", "monitor", "night_stand", "person", "piano", "plant", "radio",
    "range_hood", "sink", "sofa", "stairs", "stool", "table", "tent", "toilet", "tv_stand", "vase",
    "wardrobe", "xbox",
)  # fmt: skip

_SIDES = ("train", "test")
_BATCH = 16  # meshes a task
_CACHE_VERSION = 1  # raised when the same seed would give other points


@dataclass(frozen=True, slots=True)
class _Mesh:
    """One OFF member of the archive."""

    member: str
    class_name: str
    side: str

    @property
    def id(self) -> str:
        """Class, split and name, whatever folder it lies in: ``chair/train/chair_0001``."""
        return f"{self.class_name}/{self.side}/{PurePosixPath(self.member).stem}"


@dataclass(frozen=True, slots=True)
class _Task:
    """A few meshes to sample."""

    path: Path
    meshes: tuple[_Mesh, ...]
    points: int
    seed: int


def read_modelnet40(
    path: Path,
    *,
    points: int = POINTS,
    seed: int = 0,
    cache: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Benchmark:
    """Read ModelNet40, or its stand-in, and sample every mesh uniformly by area.

    A mesh's points depend on the seed and its id alone. Sampling all 12,311 meshes takes minutes;
    the points are therefore kept on disk, under a name that tells archive, count and seed.

    Args:
        path: ``ModelNet40.zip``, or the folder extracted from it.
        points: points a mesh.
        seed: of the sampling, not negative.
        cache: folder for the points; beside the archive by default.
        workers: processes; 1 works in this one, None takes every usable core.
        progress: called with meshes (done, total) while they are sampled.

    Returns:
        The benchmark with clouds of (n, points, 3), z up, in the meshes' own units.

    Raises:
        ConfigError: if ``points`` or ``seed`` is not accepted.
        DataError: if the archive is absent or damaged, or any mesh of it is.
    """
    if points < 1 or seed < 0:
        msg = f"ModelNet40 is sampled at 1 point or more and a seed from 0, got {points} and {seed}"
        raise ConfigError(msg)
    with open_archive(path, absent=_absent(path)) as archive:
        meshes = _meshes(archive)
        stand_in = is_stand_in(archive)
        checksum = archive.checksum([mesh.member for mesh in meshes])
    name = f"modelnet40-{checksum[:16]}-{points}-points-seed-{seed}.h5"
    kept = (cache or path.parent) / name
    clouds = _read_cache(kept, len(meshes), points)
    if clouds is None:
        clouds = _sample(path, meshes, points, seed, workers=workers, progress=progress)
        # A folder that cannot be written to costs the next call its time, and nothing else.
        with contextlib.suppress(OSError):
            _write_cache(kept, clouds)
    check_clouds(clouds, str(path))
    return _benchmark(meshes, clouds, checksum, stand_in=stand_in)


def _benchmark(
    meshes: Sequence[_Mesh], clouds: NDArray[np.float32], checksum: str, *, stand_in: bool
) -> Benchmark:
    classes = tuple(sorted({mesh.class_name for mesh in meshes}))
    labels = np.array([classes.index(mesh.class_name) for mesh in meshes], dtype=np.int64)
    train, test = (
        LabelledClouds(clouds[chosen], labels[chosen])
        for chosen in (np.array([mesh.side == side for mesh in meshes]) for side in _SIDES)
    )
    counts = (len(train), len(test))
    return Benchmark(
        name=NAME,
        split=None,
        classes=classes,
        train=train,
        test=test,
        data_name=named_data(NAME, stand_in=stand_in, counts=counts, official=OFFICIAL),
        form=f"{ARCHIVE_NAME}, OFF meshes, {clouds.shape[1]:,} points uniform by area",
        checksum=checksum,
        stand_in=stand_in,
    )


def _absent(path: Path) -> str:
    return (
        f"{path}: no such archive. {ARCHIVE_NAME} is at https://modelnet.cs.princeton.edu; save it "
        f"as {path}, or pass --stand-in to run on the stand-in instead"
    )


def _meshes(archive: Archive) -> list[_Mesh]:
    """The archive's meshes in the order of their ids."""
    found = []
    for member in archive.names:
        path = PurePosixPath(member)
        if path.suffix.lower() == ".off" and len(path.parts) >= 3 and path.parts[-2] in _SIDES:
            found.append(_Mesh(member, class_name=path.parts[-3], side=path.parts[-2]))
    unknown = sorted({mesh.class_name for mesh in found} - set(CLASSES))
    if unknown:
        msg = (
            f"{archive.path}: {unknown[0]!r} is none of ModelNet40's classes ({CLASSES[0]} … "
            f"{CLASSES[-1]}); a set of your own goes through prepare-data"
        )
        raise DataError(msg)
    for side in _SIDES:
        if not any(mesh.side == side for mesh in found):
            msg = (
                f"{archive.path}: holds no <class>/{side}/<name>.off; other forms of ModelNet40 "
                f"are not meshes, get {ARCHIVE_NAME} from https://modelnet.cs.princeton.edu"
            )
            raise DataError(msg)
    found.sort(key=lambda mesh: mesh.id)
    for one, other in itertools.pairwise(found):
        if one.id == other.id:
            msg = (
                f"{archive.path}: holds {one.id} twice ({one.member}, {other.member}); "
                f"keep one of them"
            )
            raise DataError(msg)
    return found


def _sample(
    path: Path,
    meshes: Sequence[_Mesh],
    points: int,
    seed: int,
    *,
    workers: int | None,
    progress: Progress | None,
) -> NDArray[np.float32]:
    """Points (n, points, 3) of every mesh, in the meshes' order."""
    clouds = np.empty((len(meshes), points, 3), dtype=np.float32)
    tasks = [
        _Task(path, tuple(meshes[start : start + _BATCH]), points, seed)
        for start in range(0, len(meshes), _BATCH)
    ]
    done = 0
    for some in ordered_map(_sample_some, tasks, workers=workers):
        clouds[done : done + len(some)] = some
        done += len(some)
        if progress:
            progress(done, len(meshes))
    return clouds


def _sample_some(task: _Task) -> NDArray[np.float32]:
    """Points (n, points, 3) of a task's meshes."""
    with open_archive(task.path, absent=_absent(task.path)) as archive:
        return np.stack(list(_draw_each(task, archive)))


def _draw_each(task: _Task, archive: Archive) -> Iterator[NDArray[np.float32]]:
    for mesh in task.meshes:
        try:
            shape = read_member(archive, mesh.member)
            yield draw(shape, task.points, rng=shape_rng(task.seed, mesh.id), up=None)
        except DataError as error:
            msg = f"{task.path}: {mesh.id}: {error}"
            raise DataError(msg) from error


def _write_cache(path: Path, clouds: NDArray[np.float32]) -> None:
    with write_aside(path) as aside, h5py.File(aside, "w") as file:
        file.attrs["version"] = _CACHE_VERSION
        file["points"] = clouds


def _read_cache(path: Path, meshes: int, points: int) -> NDArray[np.float32] | None:
    """Points kept by an earlier call; None where there are none, or not what they should be."""
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("version") != _CACHE_VERSION:
                return None
            kept = file["points"]
            if kept.shape != (meshes, points, 3) or kept.dtype != np.float32:
                return None
            clouds: NDArray[np.float32] = kept[()]
            return clouds
    except (OSError, KeyError, AttributeError):
        return None
