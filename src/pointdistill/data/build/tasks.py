"""The tasks of a worker: read a piece of a source, or join the pieces of a shard; both can be repeated."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.build.error_policy import classify_read_error
from pointdistill.data.build.pool import NO_STEP
from pointdistill.data.build.spans import Span
from pointdistill.data.build.state import BuildFolder, Outcome, Refusal, shard_name
from pointdistill.data.corpus.manifest import ShardRecord
from pointdistill.data.corpus.shard import (
    NO_SIZES,
    Row,
    encode,
    make_row,
    read_block,
    sizes_of,
    stored_sizes,
    write_shard,
)
from pointdistill.data.files import sha256_of
from pointdistill.data.meshes.records import MINIMUM_POINTS
from pointdistill.data.sources.base import Entry, Source, SourceCloud, source_shape_rng
from pointdistill.errors import DataError


@dataclass(frozen=True, slots=True)
class PieceTask:
    """Read the shapes of one piece."""

    shard: int
    """The shard that the shapes will be in."""

    span: Span
    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class JoinTask:
    """Join the pieces of one shard, in their order."""

    shard: int
    pieces: Sequence[Span]


BuildTask: TypeAlias = PieceTask | JoinTask


@dataclass(frozen=True, slots=True)
class BuildJob:
    """The work on one source; pickled into every worker."""

    source: Source
    seed: int
    points: int
    folder: BuildFolder

    def __call__(self, task: BuildTask, started: Callable[[int], None]) -> Outcome:
        """Run one task; calls ``started`` with the index of each shape in the task before reading it."""
        if isinstance(task, JoinTask):
            return self._join(task)
        return self._build(task, started)

    def _build(self, task: PieceTask, started: Callable[[int], None]) -> Outcome:
        tempfile.gettempdir()  # raises if there is no place for temporary files; else every shape would be refused
        rows: list[Row] = []
        refused: list[Refusal] = []
        for index, entry in enumerate(task.entries):
            started(index)
            result = self._read(entry)
            if isinstance(result, Refusal):
                refused.append(result)
            else:
                rows.append(result)
        started(NO_STEP)
        if rows:
            facts = self.source.facts
            block = encode(rows, source=facts.name, label_names=facts.labels)
            path, sizes = self.folder.piece(task.span), sizes_of(block)
            write_shard(path, [block], sizes, source=facts.name, label_names=facts.labels)
        outcome = Outcome(kept=len(rows), refused=tuple(refused))
        self.folder.finish_piece(task.span, outcome)
        return outcome

    def _read(self, entry: Entry) -> Row | Refusal:
        """One shape, or why it cannot be used.

        Raises:
            MemoryError, OSError, DataError: if the shape is not to blame, see `classify_read_error`.
        """
        outer = sys.exception()
        rng = source_shape_rng(seed=self.seed, source=self.source.facts.name, shape_id=entry.id)
        try:
            cloud = self.source.read(entry, self.points, rng=rng)
            points, part = at_most(cloud, self.points, rng=rng)
            row = make_row(entry.id, points, label=entry.label, part=part)
            check_use(row)
        except Exception as error:  # a bug in a reader costs the shape, not the build
            return classify_read_error(entry.id, error, outer=outer)
        return row

    def _join(self, task: JoinTask) -> Outcome:
        filled: list[Path] = []
        refused: list[Refusal] = []
        for piece in task.pieces:
            outcome = self.folder.piece_outcome(piece)
            if outcome is None:
                msg = f"{self.folder.piece(piece)}: no longer there, another host has joined it"
                raise FileNotFoundError(msg)
            filled += [self.folder.piece(piece)] if outcome.kept else []
            refused += outcome.refused
        record = self._write(task.shard, filled)
        outcome = Outcome(kept=record.shapes if record else 0, refused=tuple(refused))
        self.folder.finish_shard(task.shard, outcome, record)
        self.folder.remove_pieces(task.pieces)
        return outcome

    def _write(self, shard: int, parts: Sequence[Path]) -> ShardRecord | None:
        """Write a shard and move it into the corpus; None if there is nothing to write."""
        if not parts:
            return None
        facts = self.source.facts
        sizes = sum((stored_sizes(path) for path in parts), NO_SIZES)
        aside = self.folder.shard(shard)
        blocks = (read_block(path) for path in parts)
        write_shard(aside, blocks, sizes, source=facts.name, label_names=facts.labels)
        record = ShardRecord(
            file=shard_name(facts.name, shard),
            source=facts.name,
            shapes=sizes.shapes,
            points=sizes.points,
            bytes=aside.stat().st_size,
            sha256=sha256_of(aside),
        )
        aside.replace(self.folder.corpus / record.file)
        return record


def at_most(
    cloud: SourceCloud, count: int, *, rng: np.random.Generator
) -> tuple[NDArray[np.floating], NDArray[np.uint8] | None]:
    """Points and part labels of a cloud; if it has more than ``count``, a random subset in the cloud's order."""
    points, part = cloud.points, cloud.part
    if len(points) <= count:
        return points, part
    chosen = np.sort(rng.choice(len(points), size=count, replace=False, shuffle=False))
    return points[chosen], None if part is None else part[chosen]


def check_use(row: Row) -> None:
    """Raise if a shape is of no use for training.

    Raises:
        DataError: if it has fewer than 32 points, or all at one place.
    """
    count = len(row.shape.points)
    if count < MINIMUM_POINTS:
        msg = f"{count} points, at least {MINIMUM_POINTS} are needed"
        raise DataError(msg)
    if row.shape.scale == 0:
        msg = f"all {count:,} points are at one place"
        raise DataError(msg)
