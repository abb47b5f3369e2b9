"""Applies a trained classifier or segmenter to files and arrays; files that cannot be read are listed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pointdistill.data.files.files import write_aside
from pointdistill.data.meshes import Axis, FailedFile, PointSet, check_axis, read_mesh, to_z_up
from pointdistill.data.meshes.read import files_in_folders
from pointdistill.data.meshes.records import AnyFloats, LeftOut
from pointdistill.data.meshes.sample import (
    Destination,
    named_rng,
    plan_output,
)
from pointdistill.data.meshes.sampling import draw_in_place, to_float32
from pointdistill.data.sources.folder import files_trained_on, repeated
from pointdistill.data.sources.paths import MemoryShape, given_shapes
from pointdistill.errors import ConfigError, DataError
from pointdistill.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from pointdistill.engine.finetuning.models import (
        ClassPrediction,
        TrainedClassifier,
        TrainedSegmenter,
    )

Input: TypeAlias = str | os.PathLike[str] | MemoryShape
Given = TypeVar("Given", Path, Path | MemoryShape)

BATCH = 32
"""Clouds per forward pass; affects speed and memory, and the probabilities only by rounding."""

PART_POINTS = 16_384
"""Points to sample on a mesh and label; a cloud keeps its own points, up to this number."""

# Fixed, so that the same file always gets the same answer.
_SEED = 0


@dataclass(frozen=True, slots=True)
class ClassifiedFile:
    """The classes of one file."""

    source: Path
    probabilities: tuple[tuple[str, float], ...]
    """Every class with its probability, the most likely first."""

    assumed_up: bool
    """Whether the file did not state its up axis."""

    left_out: LeftOut = field(default_factory=LeftOut)
    """What the file holds besides its shape."""


@dataclass(frozen=True, slots=True)
class Classification:
    """The classes of shapes, as ``classifier.predict`` returns them. Sizes: n shapes, C classes."""

    names: tuple[str, ...]
    """n names: a file's path, or the name of an array."""

    labels: tuple[str, ...]
    """The most likely class of each."""

    probabilities: NDArray[np.float32]
    """(n, C), rows sum to 1; columns in the order of ``classes``."""

    classes: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    """Name and reason of every shape that could not be used."""

    left_out: LeftOut
    """What was left out of shapes that were used."""

    assumed_up: int
    """Number of files that state no up axis, so that one was assumed."""

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True)
class SegmentedFile:
    """The parts of the points of one file. Sizes: n points."""

    source: Path
    points: AnyFloats
    """(n, 3), in the file's own frame and unit; float64 where float32 would distort them."""

    parts: NDArray[np.int64]
    """(n,) part labels."""

    assumed_up: bool
    left_out: LeftOut = field(default_factory=LeftOut)

    def shares(self, part_names: Sequence[str]) -> dict[str, float]:
        """The share of points in each part that occurs, by the part's name."""
        parts, counts = np.unique(self.parts, return_counts=True)
        return {
            part_names[part]: count / len(self.parts)
            for part, count in zip(parts.tolist(), counts.tolist(), strict=True)
        }


@dataclass(frozen=True, slots=True)
class _FilePoints:
    """The points of one file, in its own frame."""

    source: Path
    points: AnyFloats
    up: Axis
    assumed_up: bool
    left_out: LeftOut

    def z_up(self) -> NDArray[np.float32]:
        return to_float32(to_z_up(self.points.astype(np.float64), self.up))


