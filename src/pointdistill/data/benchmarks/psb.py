"""The Princeton Shape Benchmark: 1,814 meshes from the Web in two halves (Shilane et al., SMI 2004).

Layout of ``psb_v1.zip``: ``psb_v1/benchmark/db/<id // 100>/m<id>/m<id>.off``, meshes, y up for the most part, and
``psb_v1/benchmark/classification/v1/base/{train,test}.cla``, the classes of each half. Some copies leave out the
first two folders.

The benchmark's rule: methods are developed on the training half, and results are reported on the test half once
every choice has been made.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointdistill.data.benchmarks.records import LabelledShapes, is_stand_in
from pointdistill.data.benchmarks.registry import (
    CROSS_VALIDATED,
    RETRIEVAL,
    BenchmarkInput,
    BenchmarkPaths,
    BenchmarkSpec,
    PublishedDescriptor,
)
from pointdistill.data.files.archive import Archive, open_archive
from pointdistill.errors import DataError

NAME = "Princeton Shape Benchmark"
ARCHIVE_NAME = "psb_v1.zip"
ADDRESS = f"https://shape.cs.princeton.edu/benchmark/download/{ARCHIVE_NAME}"
TRAIN, TEST = "train", "test"

_LIST = "classification/v1/base/{}.cla"
_MESH = re.compile(r"(?:^|/)db/\d+/m(\d+)/m(\d+)\.off$", re.IGNORECASE)
_ROOT = "0"  # the parent of a class at the top
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class ShapeClass:
    """One class of a classification. It is known by name and parent together: the name alone may occur twice."""

    name: str
    parent: str
    """Name of the class that it belongs to; ``0`` at the top."""

    models: tuple[int, ...]
    """Ids of its own models, without those of the classes below it; may be empty."""


def parse_classification(text: str) -> list[ShapeClass]:
    """The classes of a ``.cla`` file, in its order.

    It has ``PSB 1``, the numbers of classes and models, then for each class its name, its parent, the number of
    its models and their ids, with any white space between them.

    Raises:
        DataError: if it is cut short, a number is none, the counts are not those of its beginning, a class is
            there twice, or a model has two classes. The message does not name the file.
    """
    words = iter(text.split())
    head = (next(words, ""), next(words, ""))
    if head != ("PSB", "1"):
        msg = f"begins with {' '.join(head)!r} in place of 'PSB 1'"
        raise DataError(msg)
    announced = _number(words, "the number of classes"), _number(words, "the number of models")
    classes = [_one_class(words) for _ in range(announced[0])]
    models = [model for one in classes for model in one.models]
    if len(models) != announced[1] or next(words, None) is not None:
        msg = f"announces {announced[0]} classes with {announced[1]} models, and its lists do not end there"
        raise DataError(msg)
    for what, names in (
        ("class", Counter((one.name, one.parent) for one in classes)),
        ("model", Counter(models)),
    ):
        name, count = names.most_common(1)[0] if names else (None, 0)
        if count > 1:
            msg = f"has the {what} {name} twice"
            raise DataError(msg)
    return classes


def _one_class(words: Iterator[str]) -> ShapeClass:
    name, parent = next(words, ""), next(words, "")
    count = _number(words, f"the number of models of {name!r}")
    what = f"a model of {name!r}"
    # A count is a stranger's number: the words end long before a wrong one is reached.
    return ShapeClass(name, parent, tuple(_number(words, what) for _ in range(count)))


def _number(words: Iterator[str], what: str) -> int:
    word = next(words, "")
    if not (word.isascii() and word.isdigit() and len(word) < 10):
        found = f"{word[:20]!r}" if word else "its end"
        msg = f"has {found} in place of {what}"
        raise DataError(msg)
    return int(word)


def read_psb(path: Path, split: str) -> LabelledShapes:
    """List one half of the benchmark, or of its stand-in, in the order of its classification.

    No mesh is read. Models that the classification names and the archive lacks are left out and named in
    ``remarks``; the number of those that are there becomes part of ``data_name``.

    Args:
        path: ``psb_v1.zip``, or the folder extracted from it.
        split: ``train`` or ``test``.

    Raises:
        DataError: if the archive is absent or damaged, lacks the classification or all of its models, or holds a
            model twice.
    """
    with open_archive(path, absent=_absent(path)) as archive:
        classes = _classification(archive, split)
        meshes = _meshes(archive)
        listed = [(model, one) for one in classes for model in one.models]
        found = [(meshes[model], one) for model, one in listed if model in meshes]
        if not found:
            msg = (
                f"{path}: holds none of the {len(listed)} models of the {split} half; get the whole "
                f"{ARCHIVE_NAME} from https://shape.cs.princeton.edu/benchmark"
            )
            raise DataError(msg)
        present = [one for one in classes if any(model in meshes for model in one.models)]
        number = {(one.name, one.parent): label for label, one in enumerate(present)}
        members = tuple(member for member, _ in found)
        list_name = archive.find(_LIST.format(split))
        checksum = archive.checksum([*members, *([list_name] if list_name else [])])
        stand_in = is_stand_in(archive)
    missing = [model for model, _ in listed if model not in meshes]
    data_name = f"{NAME} stand-in" if stand_in else NAME
    if missing:
        data_name += f" ({len(found)} of {len(listed)} models)"
    return LabelledShapes(
        name=NAME,
        split=split,
        classes=_class_names(present),
        path=path,
        members=members,
        labels=np.array([number[one.name, one.parent] for _, one in found], dtype=np.int64),
        up="y",
        data_name=data_name,
        form="OFF meshes, base classification, turned from y up",
        checksum=checksum,
        stand_in=stand_in,
        remarks=_remarks(missing, len(listed)),
    )


def _classification(archive: Archive, split: str) -> list[ShapeClass]:
    member = archive.find(_LIST.format(split))
    if member is None:
        msg = (
            f"{archive.path}: has no {_LIST.format(split)}; get {ARCHIVE_NAME} from "
            "https://shape.cs.princeton.edu/benchmark"
        )
        raise DataError(msg)
    try:
        return parse_classification(archive.read(member).decode("latin-1"))
    except DataError as error:
        if str(error).startswith(str(archive.path)):
            raise
        msg = f"{archive.path}: {member} {error}; fetch the archive again"
        raise DataError(msg) from error


def _meshes(archive: Archive) -> dict[int, str]:
    """The member of each model by its id.

    Raises:
        DataError: if a model is there twice.
    """
    found: dict[int, str] = {}
    for name in archive.names:
        match = _MESH.search(name)
        if match is None or match[1] != match[2]:
            continue
        earlier = found.setdefault(int(match[1]), name)
        if earlier != name:
            msg = f"{archive.path}: holds m{match[1]} twice ({earlier}, {name}); keep one of them"
            raise DataError(msg)
    return found


def _class_names(classes: list[ShapeClass]) -> tuple[str, ...]:
    """A name for each class; preceded by its parent's where another class has the same name."""
    names = [one.name for one in classes]
    return tuple(
        one.name
        if names.count(one.name) == 1 or one.parent == _ROOT
        else f"{one.parent}/{one.name}"
        for one in classes
    )


