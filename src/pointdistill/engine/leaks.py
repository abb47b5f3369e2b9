"""Which test shapes of a benchmark were in the corpus that an encoder saw: all of them, or a line of warning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.leaks import LeakReport, find_leaks
from pointdistill.data.leaks.candidates import has_all_fingerprints
from pointdistill.data.workspace import last_run
from pointdistill.engine.evaluation.kinds import BENCHMARKS
from pointdistill.engine.evaluation.sources import find_place, stand_in_place
from pointdistill.engine.exchange.encoders import find_encoder
from pointdistill.engine.exchange.record import encoder_line
from pointdistill.engine.held_out import Labelled, held_out_of, read_held_out
from pointdistill.engine.reporting.tables import Table
from pointdistill.engine.training.run_folder import corpus_fingerprint, read_run_config
from pointdistill.errors import CheckpointError, ConfigError, CorpusError, PointDistillError

QUICK_CORPUS = 5000
"""Shapes whose fingerprints a warning waits for: some five seconds of one core."""

QUICK_TESTS = 64
"""Test shapes that a warning compares by geometry, evenly spread: some ten seconds of one core at most."""

LEAKS_FORMAT = 1
"""Of the JSON; raised when the meaning of a field changes."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many are done and how many there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakRequest:
    """What a user asked to have checked."""

    benchmark: str
    corpus: Path | None = None
    """The corpus to look in; by default the one that ``encoder`` saw."""

    encoder: Path | None = None
    """A run, or the encoder folder in one; the last run in ``folder`` by default."""

    data: Path | None = None
    """The benchmark's archive; looked for under ``data/`` by default."""

    stand_in: bool = False
    splits: tuple[str, ...] = ()
    """All of the benchmark's by default."""

    workers: int | None = None
    """Processes; 1 works in this one, None takes every usable core."""

    folder: Path = Path()
    """Where defaults are looked for."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a corpus has of each split of a benchmark."""

    benchmark: str
    """As it was typed."""

    corpus: Path
    reports: tuple[tuple[str | None, LeakReport], ...]
    """Split and report; the split is None where a benchmark has one only."""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        splits = [{"split": split, **asdict(report)} for split, report in self.reports]
        head = {"format": LEAKS_FORMAT, "benchmark": self.benchmark, "corpus": str(self.corpus)}
        return head | {"splits": splits}


def check_leaks(request: LeakRequest, *, say: Callable[[str], None], progress: Progress) -> Checked:
    """Look for a benchmark's test shapes in a corpus. Fingerprints of the corpus are kept in its folder.

    Raises:
        ConfigError: for a benchmark or split that does not exist, or options that contradict each other.
        DataError: if the archive or the corpus is absent or damaged.
        CheckpointError: if there is no run, or it does not say what it was trained on.
    """
    splits = _splits(request)
    corpus = _corpus(request, say)
    if request.stand_in:
        place = stand_in_place(
            request.benchmark,
            folder=request.folder,
            say=say,
            count=lambda done, total: progress("making the stand-in", done, total),
        )
    else:
        place = find_place(
            request.benchmark,
            data=request.data,
            corpus=corpus.path,
            within=False,
            folder=request.folder,
        )
    reports = []
    for split in splits:
        shapes = read_held_out(
            request.benchmark,
            place.archive,
            split,
            corpus=place.corpus,
            count=lambda done, total: progress("reading the archive", done, total),
        )
        say(
            f"data: {len(shapes):,} test shapes of {' '.join(filter(None, (place.archive.name, split)))}"
        )
        report = find_leaks(
            shapes,
            corpus,
            workers=request.workers,
            fingerprinting=lambda done, total: progress("fingerprints", done, total),
            comparing=lambda done, total: progress("comparing shapes", done, total),
        )
        reports.append((split, report))
    return Checked(request.benchmark, corpus.path, tuple(reports))


