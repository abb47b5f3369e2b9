"""A stand-in for ScanObjectNN: simulated scans of built-in shapes in the real archive's layout.

With it, every command that needs the archive can be run and tested without the real one. Results on it say
something about encoders, and nothing about ScanObjectNN. Every cloud is cut from a scene by a box,
drawn to a fixed count, fitted into the unit sphere and made noisy; z up.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from pointdistill.data.benchmark_standins.scans import (
    HARDNESS,
    Flags,
    Hardness,
    Points,
    Scene,
    look_at_room,
    pose,
    rotation_about_z,
)
from pointdistill.data.benchmark_standins.zips import STAND_IN_SEED, add_marker, add_member
from pointdistill.data.benchmarks.records import STAND_IN_MARKER
from pointdistill.data.benchmarks.scanobjectnn import CLASSES, NAME, SPLITS
from pointdistill.data.files.files import write_aside
from pointdistill.data.files.processes import ordered_map
from pointdistill.data.synthetic_shapes import make_shape, sample_shape
from pointdistill.data.synthetic_shapes.shape import lengths
from pointdistill.errors import ConfigError

POINTS = 2048
_SURFACE_POINTS = 8192
_NEIGHBOUR_POINTS = 1500
_BATCH = 10  # scenes per task: enough to make sending the clouds between processes cheap

OBJECT = 0
BACKGROUND = -1

_SHIFT = 0.5
"""PB-T50-RS moves the box by up to this share of its size along each axis (the T50)."""

_SCALE = (0.75, 1.25)
"""PB-T50-RS scales the box, and then the cloud, along each axis (the S)."""

_LEAST_SHARE = 0.3
"""A perturbed box is drawn again while it keeps less of the seen object than this."""

_DRAWS = 8
"""Perturbed boxes drawn at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanSizes:
    """How many objects of each of the 15 classes, and how many perturbed copies of each."""

    train: int = 154
    """Training objects per class: 2,310 in all, where ScanObjectNN has 2,309."""

    test: int = 100
    """Test objects per class, none of them seen in training: 1,500 in all."""

    copies: int = 5
    """Clouds of each object in PB-T50-RS, as in ScanObjectNN."""

    def __post_init__(self) -> None:
        if min(self.train, self.test, self.copies) < 1:
            msg = f"a stand-in needs at least 1 object a class and 1 copy of each, got {self}"
            raise ConfigError(msg)


@dataclass(frozen=True, slots=True)
class _Recipe:
    """What all scenes of a stand-in share."""

    splits: tuple[str, ...]
    copies: int
    seed: int
    hardness: Hardness


@dataclass(frozen=True, slots=True)
class _Task:
    """A batch of scenes of one side (0 train, 1 test), by their running numbers."""

    recipe: _Recipe
    side: int
    indices: range


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows of one split's file. Sizes: n clouds of N points."""

    data: NDArray[np.float32]  # (n, N, 3), z up
    mask: NDArray[np.int32]  # (n, N)
    label: NDArray[np.int32]  # (n,)


