"""ModelNet40 few-shot: ten folds each of 5 or 10 classes with 10 or 20 training shapes per class.

Layout of ``ModelNetFewshot.zip``: ``ModelNetFewshot/<w>way_<s>shot/<fold>.pkl``, a pickle of ``{"train":
[(points (N, 3 or 6), label, original label), ...], "test": ...}``, y up. It is read as data; nothing in it is
executed. Turned to z up here by a rotation; the usual reader swaps y and z, which mirrors every shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.benchmarks.modelnet40 import CLASSES
from pointdistill.data.benchmarks.records import (
    Benchmark,
    LabelledClouds,
    check_clouds,
    is_stand_in,
    named_data,
)
from pointdistill.data.benchmarks.registry import (
    FROZEN,
    SMALL,
    BenchmarkInput,
    BenchmarkPaths,
    BenchmarkSpec,
    PublishedFigure,
)
from pointdistill.data.files.archive import MEMBER_LIMIT_BYTES, Archive, open_archive
from pointdistill.data.files.pickle_machine import PickleLimits, Purpose
from pointdistill.data.files.pickles import ARRAY_GLOBALS, ArrayRecord, read_pickle
from pointdistill.errors import ConfigError, DataError

NAME = "ModelNet40 few-shot"
ARCHIVE_NAME = "ModelNetFewshot.zip"

FEWSHOT_SETTINGS = ((5, 10), (5, 20), (10, 10), (10, 20))
"""(way, shot) of the four published settings: classes, and training shapes of each."""

SPLITS = {f"{way}w{shot}s": (way, shot) for way, shot in FEWSHOT_SETTINGS}
"""Way and shot by the name that a user types."""

FOLDS = 10
"""Folds of each setting, numbered from 0."""

TEST_EACH = 20
"""Test shapes of each class in the published folds."""

_LIMITS = PickleLimits(pickle_bytes=MEMBER_LIMIT_BYTES)
_PURPOSE = Purpose(
    contents="labelled clouds",
    writer="a pickle of arrays",
    advice=f"get {ARCHIVE_NAME} from its own site",
)


def read_modelnet_fewshot(path: Path, *, way: int, shot: int, fold: int) -> Benchmark:
    """Read one fold of one setting, or of its stand-in, in place.

    Costs the memory of the fold's pickle and of its points: at most about 0.3 GiB for a published one.

    Args:
        path: ``ModelNetFewshot.zip``, or the folder extracted from it.
        way: classes, 5 or 10.
        shot: training shapes per class, 10 or 20.
        fold: 0 to 9.

    Returns:
        The fold with clouds of (n, N, 3) turned to z up: new (x, y, z) = old (z, x, y), a rotation.
        ``split`` is a name such as ``5w10s``, ``form`` names the fold; a label is an index into the fold's own
        ``way`` classes. ``checksum`` is the same for all folds of a setting: it covers all folds that are there.

    Raises:
        ConfigError: if there is no such setting or fold.
        DataError: if the archive is absent or damaged, lacks the fold, or its pickle is refused.
    """
    _check(way, shot, fold)
    with open_archive(path, absent=_absent(path)) as archive:
        member = _member(archive, f"{way}way_{shot}shot", fold)
        train, test = _Fold(archive, member, way=way, shot=shot).read()
        stand_in = is_stand_in(archive)
        checksum = archive.checksum(_folds(archive, f"{way}way_{shot}shot"))
    counts = (len(train.labels), len(test.labels))
    return Benchmark(
        name=NAME,
        split=f"{way}w{shot}s",
        classes=train.classes,
        train=LabelledClouds(train.points, train.labels),
        test=LabelledClouds(test.points, test.labels),
        data_name=named_data(
            NAME, stand_in=stand_in, counts=counts, official=(way * shot, way * TEST_EACH)
        ),
        form=f"{ARCHIVE_NAME}, {way}way_{shot}shot/{fold}.pkl",
        checksum=checksum,
        stand_in=stand_in,
    )


def _check(way: int, shot: int, fold: int) -> None:
    if (way, shot) not in FEWSHOT_SETTINGS:
        known = ", ".join(f"{w} way {s} shot" for w, s in FEWSHOT_SETTINGS)
        msg = f"{NAME} has no setting of {way} way {shot} shot; choose one of {known}"
        raise ConfigError(msg)
    if not 0 <= fold < FOLDS:
        msg = f"{NAME} has the folds 0 to {FOLDS - 1}, got {fold}"
        raise ConfigError(msg)


def _absent(path: Path) -> str:
    return (
        f"{path}: no such archive. {ARCHIVE_NAME} is linked from "
        f"https://github.com/Julie-tang00/Point-BERT (DATASET.md); save it as {path}, or use "
        "the stand-in instead"
    )


def _member(archive: Archive, setting: str, fold: int) -> str:
    member = archive.find(f"{setting}/{fold}.pkl")
    if member is None:
        there = [
            f"{w}way_{s}shot"
            for w, s in FEWSHOT_SETTINGS
            if any(archive.find(f"{w}way_{s}shot/{k}.pkl") for k in range(FOLDS))
        ]
        msg = (
            f"{archive.path}: has no {setting}/{fold}.pkl; settings it has folds of: "
            f"{', '.join(there) or 'none'}"
        )
        raise DataError(msg)
    return member


def _folds(archive: Archive, setting: str) -> list[str]:
    """The members that are folds of a setting."""
    found = (archive.find(f"{setting}/{fold}.pkl") for fold in range(FOLDS))
    return [member for member in found if member is not None]


@dataclass(frozen=True, slots=True)
class _Side:
    """Train or test of a fold. Sizes: n clouds of N points."""

    points: NDArray[np.float32]  # (n, N, 3), z up
    labels: NDArray[np.int64]  # (n,)
    classes: tuple[str, ...]


class _Fold:
    """One pickle of an archive."""

    def __init__(self, archive: Archive, member: str, *, way: int, shot: int) -> None:
        self._archive = archive
        self._source = f"{archive.path}: {member}"
        self._member = member
        self._way = way
        self._shot = shot

    def read(self) -> tuple[_Side, _Side]:
        """Both sides, checked against each other and the setting."""
        content = self._content()
        train, test = (self._side(content[side], side) for side in ("train", "test"))
        if train.classes != test.classes:
            self._refuse("its labels mean other classes in training than in testing")
        each = np.bincount(train.labels, minlength=self._way)
        if (each != self._shot).any():
            self._refuse(f"{sorted(set(each.tolist()))} training shapes a class, not {self._shot}")
        if train.points.shape[1] != test.points.shape[1]:
            self._refuse("training and test shapes differ in their numbers of points")
        return train, test

    def _content(self) -> dict[str, list[_Sample]]:
        data = self._archive.read(self._member)
        try:
            content = read_pickle(
                data,
                known=ARRAY_GLOBALS,
                persistent=_no_persistent,
                limits=_LIMITS,
                purpose=_PURPOSE,
            )
        except DataError as error:
            self._refuse(str(error))
        if not isinstance(content, dict):
            self._refuse("holds no table of train and test")
        samples = {side: self._samples(content.get(side), side) for side in ("train", "test")}
        # A pickle can name one array a thousand times; the published ones hold each once.
        stated = sum(sample.points.nbytes for some in samples.values() for sample in some)
        if stated > len(data):
            self._refuse(f"states points of {stated} bytes and holds {len(data)}")
        return samples

    def _samples(self, found: object, side: str) -> list[_Sample]:
        if not isinstance(found, list | tuple) or not found:
            self._refuse(f"holds no list {side!r} of shapes")
        samples = []
        for number, row in enumerate(found):
            match row:
                case (ArrayRecord() as points, label, original) if len(points.shape) == 2:
                    samples.append(_Sample(points, _whole(label), _whole(original)))
                case _:
                    self._refuse(
                        f"shape {number} of {side!r} is not (points, label, original label)"
                    )
        return samples

    def _side(self, samples: Sequence[_Sample], side: str) -> _Side:
        shapes = {sample.points.shape for sample in samples}
        if len(shapes) != 1 or next(iter(shapes))[1] not in (3, 6):
            self._refuse(
                f"clouds of shapes {sorted(shapes)[:3]} in {side!r}, not all (N, 3) or (N, 6)"
            )
        points = np.empty((len(samples), next(iter(shapes))[0], 3), dtype=np.float32)
        try:
            # Values too large for float32 become infinite, which the next check refuses.
            with np.errstate(over="ignore"):
                for row, sample in zip(points, samples, strict=True):
                    row[...] = sample.points.values()[:, [2, 0, 1]]
        except DataError as error:
            self._refuse(str(error))
        check_clouds(points, self._source)
        return _Side(points, *self._labels(samples, side))

    def _labels(
        self, samples: Sequence[_Sample], side: str
    ) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Labels (n,) and, from the original labels, the class that each of them stands for."""
        pairs = {(sample.label, sample.original) for sample in samples}
        labels, originals = ([pair[i] for pair in sorted(pairs)] for i in (0, 1))
        if labels != list(range(self._way)) or len(set(originals)) != self._way:
            self._refuse(
                f"labels {labels} in {side!r}, not one class for each of 0 to {self._way - 1}"
            )
        if min(originals) < 0 or max(originals) >= len(CLASSES):
            self._refuse(f"original labels from {min(originals)} to {max(originals)}, not 0 to 39")
        found = np.array([sample.label for sample in samples], dtype=np.int64)
        return found, tuple(CLASSES[original] for original in originals)

    def _refuse(self, cause: str) -> NoReturn:
        msg = f"{self._source}: {cause}; fetch the archive again"
        raise DataError(msg)