def classify_files(
    classifier: TrainedClassifier,
    paths: Iterable[Input],
    *,
    up: str | None = None,
    reporter: Reporter = SILENT,
) -> tuple[list[ClassifiedFile], list[FailedFile]]:
    """Classify files; the result for one does not depend on the others.

    Args:
        classifier: already on the device to use.
        paths: meshes and clouds, and folders of them; a file named twice is read once.
        up: up axis of files that do not state their own; by default that of the training data.
        reporter: receives progress after every file, and what of folders is not read.

    Returns:
        The files that were classified, and those that could not be read, each with the reason.

    Raises:
        ConfigError: if there are no paths, or ``up`` is no axis.
    """
    spec = classifier.spec.input
    done: list[ClassifiedFile] = []
    failed: list[FailedFile] = []
    batch: list[_FilePoints] = []

    def classify_batch() -> None:
        if batch:
            clouds = np.stack([repeated(file.z_up(), spec.cloud_points) for file in batch])
            done.extend(_classified(batch, classifier(torch.from_numpy(clouds))))
            batch.clear()

    axis = _choose_axis(up, spec.axis)
    for file in _read_files(paths, spec.cloud_points, axis, "classifying", reporter):
        if isinstance(file, FailedFile):
            failed.append(file)
            continue
        batch.append(file)
        if len(batch) == BATCH:
            classify_batch()
    classify_batch()
    return done, failed


def classify(classifier: TrainedClassifier, shapes: Any, *, up: str | None) -> Classification:
    """``TrainedClassifier.predict``: the classes of any shapes, in the order given.

    Raises:
        DataError: if a path is missing, or no shape can be used at all.
        ConfigError: if ``up`` is no axis.
    """
    given = files_in_folders(given_shapes(shapes), say=SILENT.say)
    for item in given:
        if isinstance(item, Path) and not item.exists():
            msg = f"{item}: no such file or folder; check its name"
            raise DataError(msg)
    done, failed = classify_files(classifier, given, up=up)
    if not done:
        raise DataError(failed[0].reason)
    found = {os.path.realpath(file.source): file for file in done}
    paths = (item.name if isinstance(item, MemoryShape) else item for item in given)
    files = [found[place] for path in paths if (place := os.path.realpath(path)) in found]
    ranked = [dict(file.probabilities) for file in files]
    rows = [[row[name] for name in classifier.classes] for row in ranked]
    return Classification(
        names=tuple(str(file.source) for file in files),
        labels=tuple(file.probabilities[0][0] for file in files),
        probabilities=np.array(rows, np.float32),
        classes=classifier.classes,
        failed=tuple((str(file.source), file.reason) for file in failed),
        left_out=sum((file.left_out for file in done), start=LeftOut()),
        assumed_up=sum(file.assumed_up for file in done),
    )


def confusion_of_folders(
    files: Sequence[ClassifiedFile], classes: Sequence[str]
) -> NDArray[np.int64] | None:
    """(C, C) files by true and predicted class, where the folder of a file is called after its class.

    None unless files of two classes or more are.
    """
    counts = np.zeros((len(classes), len(classes)), np.int64)
    number = {name: k for k, name in enumerate(classes)}
    for file in files:
        label = folder_label(file, classes)
        if label is not None:
            counts[number[label], number[file.probabilities[0][0]]] += 1
    return counts if np.count_nonzero(counts.sum(axis=1)) > 1 else None


@dataclass(frozen=True, slots=True)
class TrainingFiles:
    """Which of some files a classifier was trained on."""

    known: frozenset[str] = frozenset()
    """Real paths of files that it was trained on."""

    possible: int = 0
    """Files in a folder called as the training data, which is another one or has changed since."""


def find_training_files(
    training: Mapping[str, Any], files: Sequence[ClassifiedFile], failed: Sequence[FailedFile]
) -> TrainingFiles:
    """Find which files a classifier was trained on, by the name, the checksum and the split of its data.

    Only a user's own folder has files of its own; each file of such a folder is read once for the checksum.

    Args:
        training: `TrainedClassifier.training`.
        files: that were classified.
        failed: that could not be.
    """
    match training:
        case {
            "data": {
                "benchmark": "folder",
                "path": str(data),
                "seed": int(seed),
                "held_out": float(held_out),
            },
            "checksum": str(checksum),
            "train_clouds": int(train),
            "test_clouds": int(test),
        } if 0 < held_out < 1:
            pass
        case _:
            return TrainingFiles()
    inside: dict[Path, list[str]] = {}
    for file in files:
        place = os.path.realpath(file.source)
        folders = (*file.source.absolute().parents, *Path(place).parents)
        root = next((one for one in folders if one.name == Path(data).name), None)
        if root is not None:
            inside.setdefault(root, []).append(place)
    known: set[str] = set()
    possible = 0
    unusable = {os.path.realpath(file.source) for file in failed}
    for root, places in inside.items():
        trained = files_trained_on(
            root,
            seed=seed,
            held_out=held_out,
            checksum=checksum,
            shapes=train + test,
            unusable=unusable,
        )
        if trained is None:
            possible += len(places)
        else:
            known |= trained.intersection(places)
    return TrainingFiles(frozenset(known), possible)


