"""Finds shapes that a folder or a corpus holds several times, with the fingerprints of the leak check.

Each shape is compared with the shapes before it, and joins the group of the first one that has the same surface.
Every member of a group is thereby linked to its first member, and large groups cost no more than small ones.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.corpus.manifest import MANIFEST_NAME, REFUSED_NAME
from pointdistill.data.corpus.refused import RefusedShape, read_refused
from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.files.files import write_aside
from pointdistill.data.files.packed_tars import temporary_folder
from pointdistill.data.files.processes import ordered_map
from pointdistill.data.files.schema import to_plain
from pointdistill.data.leaks.candidates import (
    MOST,
    POINTS,
    Fingerprints,
    Queries,
    corpus_fingerprints,
    nearest_candidates,
)
from pointdistill.data.leaks.find import Match, first_matches
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.data.sources.base import ListedFiles
from pointdistill.errors import ConfigError
from pointdistill.reporter import SILENT, Reporter

SUFFIXES = (".csv", ".json")

FEW_SHAPES = 48
"""Up to this many shapes are handled in this process, because starting others would take longer."""

_QUERIES = MOST // 2
"""Shapes whose candidates are looked for at once. Those among them that come later are no candidates: at least as
many earlier ones are left."""

_BLOCK = 8  # shapes a task


@dataclass(frozen=True, slots=True)
class Duplicate:
    """One shape of a group."""

    id: str
    gap: float | None
    """How far its surface is from that of an earlier member, as `surface_gap` measures it: about 1 for two samples
    of one surface. None for the first member."""

    scale: float | None
    """How many times as large as the first member it is, each in the unit of its file. None for the first."""


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """Every group of shapes with the same surface."""

    shapes: int
    """Shapes that were compared."""

    groups: tuple[tuple[Duplicate, ...], ...]
    """Of two shapes or more each, in the order of their first members."""

    refused: tuple[RefusedShape, ...]
    """Files that could not be used."""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "shapes": self.shapes,
            "groups": [[to_plain(d) for d in group] for group in self.groups],
            "refused": [{"id": shape.id, "reason": shape.cause} for shape in self.refused],
        }


@dataclass(frozen=True, slots=True)
class _Task:
    """Shapes of a corpus, each with the earlier shapes that may be the same."""

    corpus: Corpus
    shapes: tuple[int, ...]
    candidates: tuple[NDArray[np.int64], ...]
    same_size: bool


def find_duplicates_in(
    path: Path,
    *,
    up: str | None = None,
    same_size: bool = False,
    workers: int | None = None,
    reporter: Reporter = SILENT,
) -> DuplicateReport:
    """The groups of shapes in a folder of files, or in a corpus, that are the same up to turn, scale and place.

    Args:
        path: a folder of mesh and point files, or a corpus, which keeps its fingerprints for the next call.
        up: up axis of files that do not state their own; None for z. Turned copies are found about this axis.
        same_size: whether copies in another size are other shapes; else they are found too.
        workers: number of processes; 1 means this one, None every usable core, or this one for few shapes.
        reporter: receives progress.

    Raises:
        ConfigError: if ``up`` is not an axis.
        DataError: if there is no such folder, or nothing in it can be used.
    """
    if (path / MANIFEST_NAME).is_file():
        corpus = open_corpus(path)
        groups = find_duplicates(corpus, same_size=same_size, workers=workers, reporter=reporter)
        return DuplicateReport(len(corpus), groups, ())
    source = open_source("folder", SourceRequest(path=path, up=up.lower() if up else None))
    for line in source.remarks if isinstance(source, ListedFiles) else ():
        reporter.say(line)
    files = len(source.entries())
    # The points go to disk, 24 KiB a shape: comparing shapes needs them again, and memory may not hold them.
    with temporary_folder() as folder:
        alone = workers == 1 or (workers is None and files <= FEW_SHAPES)
        built = build_corpus(
            source,
            Path(folder, "corpus"),
            points=POINTS,
            workers=0 if alone else workers,
            reporter=reporter,
        )
        corpus = open_corpus(built.path)
        groups = find_duplicates(corpus, same_size=same_size, workers=workers, reporter=reporter)
        listed = built.path / REFUSED_NAME
        refused = tuple(read_refused(listed)) if built.refused else ()
        return DuplicateReport(len(corpus), groups, refused)


def find_duplicates(
    corpus: Corpus,
    *,
    same_size: bool = False,
    workers: int | None = None,
    reporter: Reporter = SILENT,
) -> tuple[tuple[Duplicate, ...], ...]:
    """The groups of shapes of a corpus that are the same; see `find_duplicates_in`."""
    if workers is None and len(corpus) <= FEW_SHAPES:
        workers = 1

    def progress(task: str) -> Callable[[int, int], None]:
        return lambda done, total: reporter.progress(task, done, total)

    prints = corpus_fingerprints(corpus, workers=workers, progress=progress("fingerprinting"))
    earlier = _earlier_candidates(corpus, prints, progress("looking for candidates"))
    shapes = sorted(earlier)
    tasks = [
        _Task(corpus, tuple(block), tuple(earlier[shape] for shape in block), same_size)
        for block in (shapes[first : first + _BLOCK] for first in range(0, len(shapes), _BLOCK))
    ]
    first_of = list(range(len(corpus)))  # the first member of each shape's group
    gaps: dict[int, float] = {}
    scales: dict[int, float] = {}
    done = 0
    for task, matches in zip(tasks, ordered_map(_compare, tasks, workers=workers), strict=True):
        for shape, match in zip(task.shapes, matches, strict=True):
            if match is not None:
                first_of[shape] = first_of[match.corpus_index]
                gaps[shape] = match.gap
                scales[shape] = match.scale * scales.get(match.corpus_index, 1.0)
        done += len(task.shapes)
        reporter.progress("comparing surfaces", done, len(shapes))
    members: dict[int, list[int]] = {}
    for shape in gaps:
        members.setdefault(first_of[shape], []).append(shape)
    return tuple(
        tuple(
            Duplicate(_name(corpus, k), gaps.get(k), scales.get(k))
            for k in (first, *members[first])
        )
        for first in sorted(members)
    )


def _earlier_candidates(
    corpus: Corpus, prints: Fingerprints, progress: Callable[[int, int], None]
) -> dict[int, NDArray[np.int64]]:
    """For each shape that has any, the earlier shapes with a close fingerprint, nearest first."""
    found = {}
    for start in range(0, len(corpus), _QUERIES):
        stop = min(start + _QUERIES, len(corpus))
        queries = Queries.of(corpus.points(index) for index in range(start, stop))
        before = Fingerprints(prints.values[:stop], prints.points[:stop])
        for shape, near in enumerate(nearest_candidates(before, queries), start=start):
            if len(earlier := near[near < shape]):
                found[shape] = earlier
        progress(stop, len(corpus))
    return found


def _compare(task: _Task) -> list[Match | None]:
    clouds = [task.corpus.points(index) for index in task.shapes]
    return first_matches(clouds, task.candidates, task.corpus, same_size=task.same_size)


def _name(corpus: Corpus, index: int) -> str:
    shape = corpus[index]
    return shape.id if len(corpus.sources) == 1 else f"{shape.source}/{shape.id}"


def check_report_path(path: Path) -> None:
    """Check that a report can be written in the format of the path's suffix.

    Raises:
        ConfigError: for another suffix.
    """
    if path.suffix.lower() not in SUFFIXES:
        msg = f"the output must end in {' or '.join(SUFFIXES)}, got {str(path)!r}"
        raise ConfigError(msg, settings=("output",))


def write_report(path: Path, report: DuplicateReport) -> None:
    """Write the groups as a table of ``group,shape,gap,scale`` (.csv), or everything as JSON (.json)."""
    check_report_path(path)
    # Bytes of names that are not UTF-8 become escapes, as JSON has them.
    escaping = "backslashreplace"
    with (
        write_aside(path) as aside,
        aside.open("w", encoding="utf-8", errors=escaping, newline="") as file,
    ):
        if path.suffix.lower() == ".csv":
            table = csv.writer(file)
            table.writerow(("group", "shape", "gap", "scale"))
            for number, group in enumerate(report.groups, start=1):
                table.writerows(
                    (
                        number,
                        d.id,
                        "" if d.gap is None else f"{d.gap:.3f}",
                        "" if d.scale is None else f"{d.scale:.4g}",
                    )
                    for d in group
                )
            return
        json.dump(report.plain(), file, indent=1, ensure_ascii=False)
        file.write("\n")
