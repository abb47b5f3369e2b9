"""The list of benchmarks, what the program knows of each before it reads any files, and where their data lies.

To add one, write a module with a ``SPEC`` and add a row. That module is imported only when it is asked for by
name, so that the command line can list the names without delay; nothing here imports NumPy or h5py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

from pointdistill.data.files.archive import zip_damage
from pointdistill.data.files.download import fetch
from pointdistill.data.files.packed_tars import tar_names
from pointdistill.data.files.workspace import last_corpus, last_stand_in, remember_stand_in
from pointdistill.errors import ConfigError, DataError
from pointdistill.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from pointdistill.data.benchmarks.lvis import LvisShapes
    from pointdistill.data.benchmarks.records import Benchmark, LabelledShapes, PartBenchmark

    Labelled: TypeAlias = Benchmark | PartBenchmark | LabelledShapes | LvisShapes

FROZEN = ("knn", "svm", "linear", "mlp", "logistic")
"""Protocols on frozen features. All are published but ``logistic``, which ignores the features' scale."""

PARTIAL = ("partial-knn", "partial-svm")
"""Probes fitted on whole training clouds and tested on parts of the test clouds; not published protocols."""

TRAINED = ("finetune", "scratch")
"""Protocols that train the encoder on the labels."""

CLASSIFICATION = FROZEN + PARTIAL + TRAINED
"""Protocols of classification, in the order in which they are run: the cheap ones first."""

PARTS = "parts"
"""The protocol of part segmentation."""

RETRIEVAL = "retrieval"
"""The protocol of retrieval: every shape is a query, and the others are ranked by their features."""

CROSS_VALIDATED = ("knn", "svm", "logistic")
"""Protocols that a set without an official split is measured by too, in stratified folds."""

ALL_PROTOCOLS = (*CLASSIFICATION, PARTS, RETRIEVAL)
"""Protocols of every benchmark, in the order in which they are run."""

CLS_SMALL = "AsymSD-CLS-S (ShapeNet)"
MPM_SMALL = "AsymSD-MPM-S (ShapeNet)"
SMALL = "AsymDSD-S (ShapeNet)"
SMALL_MIXTURE = "AsymDSD-S (Mixture)"
BASE_MIXTURE = "AsymDSD-B (Mixture)"
SCRATCH_SMALL = "ViT-S from scratch"


@dataclass(frozen=True, slots=True)
class PublishedFigure:
    """What the paper reports, in percent."""

    model: str
    """Which model, and what it was pretrained on."""

    accuracy: float
    """The protocol's main figure on the official test split: overall accuracy, instance mIoU, or top-1."""

    deviation: float | None = None
    """Standard deviation over the folds of few-shot."""

    further: tuple[float, ...] = ()
    """The protocol's other figures: class mIoU, or top-3 and top-5."""

    def __str__(self) -> str:
        """As in ``96.10 ± 2.80`` or ``86.00 / 84.40``."""
        main = f"{self.accuracy:.2f}"
        spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return " / ".join([main + spread, *(f"{value:.2f}" for value in self.further)])


PublishedFigures = Mapping[tuple[str | None, str, str], PublishedFigure]
"""By split, protocol and model."""


def published_table(
    splits: Sequence[str | None], rows: Mapping[tuple[str, str], Sequence[float | None]]
) -> PublishedFigures:
    """Published accuracies from a table: a row per protocol and model, a column per split, None for no figure."""
    return {
        (split, protocol, model): PublishedFigure(model, accuracy)
        for (protocol, model), accuracies in rows.items()
        for split, accuracy in zip(splits, accuracies, strict=True)
        if accuracy is not None
    }


@dataclass(frozen=True, slots=True)
class PublishedDescriptor:
    """What others report for a shape descriptor under the protocol of retrieval, in percent."""

    name: str
    source: str

    figures: tuple[float | None, ...]
    """Nearest neighbour, first tier, second tier, E-measure and DCG; None for what is not reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkInput:
    """How a benchmark's clouds reach an encoder in the published protocol.

    Source: AsymDSD (arXiv 2506.21724), evaluation protocols.
    """

    points: int
    """Points given to the encoder; of a cloud with fewer, all of them."""

    patches: int
    """Patches into which the encoder groups them."""

    subsampling: Literal["uniform", "farthest"]
    """How the points are chosen from a larger cloud."""

    rotate_z: bool
    """Whether augmentation rotates training clouds about the vertical axis."""

    scale: tuple[float, float]
    """Range of the random factor by which augmentation scales them."""


@dataclass(frozen=True, slots=True)
class BenchmarkPaths:
    """Where a benchmark's data lies."""

    archive: Path
    corpus: Path | None = None
    """The corpus whose shapes the archive names; None if the archive holds the shapes itself."""

    up: str | None = None
    """Up axis of a user's own files that do not state one; None for z."""


