"""What the program knows about a benchmark before it reads any files; imports neither NumPy nor h5py."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

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
