"""One evaluation: protocols, seeds, deviations from the protocols, and where its scores are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pointdistill.data.benchmarks.lvis import LvisShapes
from pointdistill.data.benchmarks.records import Benchmark, LabelledShapes, PartBenchmark
from pointdistill.data.benchmarks.registry import (
    ALL_PROTOCOLS,
    FROZEN,
    PARTIAL,
    PARTS,
    TRAINED,
    BenchmarkPaths,
    BenchmarkSpec,
)
from pointdistill.engine.evaluation.results import (
    NOT_MEASURED,
    Result,
    published_figure,
    rules_of,
    with_score,
)
from pointdistill.engine.features import HeadTraining, Score
from pointdistill.engine.features.feature_extractors import FeatureExtractor
from pointdistill.engine.features.inputs import CUTS, KEPT_SHARES
from pointdistill.engine.features.statistics import FeatureStatistics
from pointdistill.engine.finetuning.training_file import TrainingFile
from pointdistill.engine.runtime.devices import interruptible
from pointdistill.errors import ConfigError
from pointdistill.reporter import SILENT, Reporter, plural

if TYPE_CHECKING:
    from pointdistill.data.benchmarks.registry import Labelled
    from pointdistill.engine.evaluation.store import ScoreStore

HEADS = ("linear", "mlp")
"""Heads trained on frozen features of augmented clouds."""

VOTING = HEADS + TRAINED
"""Protocols that have logits to average."""

BY_EPOCHS = (*VOTING, PARTS)
"""Protocols that train for epochs, one of which can be selected on held-out clouds."""

LARGEST_HOLD_OUT = 0.5

COPIES_ON_CPU = 4
"""Augmented copies for the heads on a CPU, where 150 passes of an encoder take too long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What to measure, on any features."""

    protocols: tuple[str, ...] = FROZEN
    """In the order of the results."""

    seeds: tuple[int, ...] = (0,)
    """Seeds of the subsets of points, the augmentation and the initial weights, one run for each; or the numbers
    of the folds or draws."""

    augmented_copies: int | None = None
    """How many augmented sets of training features the heads go through in turn; None for
    a new set in each epoch, as published, which costs 150 passes of the encoder."""

    epochs: int | None = None
    """Replaces the number of epochs of protocols that have any: a deviation that every result names."""

    votes: int = 1
    """Versions of each test cloud whose logits are averaged; 1 means no voting."""

    hold_out: float | None = None
    """Share of every class of the training split that is not trained on but selects the epoch, in protocols that
    have epochs; None to train on all of it, as published. A deviation that every result names."""

    head: HeadTraining | None = None
    """Settings of the linear layer and of the MLP before ``epochs`` shortens them; None for the published ones."""

    repeated_over: str = "seeds"
    """What the runs differ in, as results call it: ``seeds``, ``folds`` or ``draws``."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.protocols if name not in ALL_PROTOCOLS]
        if unknown or not self.protocols:
            wrong = repr(unknown[0]) if unknown else "none"
            msg = f"protocols must be some of {', '.join(ALL_PROTOCOLS)}, got {wrong}"
            raise ConfigError(msg)
        if not self.seeds:
            msg = "an evaluation needs at least one seed, got none"
            raise ConfigError(msg)
        if self.augmented_copies is not None and self.augmented_copies < 1:
            msg = (
                f"augmented_copies must be at least 1, got {self.augmented_copies}; "
                "leave it out to augment anew each epoch"
            )
            raise ConfigError(msg)
        if self.epochs is not None and self.epochs < 1:
            msg = f"epochs must be at least 1, got {self.epochs}; leave it out for the protocol's"
            raise ConfigError(msg)
        without_logits = [name for name in self.protocols if name not in VOTING]
        if self.votes < 1 or (self.votes > 1 and without_logits):
            who = f"; {without_logits[0]} has no logits to average" if self.votes > 1 else ""
            msg = f"votes must be at least 1, and more only for {', '.join(VOTING)}, got {self.votes}{who}"
            raise ConfigError(msg)

        check_hold_out(self.hold_out, votes=self.votes)

    @property
    def head_training(self) -> HeadTraining:
        """Settings of the heads, shortened if ``epochs`` is given."""
        return (self.head or HeadTraining()).shortened(self.epochs)

    def hold_out_of(self, protocol: str) -> float | None:
        """The share that a protocol holds out; None if it trains on all clouds, or not for epochs."""
        return self.hold_out if protocol in BY_EPOCHS else None

    def copies_of(self, protocol: str) -> int | None:
        """Number of augmented sets that a protocol repeats; None if every epoch has its own, or none is made."""
        copies = self.augmented_copies
        if protocol not in HEADS or copies is None or copies >= self.head_training.epochs:
            return None
        return copies

    def clouds_to_extract(self, benchmark: Benchmark, protocols: tuple[str, ...]) -> int:
        """Clouds that go through the encoder for frozen ``protocols`` and one seed: nearly all of their cost."""
        if not set(protocols) & {*FROZEN, *PARTIAL}:
            return 0
        train, test = len(benchmark.train), len(benchmark.test)
        total = train + test
        if set(protocols) & set(PARTIAL):
            total += test * len(CUTS) * len(KEPT_SHARES)
        if set(protocols) & set(HEADS):
            epochs = self.head_training.epochs
            sets = min(self.augmented_copies or epochs, epochs)
            total += train * sets + test * (self.votes - 1)
        return total


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRun(Evaluation):
    """An evaluation of one set of features on one benchmark, with all that it needs for the work."""

    extractor: FeatureExtractor

    fingerprint: str = ""
    """Identifies the encoder's weights; empty if scores are not stored."""

    statistics: FeatureStatistics | None = None
    """Of default features, as they came with the encoder; None if it has none."""

    published_model: str | None = None
    """The model whose published figures are set beside the results."""

    paths: BenchmarkPaths | None = None
    """Where the benchmark is read from; None if it is in memory already."""

    spec: BenchmarkSpec | None = None
    splits: tuple[str | None, ...] = (None,)

    store: ScoreStore | None = None
    """Where each score is saved at once; None to keep results in memory only."""

    warn: Callable[[Labelled], str | None] = lambda _benchmark: None
    """Returns a warning about test shapes that the encoder saw in pretraining, or None."""

    reporter: Reporter = SILENT

    later_runs: float = 0.0
    """Runs of the same cost that the caller will do after this one; the forecast counts them."""

    def read(self, split: str | None, *, fold: int = 0) -> Labelled:
        """Read a split of the benchmark, or one fold of it."""
        assert self.spec is not None
        assert self.paths is not None
        return self.spec.read(
            self.paths, split, fold=fold, progress=self.counter("reading the archive")
        )

    def counter(self, task: str) -> Callable[[int, int], None]:
        """Progress of one task, for functions that do not know which task they are part of."""
        return partial(self.reporter.progress, task)

    def announce(self, benchmark: Labelled, *, tested: Labelled | None = None) -> None:
        """Say what was read, and whether the encoder saw any of it in pretraining, before anything is measured.

        ``tested`` has all the test shapes, if ``benchmark`` has only some of them.
        """
        assert self.paths is not None
        parts = [benchmark.data_name, *([benchmark.split] if benchmark.split else [])]
        if isinstance(benchmark, LvisShapes | LabelledShapes):
            kind = "categories" if isinstance(benchmark, LvisShapes) else "classes"
            parts.append(f"{plural(len(benchmark), 'shape')} of {len(benchmark.classes):,} {kind}")
        else:
            counts = f"{len(benchmark.train):,} training and {len(benchmark.test):,} test clouds"
            parts.append(counts)
        self.reporter.say(f"data: {', '.join([*parts, str(self.paths.archive)])}")
        for remark in benchmark.remarks if isinstance(benchmark, LabelledShapes) else ():
            self.reporter.say(remark)
        warning = self.warn(tested or benchmark)
        if warning is not None:
            self.reporter.say(f"warning: {warning}")

    def template(
        self,
        benchmark: Labelled,
        protocol: str,
        seed: int,
        *,
        sizes: tuple[int, int],
        protocol_epochs: int | None,
        metrics: tuple[str, str] = ("OA", "mAcc"),
    ) -> Result:
        """The result of one protocol and seed, complete but for the figures; all results are built here.

        A template is made before anything is measured, to look for a stored score of the same settings.

        Args:
            benchmark: as it was read.
            protocol: one of the benchmark's.
            seed: the seed, or the number of the fold or draw.
            sizes: numbers of training and test clouds.
            protocol_epochs: epochs of the protocol; None if it has none.
            metrics: names of the two main figures.
        """
        inputs, form, points = self.extractor.inputs, benchmark.form, self.extractor.inputs.points
        copies = self.copies_of(protocol)
        if isinstance(benchmark, Benchmark):
            points = min(points, benchmark.train.points.shape[1])
        elif isinstance(benchmark, LvisShapes):
            form = f"{form}; corpus content {benchmark.corpus.content[:16]}"
            # Named even if there are as many as epochs, since all draws share them.
            copies = self.augmented_copies if protocol in HEADS else None
        result = Result(
            features=self.extractor.name,
            benchmark=benchmark.name,
            split=benchmark.split,
            data_name=benchmark.data_name,
            form=form,
            checksum=benchmark.checksum,
            stand_in=benchmark.stand_in,
            train_clouds=sizes[0],
            test_clouds=sizes[1],
            protocol=protocol,
            points=points,
            patches=min(inputs.patches, points) if self.extractor.has_patches else None,
            subsampling=inputs.subsampling,
            augmentation=describe_augmentation(protocol, copies),
            seeds=(seed,),
            accuracy=NOT_MEASURED,
            class_accuracy=NOT_MEASURED,
            best_epoch_accuracy=None,
            published=None,
            metrics=metrics,
            repeated_over=self.repeated_over,
            fingerprint=self.fingerprint,
            epochs=None if protocol_epochs is None else self.epochs or protocol_epochs,
            protocol_epochs=protocol_epochs,
            votes=self.votes if protocol in VOTING else 1,
            copies=copies,
            rules=rules_of(protocol),
            hold_out=None if isinstance(benchmark, LvisShapes) else self.hold_out_of(protocol),
        )
        published = published_figure(
            self.published_model,
            benchmark=benchmark.name,
            split=benchmark.split,
            protocol=protocol,
        )
        return result.beside(published)

    def find(self, template: Result) -> Result | None:
        """The stored result for a template; None if it has not been measured yet."""
        return None if self.store is None else self.store.find(template)

    def record(self, template: Result, score: Score, classes: tuple[str, ...] = ()) -> Result:
        """Complete a template with its score, and store it."""
        result = with_score(template, score)
        if self.store is not None:
            self.store.add(template, result, score.confusion, classes)
        return result

    @contextmanager
    def training_file(self, template: Result) -> Iterator[TrainingFile | None]:
        """The file of a training, for a block that trains, measures and records it; None if nothing is stored.

        Ctrl-C, SIGTERM or a closed terminal stops a training between two steps, after saving it; work after the
        training stops once the score is recorded. The reporter hears of the first signal at once; a second one
        interrupts immediately.

        Raises:
            KeyboardInterrupt: after the block, if there was a signal.
        """
        path: Path | None = None if self.store is None else self.store.training_of(template)
        if path is None:
            yield None
            return
        with interruptible(self.reporter.on_signal) as stop:
            yield TrainingFile(path, stop)
        if stop():
            raise KeyboardInterrupt


def check_hold_out(share: float | None, *, votes: int) -> None:
    """Raise unless this share of the training clouds can be held out.

    Raises:
        ConfigError: if it is not between 0 and a half, or there are votes.
    """
    if share is None:
        return
    if not 0.0 < share <= LARGEST_HOLD_OUT:
        msg = (
            f"hold_out must be above 0 and at most {LARGEST_HOLD_OUT}, got {share:g}; 0.1 is usual"
        )
        raise ConfigError(msg)
    if votes > 1:
        msg = f"an epoch is selected without votes, got {votes} votes; leave one of the two out"
        raise ConfigError(msg, settings=("hold_out", "votes"))


def side_sizes(benchmark: Benchmark | PartBenchmark) -> tuple[int, int]:
    """Numbers of training and test clouds."""
    return len(benchmark.train), len(benchmark.test)


def describe_augmentation(protocol: str, copies: int | None) -> str:
    """How often the training clouds were augmented, for results."""
    if protocol not in (*VOTING, PARTS):
        return "training clouds not augmented"
    if copies is None:
        return "training clouds augmented anew each epoch"
    if copies == 1:
        return "one augmented copy of the training clouds"
    return f"{copies} augmented copies of the training clouds, in turn"
