"""A stand-in for Objaverse-LVIS: a small corpus of built-in shapes, and an annotation of most of them.

As in the real set, some categories have too few shapes, some shapes have no category, and some annotated shapes
are not in the corpus. It has 54 coarse categories where LVIS has 1,156: results on it say nothing about LVIS.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pointdistill.data.benchmark_standins.zips import STAND_IN_SEED
from pointdistill.data.benchmarks.lvis import ANNOTATION_NAME, NAME, SHOTS
from pointdistill.data.benchmarks.records import STAND_IN_MARKER
from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.corpus_building.build import build_corpus
from pointdistill.data.files.files import folder_aside, write_json
from pointdistill.data.sources.base import Entry, SourceCloud
from pointdistill.data.synthetic_shapes import CATEGORIES, make_shape, sample_shape
from pointdistill.errors import ConfigError
from pointdistill.reporter import Reporter

VERSION = 1
"""Version of the generator; only results on the same version are comparable."""

CORPUS_FOLDER = "corpus"
"""The corpus beside the annotation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LvisSizes:
    """How many shapes there are; 2,180 in the corpus by default."""

    categories: tuple[str, ...] = CATEGORIES
    """Built-in categories, all of them by default; the last `scarce` of them get too few shapes."""

    each: int = 40
    """Shapes of each category that has enough."""

    scarce: int = 2
    """Categories with `SHOTS` shapes, which is one too few to be tested on."""

    unlabelled: int = 80
    """Shapes that the annotation does not mention."""

    missing: int = 20
    """Annotated shapes that are not in the corpus."""

    points: int = 2048
    """Points per shape; the protocol draws 1,024 of them."""

    def __post_init__(self) -> None:
        enough = self.each > SHOTS and 0 <= self.scarce < len(self.categories)
        if not enough or min(self.unlabelled, self.missing) < 0:
            msg = f"a stand-in needs a category with more than {SHOTS} shapes, got {self}"
            raise ConfigError(msg)


@dataclass(frozen=True, slots=True)
class _Shapes:
    """The source of the corpus: shapes by uid; see `pointdistill.data.sources.base.Source`."""

    facts: SourceFacts
    sizes: LvisSizes
    seed: int

    def entries(self) -> Sequence[Entry]:
        """Annotated shapes, then those without a category."""
        rows = list(_annotated(self.sizes, self.seed))
        for number in range(self.sizes.unlabelled):
            category = self.sizes.categories[number % len(self.sizes.categories)]
            rows.append((category, _uid(self.seed, "unlabelled", number)))
        return [Entry(id=uid, where=category) for category, uid in rows]

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:
        """Make the shape and draw its points."""
        points, _ = sample_shape(make_shape(entry.where, rng=rng), count, rng=rng)
        return SourceCloud(points)


def make_lvis_stand_in(
    output: Path,
    *,
    sizes: LvisSizes | None = None,
    seed: int = STAND_IN_SEED,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a folder with ``lvis-annotations.json.gz`` and ``corpus``, whole or not at all.

    Args:
        output: the folder, which must not exist.
        sizes: shapes and points.
        seed: of every shape, not negative.
        workers: processes; 1 works in this one, None takes every usable core.
        progress: called with shapes (done, total).

    Raises:
        DataError: if ``output`` exists.
    """
    sizes = sizes or LvisSizes()
    facts = SourceFacts(
        name="objaverse-stand-in",
        licence="CC0-1.0 (made on the spot)",
        origin="this program",
        turned="none",
        stand_in=True,
        settings=asdict(sizes) | {"version": VERSION, "seed": seed},
    )

    class Counting(Reporter):
        def progress(self, task: str, done: float, total: float | None = None, **_: str) -> None:  # noqa: ARG002
            if progress:
                progress(int(done), int(total or 0))

    with folder_aside(output) as aside:
        build_corpus(
            _Shapes(facts, sizes, seed),
            aside / CORPUS_FOLDER,
            points=sizes.points,
            seed=seed,
            workers=0 if workers == 1 else workers,
            reporter=Counting(),
        )
        (aside / ANNOTATION_NAME).write_bytes(_annotation(sizes, seed))
        write_json(
            aside / STAND_IN_MARKER,
            {"stand_in_for": NAME, "made_of": "pointdistill's built-in shapes", **facts.settings},
        )


def _annotation(sizes: LvisSizes, seed: int) -> bytes:
    """Category to uids, those that are missing spread over the first categories."""
    table: dict[str, list[str]] = {category: [] for category in sizes.categories}
    for category, uid in _annotated(sizes, seed):
        table[category].append(uid)
    for number in range(sizes.missing):
        category = sizes.categories[number % len(sizes.categories)]
        table[category].append(_uid(seed, "missing", number))
    return gzip.compress(json.dumps(table).encode(), mtime=0)


def _annotated(sizes: LvisSizes, seed: int) -> Iterator[tuple[str, str]]:
    """(category, uid) of every shape that is in the corpus and in the annotation."""
    enough = len(sizes.categories) - sizes.scarce
    for place, category in enumerate(sizes.categories):
        for number in range(sizes.each if place < enough else SHOTS):
            yield category, _uid(seed, category, number)


def _uid(seed: int, kind: str, number: int) -> str:
    """32 hexadecimal digits, like Objaverse's."""
    return hashlib.sha256(f"{seed}/{kind}/{number}".encode()).hexdigest()[:32]
