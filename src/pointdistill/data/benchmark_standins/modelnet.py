"""Stand-ins for ModelNet40, its few-shot folds and the Princeton Shape Benchmark, made of built-in shapes.

The layout of ModelNet40 has the real archive's quirks: headers glued to the counts, and files left behind by the
system it was packed on. Of few-shot, every fold draws its own classes and makes its own shapes, whereas the real
folds draw from one set. Results on them say something about encoders, and nothing about ModelNet40.
"""

from __future__ import annotations

import itertools
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.benchmark_standins.zips import STAND_IN_SEED, add_marker, add_member
from pointdistill.data.benchmarks import psb
from pointdistill.data.benchmarks.modelnet40 import CLASSES, NAME
from pointdistill.data.benchmarks.modelnet_fewshot import FEWSHOT_SETTINGS, FOLDS, TEST_EACH
from pointdistill.data.benchmarks.modelnet_fewshot import NAME as FEWSHOT_NAME
from pointdistill.data.benchmarks.records import STAND_IN_MARKER
from pointdistill.data.files.files import write_aside
from pointdistill.data.files.processes import ordered_map
from pointdistill.data.synthetic_shapes import CATEGORIES, BuiltinShape, make_shape, sample_shape
from pointdistill.errors import ConfigError

VERSION = 1
"""Version of the generator; only results on the same version are comparable."""

MADE_AS = {"monitor": "display"}
"""ModelNet40's name of a class to the built-in name, where the two differ."""

STAND_IN_CLASSES = tuple(name for name in CLASSES if MADE_AS.get(name, name) in CATEGORIES)
"""The ModelNet40 classes that the built-in shapes can stand in for."""

_GLUED = 5  # every fifth header has its counts on the line of OFF, as in a part of the real files
_BATCH = 16  # meshes per task


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshSizes:
    """How many meshes there are of each class."""

    train: int = 60
    """Training meshes per class."""

    test: int = 40
    """Test meshes per class, none of them seen in training."""

    def __post_init__(self) -> None:
        if min(self.train, self.test) < 1:
            msg = f"a stand-in needs at least 1 mesh a class for training and testing, got {self}"
            raise ConfigError(msg)


@dataclass(frozen=True, slots=True)
class _Task:
    """A few meshes of one class, by their numbers from 1; those up to ``train`` are for training."""

    class_name: str
    numbers: range
    seed: int


