"""The protocols on frozen features, for one seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pointdistill.data.benchmarks.records import Benchmark, LabelledClouds
from pointdistill.engine.evaluation.describe import CountClouds, Describer, Description
from pointdistill.engine.evaluation.plan import HEADS, Evaluation
from pointdistill.engine.evaluation.probe import (
    LinearHead,
    MlpHead,
    Samples,
    Score,
    logistic_probe,
    nearest_neighbour_probe,
    svm_probe,
    train_heads,
)
from pointdistill.engine.evaluation.probe.training import Head

_HEADS: dict[str, Callable[..., Head]] = {"linear": LinearHead, "mlp": MlpHead}


class FrozenRun:
    """Some protocols for one seed, on features that are computed once."""

    def __init__(
        self,
        describer: Describer,
        benchmark: Benchmark,
        evaluation: Evaluation,
        *,
        seed: int,
        count: CountClouds,
    ) -> None:
        """Nothing is computed before ``scores``; ``count`` is told of every batch of clouds described."""
        self._describer, self._benchmark, self._evaluation = describer, benchmark, evaluation
        self._seed, self._count = seed, count

    def scores(self, protocols: Sequence[str]) -> Iterator[tuple[str, Score]]:
        """Each protocol's score as soon as it is there; the heads, trained side by side, come together."""
        train, test = self._benchmark.train, self._benchmark.test
        of_train = self._describe(self._describer, train, epoch=None)
        of_test = self._describe(self._describer, test, epoch=None)
        unit = Samples(of_train.unit, _labels(train)), Samples(of_test.unit, _labels(test))
        joined = Samples(of_train.joined, _labels(train)), Samples(of_test.joined, _labels(test))
        at_once: dict[str, Callable[[], Score]] = {
            "knn": lambda: nearest_neighbour_probe(*unit),
            "svm": lambda: svm_probe(*unit, seed=self._seed),
            "logistic": lambda: logistic_probe(*joined),
        }
        for protocol in protocols:
            if protocol in at_once:
                yield protocol, at_once[protocol]()
        heads = [protocol for protocol in protocols if protocol in HEADS]
        if heads:
            yield from zip(heads, self._train(heads, joined[1]), strict=True)

    def _train(self, names: Sequence[str], test: Samples) -> list[Score]:
        """Scores of the heads, trained on the same features of every epoch."""
        width, classes = test.features.shape[1], len(self._benchmark.classes)
        generators = [torch.Generator().manual_seed(self._seed) for _ in names]
        drawn = zip(names, generators, strict=True)
        return train_heads(
            [_HEADS[name](width, classes, generator=generator) for name, generator in drawn],
            self._augmented_features(),
            _labels(self._benchmark.train),
            test,
            classes=classes,
            settings=self._evaluation.head_training,
            votes=self._votes(),
        )

    def _votes(self) -> list[Tensor]:
        """Features of the further versions of the test clouds."""
        describer, test = self._describer.voting(), self._benchmark.test
        further = range(self._evaluation.votes - 1)
        return [self._describe(describer, test, epoch=vote).joined for vote in further]

    def _augmented_features(self) -> Callable[[int], Tensor]:
        """Features of the augmented training clouds by epoch; only copies that come again are kept."""
        copies = self._evaluation.augmented_copies
        kept: dict[int, Tensor] = {}

        def features(epoch: int) -> Tensor:
            train = self._benchmark.train
            if copies is None:
                return self._describe(self._describer, train, epoch=epoch).joined
            if epoch % copies not in kept:
                of_copy = self._describe(self._describer, train, epoch=epoch % copies)
                kept[epoch % copies] = of_copy.joined
            return kept[epoch % copies]

        return features

    def _describe(
        self, describer: Describer, clouds: LabelledClouds, *, epoch: int | None
    ) -> Description:
        return describer(clouds.points, seed=self._seed, epoch=epoch, count=self._count)


def _labels(clouds: LabelledClouds) -> Tensor:
    return torch.from_numpy(np.asarray(clouds.labels, dtype=np.int64))
