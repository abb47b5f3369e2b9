"""Objaverse-LVIS few-shot: ten training shapes a category, ten draws; top-1, 3 and 5 of a linear layer and 5-NN.

The shapes are streamed from a corpus; their features are computed once for all draws and kept in files.
Sizes: n test shapes, C categories.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from pointdistill.data.benchmarks.lvis import NAME, LvisShapes, draw_lvis, read_lvis
from pointdistill.data.corpus import open_corpus
from pointdistill.engine.evaluation.bench import SHORTER, augmentation_in_words
from pointdistill.engine.evaluation.features_kept import CorpusFeatures
from pointdistill.engine.evaluation.forecast import Forecast
from pointdistill.engine.evaluation.job import Job
from pointdistill.engine.evaluation.probe import HeadTraining, LinearHead, Score, score_predictions
from pointdistill.engine.evaluation.probe.nearest import vote
from pointdistill.engine.evaluation.probe.training import smooth_targets, train_head
from pointdistill.engine.evaluation.published import published_figure
from pointdistill.engine.evaluation.results import Result
from pointdistill.engine.evaluation.units import NOT_MEASURED, measured

PROTOCOLS = ("knn", "linear")
DRAWS = "draws"
TRAINING = HeadTraining(batch_size=128, peak_learning_rate=5e-5)
"""Of the linear layer. Source: section 7 of docs/method.md."""

TOP = 5
"""Categories named for each test shape; top-1, 3 and 5 are counted."""


def evaluate_lvis(job: Job) -> list[Result]:
    """Every protocol and draw; the results that this job asked for, one a draw."""
    assert job.corpus is not None
    shapes = read_lvis(job.archive, open_corpus(job.corpus))
    job.announce(shapes)
    task = _Lvis(job, shapes)
    pairs = [(protocol, seed) for protocol in job.protocols for seed in job.seeds]
    missing = [pair for pair in pairs if job.kept.find(task.asked(*pair)) is None]
    task.describe({protocol for protocol, _ in missing})
    for place, (protocol, seed) in enumerate(missing):
        asked = task.asked(protocol, seed)
        score = task.score(protocol, seed, runs=len(missing) - place)
        job.kept.keep(asked, measured(asked, score, shapes.classes))
    return [unit.result for pair in pairs if (unit := job.kept.find(task.asked(*pair)))]


@dataclass(frozen=True, slots=True)
class _Lvis:
    """One encoder on the shapes of the annotation."""

    job: Job
    shapes: LvisShapes

    @property
    def features(self) -> CorpusFeatures:
        """Of all shapes that have a category."""
        describer, shapes = self.job.describer(NAME), self.shapes
        what = repr(
            (self.job.fingerprint, shapes.checksum, shapes.corpus.content, describer.inputs)
        )
        key = hashlib.sha256(what.encode()).hexdigest()[:12]
        folder = self.job.kept.output / "features" / key
        return CorpusFeatures(folder, describer, shapes.corpus, shapes.indices)

    @property
    def training(self) -> HeadTraining:
        return TRAINING.shortened(self.job.epochs)

    @property
    def labels(self) -> Tensor:
        """Of all shapes."""
        return torch.from_numpy(self.shapes.labels)

    def asked(self, protocol: str, seed: int) -> Result:
        """The result of one protocol and draw, with everything in it but the figures."""
        job, shapes, inputs = self.job, self.shapes, self.features.describer.inputs
        train, test = draw_lvis(shapes, seed=seed)
        linear = protocol == "linear"
        copies = job.augmented_copies if linear else None
        asked = Result(
            features=job.name,
            benchmark=NAME,
            split=None,
            data_name=shapes.data_name,
            form=f"{shapes.form}; corpus content {shapes.corpus.content[:16]}",
            checksum=shapes.checksum,
            stand_in=shapes.stand_in,
            train_clouds=len(train),
            test_clouds=len(test),
            protocol=protocol,
            points=inputs.points,
            patches=inputs.patches,
            subsampling=inputs.subsampling,
            augmentation=augmentation_in_words(protocol, copies),
            seeds=(seed,),
            accuracy=NOT_MEASURED,
            class_accuracy=NOT_MEASURED,
            best_epoch_accuracy=None,
            published=None,
            metrics=("top-1", "mAcc"),
            repeated_over=DRAWS,
            fingerprint=job.fingerprint,
            epochs=self.training.epochs if linear else None,
            protocol_epochs=TRAINING.epochs if linear else None,
            copies=copies,
        )
        return asked.beside(
            published_figure(job.published_model, benchmark=NAME, split=None, protocol=protocol)
        )

    def describe(self, protocols: set[str]) -> None:
        """Compute and keep the features that ``protocols`` need, once for all draws."""
        copies = min(self.job.augmented_copies or 0, self.training.epochs)
        sets = [None, *(range(copies) if "linear" in protocols else ())] if protocols else []
        total = sum(self.features.missing(copy) for copy in sets)
        forecast = Forecast(self.job.say, f"{NAME}, features of {total:,} shapes")
        done = 0

        def count(shapes: int) -> None:
            nonlocal done
            done += shapes
            self.job.progress(f"{NAME}: features", done, total)
            forecast(done, total)

        if total:
            self.job.say(f"features of the shapes are kept in {self.features.folder}")
        for copy in sets:
            self.features.describe(copy, count)

    def score(self, protocol: str, seed: int, *, runs: int) -> Score:
        """One protocol on one draw; its forecast covers ``runs`` like it."""
        train, test = draw_lvis(self.shapes, seed=seed)
        name = self._train(train, seed, runs) if protocol == "linear" else self._neighbours(train)
        wanted = np.zeros(len(self.shapes), bool)
        wanted[test] = True
        ranked = [name(part[wanted[rows]]) for rows, part in self.features.stream()]
        return rank_score(torch.cat(ranked), self.labels[wanted])

    def _neighbours(self, train: NDArray[np.int64]) -> Callable[[Tensor], Tensor]:
        """The nearest training shapes' categories, ranked, of feature rows."""
        width = self.features.unit_width()
        voters = normalize(self.features.rows(train, None)[:, :width], dim=1)
        labels = self.labels[train]
        return lambda rows: vote(rows[:, :width], voters, labels)

    def _train(self, train: NDArray[np.int64], seed: int, runs: int) -> Callable[[Tensor], Tensor]:
        """A trained linear layer's best categories of feature rows."""
        job, features, training = self.job, self.features, self.training
        classes = len(self.shapes.classes)
        generator = torch.Generator().manual_seed(seed)
        head = LinearHead(features.width, classes, generator=generator, device=job.device)
        targets = smooth_targets(self.labels[train], classes, training.label_smoothing)
        targets = targets.to(job.device)
        task = f"{NAME}, draw {seed}: linear"
        forecast = Forecast(job.say, task, hint=SHORTER if job.epochs is None else "")
        for epoch in range(training.epochs):
            seen = self._augmented(train, seed, epoch).to(job.device)
            train_head(head, seen, targets, epoch=epoch, settings=training)
            job.progress(task, epoch + 1, training.epochs)
            forecast(epoch + 1, training.epochs * runs)
        best = min(TOP, classes)
        return lambda rows: head.logits(rows.to(job.device)).topk(best, dim=1).indices.cpu()

    def _augmented(self, train: NDArray[np.int64], seed: int, epoch: int) -> Tensor:
        """Features of the training shapes as augmented in an epoch, or as one of the copies."""
        copies = self.job.augmented_copies
        if copies is not None:
            return self.features.rows(train, epoch % copies)
        return self.features.of(train, seed=seed, epoch=epoch, count=lambda _: None).joined


def rank_score(ranked: Tensor, labels: Tensor) -> Score:
    """Top-1, 3 and 5 in percent, and mean class accuracy of top-1.

    Args:
        ranked: (n, k) categories named for each shape, best first, -1 after the last.
        labels: (n,) the true ones.
    """
    hits = (ranked == labels[:, None]).double().cumsum(dim=1).clamp(max=1.0).mean(dim=0)
    at = {count: 100.0 * hits[min(count, ranked.shape[1]) - 1].item() for count in (3, TOP)}
    score = score_predictions(ranked[:, 0], labels)
    return replace(score, further=tuple((f"top-{count}", value) for count, value in at.items()))
