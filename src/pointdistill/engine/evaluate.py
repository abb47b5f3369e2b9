"""Frozen features on a labelled benchmark: every protocol, every seed, one result each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pointdistill.data.benchmarks.records import Benchmark, LabelledClouds
from pointdistill.engine.describe import Describer, EncoderDescriber, GeometryDescriber
from pointdistill.engine.features import BATCH_SIZE
from pointdistill.engine.inputs import ProtocolInput, protocol_input
from pointdistill.engine.probe import (
    LinearProbe,
    Samples,
    Score,
    linear_probe,
    logistic_probe,
    nearest_neighbour_probe,
    svm_probe,
)
from pointdistill.engine.published import published_figure
from pointdistill.engine.results import Result, Spread
from pointdistill.errors import ConfigError

if TYPE_CHECKING:
    from pointdistill.model.encoder import Encoder

PROTOCOLS = ("knn", "svm", "linear", "logistic")
"""The first three are published; the last is blind to the scale of the features."""

COPIES_ON_CPU = 4
"""Augmented copies for the linear probe on a CPU, where 150 passes of an encoder take too long."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many clouds have been described, and how many will be in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What to measure, whosever features they are."""

    protocols: tuple[str, ...] = PROTOCOLS
    """Some of ``PROTOCOLS``, in the order of the results."""

    seeds: tuple[int, ...] = (0,)
    """Of the subsets of points, the augmentation and the probes; one run each."""

    augmented_copies: int | None = None
    """How many augmented sets of training features the linear probe goes through in turn; None for
    a new set each epoch, as published, which costs 150 passes of the encoder."""

    probe: LinearProbe = field(default_factory=LinearProbe)
    """Settings of the linear probe."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.protocols if name not in PROTOCOLS]
        if unknown or not self.protocols:
            wrong = repr(unknown[0]) if unknown else "none"
            msg = f"protocols must be some of {', '.join(PROTOCOLS)}, got {wrong}"
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

    def clouds_to_describe(self, benchmark: Benchmark) -> int:
        """Clouds that have to be described in all, which is nearly all of the cost."""
        train, test = len(benchmark.train), len(benchmark.test)
        sets = min(self.augmented_copies or self.probe.epochs, self.probe.epochs)
        augmented = train * sets if "linear" in self.protocols else 0
        return len(self.seeds) * (train + test + augmented)


def evaluate(
    encoder: Encoder,
    benchmark: Benchmark,
    evaluation: Evaluation,
    *,
    name: str,
    published_model: str | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> list[Result]:
    """Measure a frozen encoder on a benchmark.

    Args:
        encoder: the teacher's; its weights are not changed.
        benchmark: labelled clouds, z up, with their official split.
        evaluation: protocols, seeds and settings.
        name: what to call these features in the results.
        published_model: whose published figures to set beside ours, by its name in
            ``pointdistill.engine.published``.
        device: where the encoder runs; the probes run on the CPU.
        batch_size: clouds a forward pass.
        progress: told after every batch of clouds.

    Returns:
        One result a protocol.

    Raises:
        ConfigError: for a benchmark without a published protocol.
        DataError: if features are not finite.
    """
    describer = EncoderDescriber(
        name=name,
        encoder=encoder,
        inputs=protocol_input(benchmark.name, encoder.config),
        device=device,
        batch_size=batch_size,
    )
    return measure(
        describer, benchmark, evaluation, published_model=published_model, progress=progress
    )


def evaluate_geometry(
    benchmark: Benchmark,
    evaluation: Evaluation,
    *,
    inputs: ProtocolInput,
    progress: Progress | None = None,
) -> list[Result]:
    """Measure hand-made geometric features under the same probes, on the same points.

    Arguments and results are those of ``evaluate``; ``inputs`` are the encoder's (``protocol_input``),
    so that both see clouds of one density.
    """
    return measure(GeometryDescriber(inputs=inputs), benchmark, evaluation, progress=progress)


def measure(
    describer: Describer,
    benchmark: Benchmark,
    evaluation: Evaluation,
    *,
    published_model: str | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Run every protocol for every seed on anything that describes clouds; one result a protocol."""
    counter = _Counter(evaluation.clouds_to_describe(benchmark), progress)
    runs = []
    for seed in evaluation.seeds:
        run = _SeedRun(describer, benchmark, evaluation, seed, counter)
        runs.append(run.scores())
    return [
        _result(
            describer, benchmark, evaluation, protocol, [r[protocol] for r in runs], published_model
        )
        for protocol in evaluation.protocols
    ]


