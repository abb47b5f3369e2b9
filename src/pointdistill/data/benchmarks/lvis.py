"""Objaverse-LVIS few-shot: the LVIS categories of Objaverse's shapes (Deitke et al., CVPR 2023).

The annotation is a JSON table, category to uids, gzipped; the corpus is one of ours, whose ids are those
uids. Points stay in the corpus: only a number and a label per shape are held here.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.benchmarks.registry import (
    BASE_MIXTURE,
    SMALL_MIXTURE,
    BenchmarkInput,
    BenchmarkPaths,
    BenchmarkSpec,
    PublishedFigure,
)
from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.files.schema import parse_json
from pointdistill.errors import ConfigError, DataError
from pointdistill.reporter import plural

NAME = "Objaverse-LVIS"
SHOTS = 10
"""Training shapes of each category; a category needs one more to be tested on."""

SEEDS = tuple(range(10))
"""Seeds of the published draws."""

OFFICIAL_CLASSES = 1060
"""Categories with more than `SHOTS` shapes among the 1,156 of the annotation."""

ANNOTATION_NAME = "lvis-annotations.json.gz"

_MOST_BYTES = 64 << 20  # the real one has 2 MB, unfolded
_GZIP_START = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class LvisShapes:
    """The shapes of a corpus that have an LVIS category with enough of them.

    Sizes: n shapes.
    """

    corpus: Corpus

    indices: NDArray[np.int64]
    """(n,) int64, numbers of the shapes in the corpus, ascending."""

    labels: NDArray[np.int64]
    """(n,) int64, indices into ``classes``."""

    classes: tuple[str, ...]
    """Names of the categories that stay, in alphabetical order."""

    dropped_classes: tuple[str, ...]
    """Categories left out because no more than `SHOTS` of their shapes are in the corpus."""

    annotated: int
    """Uids in the annotation, each counted once."""

    missing: int
    """How many of those are not in the corpus."""

    ambiguous: int
    """How many are listed under several categories, and left out."""

    data_name: str
    """What the data really is, for every result."""

    form: str
    """Which annotation over which corpus."""

    checksum: str
    """Hexadecimal SHA-256 of the annotation file; the corpus has its own, ``corpus.content``."""

    stand_in: bool
    """True when any of the shapes come from a stand-in."""

    name: str = NAME
    split: None = None
    """There is one only."""

    def __len__(self) -> int:
        """Number of shapes."""
        return len(self.labels)


def read_lvis(annotation: Path, corpus: Corpus) -> LvisShapes:
    """Find the annotated shapes in a corpus.

    While it runs, the corpus's ids are in memory: about 0.1 GiB per million shapes. No points are read.

    Args:
        annotation: JSON table, category to uids, gzipped or plain.
        corpus: its ids are the uids, either alone or as the last part of a path.

    Raises:
        DataError: if the annotation is absent or damaged, or no category has more than `SHOTS` shapes in
            the corpus.
    """
    raw = _read_bytes(annotation)
    category_of, names, ambiguous = _single_categories(_table(annotation, raw))
    found = _find(category_of, corpus)
    rows = np.array(sorted(found.items()), dtype=np.int64).reshape(-1, 2)
    count = np.bincount(rows[:, 1], minlength=len(names))
    stays = count > SHOTS
    if not stays.any():
        msg = (
            f"{annotation}: {len(found)} of {len(category_of)} annotated shapes are in {corpus.path}, and no "
            f"category has more than {SHOTS} of them; prepare a corpus of Objaverse"
        )
        raise DataError(msg)
    rows = rows[stays[rows[:, 1]]]
    new_label = np.cumsum(stays) - 1
    stand_in = any(source.stand_in for source in corpus.sources)
    return LvisShapes(
        corpus=corpus,
        indices=rows[:, 0].copy(),
        labels=new_label[rows[:, 1]],
        classes=tuple(name for name, stay in zip(names, stays, strict=True) if stay),
        dropped_classes=tuple(name for name, stay in zip(names, stays, strict=True) if not stay),
        annotated=len(category_of) + ambiguous,
        missing=len(category_of) - len(found),
        ambiguous=ambiguous,
        data_name=_data_name(len(rows), int(stays.sum()), stand_in=stand_in),
        form=f"{annotation.name} over {', '.join(source.name for source in corpus.sources)}",
        checksum=hashlib.sha256(raw).hexdigest(),
        stand_in=stand_in,
    )


def annotated_uids(annotation: Path) -> frozenset[str]:
    """Every uid of an annotation, whatever its category.

    Raises:
        DataError: if the annotation is absent or damaged.
    """
    table = _table(annotation, _read_bytes(annotation))
    return frozenset(itertools.chain.from_iterable(table.values()))


def draw_lvis(
    shapes: LvisShapes, *, shots: int = SHOTS, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the training shapes of every category; the rest is for testing.

    A category's draw depends only on the seed, its name and its own shapes.

    Args:
        shapes: n shapes.
        shots: training shapes per category.
        seed: of the draw, not negative.

    Returns:
        Rows of ``shapes`` (indices into its ``indices`` and ``labels``), ascending: those to train on, ``shots``
        per category, and all the others, to test on.

    Raises:
        ConfigError: if ``shots`` leaves a category without a test shape, or ``seed`` is negative.
    """
    fewest = int(np.bincount(shapes.labels).min())
    if not 0 < shots < fewest or seed < 0:
        msg = (
            f"a draw takes 1 to {fewest - 1} shots (the smallest category has {fewest} shapes) and a seed "
            f"from 0, got {shots} and {seed}"
        )
        raise ConfigError(msg)
    chosen = np.zeros(len(shapes), dtype=bool)
    by_class = np.argsort(shapes.labels, kind="stable")
    starts = np.searchsorted(shapes.labels[by_class], np.arange(len(shapes.classes) + 1))
    for name, (first, last) in zip(shapes.classes, itertools.pairwise(starts), strict=True):
        rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
        chosen[by_class[first + rng.choice(last - first, shots, replace=False)]] = True
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


