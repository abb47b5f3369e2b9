"""Which test shapes of a benchmark an encoder saw in pretraining: a full list, or one line of warning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.benchmarks.lvis import LvisShapes
from pointdistill.data.benchmarks.records import LabelledShapes
from pointdistill.data.benchmarks.registry import (
    BENCHMARKS,
    BenchmarkPaths,
    benchmark_spec,
    check_data_choice,
    choose_splits,
    find_benchmark,
    find_stand_in,
)
from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.files.workspace import given_or_last_run
from pointdistill.data.leaks import HeldOut, LeakReport, find_leaks
from pointdistill.data.leaks.candidates import POINTS, has_all_fingerprints
from pointdistill.data.leaks.find import leaks_by_id, match_clouds, sources_sharing_ids
from pointdistill.data.sources.paths import ReadSettings, ShapeLocation, read_shape
from pointdistill.engine.pretraining.run_folder import (
    corpus_fingerprint,
    encoder_line,
    read_run_config,
    run_folder_of,
)
from pointdistill.engine.reports.tables import Table
from pointdistill.engine.weights.encoders import find_encoder
from pointdistill.errors import (
    CheckpointError,
    ConfigError,
    CorpusError,
    DataError,
    PointDistillError,
)
from pointdistill.reporter import SILENT, Reporter, plural

if TYPE_CHECKING:
    from pointdistill.data.benchmarks.registry import Labelled

QUICK_CORPUS = 5000
"""Largest corpus whose fingerprints are computed for a warning: about five seconds of one core."""

QUICK_TESTS = 64
"""Test shapes, evenly spread, that are compared by geometry for a warning: ten seconds of one core at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakRequest:
    """What a user wants checked."""

    benchmark: str
    corpus: Path | None = None
    """The corpus to search; by default the one that ``encoder`` was pretrained on."""

    encoder: Path | None = None
    """A run, or the encoder folder in one; the last run in ``folder`` by default."""

    data: Path | None = None
    """The benchmark's archive; looked for under ``data/`` by default."""

    stand_in: bool = False
    splits: tuple[str, ...] = ()
    """All of the benchmark's by default."""

    workers: int | None = None
    """Processes; 1 means this one, None one per usable core."""

    folder: Path = Path()
    """Where defaults are looked for."""


@dataclass(frozen=True, slots=True)
class Checked:
    """Which shapes of each split of a benchmark a corpus holds."""

    benchmark: str
    """A key of ``BENCHMARKS``, such as ``modelnet40``."""

    corpus: Path
    reports: tuple[tuple[str | None, LeakReport], ...]
    """Split and report; the split is None if the benchmark has only one."""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        splits = [{"split": split, **asdict(report)} for split, report in self.reports]
        head = {"benchmark": self.benchmark, "corpus": str(self.corpus)}
        return head | {"splits": splits}


@dataclass(frozen=True, slots=True)
class _CorpusClouds(Sequence[NDArray[np.float32]]):
    """Shapes of a corpus, each read when it is used."""

    corpus: Corpus
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, number: int) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, number: slice) -> _CorpusClouds: ...
    def __getitem__(self, number: int | slice) -> NDArray[np.float32] | _CorpusClouds:
        if isinstance(number, slice):
            return _CorpusClouds(self.corpus, self.indices[number])
        return self.corpus.points(int(self.indices[number]))


@dataclass(frozen=True, slots=True)
class _FileClouds(Sequence[NDArray[np.float32]]):
    """Points of labelled files, each read when it is used; a damaged one is an error, as in any archive."""

    shapes: LabelledShapes
    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, number: int) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, number: slice) -> _FileClouds: ...
    def __getitem__(self, number: int | slice) -> NDArray[np.float32] | _FileClouds:
        if isinstance(number, slice):
            return _FileClouds(self.shapes, self.numbers[number])
        shapes, row = self.shapes, self.numbers[number]
        place = ShapeLocation(shapes.kind, str(shapes.path.resolve()), shapes.members[row], row)
        shape = read_shape(place, ReadSettings(points=POINTS, seed=0, up=shapes.up))
        if shape.points is None:
            msg = f"{shapes.path}: {shape.name}: {shape.reason}"
            raise DataError(msg)
        return shape.points


