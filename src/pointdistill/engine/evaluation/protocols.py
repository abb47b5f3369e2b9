"""How a protocol gets its score for one seed: on frozen features, or by training the encoder on the labels.

Sizes: n test clouds, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointdistill.data.benchmarks.records import Benchmark, LabelledClouds
from pointdistill.data.benchmarks.registry import PARTIAL
from pointdistill.engine.evaluation.run import HEADS, Evaluation
from pointdistill.engine.features import (
    Head,
    LinearHead,
    MlpHead,
    Samples,
    Score,
    logistic_probe,
    mean_logits,
    nearest_neighbour_probe,
    score_predictions,
    svm_probe,
    svm_scores,
    train_heads,
)
from pointdistill.engine.features.feature_extractors import FeatureExtractor
from pointdistill.engine.features.inputs import (
    CUTS,
    KEPT_SHARES,
    ProtocolInput,
    cloud_batches,
    partial_clouds,
    voting_input,
)
from pointdistill.engine.finetuning.classification import (
    EVALUATION_BATCH,
    patchify_from_outermost,
    train_classifier,
)
from pointdistill.engine.finetuning.recipes import recipe_for
from pointdistill.engine.finetuning.training_file import TrainingFile
from pointdistill.engine.runtime.devices import threads_for
from pointdistill.model.classifier import Classifier
from pointdistill.model.encoder import Encoder
from pointdistill.model.patches import to_unit_sphere

_HEADS: dict[str, Callable[..., Head]] = {"linear": LinearHead, "mlp": MlpHead}

_HELD_OUT_STREAM = 7_221

FROZEN_COST = 1 / 3
"""Cost of an epoch with a frozen encoder relative to one that trains it: it has no backward pass."""


class FrozenRun:
    """Protocols on frozen features for one seed; the features are computed once for all of them."""

    def __init__(
        self,
        extractor: FeatureExtractor,
        benchmark: Benchmark,
        evaluation: Evaluation,
        *,
        seed: int,
        count: Callable[[int], None],
    ) -> None:
        """Compute nothing yet; ``count`` will be called after every batch with the number of clouds in it."""
        self._extractor, self._benchmark, self._evaluation = extractor, benchmark, evaluation
        self._seed, self._count = seed, count

    def scores(self, protocols: Sequence[str]) -> Iterator[tuple[str, Score]]:
        """Each protocol's score as soon as it is known; the heads, trained side by side, come last."""
        train, test = self._benchmark.train, self._benchmark.test
        of_train = self._extract(self._extractor, train, epoch=None)
        of_test = self._extract(self._extractor, test, epoch=None)
        unit = self._extractor.unit
        angles = Samples(unit(of_train), _labels(train)), Samples(unit(of_test), _labels(test))
        whole = Samples(of_train, _labels(train)), Samples(of_test, _labels(test))
        at_once: dict[str, Callable[[], Score]] = {
            "knn": lambda: nearest_neighbour_probe(*angles),
            "svm": lambda: svm_probe(*angles, seed=self._seed),
            "logistic": lambda: logistic_probe(*whole),
        }
        for protocol in protocols:
            if protocol in at_once:
                yield protocol, at_once[protocol]()
        partial = [protocol for protocol in protocols if protocol in PARTIAL]
        if partial:
            tests = {"whole": angles[1], **dict(self._partial(test))}
            for protocol in partial:
                yield protocol, self._partial_score(protocol, angles[0], tests)
        heads = [protocol for protocol in protocols if protocol in HEADS]
        if heads:
            yield from zip(heads, self._train(heads, *whole), strict=True)

    def _partial(self, test: LabelledClouds) -> Iterator[tuple[str, Samples]]:
        """Features of what is left of the test clouds under each cut and share, by the name of the figure."""
        inputs = self._extractor.inputs
        for cut, share in itertools.product(CUTS, KEPT_SHARES):
            points = partial_clouds(test.points, inputs, seed=self._seed, cut=cut, share=share)
            clouds = LabelledClouds(points, test.labels)
            features = self._extract(self._extractor, clouds, epoch=None)
            yield f"{cut} {100.0 * share:g}", Samples(self._extractor.unit(features), _labels(test))

    def _partial_score(self, protocol: str, train: Samples, tests: Mapping[str, Samples]) -> Score:
        """The score on the first of ``tests``, whole clouds, with the accuracy on each kind of part beside it."""
        if protocol == "partial-knn":
            scores = [nearest_neighbour_probe(train, test) for test in tests.values()]
        else:
            scores = svm_scores(train, list(tests.values()), seed=self._seed)
        named = list(zip(tests, scores, strict=True))
        further = tuple((name, score.accuracy) for name, score in named[1:])
        return replace(scores[0], further=further, confusion=None)

    def _train(self, names: Sequence[str], train: Samples, test: Samples) -> list[Score]:
        """Scores of the heads, which share the features of every epoch; ``train`` has no augmentation."""
        width, classes = test.features.shape[1], len(self._benchmark.classes)
        features, held_out = self._augmented_features(), None
        if self._evaluation.hold_out is not None:
            chosen = torch.from_numpy(
                held_out_part(train.labels.numpy(), self._evaluation.hold_out, seed=self._seed)
            )
            held_out = Samples(train.features[chosen], train.labels[chosen])
            features = _rows_of(features, ~chosen)
            train = Samples(train.features[~chosen], train.labels[~chosen])
        generators = [torch.Generator().manual_seed(self._seed) for _ in names]
        drawn = zip(names, generators, strict=True)
        return train_heads(
            [_HEADS[name](width, classes, generator=generator) for name, generator in drawn],
            features,
            train.labels,
            test,
            classes=classes,
            settings=self._evaluation.head_training,
            votes=self._votes(),
            held_out=held_out,
        )

    def _votes(self) -> list[Tensor]:
        """Features of the further versions of the test clouds."""
        extractor, test = self._extractor.voting(), self._benchmark.test
        further = range(self._evaluation.votes - 1)
        return [self._extract(extractor, test, epoch=vote) for vote in further]

    def _augmented_features(self) -> Callable[[int], Tensor]:
        """Features of the augmented training clouds by epoch; kept only if later epochs use them again."""
        copies = self._evaluation.augmented_copies
        by_copy: dict[int, Tensor] = {}

        def features(epoch: int) -> Tensor:
            train = self._benchmark.train
            if copies is None:
                return self._extract(self._extractor, train, epoch=epoch)
            if epoch % copies not in by_copy:
                by_copy[epoch % copies] = self._extract(
                    self._extractor, train, epoch=epoch % copies
                )
            return by_copy[epoch % copies]

        return features

    def _extract(
        self, extractor: FeatureExtractor, clouds: LabelledClouds, *, epoch: int | None
    ) -> Tensor:
        return extractor(clouds.points, seed=self._seed, epoch=epoch, count=self._count)