def folder_label(file: ClassifiedFile, classes: Sequence[str]) -> str | None:
    """The class that the folder of a file is called after; None if there is none."""
    name = file.source.absolute().parent.name
    return name if name in classes else None


def segment_files(
    segmenter: TrainedSegmenter,
    paths: Iterable[Input],
    *,
    category: str | None = None,
    up: str | None = None,
    reporter: Reporter = SILENT,
) -> tuple[list[SegmentedFile], list[FailedFile]]:
    """Assign a part to every point of every file.

    Args:
        segmenter: already on the device to use.
        paths: meshes, on which ``PART_POINTS`` points are sampled, and clouds, which keep their own up to this
            number, and folders of them; a file named twice is read once.
        category: category of all files; may be left out if the segmenter knows only one.
        up: up axis of files that do not state their own; by default that of the training data.
        reporter: receives progress after every file, and what of folders is not read.

    Returns:
        The files that were segmented, and those that could not be read, each with the reason.

    Raises:
        ConfigError: if there are no paths, ``up`` is no axis, or ``category`` is left out and there are several.
        DataError: if the category is unknown.
    """
    if category is None and len(segmenter.categories) > 1:
        msg = f"a segmenter needs the files' category; choose one of {', '.join(segmenter.categories)}"
        raise ConfigError(msg, settings=("category",))
    category = category or segmenter.categories[0]
    segmenter.category_index(category)  # refuses an unknown category before anything is read
    done: list[SegmentedFile] = []
    failed: list[FailedFile] = []
    least = segmenter.spec.encoder.patch_points
    axis = _choose_axis(up, segmenter.spec.input.axis)
    for file in _read_files(paths, PART_POINTS, axis, "segmenting", reporter):
        if isinstance(file, FailedFile):
            failed.append(file)
            continue
        cloud = repeated(file.z_up(), max(least, len(file.points)))
        prediction = segmenter(torch.from_numpy(cloud)[None], category)
        parts = prediction.parts[0, : len(file.points)].cpu().numpy()
        done.append(SegmentedFile(file.source, file.points, parts, file.assumed_up, file.left_out))
    return done, failed


def plan_parts(paths: Sequence[Path], output: Path) -> Destination:
    """Decide where the parts of each file will be written, before anything is read.

    Args:
        paths: the inputs, without folders.
        output: a folder for one .ply per input, a .ply for a single input, or a .npz for all inputs.

    Raises:
        ConfigError: if the inputs do not fit the output.
    """
    if output.suffix.lower() not in ("", ".ply", ".npz"):
        msg = f"parts are written as .ply or .npz, not {output.suffix}; use one of these, or name a folder"
        raise ConfigError(msg, settings=("output",))
    single = output.suffix.lower() in (".ply", ".npz")
    return plan_output(_distinct(paths), output, None if single else "ply")


def write_parts(
    files: Sequence[SegmentedFile], part_names: Sequence[str], destination: Destination
) -> None:
    """Write points and parts: coloured PLY files with a ``part`` property, or one NumPy archive.

    For an input named ``chair`` the archive holds ``chair.points`` (n, 3) and ``chair.parts`` (n,) int64;
    ``part_names`` holds the names of all parts.
    """
    if destination.suffix == ".npz":
        arrays: dict[str, NDArray[np.generic]] = {"part_names": np.array(part_names)}
        for file in files:
            arrays[f"{destination.names[file.source]}.points"] = file.points
            arrays[f"{destination.names[file.source]}.parts"] = file.parts
        with write_aside(destination.output) as aside:
            np.savez(aside, allow_pickle=False, **arrays)
        return
    for file in files:
        with write_aside(destination.path(file.source)) as aside:
            aside.write_bytes(_ply(file, part_names))


