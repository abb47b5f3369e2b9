"""Estimates what a mixture will cost: shapes, disk space and time per source, measured on a few of its shapes."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pointdistill.data.corpus.manifest import MANIFEST_NAME, Manifest, SourceFacts, read_manifest
from pointdistill.data.corpus_building.build import BuildSettings, build_source
from pointdistill.data.corpus_building.commit import part_folder
from pointdistill.data.corpus_building.source_status import (
    HELD_OUT,
    MixtureRequest,
    SourceStatus,
    find_list,
    official_shapes,
    open_one,
    scan_sources,
)
from pointdistill.data.corpus_building.state import BuildFolder
from pointdistill.data.files.files import disk_is_full
from pointdistill.data.files.packed_tars import temporary_folder
from pointdistill.data.files.workspace import without_checksums
from pointdistill.data.sources.base import Entry, Source, SourceCloud
from pointdistill.errors import DataError
from pointdistill.reporter import SILENT, Reporter

SAMPLE = 8
"""Shapes of a source that are read to measure its speed."""

_POINT_BYTES = 6  # 3 int16
_SHAPE_BYTES = 120  # checksum, place, label and id


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRow:
    """The shapes and the cost of one source."""

    status: SourceStatus
    shapes: int
    listed: bool
    """Whether ``shapes`` were counted in the archive or the corpus; otherwise it is the official number."""

    bytes: int
    """Disk space of its shapes in the corpus."""

    seconds: float | None
    """Seconds on one core for the shapes still to be made; None if that could not be measured."""

    done: bool = False
    """Whether the corpus already has it."""

    problem: str = ""
    """Why its archive cannot be used; empty if it can be, or is not there."""

    @property
    def goes_in(self) -> bool:
        """Whether a build that begins now includes its shapes."""
        return self.status.taken and not self.problem


@dataclass(frozen=True, kw_only=True, slots=True)
class MixturePlan:
    """What a build of the mixture needs."""

    rows: tuple[PlanRow, ...]
    official: int
    """Shapes of the whole mixture by the official counts of its sources, whether they are there or not."""

    listed_tests: Mapping[str, int]
    """For each benchmark whose test shapes are left out, how many its list names, if the list is there."""

    workers: int
    free_bytes: int
    """Free disk space where the corpus will be."""

    @property
    def shapes(self) -> int:
        """Shapes of all sources that go in."""
        return sum(row.shapes for row in self.rows if row.goes_in)

    @property
    def bytes(self) -> int:
        """Disk space for those of them that are still to be made."""
        return sum(row.bytes for row in self.rows if row.goes_in and not row.done)

    @property
    def seconds(self) -> float:
        """Time of the build, for those sources whose speed could be measured."""
        return sum(row.seconds or 0 for row in self.rows if row.goes_in) / self.workers

    @property
    def whole(self) -> int:
        """Shapes once every source of the mixture is there."""
        return sum(row.shapes for row in self.rows if not row.status.exclusion_reason)


def plan_mixture(
    request: MixtureRequest,
    output: Path,
    settings: BuildSettings | None = None,
    *,
    reporter: Reporter = SILENT,
) -> MixturePlan:
    """Estimate what a mixture will cost, and leave nothing behind.

    Of each archive that goes in, only the directory and a few shapes are read, not the whole file for a checksum.

    Args:
        request: the folder, and what to take from it.
        output: where the corpus will be: for the free disk space, and the sources that are finished there.
        settings: those of the build; None for the defaults.
        reporter: hears about each source before it is measured.

    Raises:
        DataError: if the folder does not exist.
        CorpusError: if the manifest of an existing corpus is damaged.
    """
    settings = settings or BuildSettings()
    rows = []
    for status in scan_sources(request):
        manifest = _finished_manifest(output, status, settings)
        if manifest is not None:
            rows.append(_finished_row(status, manifest))
            continue
        if status.taken:
            reporter.say(f"measuring a few shapes of {status.info.name}")
        with without_checksums():
            rows.append(_estimate(request, status, settings))
    infos = [row.status.info for row in rows if not row.status.exclusion_reason]
    return MixturePlan(
        rows=tuple(rows),
        official=sum(official_shapes(request, info) for info in infos),
        listed_tests=_listed_tests(request, {info.name for info in infos}),
        workers=max(1, settings.processes),
        free_bytes=shutil.disk_usage(_nearest_existing(output)).free,
    )


def _finished_manifest(
    output: Path, status: SourceStatus, settings: BuildSettings
) -> Manifest | None:
    """The manifest that already has a source with these settings: the mixture's, or that of a finished part."""
    name = status.info.name
    for corpus in (output, part_folder(BuildFolder(output), name)):
        if status.taken and (corpus / MANIFEST_NAME).is_file():
            manifest = read_manifest(corpus)
            same = (manifest.points, manifest.seed) == (settings.points, settings.seed)
            if same and any(source.name == name for source in manifest.sources):
                return manifest
    return None