def check_leaks(request: LeakRequest, reporter: Reporter = SILENT) -> Checked:
    """Look for a benchmark's test shapes in a corpus. The corpus's fingerprints are saved in its folder.

    Raises:
        ConfigError: for a benchmark or split that does not exist, or settings that contradict each other.
        DataError: if the archive or the corpus is absent or damaged.
        CheckpointError: if there is no run, or it does not say what it was trained on.
    """
    check_data_choice(stand_in=request.stand_in, data=request.data)
    splits = choose_splits(request.benchmark, request.splits)
    corpus = _corpus(request, reporter)
    if request.stand_in:
        paths = find_stand_in(request.benchmark, folder=request.folder, reporter=reporter)
    else:
        paths = find_benchmark(
            request.benchmark, data=request.data, corpus=corpus.path, folder=request.folder
        )
    reports = []
    for split in splits:
        progress = partial(reporter.progress, "reading the archive")
        shapes = read_held_out(request.benchmark, paths, split, progress=progress)
        named = " ".join(filter(None, (paths.archive.name, split)))
        reporter.say(f"data: {plural(len(shapes), 'test shape')} of {named}")
        report = find_leaks(
            shapes,
            corpus,
            workers=request.workers,
            fingerprinting=partial(reporter.progress, "fingerprints"),
            comparing=partial(reporter.progress, "comparing shapes"),
        )
        reports.append((split, report))
    return Checked(request.benchmark, corpus.path, tuple(reports))


def command_in_words(request: LeakRequest) -> str:
    """Names the check without naming options, for callers other than the command line."""
    stand_in = " and the stand-in" if request.stand_in else ""
    return f"`pointdistill leaks {request.benchmark}` with the encoder {request.encoder}{stand_in}"


def leak_warning(
    benchmark: Labelled,
    name: str,
    encoder: Path,
    name_command: Callable[[LeakRequest], str] = command_in_words,
) -> str | None:
    """A warning if test shapes were seen in pretraining or that could not be checked; otherwise None.

    Its cost is bounded. Ids are always compared; geometry is compared for at most ``QUICK_TESTS`` test shapes, and
    only if the corpus has at most ``QUICK_CORPUS`` shapes or its fingerprints are in its folder already.

    Args:
        benchmark: as it was read.
        name: a key of ``BENCHMARKS``, such as ``modelnet40``.
        encoder: its folder. If it lies in no run, its corpus is not known, and there is no warning.
        name_command: returns the command that checks everything, which the warning names; words by default.
    """
    run = run_folder_of(encoder)
    if run is None:
        return None

    def command() -> str:
        return name_command(
            LeakRequest(benchmark=name, encoder=encoder, stand_in=benchmark.stand_in)
        )

    try:
        corpus = _corpus_of_run(run)
    except PointDistillError as error:
        return f"not checked whether test shapes were seen in pretraining: {error}"
    shapes = held_out_of(benchmark)
    by_id = leaks_by_id(shapes, corpus)
    if by_id:
        return f"{_seen(len(by_id), len(shapes))} (by id); {command()} lists them"
    if set(sources_sharing_ids(shapes, corpus)) == {source.name for source in corpus.sources}:
        return None
    if len(corpus) > QUICK_CORPUS and not has_all_fingerprints(corpus):
        missing = "test shapes were not compared with the corpus this encoder saw"
        return f"{missing}; {command()} does so"
    try:
        some = shapes.some(QUICK_TESTS)
        seen = sum(match is not None for match in match_clouds(some.clouds, corpus, workers=1))
    except DataError as error:
        return f"not checked whether test shapes were seen in pretraining: {error}"
    if not seen:
        return None
    how = "by geometry" if len(some) == len(shapes) else "by geometry, of those looked at"
    return f"{_seen(seen, len(some))} ({how}); {command()} lists them"


