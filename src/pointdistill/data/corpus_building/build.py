"""From a source to a finished corpus: in parallel, resumable, the same bytes every time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pointdistill.data.corpus.manifest import MANIFEST_NAME
from pointdistill.data.corpus_building.commit import (
    BuildReport,
    finish_retry,
    publish,
    report,
    report_complete,
)
from pointdistill.data.corpus_building.division import make_plan
from pointdistill.data.corpus_building.limits import ShapeLimits
from pointdistill.data.corpus_building.scheduler import Build
from pointdistill.data.corpus_building.state import remove_build, unfinished_build
from pointdistill.data.corpus_building.tasks import BuildJob
from pointdistill.data.files.files import disk_is_full, no_room
from pointdistill.data.files.processes import usable_cores
from pointdistill.data.meshes.records import MINIMUM_POINTS
from pointdistill.data.sources.base import Entry, Source
from pointdistill.errors import ConfigError, DataError
from pointdistill.reporter import SILENT, Reporter, plural

DEFAULT_POINTS = 16_384


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildSettings:
    """How corpora are built.

    Raises:
        ConfigError: if ``points``, ``seed`` or ``workers`` is out of range.
    """

    points: int = DEFAULT_POINTS
    """Points per shape, at least 32; a cloud with fewer keeps all of them."""

    seed: int = 0
    """Not negative. A shape's points depend on the seed, the source's name and the shape's id, on nothing else."""

    workers: int | None = None
    """Worker processes; None uses every usable core. 0 works in this process, where neither the deadline nor the
    memory limit can be enforced and a crash ends the build."""

    limits: ShapeLimits = field(default_factory=ShapeLimits)
    """What one shape may take. A shape that exceeds it is refused, and `retry_corpus` can read it again."""

    cluster: str | None = None
    """Address of a dask scheduler whose workers do the work in place of ``workers``. The corpus and whatever the
    source reads must be on a file system that all hosts share."""

    def __post_init__(self) -> None:
        if self.points < MINIMUM_POINTS:
            msg = f"points must be at least {MINIMUM_POINTS}, got {self.points}"
            raise ConfigError(msg, settings=("points",))
        if self.seed < 0:
            msg = f"seed must not be negative, got {self.seed}"
            raise ConfigError(msg, settings=("seed",))
        if self.workers is not None and self.workers < 0:
            msg = f"workers must be at least 0 (0: in this process), got {self.workers}"
            raise ConfigError(msg, settings=("workers",))

    @property
    def processes(self) -> int:
        """Number of worker processes on this machine."""
        return usable_cores() if self.workers is None else self.workers


def build_corpus(
    source: Source,
    output: Path,
    *,
    points: int = DEFAULT_POINTS,
    seed: int = 0,
    workers: int | None = None,
    limits: ShapeLimits | None = None,
    cluster: str | None = None,
    reporter: Reporter = SILENT,
) -> BuildReport:
    """`build_source` with the settings spelled out; see `BuildSettings` for what they mean."""
    settings = BuildSettings(
        points=points,
        seed=seed,
        workers=workers,
        limits=limits or ShapeLimits(),
        cluster=cluster,
    )
    return build_source(source, output, settings, reporter=reporter)


def build_source(
    source: Source, output: Path, settings: BuildSettings, *, reporter: Reporter = SILENT
) -> BuildReport:
    """Make a corpus of a source's shapes, or continue one that was interrupted.

    Shapes that cannot be used are left out and listed with their cause. ``corpus.json`` is written last, so the
    folder is either a finished corpus or none.

    Args:
        source: what to read.
        output: the corpus folder; new, empty, or with an unfinished build of the same settings.
        settings: how to build.
        reporter: hears about every shape.

    Raises:
        CorpusError: if ``output`` holds something else.
        DataError: if the source cannot be listed, none of its shapes can be used, or the disk is full.
    """
    finish_retry(output)
    decisive = {
        "seed": settings.seed,
        "points": settings.points,
        "source": asdict(source.facts),
    }
    if (output / MANIFEST_NAME).is_file():
        return report_complete(output, decisive)
    entries = list_entries(source)
    plan = make_plan(len(entries), settings.points)
    # A version that divides the work differently must not continue with pieces of this one.
    division = {"shapes": len(entries), "pieces": len(plan.pieces), "shards": plan.shards}
    build: Build | None = None
    with (
        room_needed(
            output,
            lambda: f"{build.done if build else 0:,} of {plural(len(entries), 'shape')} are safe",
        ),
        unfinished_build(output, decisive | {"division": division}) as folder,
    ):
        job = BuildJob(source, seed=settings.seed, points=settings.points, folder=folder)
        build = Build(job, plan, entries, f"preparing {source.facts.name}", reporter)
        resumed = build.done
        build.run(settings.processes, settings.limits, cluster=settings.cluster)
        publish(job, plan)
        remove_build(output)
    return replace(report(output), resumed=resumed)


@contextmanager
def room_needed(
    output: Path, safe: Callable[[], str] = lambda: "what is done is safe"
) -> Iterator[None]:
    """Turn a full disk into a one-line error that says how much of the work is safe."""
    try:
        yield
    except Exception as error:
        if not disk_is_full(error):
            raise
        raise no_room(output, error, safe=safe()) from error


def list_entries(source: Source) -> list[Entry]:
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