def _ply(file: SegmentedFile, part_names: Sequence[str]) -> bytes:
    """A binary PLY with each point's part as a number and a colour; comments hold the names of the parts."""
    kind, code = ("double", "<f8") if file.points.dtype == np.float64 else ("float", "<f4")
    fields = [
        ("x", code),
        ("y", code),
        ("z", code),
        ("red", "u1"),
        ("green", "u1"),
        ("blue", "u1"),
    ]
    rows = np.empty(len(file.points), dtype=[*fields, ("part", "<u2")])
    for column, name in enumerate("xyz"):
        rows[name] = file.points[:, column]
    for column, name in enumerate(("red", "green", "blue")):
        rows[name] = _PALETTE[file.parts % len(_PALETTE), column]
    rows["part"] = file.parts
    comments = (f"comment part {part}: {part_names[part]}" for part in np.unique(file.parts))
    header = [
        "ply",
        "format binary_little_endian 1.0",
        *comments,
        f"element vertex {len(rows)}",
        *(f"property {kind} {name}" for name in "xyz"),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
        "property ushort part",
        "end_header\n",
    ]
    return "\n".join(header).encode() + rows.tobytes()


# The palette of Okabe and Ito without black; most colour-blind people can tell its colours apart.
_PALETTE = np.array(
    [
        (230, 159, 0),
        (86, 180, 233),
        (0, 158, 115),
        (240, 228, 66),
        (0, 114, 178),
        (213, 94, 0),
        (204, 121, 167),
    ],
    dtype=np.uint8,
)


def _read_files(
    paths: Iterable[Input],
    count: int,
    up: Axis,
    task: str,
    reporter: Reporter,
) -> Iterator[_FilePoints | FailedFile]:
    """The points of each file, at most ``count``, or the reason why it cannot be read.

    Raises:
        ConfigError: if there are no files.
        DataError: if a folder holds none.
    """
    given = [path if isinstance(path, MemoryShape) else Path(path) for path in paths]
    sources = _distinct(files_in_folders(given, say=reporter.say))
    if not sources:
        msg = "no files were named; name at least one mesh or point cloud"
        raise ConfigError(msg)
    for done, source in enumerate(sources, start=1):
        in_memory = isinstance(source, MemoryShape)
        path = Path(source.name) if isinstance(source, MemoryShape) else source
        try:
            if isinstance(source, MemoryShape):
                shape = source.read()
                rng = named_rng(_SEED, source.name if source.is_named else "")
            else:
                shape, rng = read_mesh(source), named_rng(_SEED, source.name)
            available = len(shape.points) if isinstance(shape, PointSet) else count
            points = draw_in_place(shape, min(count, available), rng=rng, up=None)
        except DataError as error:
            reason = f"{path}: {error}" if in_memory else str(error)
            yield FailedFile(path, reason)
        else:
            declared = shape.declared_up
            left_out = LeftOut.of(shape, str(path))
            # Nobody can state an up axis in an array, so that the given one is no assumption.
            assumed = declared is None and not in_memory
            yield _FilePoints(path, points, declared or up, assumed, left_out)
        reporter.progress(task, done, len(sources))


def _classified(
    files: Sequence[_FilePoints], prediction: ClassPrediction
) -> Iterator[ClassifiedFile]:
    for file, ranked in zip(files, prediction.top(len(prediction.classes)), strict=True):
        yield ClassifiedFile(file.source, tuple(ranked), file.assumed_up, file.left_out)


def _choose_axis(up: str | None, trained: Axis) -> Axis:
    return trained if up is None else check_axis(up)


def _distinct(paths: Sequence[Given]) -> list[Given]:
    """Each file once, in the spelling and order in which it was first named; every shape in memory."""
    first: dict[str, Given] = {}
    for number, path in enumerate(paths):
        place = os.path.realpath(path) if isinstance(path, Path) else f"\0{number}"
        first.setdefault(place, path)
    return list(first.values())
