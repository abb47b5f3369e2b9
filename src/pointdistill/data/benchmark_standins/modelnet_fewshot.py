"""A stand-in for ModelNet40 few-shot: folds of built-in shapes as pickles in the real archive's layout.

Every fold draws its own classes and makes its own shapes, whereas the real folds draw from one set. Results on it
say something about encoders, and nothing about ModelNet40.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.benchmark_standins.modelnet40 import MADE_AS, STAND_IN_CLASSES
from pointdistill.data.benchmark_standins.zips import STAND_IN_SEED, add_marker, add_member
from pointdistill.data.benchmarks.modelnet40 import CLASSES
from pointdistill.data.benchmarks.modelnet_fewshot import FEWSHOT_SETTINGS, FOLDS, NAME, TEST_EACH
from pointdistill.data.benchmarks.records import STAND_IN_MARKER
from pointdistill.data.files.files import write_aside
from pointdistill.data.files.processes import ordered_map
from pointdistill.data.synthetic_shapes import make_shape, sample_shape
from pointdistill.errors import ConfigError

VERSION = 1
"""Version of the generator; only results on the same version are comparable."""

_ROOT = "ModelNetFewshot"
_PROTOCOL = 4

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
class _Task:
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
        _Task(way, shot, fold, sizes, seed)
        for way, shot in sizes.settings
        for fold in range(sizes.folds)
    ]
    with write_aside(output) as aside, zipfile.ZipFile(aside, "w") as archive:
        facts = {
            "stand_in_for": NAME,
            "made_of": "pointdistill's built-in shapes",
            "version": VERSION,
            "sizes": asdict(sizes),
            "seed": seed,
        }
        add_marker(archive, f"{_ROOT}/{STAND_IN_MARKER}", facts)
        add_member(archive, f"__MACOSX/{_ROOT}/._5way_10shot", b"\0\5\x16\7", compress=False)
        folds = ordered_map(_make_fold, tasks, workers=workers)
        for done, (task, content) in enumerate(zip(tasks, folds, strict=True), start=1):
            # Coordinates do not compress; stored members are also quicker to read in place.
            member = f"{_ROOT}/{task.way}way_{task.shot}shot/{task.fold}.pkl"
            add_member(archive, member, content, compress=False)
            if progress:
                progress(done, len(tasks))


def _make_fold(task: _Task) -> bytes:
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
    return pickle.dumps(fold, protocol=_PROTOCOL)


def _cloud(key: tuple[int, ...], name: str, count: int) -> NDArray[np.float32]:
    """Points (count, 3) of a new shape of a class, turned to the archive's y up: old (x, y, z) = new (y, z, x)."""
    rng = np.random.default_rng(key)
    points, _ = sample_shape(make_shape(MADE_AS.get(name, name), rng=rng), count, rng=rng)
    return np.ascontiguousarray(points[:, [1, 2, 0]])