@dataclass(frozen=True, slots=True)
class _Sample:
    """One shape of a fold, as the pickle has it."""

    points: ArrayRecord
    label: int
    original: int


def _whole(value: object) -> int:
    """A label: a whole number, or an array that holds one; -1, which is never a label, for anything else."""
    if isinstance(value, ArrayRecord) and 0 < value.nbytes <= 8:
        values = value.values()
        return int(values.item()) if values.size == 1 and values.dtype.kind in "iu" else -1
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def _no_persistent(identity: object) -> object:  # noqa: ARG001  whatever it is
    msg = "its pickle refers to values outside of it"
    raise DataError(msg)


def _read(
    paths: BenchmarkPaths,
    split: str | None,
    *,
    fold: int = 0,
    progress: Callable[[int, int], None] | None = None,  # noqa: ARG001
) -> Benchmark:
    way, shot = SPLITS[split or ""]
    return read_modelnet_fewshot(paths.archive, way=way, shot=shot, fold=fold)


SPEC = BenchmarkSpec(
    title=NAME,
    archives=(ARCHIVE_NAME,),
    licence="academic use; models belong to their owners",
    read=_read,
    stand_in_maker="pointdistill.data.benchmark_standins.modelnet:make_modelnet_fewshot_stand_in",
    splits=tuple(SPLITS),
    input=BenchmarkInput(
        points=1024, patches=64, subsampling="farthest", rotate_z=False, scale=(0.6, 1.4)
    ),
    protocols=(*FROZEN, "finetune"),
    default_protocols=("finetune",),
    recipe="few-shot",
    seeds=FOLDS,
    most_seeds=FOLDS,
    repeated_over="folds",
    published={
        ("5w10s", "finetune", SMALL): PublishedFigure(SMALL, 96.1, 2.8),
        ("5w20s", "finetune", SMALL): PublishedFigure(SMALL, 98.8, 1.3),
        ("10w10s", "finetune", SMALL): PublishedFigure(SMALL, 94.4, 3.5),
        ("10w20s", "finetune", SMALL): PublishedFigure(SMALL, 95.8, 3.3),
    },
)
