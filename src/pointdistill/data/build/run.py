"""From a source to a finished corpus: in parallel, resumable, the same bytes every time."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pointdistill.data.build.plan import Plan, make_plan
from pointdistill.data.build.pool import Died, Pool, open_pool
from pointdistill.data.build.publish import BuildReport, publish, report, report_complete
from pointdistill.data.build.state import Outcome, remove_build, unfinished_build
from pointdistill.data.build.tasks import BuildJob, BuildTask, JoinTask, PieceTask
from pointdistill.data.corpus.manifest import MANIFEST_NAME
from pointdistill.data.meshes.records import MINIMUM_POINTS
from pointdistill.data.sources.base import Entry, Source
from pointdistill.data.workers import usable_cores
from pointdistill.errors import ConfigError, DataError

DEFAULT_POINTS = 16_384
_DEATHS_OF_A_SHAPE = 2  # the first may be the machine's fault: another program took the memory
_DEATHS_BETWEEN_SHAPES = 3


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a build is, in shapes."""

    done: int
    total: int
    refused: int


def build_corpus(
    source: Source,
    output: Path,
    *,
    points: int = DEFAULT_POINTS,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> BuildReport:
    """Make a corpus of a source's shapes, or go on with one that was interrupted.

    Shapes that cannot be used are left out and listed with their cause. ``corpus.json`` is written
    last: the folder is a finished corpus or none.

    Args:
        source: what to read.
        output: the corpus folder; new, empty, or with an unfinished build of the same settings.
        points: points for a shape, at least 32; a cloud that has fewer keeps them all.
        seed: not negative; a shape's points depend on it, the source's name and the shape's id
            alone.
        workers: processes; 0 works in this one, None takes every usable core.
        progress: told how far the build is, at every shape.

    Raises:
        ConfigError: if ``points``, ``seed`` or ``workers`` is out of range.
        CorpusError: if ``output`` holds something else.
        DataError: if the source cannot be listed, or none of its shapes can be used, or the disk is
            full.
    """
    _check(points=points, seed=seed, workers=workers)
    settings = {"seed": seed, "points": points, "source": asdict(source.facts)}
    if (output / MANIFEST_NAME).is_file():
        return report_complete(output, settings)
    entries = _listed(source)
    plan = make_plan(len(entries), points)
    # A version that divides the work otherwise must not go on with pieces of this one.
    division = {"shapes": len(entries), "pieces": len(plan.pieces), "shards": plan.shards}
    done = resumed = 0
    try:
        with unfinished_build(output, settings | {"division": division}) as folder:
            job = BuildJob(source, seed=seed, points=points, folder=folder)
            build = _Build(job, plan, entries, progress)
            done = resumed = build.done
            try:
                build.run(usable_cores() if workers is None else workers)
            finally:
                done = build.done
            publish(job, plan)
    except Exception as error:
        if not _disk_is_full(error):
            raise
        msg = (
            f"{output}: no space left on the disk; {done:,} of {len(entries):,} shapes are safe: "
            f"make room and run the same again to go on"
        )
        raise DataError(msg) from error
    remove_build(output)
    return replace(report(output), resumed=resumed)


class _Build:
    """One run over the pieces and shards that are not finished yet."""

    def __init__(
        self,
        job: BuildJob,
        plan: Plan,
        entries: Sequence[Entry],
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.done = 0
        """Shapes in finished pieces and shards."""

        self._job = job
        self._plan = plan
        self._entries = entries
        self._progress = progress
        self._refused = 0
        self._begun: dict[int, int] = {}
        """Shapes begun in each running piece."""

        self._deaths: dict[tuple[int, int | None], int] = {}
        self._missing = self._find_missing()

    def run(self, workers: int) -> None:
        """Build what is missing."""
        self._tell()
        missing = sum(map(len, self._missing.values()))
        useful = min(workers, max(missing, 1))
        with open_pool(self._job, workers=useful, on_step=self._on_step) as pool:
            for shard, pieces in self._missing.items():
                for number in pieces:
                    piece = self._plan.pieces[number]
                    pool.submit(PieceTask(number, self._entries[piece.start : piece.stop]))
                self._join_if_ready(shard, pool)
            for event in pool.events():
                if isinstance(event, Died):
                    pool.submit(self._after_death(event), first=True)
                elif isinstance(event.task, PieceTask):
                    self._on_piece(event.task.number, event.result, pool)

    def _find_missing(self) -> dict[int, list[int]]:
        """Count what is finished; the unfinished shards and, of each, the unfinished pieces."""
        missing: dict[int, list[int]] = {}
        for shard in range(self._plan.shards):
            whole = self._job.folder.shard_outcome(shard)
            if whole is not None:
                self._count(whole)
                continue
            missing[shard] = []
            for piece in self._plan.pieces_of(shard):
                outcome = self._job.folder.piece_outcome(piece.number)
                if outcome is None:
                    missing[shard].append(piece.number)
                else:
                    self._count(outcome)
        return missing

    def _count(self, outcome: Outcome) -> None:
        self.done += outcome.shapes
        self._refused += len(outcome.refused)

    def _join_if_ready(self, shard: int, pool: Pool[BuildTask, Outcome]) -> None:
        """Joins go before other work: until then the shard's shapes take their room twice over."""
        if not self._missing[shard]:
            numbers = tuple(piece.number for piece in self._plan.pieces_of(shard))
            pool.submit(JoinTask(shard, numbers), first=True)

    def _on_piece(self, number: int, outcome: Outcome, pool: Pool[BuildTask, Outcome]) -> None:
        self._begun.pop(number, None)
        self._count(outcome)
        shard = self._plan.pieces[number].shard
        self._missing[shard].remove(number)
        self._join_if_ready(shard, pool)
        self._tell()

    def _on_step(self, task: BuildTask, step: int) -> None:
        if isinstance(task, PieceTask):
            self._begun[task.number] = step
            self._tell()

    def _after_death(self, event: Died[BuildTask]) -> BuildTask:
        """The task again; a shape on which workers died before is given up.

        Raises:
            DataError: if workers keep dying where no shape is read.
        """
        task, step = event.task, event.step
        key = (task.number if isinstance(task, PieceTask) else -1 - task.shard, step)
        deaths = self._deaths[key] = self._deaths.get(key, 0) + 1
        if isinstance(task, PieceTask) and step is not None and step < len(task.entries):
            if deaths < _DEATHS_OF_A_SHAPE:
                return task
            cause = f"reading it ended the process {deaths} times ({event.how})"
            return replace(task, given_up={**task.given_up, step: cause})
        if deaths < _DEATHS_BETWEEN_SHAPES:
            return task
        msg = (
            f"worker processes keep ending while no shape is read ({event.how}); if memory is "
            f"short, use fewer workers, and run the same again to go on"
        )
        raise DataError(msg)

    def _tell(self) -> None:
        if self._progress:
            done = self.done + sum(self._begun.values())
            self._progress(Progress(done, len(self._entries), self._refused))


def _check(*, points: int, seed: int, workers: int | None) -> None:
    if points < MINIMUM_POINTS:
        msg = f"points must be at least {MINIMUM_POINTS}, got {points}"
        raise ConfigError(msg)
    if seed < 0:
        msg = f"seed must not be negative, got {seed}"
        raise ConfigError(msg)
    if workers is not None and workers < 0:
        msg = f"workers must be at least 0 (0: in this process), got {workers}"
        raise ConfigError(msg)


def _listed(source: Source) -> list[Entry]:
    """The source's entries in id order, which is the order of UTF-8 bytes too.

    Raises:
        DataError: if there are none, or two share an id.
    """
    entries = sorted(source.entries(), key=lambda entry: entry.id)
    if not entries:
        msg = f"{source.facts.name} holds no shapes; check its path and options"
        raise DataError(msg)
    for before, after in itertools.pairwise(entries):
        if before.id == after.id:
            msg = f"{source.facts.name} holds {after.id!r} twice; rename or remove one"
            raise DataError(msg)
    return entries


def _disk_is_full(error: BaseException) -> bool:
    """Whether a write failed for lack of space, or of what the user's quota leaves of it."""
    full = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
    return isinstance(error, OSError) and error.errno in full
