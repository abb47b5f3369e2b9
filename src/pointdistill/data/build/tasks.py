"""What a worker does: build a piece, or join the pieces of a shard; either can be done again."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.build.state import BuildFolder, Outcome, Refusal
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
from pointdistill.data.sources.base import Cloud, Entry, Source, shape_rng
from pointdistill.errors import DataError

_CAUSE_CHARACTERS = 500

# Faults of the machine, not of a shape: to refuse shapes for them would lose a whole corpus.
_MACHINE_FAULTS = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EMFILE", "ENFILE", "ESTALE", "ENOTCONN", "EHOSTDOWN")
    if hasattr(errno, name)
)


@dataclass(frozen=True, slots=True)
class PieceTask:
    """Build the shapes of one piece."""

    number: int
    entries: Sequence[Entry]
    given_up: Mapping[int, str] = field(default_factory=dict)
    """Entries, by their place in ``entries``, that are refused unread, with the cause."""


@dataclass(frozen=True, slots=True)
class JoinTask:
    """Join the pieces of one shard."""

    shard: int
    pieces: Sequence[int]


BuildTask: TypeAlias = PieceTask | JoinTask


@dataclass(frozen=True, slots=True)
class BuildJob:
    """The work on one source; pickled into every worker."""

    source: Source
    seed: int
    points: int
    folder: BuildFolder

    def __call__(self, task: BuildTask, started: Callable[[int], None]) -> Outcome:
        """Do one task; ``started`` is told each shape's place before it is read, and at last their count."""
        if isinstance(task, JoinTask):
            return self._join(task)
        return self._build(task, started)

    def _build(self, task: PieceTask, started: Callable[[int], None]) -> Outcome:
        rows: list[Row] = []
        refused: list[Refusal] = []
        for place, entry in enumerate(task.entries):
            if place in task.given_up:
                refused.append(Refusal(entry.id, task.given_up[place]))
                continue
            started(place)
            result = self._read(entry)
            if isinstance(result, Refusal):
                refused.append(result)
            else:
                rows.append(result)
        started(len(task.entries))
        if rows:
            facts = self.source.facts
            block = encode(rows, source=facts.name, label_names=facts.labels)
            path, sizes = self.folder.piece(task.number), sizes_of(block)
            write_shard(path, [block], sizes, source=facts.name, label_names=facts.labels)
        outcome = Outcome(kept=len(rows), refused=tuple(refused))
        self.folder.finish_piece(task.number, outcome)
        return outcome

    def _read(self, entry: Entry) -> Row | Refusal:
        """One shape, or why it cannot be used."""
        rng = shape_rng(seed=self.seed, source=self.source.facts.name, shape_id=entry.id)
        try:
            cloud = self.source.read(entry, self.points, rng=rng)
            points, part = at_most(cloud, self.points, rng=rng)
            row = make_row(entry.id, points, label=entry.label, part=part)
            check_use(row)
        except Exception as error:  # a reader's bug costs its shape, not the build
            if _is_machine_fault(error):
                raise
            return Refusal(entry.id, _one_line(error))
        return row

    def _join(self, task: JoinTask) -> Outcome:
        filled: list[Path] = []
        refused: list[Refusal] = []
        for number in task.pieces:
            piece = self.folder.piece_outcome(number)
            assert piece is not None, "a shard is joined when all its pieces are finished"
            filled += [self.folder.piece(number)] if piece.kept else []
            refused += piece.refused
        record = self._write(task.shard, filled)
        outcome = Outcome(kept=record.shapes if record else 0, refused=tuple(refused))
        self.folder.finish_shard(task.shard, outcome, record)
        self.folder.remove_pieces(task.pieces)
        return outcome

    def _write(self, shard: int, pieces: Sequence[Path]) -> ShardRecord | None:
        """Write a shard and move it into the corpus; None where there is nothing to write."""
        if not pieces:
            return None
        facts = self.source.facts
        sizes = sum((stored_sizes(path) for path in pieces), NO_SIZES)
        aside = self.folder.shard(shard)
        blocks = (read_block(path) for path in pieces)
        write_shard(aside, blocks, sizes, source=facts.name, label_names=facts.labels)
        record = ShardRecord(
            file=f"{facts.name}-{shard:05d}.h5",
            source=facts.name,
            shapes=sizes.shapes,
            points=sizes.points,
            bytes=aside.stat().st_size,
            sha256=sha256_of(aside),
        )
        aside.replace(self.folder.corpus / record.file)
        return record


def at_most(
    cloud: Cloud, count: int, *, rng: np.random.Generator
) -> tuple[NDArray[np.floating], NDArray[np.uint8] | None]:
    """Points and part labels of a cloud; where it has more than ``count``, a random subset in order."""
    points, part = cloud.points, cloud.part
    if len(points) <= count:
        return points, part
    chosen = np.sort(rng.choice(len(points), size=count, replace=False, shuffle=False))
    return points[chosen], None if part is None else part[chosen]


def check_use(row: Row) -> None:
    """Raise where a shape is of no use to training, whatever its file was.

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


def _is_machine_fault(error: BaseException | None) -> bool:
    """Whether the error, or one that it was raised from, is the machine's and not the shape's."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _MACHINE_FAULTS:
            return True
        error = error.__cause__ or error.__context__
    return False


def _one_line(error: Exception) -> str:
    """The cause of a refusal: our own errors as they are, others with their kind."""
    text = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:_CAUSE_CHARACTERS]