class _SeedRun:
    """All protocols for one seed, on features that are computed once."""

    def __init__(
        self,
        describer: Describer,
        benchmark: Benchmark,
        evaluation: Evaluation,
        seed: int,
        counter: _Counter,
    ) -> None:
        self._describer, self._benchmark, self._evaluation = describer, benchmark, evaluation
        self._seed, self._counter = seed, counter

    def scores(self) -> dict[str, Score]:
        """Every protocol's score."""
        self._counter.task = f"seed {self._seed}: features"
        train, test = self._benchmark.train, self._benchmark.test
        of_train = self._describer(train.points, seed=self._seed, epoch=None, count=self._counter)
        of_test = self._describer(test.points, seed=self._seed, epoch=None, count=self._counter)
        unit = Samples(of_train.unit, _labels(train)), Samples(of_test.unit, _labels(test))
        joined = Samples(of_train.joined, _labels(train)), Samples(of_test.joined, _labels(test))
        run: dict[str, Callable[[], Score]] = {
            "knn": lambda: nearest_neighbour_probe(*unit),
            "svm": lambda: svm_probe(*unit, seed=self._seed),
            "linear": lambda: self._linear(joined[1]),
            "logistic": lambda: logistic_probe(*joined),
        }
        return {protocol: run[protocol]() for protocol in self._evaluation.protocols}

    def _linear(self, test: Samples) -> Score:
        self._counter.task = f"seed {self._seed}: linear probe"
        return linear_probe(
            self._augmented_features(),
            _labels(self._benchmark.train),
            test,
            seed=self._seed,
            classes=len(self._benchmark.classes),
            settings=self._evaluation.probe,
        )

    def _augmented_features(self) -> Callable[[int], Tensor]:
        """Features of the augmented training clouds by epoch; only copies that come again are kept."""
        copies = self._evaluation.augmented_copies
        kept: dict[int, Tensor] = {}

        def describe(epoch: int) -> Tensor:
            points = self._benchmark.train.points
            return self._describer(points, seed=self._seed, epoch=epoch, count=self._counter).joined

        def features(epoch: int) -> Tensor:
            if copies is None:
                return describe(epoch)
            if epoch % copies not in kept:
                kept[epoch % copies] = describe(epoch % copies)
            return kept[epoch % copies]

        return features


class _Counter:
    """Adds up described clouds and passes the sum on."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.task = ""
        self._done, self._total, self._progress = 0, total, progress

    def __call__(self, clouds: int) -> None:
        self._done += clouds
        if self._progress is not None:
            self._progress(self.task, self._done, self._total)


def _result(
    describer: Describer,
    benchmark: Benchmark,
    evaluation: Evaluation,
    protocol: str,
    scores: Sequence[Score],
    published_model: str | None,
) -> Result:
    """One protocol's scores over the seeds, with what was measured."""
    best = [score.best_accuracy for score in scores if score.best_accuracy is not None]
    points = min(describer.inputs.points, benchmark.train.points.shape[1])
    return Result(
        features=describer.name,
        benchmark=benchmark.name,
        split=benchmark.split,
        data_name=benchmark.data_name,
        form=benchmark.form,
        checksum=benchmark.checksum,
        stand_in=benchmark.stand_in,
        train_clouds=len(benchmark.train),
        test_clouds=len(benchmark.test),
        protocol=protocol,
        points=points,
        patches=min(describer.inputs.patches, points) if describer.has_patches else None,
        subsampling=describer.inputs.subsampling,
        augmentation=_augmentation(protocol, evaluation.augmented_copies),
        seeds=evaluation.seeds,
        accuracy=Spread.of([score.accuracy for score in scores]),
        class_accuracy=Spread.of([score.class_accuracy for score in scores]),
        best_epoch_accuracy=Spread.of(best) if best else None,
        published=published_figure(
            published_model, benchmark=benchmark.name, split=benchmark.split, protocol=protocol
        ),
        notes=tuple(dict.fromkeys(score.note for score in scores if score.note)),
    )


def _augmentation(protocol: str, copies: int | None) -> str:
    """How often the training clouds were augmented, in words."""
    if protocol != "linear":
        return "training clouds not augmented"
    if copies is None:
        return "training clouds augmented anew each epoch"
    if copies == 1:
        return "one augmented copy of the training clouds"
    return f"{copies} augmented copies of the training clouds, in turn"


def _labels(clouds: LabelledClouds) -> Tensor:
    return torch.from_numpy(np.asarray(clouds.labels, dtype=np.int64))