def leak_warning(benchmark: Labelled, name: str, encoder: Path) -> str | None:
    """One line where test shapes were seen in pretraining, or where that is not known; None where all is well.

    Bounded in time: ids are compared always. By geometry at most 64 test shapes are, and those only if the
    fingerprints of the corpus are in its folder already or it has at most 5,000 shapes.

    Args:
        benchmark: as it was read.
        name: by which a user calls it, such as ``modelnet40``.
        encoder: its folder. One that lies in no run, imported weights for one, names no corpus: None.
    """
    option = " --stand-in" if benchmark.stand_in else ""
    command = f"`pointdistill leaks {name} --encoder {encoder}{option}`"
    run = _run_of(encoder)
    if run is None:
        return None
    try:
        corpus = _corpus_of_run(run)
    except PointDistillError as error:
        return f"not checked whether test shapes were seen in pretraining: {error}"
    shapes = held_out_of(benchmark)
    found = find_leaks(shapes, corpus, geometry=False)
    if found.leaks:
        return _seen(len(found.leaks), len(shapes), command, "by id")
    if set(found.ids_met) == {source.name for source in corpus.sources}:
        return None
    if len(corpus) > QUICK_CORPUS and not has_all_fingerprints(corpus):
        return f"test shapes were not compared with the corpus this encoder saw; {command} does it"
    some = shapes.some(QUICK_TESTS)
    found = find_leaks(some, corpus, workers=1)
    how = "by geometry" if len(some) == len(shapes) else "by geometry, of those looked at"
    return _seen(len(found.leaks), len(some), command, how) if found.leaks else None


def leaks_table(checked: Checked) -> Table:
    """Every leaked test shape, a row each."""
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
        f"{name}{len(report.leaks):,} of {report.test_shapes:,} test shapes are among the corpus's "
        f"{report.corpus_shapes:,}: {report.count('id'):,} by id, {report.count('geometry'):,} by geometry "
        f"({met})."
    )


def _seen(leaks: int, of: int, command: str, how: str) -> str:
    return f"{leaks:,} of {of:,} test shapes were in the corpus this encoder saw ({how}); {command} lists them"


def _splits(request: LeakRequest) -> Sequence[str | None]:
    if request.benchmark not in BENCHMARKS:
        msg = f"unknown benchmark {request.benchmark!r}; choose one of {', '.join(BENCHMARKS)}"
        raise ConfigError(msg)
    if request.stand_in and request.data is not None:
        msg = f"--stand-in has data of its own, and --data {request.data} was given; give one"
        raise ConfigError(msg)
    known = BENCHMARKS[request.benchmark].splits
    unknown = [split for split in request.splits if split not in known]
    if unknown:
        names = [split for split in known if split is not None]
        accepted = f"choose from {', '.join(names)}" if names else "it has one only; leave it out"
        msg = f"{request.benchmark} has no split {unknown[0]!r}; {accepted}"
        raise ConfigError(msg)
    return [split for split in known if not request.splits or split in request.splits]


def _corpus(request: LeakRequest, say: Callable[[str], None]) -> Corpus:
    """The corpus named, or that of the encoder named, or that of the last run."""
    if request.corpus is not None:
        if request.encoder is not None:
            msg = (
                f"--corpus {request.corpus} and --encoder {request.encoder} both say where to look; "
                "give one of them"
            )
            raise ConfigError(msg)
        return open_corpus(request.corpus)
    encoder = request.encoder or last_run(folder=request.folder)
    if encoder is None:
        msg = "no run was made in this folder yet; name a corpus with --corpus or a run with --encoder"
        raise CheckpointError(msg)
    run = _run_of(encoder)
    if run is None:
        msg = (
            f"{encoder} lies in no run, so what it saw is not known; name the corpus with --corpus"
        )
        raise CheckpointError(msg)
    corpus = _corpus_of_run(run)
    with suppress(
        CheckpointError
    ):  # a run whose first checkpoint is still to come has a corpus already
        say(encoder_line(find_encoder(run)))
    say(f"corpus: {corpus.path}, which {run} was trained on")
    return corpus


def _run_of(encoder: Path) -> Path | None:
    """The run that an encoder folder, or a path inside a run, belongs to."""
    for folder in (encoder, encoder.parent):
        try:
            read_run_config(folder)
        except PointDistillError:
            continue
        return folder
    return None


def _corpus_of_run(run: Path) -> Corpus:
    """The corpus that a run was begun with.

    Raises:
        CorpusError: if it is gone, or holds other shapes by now.
    """
    begun_with = read_run_config(run)["corpus"]
    corpus = open_corpus(Path(begun_with["path"]))
    if corpus_fingerprint(corpus) != begun_with["fingerprint"]:
        msg = f"{corpus.path} holds other shapes than when {run} was begun; name that corpus with --corpus"
        raise CorpusError(msg)
    return corpus