def make_scanobjectnn_stand_in(
    output: Path,
    *,
    splits: Sequence[str] = tuple(SPLITS),
    sizes: ScanSizes | None = None,
    seed: int = STAND_IN_SEED,
    hardness: Hardness = HARDNESS,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a stand-in ``h5_files.zip``; the same bytes whatever the number of workers.

    Args:
        output: the zip file, replaced if it exists.
        splits: which of ScanObjectNN's splits to make; the others are then absent from the archive.
        sizes: objects per class; the default is as large as ScanObjectNN.
        seed: of every object and scan, not negative.
        hardness: reported numbers refer to the default.
        workers: processes; 1 works in this one, None takes every usable core.
        progress: called with scenes (done, total).

    Raises:
        ConfigError: if a split does not exist, or none is asked for.
    """
    unknown = [split for split in splits if split not in SPLITS]
    if unknown or not splits:
        msg = f"ScanObjectNN has no splits {unknown}; choose from {', '.join(SPLITS)}"
        raise ConfigError(msg)
    sizes = sizes or ScanSizes()
    chosen = tuple(split for split in SPLITS if split in splits)
    recipe = _Recipe(chosen, sizes.copies, seed, hardness)
    with write_aside(output) as aside, zipfile.ZipFile(aside, "w") as archive:
        facts = {
            "stand_in_for": NAME,
            "made_of": "simulated scans of pointdistill's built-in shapes",
            "splits": chosen,
            "seed": seed,
            "objects_per_class": asdict(sizes),
            "hardness": asdict(hardness),
        }
        add_marker(archive, f"h5_files/{STAND_IN_MARKER}", facts)
        counts = [sizes.train * len(CLASSES), sizes.test * len(CLASSES)]
        for side, count in enumerate(counts):
            finished = sum(counts[:side])
            files = {split: _SplitFile(count * _clouds_a_scene(recipe, split)) for split in chosen}
            for done, rows in _scenes(recipe, side, count, workers=workers):
                for split, some in rows.items():
                    files[split].append(some)
                if progress:
                    progress(finished + done, sum(counts))
            for split, file in files.items():
                name = f"h5_files/{SPLITS[split].members[side]}"
                # Noise does not compress; stored members are also quicker to read in place.
                add_member(archive, name, file.close(), compress=False)


def _scenes(
    recipe: _Recipe, side: int, count: int, *, workers: int | None
) -> Iterator[tuple[int, dict[str, _Rows]]]:
    """Scenes done so far, and the rows that the last few of them give to each split."""
    batches = [range(i, min(i + _BATCH, count)) for i in range(0, count, _BATCH)]
    tasks = [_Task(recipe, side, batch) for batch in batches]
    for task, rows in zip(tasks, ordered_map(_make_rows, tasks, workers=workers), strict=True):
        yield task.indices.stop, rows


def _make_rows(task: _Task) -> dict[str, _Rows]:
    """The clouds of a few scenes for each split, in the scenes' order."""
    recipe = task.recipe
    clouds: dict[str, list[Cloud]] = {split: [] for split in recipe.splits}
    for index in task.indices:
        key = (recipe.seed, task.side, index)
        scene = _make_scene(key, CLASSES[index % len(CLASSES)], recipe.hardness)
        for number, split in enumerate(SPLITS):
            # Each split has its own stream, so that a cloud does not depend on which other splits are made.
            if split in recipe.splits:
                rng = np.random.default_rng((*key, 1 + number))
                for _ in range(_clouds_a_scene(recipe, split)):
                    clouds[split].append(_CUT[split](scene, POINTS, recipe.hardness, rng=rng))
    labels = np.array([index % len(CLASSES) for index in task.indices], dtype=np.int32)
    return {
        split: _Rows(
            np.stack([cloud.points for cloud in of_split]),
            np.stack([cloud.mask for cloud in of_split]),
            labels.repeat(_clouds_a_scene(recipe, split)),
        )
        for split, of_split in clouds.items()
    }


@dataclass(frozen=True, slots=True)
class Cloud:
    """One cloud of a split.

    Sizes: N points.
    """

    points: NDArray[np.float32]  # (N, 3), z up, in the unit sphere
    mask: NDArray[np.int32]  # (N,), BACKGROUND or OBJECT


def without_background(
    scene: Scene, count: int, hardness: Hardness, *, rng: np.random.Generator
) -> Cloud:
    """OBJ-ONLY: the visible part of the object itself, as ``count`` points."""
    return _fit_cloud(scene.object_points, scene.background_points[:0], count, hardness, rng=rng)


def with_background(
    scene: Scene, count: int, hardness: Hardness, *, rng: np.random.Generator
) -> Cloud:
    """OBJ-BG: the object and a share of background from within its own box."""
    middle, half = (scene.low + scene.high) / 2.0, (scene.high - scene.low) / 2.0
    nearby = scene.background_points[_inside(scene.background_points - middle, half)]
    clutter = round(count * rng.uniform(*hardness.clutter_share)) if len(nearby) else 0
    chosen = nearby[_draw(len(nearby), clutter, rng=rng)]
    return _fit_cloud(scene.object_points, chosen, count - clutter, hardness, rng=rng)


def perturbed(scene: Scene, count: int, hardness: Hardness, *, rng: np.random.Generator) -> Cloud:
    """PB-T50-RS: the content of a moved, turned and scaled box, which is then turned and scaled itself."""
    in_object, in_background = _perturbed_box(scene, rng=rng)
    kept, clutter = scene.object_points[in_object], scene.background_points[in_background]
    share = min(len(clutter) / (len(kept) + len(clutter)), 2.0 * hardness.clutter_share[1])
    background = clutter[_draw(len(clutter), round(count * share), rng=rng)]
    turn, scale = rotation_about_z(rng.uniform(0.0, 2.0 * np.pi)), rng.uniform(*_SCALE, size=3)
    return _fit_cloud(
        (kept @ turn.T) * scale,
        (background @ turn.T) * scale,
        count - len(background),
        hardness,
        rng=rng,
    )


def _perturbed_box(scene: Scene, *, rng: np.random.Generator) -> tuple[Flags, Flags]:
    """Flags of the object's (n,) and the background's (m,) points inside a perturbed box."""
    middle, half = (scene.low + scene.high) / 2.0, (scene.high - scene.low) / 2.0
    for draw in range(_DRAWS):
        # Later draws stay closer to the object, so that one of the first few nearly always ends it.
        reach = 2.0 * half * _SHIFT * (1.0 - draw / _DRAWS)
        center = middle + rng.uniform(-reach, reach)
        turn = rotation_about_z(rng.uniform(0.0, 2.0 * np.pi))
        sides = half * rng.uniform(*_SCALE, size=3)
        in_object = _inside((scene.object_points - center) @ turn.T, sides)
        if in_object.mean() >= _LEAST_SHARE:
            return in_object, _inside((scene.background_points - center) @ turn.T, sides)
    return (
        np.ones(len(scene.object_points), dtype=bool),
        _inside(scene.background_points - middle, half),
    )


def _inside(points: Points, half: Points) -> Flags:
    """Which points (n, 3) lie in the box about the origin with the half-sides ``half``."""
    x, y, z = (np.abs(points) <= half).T
    return np.asarray(x & y & z)


def _fit_cloud(
    object_points: Points,
    background: Points,
    count: int,
    hardness: Hardness,
    *,
    rng: np.random.Generator,
) -> Cloud:
    """``count`` object points and all the background, shuffled, in the unit sphere, noisy."""
    drawn = object_points[_draw(len(object_points), count, rng=rng)]
    points = np.concatenate([drawn, background])
    mask = np.repeat(np.array([OBJECT, BACKGROUND], dtype=np.int32), [len(drawn), len(background)])
    order = rng.permutation(len(points))
    points = points[order] - points.mean(axis=0)
    points /= lengths(points).max()
    noisy = points + hardness.jitter * rng.normal(size=points.shape)
    return Cloud(noisy.astype(np.float32), mask[order])


def _draw(available: int, count: int, *, rng: np.random.Generator) -> NDArray[np.intp]:
    """``count`` indices below ``available``; no index occurs more than once more often than another.

    If there are too few, points repeat; noise then separates the copies, as when a sensor measures a place
    twice.
    """
    if not count:
        return np.arange(0)
    rounds = -(-count // available)
    return np.concatenate([rng.permutation(available) for _ in range(rounds)])[:count]


_CUT = {"OBJ-BG": with_background, "OBJ-ONLY": without_background, "PB-T50-RS": perturbed}


def _clouds_a_scene(recipe: _Recipe, split: str) -> int:
    return recipe.copies if split == "PB-T50-RS" else 1


def _make_scene(key: tuple[int, int, int], class_name: str, hardness: Hardness) -> Scene:
    """One object of a class beside another object, a floor and perhaps a wall, as the cameras saw it."""
    rng = np.random.default_rng((*key, 0))
    surface = _posed(class_name, _SURFACE_POINTS, hardness, rng=rng)
    neighbour = None
    if rng.random() < hardness.neighbour:
        others = [name for name in CLASSES if name != class_name]
        other = others[rng.integers(len(others))]
        neighbour = _posed(other, _NEIGHBOUR_POINTS, hardness, rng=rng)
    return look_at_room(surface, neighbour, hardness, rng=rng)


def _posed(category: str, count: int, hardness: Hardness, *, rng: np.random.Generator) -> Points:
    """Surface points (count, 3) of a new object of a category, posed."""
    points, _ = sample_shape(make_shape(category, rng=rng), count, rng=rng)
    return pose(points.astype(np.float64), hardness, rng=rng)


class _SplitFile:
    """One HDF5 file of the archive: filled row by row in memory, then returned as bytes."""

    def __init__(self, clouds: int) -> None:
        self._bytes = io.BytesIO()
        self._file = h5py.File(self._bytes, "w")
        self._file.create_dataset("data", (clouds, POINTS, 3), np.float32)
        self._file.create_dataset("label", (clouds,), np.int32)
        self._file.create_dataset("mask", (clouds, POINTS), np.int32)
        self._filled = 0

    def append(self, rows: _Rows) -> None:
        """Add rows; z up is turned to the archive's y up: old (x, y, z) = new (y, z, x)."""
        here = slice(self._filled, self._filled + len(rows.label))
        self._file["data"][here] = rows.data[..., [1, 2, 0]]
        self._file["label"][here] = rows.label
        self._file["mask"][here] = rows.mask
        self._filled = here.stop

    def close(self) -> bytes:
        """The finished file."""
        self._file.close()
        return self._bytes.getvalue()