def _read_bytes(annotation: Path) -> bytes:
    try:
        with annotation.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        msg = (
            f"{annotation}: cannot be read ({error.strerror}); {ANNOTATION_NAME} comes with Objaverse "
            f"(https://objaverse.allenai.org): the table of LVIS categories and their uids"
        )
        raise DataError(msg) from error
    if raw.startswith(b"version https://git-lfs"):
        msg = f"{annotation}: a Git-LFS pointer in place of the annotation; run `git lfs pull`"
        raise DataError(msg)
    return raw


def _table(annotation: Path, raw: bytes) -> dict[str, list[str]]:
    """The annotation parsed and checked: category to uids."""
    try:
        text = _unfold(raw) if raw.startswith(_GZIP_START) else raw
        if len(text) > _MOST_BYTES:
            msg = f"more than {_MOST_BYTES:,} bytes"
            raise ValueError(msg)
        table = parse_json(text, most=_MOST_BYTES)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        msg = f"{annotation}: not a table of categories as gzipped JSON ({error}); fetch it again"
        raise DataError(msg) from error
    right = isinstance(table, dict) and all(
        isinstance(uids, list) and all(isinstance(uid, str) for uid in uids)
        for uids in table.values()
    )
    if not right or not table:
        msg = f"{annotation}: expected a JSON table of category to a list of uids; fetch it again"
        raise DataError(msg)
    return dict(table)


def _unfold(raw: bytes) -> bytes:
    """Content of a gzip file, up to one byte more than is accepted, so that a gzip bomb stays small."""
    with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
        return file.read(_MOST_BYTES + 1)


def _single_categories(
    table: Mapping[str, Iterable[str]],
) -> tuple[dict[str, int], tuple[str, ...], int]:
    """Number of the category of each uid that has one, the categories' names, and how many uids have several."""
    names = tuple(sorted(table))
    category_of: dict[str, int] = {}
    several: set[str] = set()
    for number, name in enumerate(names):
        for uid in table[name]:
            if category_of.setdefault(uid, number) != number:
                several.add(uid)
    for uid in several:
        del category_of[uid]
    return category_of, names, len(several)


def _find(category_of: Mapping[str, int], corpus: Corpus) -> dict[int, int]:
    """Number in the corpus to category, for each uid's first occurrence."""
    found: dict[int, int] = {}
    seen: set[str] = set()
    for number, name in enumerate(corpus.ids()):
        uid = name.rpartition("/")[2]
        category = category_of.get(uid)
        if category is not None and uid not in seen:
            seen.add(uid)
            found[number] = category
    return found


def _data_name(shapes: int, classes: int, *, stand_in: bool) -> str:
    if stand_in:
        return f"{NAME} stand-in"
    if classes == OFFICIAL_CLASSES:
        return NAME
    return f"{NAME} ({plural(shapes, 'shape')} of {classes:,} classes, officially {OFFICIAL_CLASSES:,} classes)"


def _read(
    paths: BenchmarkPaths,
    split: str | None,  # noqa: ARG001
    *,
    fold: int = 0,  # noqa: ARG001
    progress: Callable[[int, int], None] | None = None,  # noqa: ARG001
) -> LvisShapes:
    assert paths.corpus is not None
    return read_lvis(paths.archive, open_corpus(paths.corpus))


def _published(model: str, *top: float) -> PublishedFigure:
    """Top-1, 3 and 5."""
    return PublishedFigure(model, top[0], None, top[1:])


SPEC = BenchmarkSpec(
    title=NAME,
    archives=(ANNOTATION_NAME,),
    licence="ODC-By; each object under its own licence",
    read=_read,
    stand_in_maker="pointdistill.data.benchmark_standins.lvis:make_lvis_stand_in",
    stand_in="lvis",
    stand_in_corpus="corpus",
    needs_corpus=True,
    input=BenchmarkInput(
        points=1024, patches=64, subsampling="uniform", rotate_z=True, scale=(1.0, 1.0)
    ),
    protocols=("knn", "linear"),
    default_protocols=("knn", "linear"),
    seeds=10,
    repeated_over="draws",
    voting=False,
    published={
        (None, "linear", SMALL_MIXTURE): _published(SMALL_MIXTURE, 37.75, 57.43, 64.70),
        (None, "linear", BASE_MIXTURE): _published(BASE_MIXTURE, 38.36, 58.22, 65.43),
        (None, "knn", SMALL_MIXTURE): _published(SMALL_MIXTURE, 33.30, 49.77, 54.27),
        (None, "knn", BASE_MIXTURE): _published(BASE_MIXTURE, 33.68, 50.24, 54.68),
    },
)