def _remarks(missing: list[int], listed: int) -> tuple[str, ...]:
    if not missing:
        return ()
    named = ", ".join(f"m{model}" for model in missing[:_MOST_NAMED])
    more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    return (f"{len(missing)} of the {listed} models are not in the archive: {named}{more}",)


def _absent(path: Path) -> str:
    return (
        f"{path}: no such archive. {ARCHIVE_NAME} is at https://shape.cs.princeton.edu/benchmark, without a "
        f"login; `pointdistill prepare-data psb` says how to fetch it. Save it as {path}, or use the stand-in "
        "instead"
    )


def _read(
    paths: BenchmarkPaths,
    split: str | None,
    *,
    fold: int = 0,  # noqa: ARG001
    progress: Callable[[int, int], None] | None = None,  # noqa: ARG001
) -> LabelledShapes:
    assert split is not None
    return read_psb(paths.archive, split)


_SHILANE = "Shilane et al., The Princeton Shape Benchmark, SMI 2004"
_PAPADAKIS = "Papadakis et al., PANORAMA, IJCV 89, 2010"

SPEC = BenchmarkSpec(
    title=NAME,
    archives=(ARCHIVE_NAME, "psb_v1"),
    licence="research comparisons; the models are from the Web and carry no licence of their own",
    read=_read,
    stand_in_maker="pointdistill.data.benchmark_standins.modelnet:make_psb_stand_in",
    splits=(TRAIN, TEST),
    default_splits=(TRAIN,),
    # The benchmark prescribes no input: an encoder gets as many points and patches as in its pretraining.
    input=BenchmarkInput(
        points=1024, patches=64, subsampling="uniform", rotate_z=False, scale=(1.0, 1.0)
    ),
    protocols=(*CROSS_VALIDATED, RETRIEVAL),
    default_protocols=(*CROSS_VALIDATED, RETRIEVAL),
    voting=False,
    descriptors=(
        PublishedDescriptor("LFD (light fields)", _SHILANE, (65.7, 38.0, 48.7, 28.0, 64.3)),
        PublishedDescriptor("REXT (radialised extent)", _SHILANE, (60.2, 32.7, 43.2, 25.4, 60.1)),
        PublishedDescriptor("SHD (spherical harmonics)", _SHILANE, (55.6, 30.9, 41.1, 24.1, 58.4)),
        PublishedDescriptor("EXT (spherical extent)", _SHILANE, (54.9, 28.6, 37.9, 21.9, 56.2)),
        PublishedDescriptor("D2 (shape distributions)", _SHILANE, (31.1, 15.8, 23.5, 13.9, 43.4)),
        PublishedDescriptor("PANORAMA", _PAPADAKIS, (75.3, 47.9, 60.3, None, None)),
    ),
    descriptors_split=TEST,
    address=ADDRESS,
    terms=(
        "its authors encourage researchers to compare methods on it; the models were collected from the Web and "
        "carry no licence of their own: use them to measure, and do not pass them on"
    ),
)