def _rows_of(features: Callable[[int], Tensor], chosen: Tensor) -> Callable[[int], Tensor]:
    """The chosen rows of each epoch's features."""
    return lambda epoch: features(epoch)[chosen]


def held_out_part(labels: NDArray[np.int64], share: float, *, seed: int) -> NDArray[np.bool_]:
    """Which of (n,) labelled training clouds are held out: (n,) bool, the given share of every class.

    At least one cloud of every class of two and more, and never all of them.
    """
    # In front of the seed a constant of its own, so that the choice is that of nothing else with this seed.
    rng = np.random.default_rng((_HELD_OUT_STREAM, seed))
    chosen = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            chosen[members[: max(1, round(share * len(members)))]] = True
    return chosen


def _labels(clouds: LabelledClouds) -> Tensor:
    return torch.from_numpy(np.asarray(clouds.labels, dtype=np.int64))


def training_cost(protocol: str, benchmark: str, *, epochs: int | None, done: int = 0) -> float:
    """Cost of the epochs after the first ``done``, in epochs that train the encoder."""
    recipe = recipe_for(benchmark, protocol)
    total = epochs or recipe.epochs
    frozen = round(total * recipe.frozen_epochs / recipe.epochs)
    return max(0, frozen - done) * FROZEN_COST + total - max(frozen, done)