class Reader(Protocol):
    """Reads one split."""

    def __call__(
        self,
        paths: BenchmarkPaths,
        split: str | None,
        *,
        fold: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Labelled:
        """Read a split, or one fold of it. The error for an absent archive says where to get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSpec:
    """One benchmark: where its data comes from, how it is read, and how encoders are measured on it."""

    title: str
    """Its name in results, such as ``ScanObjectNN``."""

    archives: tuple[str, ...]
    """File names of the archive, looked for under ``data/``; the first is the stand-in's too."""

    licence: str
    """What its licence allows, in a few words."""

    read: Reader

    stand_in_maker: str
    """``module:function`` that writes the stand-in, called with its path and ``progress``."""

    stand_in: str = ""
    """File or folder name of the stand-in, under ``data/stand-in``; that of the first archive by default."""

    stand_in_corpus: str = ""
    """The corpus in the stand-in's folder, for a benchmark that needs one."""

    needs_corpus: bool = False
    """Whether the archive only names shapes, and a corpus holds them."""

    splits: tuple[str | None, ...] = (None,)
    """Its official variants, in the order of the results; None stands for the only one."""

    default_splits: tuple[str | None, ...] = ()
    """Those measured on where none is named; empty for all."""

    training_split: str | None = None
    """The split that a model is fine-tuned on by default."""

    input: BenchmarkInput

    protocols: tuple[str, ...] = CLASSIFICATION
    """All that it supports, in the order in which they are run."""

    default_protocols: tuple[str, ...] = FROZEN
    """Those run by default."""

    recipe: str = "finetune-scanobjectnn"
    """Name of the published recipe of the protocol ``finetune``."""

    seeds: int = 3
    """Default number of runs: seeds, folds or draws."""

    most_seeds: int | None = None
    """Number of folds; None if any number of seeds or draws can be run."""

    repeated_over: str = "seeds"
    """What the runs differ in: ``seeds``, ``folds`` or ``draws``."""

    voting: bool = True
    """Whether its protocols give logits of whole clouds, which votes can average."""

    published: PublishedFigures = field(default_factory=dict)

    descriptors: tuple[PublishedDescriptor, ...] = ()
    """Other methods, whose figures are set beside ours."""

    descriptors_split: str | None = None
    """The split that their figures are of."""

    address: str = ""
    """Where the first of the archives is downloaded without a login; empty if nowhere."""

    terms: str = ""
    """What its authors say about use, printed before a download."""

    def make_stand_in(
        self, output: Path, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Write the stand-in with its maker's default settings."""
        module, _, function = self.stand_in_maker.partition(":")
        getattr(importlib.import_module(module), function)(output, progress=progress)


Task = Literal["classification", "folds", "parts", "draws", "retrieval"]
"""``folds``: classification in which every run has its own training and test shapes. ``draws``: the archive names
shapes of a corpus, and a random draw of them is trained on. ``retrieval``: every shape is tested against all
others."""

_HERE = "pointdistill.data.benchmarks"


class BenchmarkRow(NamedTuple):
    """A benchmark in the list."""

    module: str
    """The module that defines its ``SPEC``."""

    task: Task


BENCHMARKS = {
    "scanobjectnn": BenchmarkRow(f"{_HERE}.scanobjectnn", "classification"),
    "modelnet40": BenchmarkRow(f"{_HERE}.modelnet40", "classification"),
    "fewshot": BenchmarkRow(f"{_HERE}.modelnet_fewshot", "folds"),
    "shapenetpart": BenchmarkRow(f"{_HERE}.shapenetpart", "parts"),
    "lvis": BenchmarkRow(f"{_HERE}.lvis", "draws"),
    "psb": BenchmarkRow(f"{_HERE}.psb", "retrieval"),
}
"""By the name that a user types, in the order in which they are run and listed."""


def trainable_benchmarks() -> tuple[str, ...]:
    """Names of the benchmarks that a classifier or segmenter can be fine-tuned on."""
    return tuple(
        name for name, row in BENCHMARKS.items() if row.task in ("classification", "parts")
    )


def benchmark_spec(name: str) -> BenchmarkSpec:
    """A benchmark by the name that a user types.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in BENCHMARKS:
        msg = f"unknown benchmark {name!r}; choose one of {', '.join(BENCHMARKS)}"
        raise ConfigError(msg)
    spec = importlib.import_module(BENCHMARKS[name].module).SPEC
    assert isinstance(spec, BenchmarkSpec)
    return spec


def benchmark_specs() -> Iterator[BenchmarkSpec]:
    """Every benchmark, in the order of the list."""
    return map(benchmark_spec, BENCHMARKS)


def spec_titled(title: str) -> BenchmarkSpec | None:
    """A benchmark by its name in results, such as ``ScanObjectNN``; None if the list has none of that name."""
    return next((spec for spec in benchmark_specs() if spec.title == title), None)


def choose_splits(name: str, wanted: tuple[str, ...]) -> tuple[str | None, ...]:
    """The splits ``wanted`` of a benchmark in the official order; if none is named, its default ones.

    Raises:
        ConfigError: for a benchmark or split that does not exist.
    """
    spec = benchmark_spec(name)
    known = spec.splits
    unknown = [split for split in wanted if split not in known]
    if unknown:
        names = [split for split in known if split is not None]
        accepted = f"choose from {', '.join(names)}" if names else "it has one only; leave it out"
        msg = f"{name} has no split {unknown[0]!r}; {accepted}"
        raise ConfigError(msg, settings=("split",))
    chosen = wanted or spec.default_splits
    return tuple(split for split in known if not chosen or split in chosen)


def check_data_choice(*, stand_in: bool, data: Path | None, corpus: Path | None = None) -> None:
    """Raise if both a stand-in and the user's own data were requested.

    Raises:
        ConfigError: naming both.
    """
    given = data or corpus
    if stand_in and given is not None:
        msg = f"a stand-in has data of its own, and {given} was given too; choose one of them"
        raise ConfigError(msg, settings=("stand_in", "data" if data is not None else "corpus"))


def find_archive(name: str, *, data: Path | None, folder: Path) -> Path:
    """A benchmark's archive, or where it should be: in ``data`` or, by default, in ``data/`` of ``folder``."""
    names = [name for archive in benchmark_spec(name).archives for name in tar_names(archive)]
    candidates = [(data or folder / "data") / name for name in names]
    return next((path for path in candidates if path.exists()), candidates[0])


def find_benchmark(
    name: str,
    *,
    data: Path | None = None,
    corpus: Path | None = None,
    within: bool = False,
    folder: Path = Path(),
) -> BenchmarkPaths:
    """The archive of a benchmark, and the corpus that it needs.

    Args:
        name: a key of ``BENCHMARKS``.
        data: the archive, or with ``within`` the folder that holds it; ``data/`` of ``folder`` by default.
        corpus: for a benchmark that needs one; by default the last one made in ``folder``.
        within: whether ``data`` is a folder of archives.
        folder: where defaults are looked for.

    Raises:
        DataError: if something is absent; says where to get it and where to put it.
    """
    spec = benchmark_spec(name)
    named = data is not None and not within
    archive = data if data and named else find_archive(name, data=data, folder=folder)
    paths = BenchmarkPaths(
        archive, corpus or last_corpus(folder=folder) if spec.needs_corpus else None
    )
    if spec.needs_corpus and paths.corpus is None:
        msg = (
            f"{name} names shapes of a corpus, and none was made in this folder; prepare one of Objaverse, "
            "name another, or run on the stand-in instead"
        )
        raise DataError(msg, settings=("corpus", "stand_in"))
    if not archive.exists():
        try:
            spec.read(paths, spec.splits[0])  # raises: every reader says where to get its archive
            reason = f"{archive}: no such archive"
        except DataError as error:
            reason = str(error)
        raise DataError(reason, settings=("stand_in",))
    return paths


def fetch_benchmark(
    name: str, *, data: Path | None = None, folder: Path = Path(), reporter: Reporter = SILENT
) -> Path:
    """Download a benchmark's archive from its authors' site, unless it is there; an interrupted call is resumed.

    Args:
        name: a benchmark whose archive needs no login.
        data: the folder that the archive goes to; ``data/`` of ``folder`` by default.
        folder: where the default is.
        reporter: hears the terms of use before the first byte, progress, and the checksum of what came.

    Raises:
        ConfigError: for a benchmark whose archive cannot be downloaded.
        DataError: if the download fails, or what came is no whole zip.
    """
    spec = benchmark_spec(name)
    if not spec.address:
        msg = f"the archive of {name} cannot be downloaded by a program; `evaluate {name}` says where to get it"
        raise ConfigError(msg)
    path = (data or folder / "data") / spec.archives[0]
    if path.exists():
        reporter.say(f"{path} is there already")
        return path
    reporter.say(f"about to download {spec.title} from {spec.address}; {spec.terms}")
    show_bytes = partial(reporter.progress, path.name, unit="bytes")
    file = fetch(spec.address, path, check=zip_damage, progress=show_bytes)
    checked = (
        "as promised" if file.checked else "its site promises no checksum; every member is whole"
    )
    reporter.say(f"{path}: {file.bytes:,} bytes, SHA-256 {file.sha256} ({checked})")
    return path


def find_stand_in(name: str, *, folder: Path, reporter: Reporter = SILENT) -> BenchmarkPaths:
    """The stand-in of a benchmark in ``folder``, made if it is not there."""
    spec = benchmark_spec(name)
    archive = last_stand_in(name, folder=folder)
    if archive is None:
        archive = folder / "data" / "stand-in" / (spec.stand_in or spec.archives[0])
        if not archive.exists():
            reporter.say(f"making the stand-in for {name}, once, of up to 0.9 GB: {archive}")
            spec.make_stand_in(archive, partial(reporter.progress, "making the stand-in"))
        remember_stand_in(name, archive, folder=folder)
    if not spec.needs_corpus:
        return BenchmarkPaths(archive)
    return BenchmarkPaths(archive / spec.archives[0], archive / spec.stand_in_corpus)
