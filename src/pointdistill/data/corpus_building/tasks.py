"""The tasks of a worker: read a piece of a source, or join the pieces of a shard; both can be repeated.

An error while a shape is read either refuses that shape, for good or until another attempt, or stops the build:
`classify_read_error` decides.
"""

from __future__ import annotations

import errno
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

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
from pointdistill.data.corpus_building.division import Span
from pointdistill.data.corpus_building.pool import NO_STEP
from pointdistill.data.corpus_building.state import BuildFolder, Outcome, Refusal, shard_name
from pointdistill.data.files.files import disk_is_full, sha256_of, share_lock
from pointdistill.data.meshes.records import MINIMUM_POINTS, LeftOut
from pointdistill.data.sources.base import Entry, Source, SourceCloud, printable, source_shape_rng
from pointdistill.errors import DataError

READ_ERROR = "machine"
"""The failure of a shape whose file this machine could not read; another attempt may succeed."""

_CAUSE_CHARACTERS = 500
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""An object's address in its repr, which differs between processes."""


def _numbers(*names: str) -> frozenset[int]:
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


# These would hit every shape that follows, so going on would refuse them all.
_FATAL = _numbers(
    *("ENOSPC", "EDQUOT", "EROFS", "EMFILE", "ENFILE", "ENOMEDIUM"),
    *("ESTALE", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
)

# These may hit one file for ever, as a bad sector does: stopping would end every build at that file.
_RETRYABLE = _numbers(
    *("EIO", "EREMOTEIO", "ENODATA", "EBADMSG", "EUCLEAN", "ENODEV", "ENXIO"),
    *("ETIMEDOUT", "ECONNRESET", "ECONNABORTED", "EAGAIN", "EACCES", "EPERM"),
)


def classify_read_error(shape_id: str, error: Exception, *, outer: BaseException | None) -> Refusal:
    """The refusal of a shape that could not be read; raises if the error must stop the build.

    Args:
        shape_id: the shape.
        error: what was raised; libraries may have wrapped the original error in others.
        outer: the exception that was being handled when reading began; it and its causes are ignored.

    Raises:
        MemoryError: if memory ran out.
        OSError: if the disk is full.
        DataError: if anything else is wrong with the machine, so that no shape can be read now.
    """
    chain = list(_chain(error, outer))
    # Of several errors with the same number, the outermost: it knows most, such as which file.
    system_errors = {
        e.errno: e for e in reversed(chain) if isinstance(e, OSError) and e.errno is not None
    }
    for number in system_errors.keys() & _FATAL:
        fatal = system_errors[number]
        if disk_is_full(fatal):
            raise fatal  # not from another error: on its way out of a worker an exception loses its cause
        where = fatal.filename or shape_id
        msg = f"{where}: {fatal.strerror or fatal}; put that right and run the same again to go on"
        raise DataError(printable(msg)) from error
    if errno.ENOMEM in system_errors or any(isinstance(e, MemoryError) for e in chain):
        msg = f"{shape_id}: {error}"
        raise MemoryError(msg) from error
    if system_errors.keys() & _RETRYABLE:
        return Refusal(shape_id, refusal_cause(error), READ_ERROR)
    late = any(isinstance(e, TimeoutError) for e in chain)
    return Refusal(shape_id, refusal_cause(error), "deadline" if late else None)


def refusal_cause(error: Exception) -> str:
    """One line about an error, the same in every process; the type is named of errors that are not ours."""
    text = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
    return printable(" ".join(_ADDRESS.sub("", text).split()))[:_CAUSE_CHARACTERS]


def _chain(error: BaseException | None, outer: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes and contexts, up to ``outer``."""
    while error is not None and error is not outer:
        yield error
        error = error.__cause__ or error.__context__


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
        with share_lock(self.folder.at_work):
            return self._join(task) if isinstance(task, JoinTask) else self._build(task, started)

    @property
    def shared(self) -> Path:
        """The folder of the build, in which all hosts of a cluster write; this and the rest: see `ClusterJob`."""
        return self.folder.path

    def finished(self, task: BuildTask) -> Outcome | None:
        """The outcome of a task that is on disk."""
        if isinstance(task, JoinTask):
            return self.folder.shard_outcome(task.shard)
        return self.folder.piece_outcome(task.span)

    def ready(self, task: BuildTask) -> bool:
        """Whether all pieces of a shard are seen; a piece waits for nothing."""
        if not isinstance(task, JoinTask):
            return True
        try:
            return all(self.folder.piece_outcome(span) for span in task.pieces)
        except FileNotFoundError:  # another host is removing them
            return False

    def lasting(self, task: BuildTask) -> bool:
        """Whether it writes a shard; pieces are gone when their shard is written."""
        return isinstance(task, JoinTask)

    def _build(self, task: PieceTask, started: Callable[[int], None]) -> Outcome:
        # Raises if there is no folder for temporary files, which would otherwise refuse every shape.
        tempfile.gettempdir()
        rows: list[Row] = []
        refused: list[Refusal] = []
        left_out = LeftOut()
        for index, entry in enumerate(task.entries):
            started(index)
            result = self._read(entry)
            if isinstance(result, Refusal):
                refused.append(result)
            else:
                row, besides = result
                rows.append(row)
                left_out += besides
        started(NO_STEP)
        if rows:
            facts = self.source.facts
            block = encode(rows, source=facts.name, label_names=facts.labels)
            path, sizes = self.folder.piece(task.span), sizes_of(block)
            write_shard(path, [block], sizes, source=facts.name, label_names=facts.labels)
        outcome = Outcome(kept=len(rows), refused=tuple(refused), left_out=left_out)
        self.folder.finish_piece(task.span, outcome)
        return outcome

    def _read(self, entry: Entry) -> tuple[Row, LeftOut] | Refusal:
        """One shape and what its file holds besides, or why it cannot be used.

        Raises:
            MemoryError, OSError, DataError: if the shape is not to blame, see `classify_read_error`.
        """
        outer = sys.exception()
        rng = source_shape_rng(seed=self.seed, source=self.source.facts.name, shape_id=entry.id)
        try:
            cloud = self.source.read(entry, self.points, rng=rng)
            points, part = at_most(cloud, self.points, rng=rng)
            row = make_row(entry.id, points, label=entry.label, part=part)
            check_usable(row)
        except Exception as error:  # even a bug in a reader should cost the shape, not the build
            return classify_read_error(entry.id, error, outer=outer)
        return row, cloud.left_out

    def _join(self, task: JoinTask) -> Outcome:
        filled: list[Path] = []
        refused: list[Refusal] = []
        left_out = LeftOut()
        for piece in task.pieces:
            outcome = self.folder.piece_outcome(piece)
            if outcome is None:
                msg = f"{self.folder.piece(piece)}: no longer there, another host has joined it"
                raise FileNotFoundError(msg)
            filled += [self.folder.piece(piece)] if outcome.kept else []
            refused += outcome.refused
            left_out += outcome.left_out
        record = self._write(task.shard, filled)
        kept = record.shapes if record else 0
        outcome = Outcome(kept=kept, refused=tuple(refused), left_out=left_out)
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
    """Points and part labels of a cloud: all, or a random subset of ``count``, in the cloud's order."""
    points, part = cloud.points, cloud.part
    if len(points) <= count:
        return points, part
    chosen = np.sort(rng.choice(len(points), size=count, replace=False, shuffle=False))
    return points[chosen], None if part is None else part[chosen]


def check_usable(row: Row) -> None:
    """Raise if a shape is useless for training.

    Raises:
        DataError: if it has fewer than 32 points, or all its points coincide.
    """
    count = len(row.shape.points)
    if count < MINIMUM_POINTS:
        msg = f"{count} points, at least {MINIMUM_POINTS} are needed"
        raise DataError(msg)
    if row.shape.scale == 0:
        msg = f"all {count:,} points are at one place"
        raise DataError(msg)