def read_held_out(
    name: str,
    paths: BenchmarkPaths,
    split: str | None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> HeldOut:
    """Read the test shapes of a split; for few-shot, those of all folds one after another.

    Args:
        name: a key of ``BENCHMARKS``.
        paths: where its data lies.
        split: one of its splits.
        progress: called with parts (done, total).

    Raises:
        DataError: if the data is absent or damaged.
    """
    spec = benchmark_spec(name)
    if BENCHMARKS[name].task != "folds":
        return held_out_of(spec.read(paths, split, progress=progress))
    folds = []
    for fold in range(spec.most_seeds or spec.seeds):
        folds.append(held_out_of(spec.read(paths, split, fold=fold)))
        if progress is not None:
            progress(fold + 1, spec.most_seeds or spec.seeds)
    clouds = [cloud for fold in folds for cloud in fold.clouds]
    return replace(folds[0], clouds=clouds, ids=None)


def held_out_of(benchmark: Labelled) -> HeldOut:
    """The test shapes of a benchmark that has been read; all of a set of which every shape is tested."""
    if isinstance(benchmark, LvisShapes):
        names = benchmark.corpus.ids()
        return HeldOut(
            benchmark=benchmark.name,
            clouds=_CorpusClouds(benchmark.corpus, benchmark.indices),
            ids=tuple(names[index] for index in benchmark.indices),
            checksum=benchmark.corpus.content,
            stand_in=benchmark.stand_in,
        )
    if isinstance(benchmark, LabelledShapes):
        return HeldOut(
            benchmark=benchmark.name,
            clouds=_FileClouds(benchmark, range(len(benchmark))),
            ids=benchmark.members,
            checksum=benchmark.checksum,
            stand_in=benchmark.stand_in,
        )
    return HeldOut(
        benchmark=benchmark.name,
        clouds=tuple(benchmark.test.points),
        ids=benchmark.test.ids,
        checksum=benchmark.checksum,
        stand_in=benchmark.stand_in,
    )


def leaks_table(checked: Checked) -> Table:
    """One row for every leaked test shape."""
    several = len(checked.reports) > 1
    rows = [
        (
            *((split or "",) if several else ()),
            str(leak.test),
            leak.test_id or "-",
            leak.how,
            leak.corpus_id,
            leak.source,
            "-" if leak.gap is None else f"{leak.gap:.3f}",
        )
        for split, report in checked.reports
        for leak in report.leaks
    ]
    columns = ("test", "test id", "found by", "corpus shape", "source", "gap")
    return Table(
        title=f"Test shapes of {checked.benchmark} in {checked.corpus}",
        columns=(("split", *columns) if several else columns),
        rows=tuple(rows),
        notes=tuple(_summary(split, report) for split, report in checked.reports),
    )


def _summary(split: str | None, report: LeakReport) -> str:
    name = f"{split}: " if split else ""
    met = (
        f"ids compared with {', '.join(report.ids_met)}" if report.ids_met else "no ids to compare"
    )
    return (
        f"{name}{len(report.leaks):,} of {plural(report.test_shapes, 'test shape')} are among the corpus's "
        f"{report.corpus_shapes:,}: {report.count('id'):,} by id, {report.count('geometry'):,} by geometry "
        f"({met})."
    )


def _seen(leaks: int, of: int) -> str:
    return f"{leaks:,} of {plural(of, 'test shape')} were in the corpus this encoder saw"


def _corpus(request: LeakRequest, reporter: Reporter) -> Corpus:
    """The requested corpus, or that of the requested encoder, or that of the last run."""
    sources = ("corpus", "encoder")
    if request.corpus is not None:
        if request.encoder is not None:
            msg = (
                f"the corpus {request.corpus} and the encoder {request.encoder} both say where to look; "
                "choose one of them"
            )
            raise ConfigError(msg, settings=sources)
        return open_corpus(request.corpus)
    encoder = Path(
        given_or_last_run(
            request.encoder, folder=request.folder, what="a corpus or an encoder", settings=sources
        )
    )
    run = run_folder_of(encoder)
    if run is None:
        msg = f"{encoder} lies in no run, so its corpus is not known; name one"
        raise CheckpointError(msg, settings=("corpus",))
    corpus = _corpus_of_run(run)
    # A run has a corpus before it has a first checkpoint.
    with suppress(CheckpointError):
        reporter.say(encoder_line(find_encoder(run)))
    reporter.say(f"corpus: {corpus.path}, which {run} was trained on")
    return corpus


def _corpus_of_run(run: Path) -> Corpus:
    """The corpus that a run was started with.

    Raises:
        CorpusError: if it is gone, or its shapes have changed since.
    """
    begun_with = read_run_config(run)["corpus"]
    corpus = open_corpus(Path(begun_with["path"]))
    if corpus_fingerprint(corpus) != begun_with["fingerprint"]:
        msg = f"{corpus.path} holds other shapes than when {run} was started; name the corpus it was trained on"
        raise CorpusError(msg, settings=("corpus",))
    return corpus