def make_modelnet40_stand_in(
    output: Path,
    *,
    sizes: MeshSizes | None = None,
    seed: int = STAND_IN_SEED,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a stand-in ``ModelNet40.zip``; the same content whatever the number of workers.

    Args:
        output: the zip file, replaced if it exists.
        sizes: meshes per class.
        seed: of every mesh, not negative.
        workers: processes; 1 works in this one, None takes every usable core.
        progress: called with meshes (done, total).
    """
    sizes = sizes or MeshSizes()
    each = sizes.train + sizes.test
    with write_aside(output) as aside, zipfile.ZipFile(aside, "w") as archive:
        facts = {
            "stand_in_for": NAME,
            "made_of": "pointdistill's built-in shapes",
            "version": VERSION,
            "classes": STAND_IN_CLASSES,
            "meshes_per_class": asdict(sizes),
            "seed": seed,
        }
        add_marker(archive, f"{NAME}/{STAND_IN_MARKER}", facts)
        _add_litter(archive)
        tasks = [
            _Task(name, range(first, min(first + _BATCH, each + 1)), seed)
            for name in STAND_IN_CLASSES
            for first in range(1, each + 1, _BATCH)
        ]
        done = 0
        for task, meshes in zip(
            tasks, ordered_map(_make_meshes, tasks, workers=workers), strict=True
        ):
            for number, content in zip(task.numbers, meshes, strict=True):
                side = "train" if number <= sizes.train else "test"
                member = f"{NAME}/{task.class_name}/{side}/{task.class_name}_{number:04d}.off"
                add_member(archive, member, content, compress=True)
            done += len(task.numbers)
            if progress:
                progress(done, each * len(STAND_IN_CLASSES))


def _make_meshes(task: _Task) -> list[bytes]:
    """OFF files of one class, in the order of their numbers."""
    return list(_each_mesh(task))


def _each_mesh(task: _Task) -> Iterator[bytes]:
    for number in task.numbers:
        key = (task.seed, CLASSES.index(task.class_name), number)
        rng = np.random.default_rng(np.random.SeedSequence(key))
        shape = make_shape(MADE_AS.get(task.class_name, task.class_name), rng=rng)
        # The real models come in units of anything from metres to millimetres.
        scale = 10.0 ** rng.uniform(0.0, 3.0)
        yield off_file(shape, scale=scale, glued=number % _GLUED == 0)


def off_file(shape: BuiltinShape, *, scale: float, glued: bool) -> bytes:
    """The text of an OFF file, z up.

    Args:
        shape: V vertices and F triangles.
        scale: factor on the vertices.
        glued: put the counts directly after ``OFF``, without a line break.
    """
    counts = f"{len(shape.vertices)} {len(shape.faces)} 0"
    lines = [f"OFF{counts}"] if glued else ["OFF", counts]
    lines += [f"{x:.6g} {y:.6g} {z:.6g}" for x, y, z in (shape.vertices * scale).tolist()]
    lines += [f"3 {a} {b} {c}" for a, b, c in shape.faces.tolist()]
    return ("\n".join(lines) + "\n").encode("ascii")


def _add_litter(archive: zipfile.ZipFile) -> None:
    """Files of the real archive that are not meshes."""
    add_member(archive, f"{NAME}/.DS_Store", b"\0\0\0\1Bud1", compress=False)
    name = f"{STAND_IN_CLASSES[0]}_0001.off"
    for member in (f"__MACOSX/{NAME}/._.DS_Store", f"__MACOSX/{NAME}/._{name}"):
        add_member(archive, member, b"\0\5\x16\7", compress=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class HalfSizes:
    """What there is in each half of a stand-in for the Princeton Shape Benchmark."""

    classes: tuple[str, ...] = CATEGORIES
    """Categories of the built-in shapes."""

    train: int = 12
    """Models of each class in the training half."""

    test: int = 12

    def __post_init__(self) -> None:
        if min(self.train, self.test) < 1 or not self.classes:
            msg = f"a stand-in needs at least 1 class and 1 model a class in each half, got {self}"
            raise ConfigError(msg)


def make_psb_stand_in(
    output: Path,
    *,
    sizes: HalfSizes | None = None,
    seed: int = STAND_IN_SEED,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a stand-in ``psb_v1.zip``, y up; the same content whatever the number of workers.

    Args:
        output: the zip file, replaced if it exists.
        sizes: classes, and models per class.
        seed: of every model, not negative.
        workers: processes; 1 works in this one, None takes every usable core.
        progress: called with models (done, total).
    """
    sizes = sizes or HalfSizes()
    root, each = "psb_v1/benchmark", sizes.train + sizes.test
    ids = itertools.count()
    models = {name: [next(ids) for _ in range(each)] for name in sizes.classes}
    halves = {psb.TRAIN: slice(sizes.train), psb.TEST: slice(sizes.train, None)}
    with write_aside(output) as aside, zipfile.ZipFile(aside, "w") as archive:
        facts = {
            "stand_in_for": psb.NAME,
            "made_of": "pointdistill's built-in shapes",
            "version": VERSION,
            "models_per_class": asdict(sizes),
            "seed": seed,
        }
        add_marker(archive, f"psb_v1/{STAND_IN_MARKER}", facts)
        for half, part in halves.items():
            lists = {name: numbers[part] for name, numbers in models.items()}
            member = f"{root}/classification/v1/base/{half}.cla"
            add_member(archive, member, _classification(lists), compress=False)
        tasks = [_PsbTask(name, tuple(numbers), seed) for name, numbers in models.items()]
        for done, (task, meshes) in enumerate(
            zip(tasks, ordered_map(_make_psb_meshes, tasks, workers=workers), strict=True)
        ):
            for number, content in zip(task.numbers, meshes, strict=True):
                member = f"{root}/db/{number // 100}/m{number}/m{number}.off"
                add_member(archive, member, content, compress=True)
            if progress:
                progress(each * (done + 1), each * len(tasks))


@dataclass(frozen=True, slots=True)
class _PsbTask:
    """All models of one category, by their numbers in the archive."""

    category: str
    numbers: tuple[int, ...]
    seed: int


def _make_psb_meshes(task: _PsbTask) -> list[bytes]:
    meshes = []
    for number in task.numbers:
        rng = np.random.default_rng(np.random.SeedSequence((task.seed, number)))
        shape = make_shape(task.category, rng=rng)
        upright = replace(shape, vertices=shape.vertices[:, [1, 2, 0]])  # from z up to y up
        meshes.append(off_file(upright, scale=10.0 ** rng.uniform(-1.0, 2.0), glued=False))
    return meshes


def _classification(lists: Mapping[str, Sequence[int]]) -> bytes:
    """A ``.cla`` file: below one class without models of its own all the others."""
    models = sum(map(len, lists.values()))
    parts = [f"PSB 1\n{len(lists) + 1} {models}\n\nobject 0 0\n"]
    for name, numbers in lists.items():
        parts.append("\n".join([f"{name} object {len(numbers)}", *map(str, numbers), ""]))
    return "\n".join(parts).encode("ascii")


FEWSHOT_VERSION = 1
"""Version of the generator; only results on the same version are comparable."""

_FEWSHOT_ROOT = "ModelNetFewshot"
_PICKLE_PROTOCOL = 4

Row = tuple[NDArray[np.float32], int, int]
"""Points (N, 3), y up; label in the fold; number of the class in ModelNet40."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FewshotSizes:
    """How many folds there are and what is in each; the default has 10,500 clouds in 260 MB."""

    settings: tuple[tuple[int, int], ...] = FEWSHOT_SETTINGS
    """(way, shot) of each setting."""

    folds: int = FOLDS
    """Folds of each setting."""

    test: int = TEST_EACH
    """Test shapes of each class, none of them seen in training."""

    points: int = 2048
    """Points per cloud; the protocol keeps 1,024 of them by farthest point sampling."""

    def __post_init__(self) -> None:
        known = set(self.settings) <= set(FEWSHOT_SETTINGS) and self.settings
        if not known or not 1 <= self.folds <= FOLDS or min(self.test, self.points) < 1:
            msg = (
                f"a stand-in has settings among {FEWSHOT_SETTINGS}, 1 to {FOLDS} folds, and at least 1 test "
                f"shape and point, got {self}"
            )
            raise ConfigError(msg)


@dataclass(frozen=True, slots=True)
class _FoldTask:
    """One fold."""

    way: int
    shot: int
    fold: int
    sizes: FewshotSizes
    seed: int


def make_modelnet_fewshot_stand_in(
    output: Path,
    *,
    sizes: FewshotSizes | None = None,
    seed: int = STAND_IN_SEED,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a stand-in ``ModelNetFewshot.zip``; the same content whatever the number of workers.

    Args:
        output: the zip file, replaced if it exists.
        sizes: folds, and shapes and points in each.
        seed: of every shape, not negative.
        workers: processes; 1 works in this one, None takes every usable core.
        progress: called with folds (done, total).
    """
    sizes = sizes or FewshotSizes()
    tasks = [
        _FoldTask(way, shot, fold, sizes, seed)
        for way, shot in sizes.settings
        for fold in range(sizes.folds)
    ]
    with write_aside(output) as aside, zipfile.ZipFile(aside, "w") as archive:
        facts = {
            "stand_in_for": FEWSHOT_NAME,
            "made_of": "pointdistill's built-in shapes",
            "version": FEWSHOT_VERSION,
            "sizes": asdict(sizes),
            "seed": seed,
        }
        add_marker(archive, f"{_FEWSHOT_ROOT}/{STAND_IN_MARKER}", facts)
        add_member(
            archive, f"__MACOSX/{_FEWSHOT_ROOT}/._5way_10shot", b"\0\5\x16\7", compress=False
        )
        folds = ordered_map(_make_fold, tasks, workers=workers)
        for done, (task, content) in enumerate(zip(tasks, folds, strict=True), start=1):
            # Coordinates do not compress; stored members are also quicker to read in place.
            member = f"{_FEWSHOT_ROOT}/{task.way}way_{task.shot}shot/{task.fold}.pkl"
            add_member(archive, member, content, compress=False)
            if progress:
                progress(done, len(tasks))


def _make_fold(task: _FoldTask) -> bytes:
    """The pickle of one fold."""
    key = (task.seed, task.way, task.shot, task.fold)
    rng = np.random.default_rng(key)
    chosen = rng.choice(len(STAND_IN_CLASSES), task.way, replace=False).tolist()
    names = [STAND_IN_CLASSES[number] for number in chosen]
    each = task.shot + task.sizes.test
    fold: dict[str, list[Row]] = {"train": [], "test": []}
    for number in range(each):
        side = "train" if number < task.shot else "test"
        for label, name in enumerate(names):
            points = _cloud((*key, label, number), name, task.sizes.points)
            fold[side].append((points, label, CLASSES.index(name)))
    return pickle.dumps(fold, protocol=_PICKLE_PROTOCOL)


def _cloud(key: tuple[int, ...], name: str, count: int) -> NDArray[np.float32]:
    """Points (count, 3) of a new shape of a class, turned to the archive's y up: old (x, y, z) = new (y, z, x)."""
    rng = np.random.default_rng(key)
    points, _ = sample_shape(make_shape(MADE_AS.get(name, name), rng=rng), count, rng=rng)
    return np.ascontiguousarray(points[:, [1, 2, 0]])
