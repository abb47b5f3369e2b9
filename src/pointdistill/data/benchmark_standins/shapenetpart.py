"""A stand-in for ShapeNetPart: built-in shapes with their part labels, as text in the real archive's layout.

It has all 16 categories. The parts have ShapeNetPart's names and order, but where one part ends and the next
begins is only approximated: annotators drew these borders, while the built-in shapes are assembled from their
parts. As in the real set, a shape need not have every part of its category. Results on it say nothing about
ShapeNetPart.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pointdistill.data.benchmark_standins.zips import STAND_IN_SEED, add_marker, add_member
from pointdistill.data.benchmarks.records import STAND_IN_MARKER
from pointdistill.data.benchmarks.shapenetpart import (
    ARCHIVE_STEM,
    CATEGORIES,
    CATEGORY_PARTS,
    NAME,
    SPLITS,
    SYNSETS,
)
from pointdistill.data.files.files import write_aside
from pointdistill.data.files.processes import ordered_map
from pointdistill.data.synthetic_shapes import BuiltinShape, make_shape, sample_faces
from pointdistill.errors import ConfigError

VERSION = 1
"""Version of the generator; only results on the same version are comparable."""

_FEWEST = 0.75
"""Fewest points of a cloud, as a share of the most."""

_BATCH = 16  # shapes per task


@dataclass(frozen=True, kw_only=True, slots=True)
class PartSizes:
    """How many shapes of each of the 16 categories, and how many points each has; 1,600 shapes by default."""

    train: int = 60
    """Training shapes per category."""

    val: int = 10
    """Shapes per category in the validation split, which is also trained on."""

    test: int = 30
    """Test shapes per category, none of them seen in training."""

    points: int = 2800
    """Most points of a cloud; each has at least three quarters as many."""

    def __post_init__(self) -> None:
        if min(self.train, self.val, self.test) < 1 or self.points < 2:
            msg = f"a stand-in needs at least 1 shape a category in each split and 2 points, got {self}"
            raise ConfigError(msg)

    @property
    def split_of(self) -> tuple[str, ...]:
        """The split of each shape of a category, by its number."""
        return ("train",) * self.train + ("val",) * self.val + ("test",) * self.test


@dataclass(frozen=True, slots=True)
class _Task:
    """A few shapes of one category, by their numbers."""

    category: int
    numbers: range
    points: int
    seed: int


def make_shapenetpart_stand_in(
    output: Path,
    *,
    sizes: PartSizes | None = None,
    seed: int = STAND_IN_SEED,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a stand-in zip of ShapeNetPart; the same content whatever the number of workers.

    Args:
        output: the zip file, replaced if it exists.
        sizes: shapes per category, and points.
        seed: of every shape, not negative.
        workers: processes; 1 works in this one, None takes every usable core.
        progress: called with shapes (done, total).
    """
    sizes = sizes or PartSizes()
    each = len(sizes.split_of)
    tasks = [
        _Task(category, range(first, min(first + _BATCH, each)), sizes.points, seed)
        for category in range(len(CATEGORIES))
        for first in range(0, each, _BATCH)
    ]
    with write_aside(output) as aside, zipfile.ZipFile(aside, "w") as archive:
        facts = {
            "stand_in_for": NAME,
            "made_of": "pointdistill's built-in shapes and their parts",
            "version": VERSION,
            "sizes": asdict(sizes),
            "seed": seed,
        }
        add_marker(archive, f"{ARCHIVE_STEM}/{STAND_IN_MARKER}", facts)
        _add_lists(archive, sizes, seed)
        done = 0
        for task, texts in zip(
            tasks, ordered_map(_make_texts, tasks, workers=workers), strict=True
        ):
            for number, text in zip(task.numbers, texts, strict=True):
                member = f"{ARCHIVE_STEM}/{_name(task.category, number)}.txt"
                add_member(archive, member, text, compress=True)
            done += len(task.numbers)
            if progress:
                progress(done, each * len(CATEGORIES))


def _name(category: int, number: int) -> str:
    """``<synset>/<id>``, with an id that ShapeNet does not use."""
    return f"{tuple(SYNSETS)[category]}/stand-in-{number:04d}"


def _add_lists(archive: zipfile.ZipFile, sizes: PartSizes, seed: int) -> None:
    """The shuffled lists of the splits, the table of synsets, and files left by another system."""
    rng = np.random.default_rng(seed)
    for split in SPLITS:
        entries = [
            f"shape_data/{_name(category, number)}"
            for category in range(len(CATEGORIES))
            for number, of in enumerate(sizes.split_of)
            if of == split
        ]
        text = json.dumps([entries[i] for i in rng.permutation(len(entries))])
        name = f"{ARCHIVE_STEM}/train_test_split/shuffled_{split}_file_list.json"
        add_member(archive, name, text.encode(), compress=True)
    table = "".join(f"{name.capitalize()}\t{synset}\n" for synset, name in SYNSETS.items())
    add_member(archive, f"{ARCHIVE_STEM}/synsetoffset2category.txt", table.encode(), compress=True)
    litter = f"__MACOSX/{ARCHIVE_STEM}/{_name(0, 0).replace('/', '/._')}.txt"
    add_member(archive, litter, b"\0\5\x16\7", compress=False)


def _make_texts(task: _Task) -> list[bytes]:
    """The text files of a few shapes, in the order of their numbers."""
    texts = []
    for number in task.numbers:
        rng = np.random.default_rng((task.seed, task.category, number))
        shape = make_shape(CATEGORIES[task.category], rng=rng)
        count = int(rng.integers(int(_FEWEST * task.points), task.points, endpoint=True))
        texts.append(_text(shape, task.category, count, rng=rng))
    return texts


def _text(shape: BuiltinShape, category: int, count: int, *, rng: np.random.Generator) -> bytes:
    """Rows x y z nx ny nz part in the unit sphere, turned to y up: old (x, y, z) = new (y, z, x)."""
    points, face = sample_faces(shape, count, rng=rng)
    points -= points.mean(axis=0)
    points /= np.linalg.norm(points, axis=1).max()
    a, b, c = shape.vertices[shape.faces[face]].transpose(1, 0, 2)
    normals = np.cross(b - a, c - a)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    parts = np.array(CATEGORY_PARTS[category])[shape.face_part[face]]
    table = np.column_stack([points[:, [1, 2, 0]], normals[:, [1, 2, 0]], parts])
    row = " ".join(["%.6f"] * table.shape[1]) + "\n"
    return (row * count % tuple(table.ravel().tolist())).encode("ascii")