def _finished_row(status: SourceStatus, manifest: Manifest) -> PlanRow:
    shards = [shard for shard in manifest.shards if shard.source == status.info.name]
    return PlanRow(
        status=status,
        shapes=sum(shard.shapes for shard in shards),
        listed=True,
        bytes=sum(shard.bytes for shard in shards),
        seconds=0.0,
        done=True,
    )


def _listed_tests(request: MixtureRequest, sources: Collection[str]) -> dict[str, int]:
    """How many test shapes of these sources each existing list leaves out."""
    counts = {}
    lists = [row for row in HELD_OUT if any(name in sources for name in row.sources)]
    for held_out in lists if request.exclude_all_tests else ():
        with contextlib.suppress(DataError):  # the row of a source says that its list is missing
            counts[held_out.benchmark] = len(find_list(held_out, request.archives).ids)
    return counts


def _estimate(request: MixtureRequest, status: SourceStatus, settings: BuildSettings) -> PlanRow:
    shapes, problem = official_shapes(request, status.info), ""
    if status.taken:
        try:
            source = open_one(request, status.info)
            entries = sorted(source.entries(), key=lambda entry: entry.id)
            seconds, mean = _measure(source, entries, settings)
        except DataError as error:
            if disk_is_full(error):
                raise _no_room_to_measure() from error
            problem = str(error)
        else:
            return PlanRow(
                status=status,
                shapes=len(entries),
                listed=True,
                bytes=len(entries) * (round(mean * _POINT_BYTES) + _SHAPE_BYTES),
                seconds=seconds * len(entries),
            )
    return PlanRow(
        status=status,
        shapes=shapes,
        listed=False,
        bytes=shapes * (settings.points * _POINT_BYTES + _SHAPE_BYTES),
        seconds=None,
        problem=problem,
    )


def _measure(
    source: Source, entries: Sequence[Entry], settings: BuildSettings
) -> tuple[float, float]:
    """Seconds per shape on one core and points per shape, measured on a sample spread over the source.

    The sample is built as the corpus will be, in a process of its own, so that a shape may crash its reader.

    Raises:
        DataError: if the source is empty, or no shape of the sample can be used.
    """
    if not entries:
        msg = f"{source.facts.name} holds no shapes; check its archive"
        raise DataError(msg)
    places = np.unique(np.linspace(0, len(entries) - 1, SAMPLE).astype(int))
    sample = _Sample(source, [entries[k] for k in places])
    clock = _Clock()
    with temporary_folder() as folder:
        corpus = folder / "sample"
        one_process = replace(settings, workers=1, cluster=None)
        build_source(sample, corpus, one_process, reporter=clock)
        manifest = read_manifest(corpus)
    mean = sum(shard.points for shard in manifest.shards) / manifest.shapes
    return clock.seconds_each, mean


def _no_room_to_measure() -> DataError:
    return DataError(
        f"{tempfile.gettempdir()}: no space left on the disk to build a few shapes on; make room there, or "
        f"set TMPDIR to a folder that has some"
    )


class _Clock(Reporter):
    """Measures seconds per shape without the first, which waits for a process, its libraries and the archive."""

    def __init__(self) -> None:
        self._reached: dict[int, float] = {}
        """When each number of shapes was first reached."""

    def progress(
        self,
        task: str,  # noqa: ARG002
        done: float,
        total: float | None = None,  # noqa: ARG002
        *,
        note: str = "",  # noqa: ARG002
        unit: str = "",  # noqa: ARG002
    ) -> None:
        self._reached.setdefault(int(done), time.monotonic())

    @property
    def seconds_each(self) -> float:
        """Seconds per shape; that of the first shape if there is no other."""
        last = max(self._reached)
        first = 1 if last > 1 and 1 in self._reached else 0
        return (self._reached[last] - self._reached[first]) / (last - first)


@dataclass(frozen=True, slots=True)
class _Sample:
    """A few shapes of a source."""

    source: Source
    chosen: Sequence[Entry]

    @property
    def facts(self) -> SourceFacts:
        return self.source.facts

    def entries(self) -> Sequence[Entry]:
        return self.chosen

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:
        return self.source.read(entry, count, rng=rng)


def _nearest_existing(path: Path) -> Path:
    """The path or the nearest folder above it that exists."""
    whole = path.absolute()
    return next(folder for folder in (whole, *whole.parents) if folder.exists())
