"""Schedules what a build still lacks: workers read spans of shapes, and join finished spans to shards.

When a worker dies, its span is divided, so that the shape at fault is tried alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from pointdistill.data.corpus_building.division import Plan, Span, cut, tile
from pointdistill.data.corpus_building.limits import ShapeLimits
from pointdistill.data.corpus_building.pool import Died, Pool, open_pool
from pointdistill.data.corpus_building.state import Outcome, Refusal
from pointdistill.data.corpus_building.tasks import BuildJob, BuildTask, JoinTask, PieceTask
from pointdistill.data.meshes.records import LeftOut
from pointdistill.data.sources.base import Entry
from pointdistill.errors import DataError
from pointdistill.reporter import Reporter

# The first death may not be the shape's fault: another program may have taken the memory.
_DEATHS_OF_A_SHAPE = 2
_DEATHS_BETWEEN_SHAPES = 3


class Build:
    """One run over the spans and shards that are not finished yet."""

    def __init__(
        self,
        job: BuildJob,
        plan: Plan,
        entries: Sequence[Entry],
        task: str,
        reporter: Reporter,
        *,
        shards: Iterable[int] | None = None,
    ) -> None:
        """Find what is missing from ``shards``, by default all of them; ``task`` is the reporter's text."""
        self.done = 0
        """Shapes in finished spans and shards."""

        self.total = 0
        self._job = job
        self._entries = entries
        self._task = task
        self._reporter = reporter
        self._refused = 0
        self._left_out = LeftOut()
        self._started: dict[Span, int] = {}
        """How many shapes of each running span are done."""

        self._deaths: Counter[object] = Counter()
        self._missing: dict[int, set[Span]] = {}
        """The unfinished spans of each unfinished shard."""

        self._finished: dict[int, list[Span]] = {}
        self._find_missing(plan, range(plan.shards) if shards is None else shards)

    def run(self, workers: int, limits: ShapeLimits, *, cluster: str | None = None) -> None:
        """Build what is missing, on ``workers`` processes or on a cluster's."""
        self._report()
        with self._open_pool(workers, limits, cluster) as pool:
            for shard, spans in self._missing.items():
                for span in sorted(spans):
                    pool.submit(self._piece(shard, span))
                self._join_if_ready(shard, pool)
            for event in pool.events():
                if isinstance(event, Died):
                    self._after_death(event, pool)
                elif isinstance(event.task, PieceTask):
                    self._finish(event.task.shard, event.task.span, event.result, pool)
        if line := self._left_out.line():
            self._reporter.say(line)

    def _open_pool(
        self, workers: int, limits: ShapeLimits, cluster: str | None
    ) -> Pool[BuildTask, Outcome]:
        if cluster is not None:
            from pointdistill.data.corpus_building.dask_driver import open_cluster

            return open_cluster(self._job, cluster, limits)
        missing = sum(span.shapes for spans in self._missing.values() for span in spans)
        useful = min(workers, max(missing, 1))
        return open_pool(self._job, workers=useful, on_step=self._on_step, limits=limits)

    def _find_missing(self, plan: Plan, shards: Iterable[int]) -> None:
        """Count what is finished, and note the unfinished spans of each unfinished shard."""
        finished = self._job.folder.finished_pieces()
        for shard in shards:
            pieces = [Span(piece.start, piece.stop) for piece in plan.pieces_of(shard)]
            span = plan.span_of(shard)
            self.total += span.shapes
            whole = self._job.folder.shard_outcome(shard)
            if whole is not None:
                self._count(whole)
                continue
            # A piece that is gone by now was joined by a worker of a killed build: it is read once more.
            inside = [p for p in finished if span.start <= p.start and p.stop <= span.stop]
            outcomes = {piece: self._job.folder.piece_outcome(piece) for piece in inside}
            there = [piece for piece, outcome in outcomes.items() if outcome is not None]
            self._finished[shard], gaps = tile(span, there)
            self._missing[shard] = {part for gap in gaps for part in cut(gap, pieces)}
            for done in self._finished[shard]:
                if outcome := outcomes[done]:
                    self._count(outcome)

    def _count(self, outcome: Outcome) -> None:
        self.done += outcome.shapes
        self._refused += len(outcome.refused)
        self._left_out += outcome.left_out

    def _piece(self, shard: int, span: Span) -> PieceTask:
        return PieceTask(shard, span, self._entries[span.start : span.stop])

    def _join_if_ready(self, shard: int, pool: Pool[BuildTask, Outcome]) -> None:
        """Submit the join of a shard whose pieces are all there, before other tasks: they take up disk space."""
        if not self._missing[shard]:
            pool.submit(JoinTask(shard, sorted(self._finished[shard])), first=True)

    def _finish(
        self, shard: int, span: Span, outcome: Outcome, pool: Pool[BuildTask, Outcome]
    ) -> None:
        self._started.pop(span, None)
        self._count(outcome)
        self._missing[shard].remove(span)
        self._finished[shard].append(span)
        self._join_if_ready(shard, pool)
        self._report()

    def _on_step(self, task: BuildTask, step: int) -> None:
        if isinstance(task, PieceTask):
            self._started[task.span] = step
            self._report()

    def _after_death(self, event: Died[BuildTask], pool: Pool[BuildTask, Outcome]) -> None:
        """Run the task again; a shape at which workers died twice is given up.

        Raises:
            DataError: if workers keep dying while no shape is read.
        """
        task = event.task
        if isinstance(task, PieceTask) and event.step is not None:
            self._divide(task, task.span.start + event.step, event, pool)
            return
        key = ("between", task.span if isinstance(task, PieceTask) else task.shard)
        self._deaths[key] += 1
        if self._deaths[key] == _DEATHS_BETWEEN_SHAPES:
            msg = (
                f"worker processes keep ending while no shape is read ({event.how}); if memory is "
                f"short, use fewer workers, and run the same again to go on"
            )
            raise DataError(msg)
        pool.submit(task, first=True)

    def _divide(
        self, task: PieceTask, place: int, event: Died[BuildTask], pool: Pool[BuildTask, Outcome]
    ) -> None:
        """Separate a shape at which a worker died from the shapes before and after it.

        Each of the others is then read at most once more, however many shapes of a piece kill their workers.
        """
        self._started.pop(task.span, None)
        missing = self._missing[task.shard]
        missing.remove(task.span)
        alone = Span(place, place + 1)
        # The span submitted last runs first.
        parts = (Span(place + 1, task.span.stop), Span(task.span.start, place), alone)
        missing.update(part for part in parts if part.shapes)
        self._deaths[alone] += 1
        # A second wait for a shape that hangs would be as long as the first.
        given_up = event.failure == "deadline" or self._deaths[alone] == _DEATHS_OF_A_SHAPE
        for part in parts:
            if part.shapes and not (part == alone and given_up):
                pool.submit(self._piece(task.shard, part), first=True)
        if given_up:
            cause = _cause(event, self._deaths[alone])
            refusal = Refusal(self._entries[place].id, cause, event.failure)
            outcome = Outcome(kept=0, refused=(refusal,))
            self._job.folder.finish_piece(alone, outcome)
            self._finish(task.shard, alone, outcome, pool)

    def _report(self) -> None:
        done = self.done + sum(self._started.values())
        note = f"{self._refused:,} refused" if self._refused else ""
        self._reporter.progress(self._task, done, self.total, note=note, unit="shapes")


def _cause(event: Died[BuildTask], deaths: int) -> str:
    """Why a shape was given up, in one line."""
    if event.failure == "crash":
        return f"reading it ended the process {deaths} times ({event.how})"
    return f"reading it took {event.how}"
