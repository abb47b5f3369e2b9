"""Objaverse-LVIS few-shot: ten training shapes per category, ten draws; top-1, 3 and 5 of a linear layer and 5-NN.

The shapes are streamed from a corpus. Their features may not fit into memory; they are computed once for
all draws and stored in files.

Sizes: n shapes, F features, B shapes per batch, C categories.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointdistill.data.benchmarks.lvis import NAME, LvisShapes, draw_lvis
from pointdistill.data.files.files import write_aside
from pointdistill.data.files.schema import refusing_damage
from pointdistill.engine.evaluation.results import Result
from pointdistill.engine.evaluation.run import EvaluationRun
from pointdistill.engine.features import (
    HeadTraining,
    LinearHead,
    Score,
    rank_classes,
    score_predictions,
    smooth_targets,
    train_head,
)
from pointdistill.engine.features.extract import drop_maximum, feature_width, pool_batches
from pointdistill.engine.features.feature_extractors import EncoderFeatures
from pointdistill.engine.features.inputs import draw_clouds, random_start
from pointdistill.engine.pretraining.loader import PointSource, made_ahead
from pointdistill.errors import DataError
from pointdistill.reporter import SHORTER, Forecast

TRAINING = HeadTraining(batch_size=128, peak_learning_rate=5e-5)
"""Settings of the linear layer. Source: section 7 of docs/method.md."""

TOP = 5
"""Categories predicted for each test shape, for top-1, 3 and 5."""

ROWS = 4096
"""Shapes per file: 19 MB of the small encoder's features. A killed process loses at most one file's work."""


def evaluate_draws(run: EvaluationRun) -> list[Result]:
    """One result for every protocol and draw of a run."""
    (split,) = run.splits
    shapes, extractor = run.read(split), run.extractor
    assert isinstance(shapes, LvisShapes)
    assert isinstance(extractor, EncoderFeatures)
    run.announce(shapes)
    task = _Lvis(run, extractor, shapes)
    pairs = [(protocol, seed) for protocol in run.protocols for seed in run.seeds]
    templates = {pair: task.template(*pair) for pair in pairs}
    results = {pair: run.find(template) for pair, template in templates.items()}
    missing = [pair for pair, result in results.items() if result is None]
    task.compute({protocol for protocol, _ in missing})
    for index, pair in enumerate(missing):
        score = task.score(*pair, runs=len(missing) - index)
        results[pair] = run.record(templates[pair], score, shapes.classes)
    return [result for result in results.values() if result is not None]


@dataclass(frozen=True, slots=True)
class CorpusFeatures:
    """Features of shapes of a corpus, plain and augmented: computed once, stored in files of ``ROWS`` rows."""

    folder: Path
    """Where they are stored; each encoder, corpus and input has its own folder."""

    extractor: EncoderFeatures
    corpus: PointSource
    numbers: NDArray[np.int64]
    """(n,) int64, the shapes' numbers in the corpus."""

    def missing(self, copy: int | None) -> int:
        """Number of shapes whose features are not stored yet."""
        return sum(len(rows) for rows, path in self._parts(copy) if not path.exists())

    def compute(self, copy: int | None, count: Callable[[int], None]) -> None:
        """Compute the missing files of an augmented copy, or of the plain shapes if ``copy`` is None."""
        for rows, path in self._parts(copy):
            if not path.exists():
                features = self.of(rows, seed=0, epoch=copy, count=count)
                with write_aside(path) as aside:
                    np.save(aside, features.numpy())

    def stream(self) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Rows and their (rows, F) features without augmentation, one file at a time."""
        for rows, path in self._parts(None):
            yield rows, torch.from_numpy(self._load(path, len(rows)))

    def rows(self, wanted: NDArray[np.int64], copy: int | None) -> Tensor:
        """(len(wanted), F) stored features at ascending rows, of an augmented copy or of the plain shapes."""
        found = []
        for rows, path in self._parts(copy):
            here = wanted[(wanted >= rows[0]) & (wanted <= rows[-1])] - rows[0]
            if len(here):
                found.append(torch.from_numpy(self._load(path, len(rows))[here]))
        return torch.cat(found)

    @staticmethod
    def _load(path: Path, rows: int) -> NDArray[np.float32]:
        """The (rows, F) features in one of the files."""
        with refusing_damage(path, advice="remove it, and it is computed again"):
            stored = np.load(path, allow_pickle=False)
            if stored.ndim != 2 or len(stored) != rows or stored.dtype != np.float32:
                msg = f"{path}: damaged ({stored.dtype} {stored.shape} for {rows:,} shapes); remove it"
                raise DataError(msg)
            return stored

    def of(
        self, rows: NDArray[np.int64], *, seed: int, epoch: int | None, count: Callable[[int], None]
    ) -> Tensor:
        """(len(rows), F) features of some rows, computed now."""
        extractor = self.extractor
        return pool_batches(
            extractor.encoder,
            self._batches(rows, seed=seed, epoch=epoch),
            len(rows),
            patches=extractor.inputs.patches,
            device=extractor.device,
            progress=count,
        )

    def _batches(
        self, rows: NDArray[np.int64], *, seed: int, epoch: int | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Places within ``rows``, clouds and first centres; the next batch is read while this one is computed."""
        size = self.extractor.batch_size
        starts = range(0, len(rows), size)

        def make(start: int) -> list[tuple[Tensor, Tensor, Tensor | None]]:
            numbers = self.numbers[rows[start : start + size]]
            return list(self._draw(numbers, start, seed=seed, epoch=epoch))

        for batches in made_ahead(iter(starts), make):
            yield from batches

    def _draw(
        self, numbers: NDArray[np.int64], start: int, *, seed: int, epoch: int | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """The shapes with these (B,) numbers, in batches of equally many points."""
        clouds = [self.corpus.points(int(number)) for number in numbers]
        order = sorted(range(len(clouds)), key=lambda place: len(clouds[place]))
        for _, group in groupby(order, key=lambda place: len(clouds[place])):
            places = list(group)
            points = torch.from_numpy(np.stack([clouds[place] for place in places]))
            device = torch.device(self.extractor.device)
            index = torch.from_numpy(numbers[places]).to(device)
            drawn = draw_clouds(
                points.to(device), index, self.extractor.inputs, seed=seed, epoch=epoch
            )
            first = None if epoch is None else random_start(drawn, index, seed=seed, epoch=epoch)
            yield torch.tensor(places) + start, drawn, first

    def _parts(self, copy: int | None) -> Iterator[tuple[NDArray[np.int64], Path]]:
        """Rows and file of every part, a part being what one file holds."""
        # Files named copy-* are from versions that started farthest point sampling elsewhere.
        name = "plain" if copy is None else f"augmented-{copy}"
        for start in range(0, len(self.numbers), ROWS):
            rows = np.arange(start, min(start + ROWS, len(self.numbers)))
            yield rows, self.folder / f"{name}-{start:08d}.npy"


@dataclass(frozen=True, slots=True)
class _Lvis:
    """One encoder, measured on the shapes of the annotation."""

    run: EvaluationRun
    extractor: EncoderFeatures
    shapes: LvisShapes

    @property
    def features(self) -> CorpusFeatures:
        """Of all shapes that have a category."""
        run, shapes, inputs = self.run, self.shapes, self.extractor.inputs
        assert run.store is not None
        what = repr((run.fingerprint, shapes.checksum, shapes.corpus.content, inputs))
        key = hashlib.sha256(what.encode()).hexdigest()[:12]
        folder = run.store.output / "features" / key
        return CorpusFeatures(folder, self.extractor, shapes.corpus, shapes.indices)

    @property
    def training(self) -> HeadTraining:
        return TRAINING.shortened(self.run.epochs)

    @property
    def labels(self) -> Tensor:
        """Of all shapes."""
        return torch.from_numpy(self.shapes.labels)

    def template(self, protocol: str, seed: int) -> Result:
        """The result of one protocol and draw, complete but for the figures."""
        train, test = draw_lvis(self.shapes, seed=seed)
        return self.run.template(
            self.shapes,
            protocol,
            seed,
            sizes=(len(train), len(test)),
            protocol_epochs=TRAINING.epochs if protocol == "linear" else None,
            metrics=("top-1", "mAcc"),
        )

    def compute(self, protocols: set[str]) -> None:
        """Compute and store the features that ``protocols`` need, once for all draws."""
        copies = min(self.run.augmented_copies or 0, self.training.epochs)
        sets = [None, *(range(copies) if "linear" in protocols else ())] if protocols else []
        total = sum(self.features.missing(copy) for copy in sets)
        forecast = Forecast(self.run.reporter, f"{NAME}, features of {total:,} shapes")
        done = 0

        def count(shapes: int) -> None:
            nonlocal done
            done += shapes
            self.run.reporter.progress(f"{NAME}: features", done, total)
            forecast(done, total)

        if total:
            self.run.reporter.say(f"features of the shapes are kept in {self.features.folder}")
        for copy in sets:
            self.features.compute(copy, count)

    def score(self, protocol: str, seed: int, *, runs: int) -> Score:
        """One protocol on one draw; its forecast covers ``runs`` such runs."""
        train, test = draw_lvis(self.shapes, seed=seed)
        name = self._train(train, seed, runs) if protocol == "linear" else self._neighbours(train)
        wanted = np.zeros(len(self.shapes), bool)
        wanted[test] = True
        ranked = [name(part[wanted[rows]]) for rows, part in self.features.stream()]
        return rank_score(torch.cat(ranked), self.labels[wanted])

    def _neighbours(self, train: NDArray[np.int64]) -> Callable[[Tensor], Tensor]:
        """A function that ranks the categories of feature rows by their nearest training shapes."""
        encoder, labels = self.extractor.encoder, self.labels[train]
        voters = self.extractor.unit(self.features.rows(train, None))
        return lambda rows: rank_classes(drop_maximum(rows, encoder), voters, labels)

    def _train(self, train: NDArray[np.int64], seed: int, runs: int) -> Callable[[Tensor], Tensor]:
        """A function that ranks the categories of feature rows by a trained linear layer."""
        run, training = self.run, self.training
        classes = len(self.shapes.classes)
        generator = torch.Generator().manual_seed(seed)
        width = feature_width(self.extractor.encoder.config)
        head = LinearHead(width, classes, generator=generator, device=self.extractor.device)
        targets = smooth_targets(self.labels[train], classes, training.label_smoothing)
        targets = targets.to(self.extractor.device)
        task = f"{NAME}, draw {seed}: linear"
        forecast = Forecast(run.reporter, task)
        if run.epochs is None:
            forecast.hint, forecast.settings = SHORTER
        for epoch in range(training.epochs):
            seen = self._augmented(train, seed, epoch).to(self.extractor.device)
            train_head(head, seen, targets, epoch=epoch, settings=training)
            run.reporter.progress(task, epoch + 1, training.epochs)
            forecast(epoch + 1, training.epochs * runs)
        best = min(TOP, classes)
        return lambda rows: (
            head.logits(rows.to(self.extractor.device)).topk(best, dim=1).indices.cpu()
        )

    def _augmented(self, train: NDArray[np.int64], seed: int, epoch: int) -> Tensor:
        """Features of the training shapes as augmented in an epoch, or as one of the copies."""
        copies = self.run.augmented_copies
        if copies is not None:
            return self.features.rows(train, epoch % copies)
        return self.features.of(train, seed=seed, epoch=epoch, count=lambda _: None)


def rank_score(ranked: Tensor, labels: Tensor) -> Score:
    """Top-1, 3 and 5 accuracy in percent, and the mean class accuracy of top-1.

    Args:
        ranked: (n, k) categories predicted for each shape, best first, padded with -1.
        labels: (n,) the true ones.
    """
    hits = (ranked == labels[:, None]).double().cumsum(dim=1).clamp(max=1.0).mean(dim=0)
    at = {count: 100.0 * hits[min(count, ranked.shape[1]) - 1].item() for count in (3, TOP)}
    score = score_predictions(ranked[:, 0], labels)
    return replace(score, further=tuple((f"top-{count}", value) for count, value in at.items()))
