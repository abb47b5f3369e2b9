"""From a source to a finished corpus: in parallel, resumable, the same bytes every time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from pointdistill.data.build.commit import finish_retry
from pointdistill.data.build.limits import ShapeLimits
from pointdistill.data.build.plan import make_plan
from pointdistill.data.build.publish import BuildReport, publish, report, report_complete
from pointdistill.data.build.state import remove_build, unfinished_build
from pointdistill.data.build.tasks import BuildJob
from pointdistill.data.build.work import Build, Progress
from pointdistill.data.corpus.manifest import MANIFEST_NAME
from pointdistill.data.files import disk_is_full, no_room
from pointdistill.data.meshes.records import MINIMUM_POINTS
from pointdistill.data.sources.base import Entry, Source
from pointdistill.data.workers import usable_cores
from pointdistill.errors import ConfigError, DataError

__all__ = ["DEFAULT_POINTS", "Progress", "build_corpus"]

DEFAULT_POINTS = 16_384


def build_corpus(
    source: Source,
    output: Path,
    *,
    points: int = DEFAULT_POINTS,
    seed: int = 0,
    workers: int | None = None,
    limits: ShapeLimits | None = None,
    cluster: str | None = None,
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
        workers: processes; 0 works in this one, where no deadline and no memory limit can hold and a crash
            ends the build; None takes every usable core.
        limits: backstops of a shape; None for those of `ShapeLimits`. One that meets them is refused, and
            `retry_corpus` reads it again.
        cluster: address of a dask scheduler whose workers do the work in place of ``workers``; the corpus
            and what the source reads lie on a file system that all hosts share.
        progress: told how far the build is, at every shape.

    Raises:
        ConfigError: if ``points``, ``seed`` or ``workers`` is out of range.
        CorpusError: if ``output`` holds something else.
        DataError: if the source cannot be listed, or none of its shapes can be used, or the disk is
            full.
    """
    _check(points=points, seed=seed, workers=workers)
    finish_retry(output)
    settings = {"seed": seed, "points": points, "source": asdict(source.facts)}
    if (output / MANIFEST_NAME).is_file():
        return report_complete(output, settings)
    entries = listed(source)
    plan = make_plan(len(entries), points)
    # A version that divides the work otherwise must not go on with pieces of this one.
    division = {"shapes": len(entries), "pieces": len(plan.pieces), "shards": plan.shards}
    build: Build | None = None
    with (
        room_needed(
            output, lambda: f"{build.done if build else 0:,} of {len(entries):,} shapes are safe"
        ),
        unfinished_build(output, settings | {"division": division}) as folder,
    ):
        job = BuildJob(source, seed=seed, points=points, folder=folder)
        build = Build(job, plan, entries, progress)
        resumed = build.done
        processes = usable_cores() if workers is None else workers
        build.run(processes, limits or ShapeLimits(), cluster=cluster)
        publish(job, plan)
        remove_build(output)
    return replace(report(output), resumed=resumed)


@contextmanager
def room_needed(
    output: Path, safe: Callable[[], str] = lambda: "what is done is safe"
) -> Iterator[None]:
    """Say in one line that the disk ran full, and how much of the work is safe."""
    try:
        yield
    except Exception as error:
        if not disk_is_full(error):
            raise
        raise no_room(output, error, safe=safe()) from error


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


def listed(source: Source) -> list[Entry]:
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