def trained_score(
    encoder: Encoder,
    benchmark: Benchmark,
    protocol: str,
    *,
    inputs: ProtocolInput,
    seed: int,
    epochs: int | None,
    votes: int,
    device: torch.device | str,
    report: Callable[[int], None],
    file: TrainingFile | None = None,
    hold_out: float | None = None,
) -> Score:
    """Train under ``finetune`` or ``scratch``; the last epoch's score, with the best and selected epoch beside it.

    Args:
        encoder: copied, not changed.
        benchmark: with its official split.
        protocol: one of ``TRAINED``.
        inputs: points and patches a cloud, and the augmentation in training.
        seed: of everything random.
        epochs: replaces the recipe's number.
        votes: versions of each test cloud. With more than one, no best epoch is reported, since the test after
            each epoch has no votes.
        device: where to train.
        report: called with the number of epochs done.
        file: where the training is saved while it runs; if the file exists, the training continues from it.
        hold_out: share of every class that is not trained on but selects the epoch; None for none.

    Raises:
        KeyboardInterrupt: if ``file`` asks to stop; the training is saved in it by then.
    """
    train, held_out = benchmark.train, None
    if hold_out is not None:
        chosen = held_out_part(train.labels, hold_out, seed=seed)
        train, held_out = (
            LabelledClouds(train.points[part], train.labels[part]) for part in (~chosen, chosen)
        )
    result = train_classifier(
        encoder,
        train,
        benchmark.test,
        classes=len(benchmark.classes),
        recipe=recipe_for(benchmark.name, protocol),
        inputs=inputs,
        seed=seed,
        epochs=epochs,
        device=device,
        report=lambda record: report(record.epoch),
        file=file,
        held_out=held_out,
    )
    logits = voted_logits(
        result.classifier, benchmark.test, inputs, seed=seed, votes=votes, device=device
    )
    score = score_predictions(logits.argmax(1), torch.from_numpy(benchmark.test.labels))
    if votes > 1:
        return score
    by_epoch = result.score
    return replace(
        score,
        best_accuracy=by_epoch.best_accuracy,
        best_epoch=by_epoch.best_epoch,
        selected_accuracy=by_epoch.selected_accuracy,
        selected_epoch=by_epoch.selected_epoch,
    )


def voted_logits(
    classifier: Classifier,
    clouds: LabelledClouds,
    inputs: ProtocolInput,
    *,
    seed: int,
    votes: int,
    device: torch.device | str,
) -> Tensor:
    """(n, C) logits on the CPU, averaged over the clouds as they are and ``votes`` - 1 further versions."""
    plain = _logits(classifier, clouds, inputs, seed=seed, epoch=None, device=device)
    other = voting_input(inputs)
    further = [
        _logits(classifier, clouds, other, seed=seed, epoch=vote, device=device)
        for vote in range(votes - 1)
    ]
    return mean_logits([plain, *further])


def _logits(
    classifier: Classifier,
    clouds: LabelledClouds,
    inputs: ProtocolInput,
    *,
    seed: int,
    epoch: int | None,
    device: torch.device | str,
) -> Tensor:
    """(n, C) logits of one version of the clouds, by a classifier in evaluation mode."""
    config, device = classifier.encoder.config, torch.device(device)
    found = []
    with torch.inference_mode(), threads_for(config.width, device):
        for _, batch in cloud_batches(
            clouds.points,
            inputs,
            seed=seed,
            epoch=epoch,
            batch_size=EVALUATION_BATCH,
            device=device,
        ):
            patches = patchify_from_outermost(to_unit_sphere(batch), inputs, config.patch_points)
            found.append(classifier(patches).cpu())
    return torch.cat(found)
