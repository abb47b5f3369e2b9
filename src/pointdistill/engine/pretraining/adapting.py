"""Continuing from weights: the loss to expect, and a judgement of the features before and after.

The judgement needs no labels. Two independent draws of points are taken of every shape: good features find the
other draw of a shape among all draws, and give it the same neighbours. If the corpus has labels, probes are
cross-validated on them too. Sizes: n shapes, N points per draw, k neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.corpus.manifest import BUILDING_NAME, MANIFEST_NAME
from pointdistill.data.corpus.shard import UNKNOWN_LABEL
from pointdistill.data.corpus_building import BuildSettings
from pointdistill.data.corpus_building.build import build_source
from pointdistill.data.files.files import read_record, write_json
from pointdistill.data.files.schema import to_plain
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.data.sources.base import Source
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.config.recipes import FEWEST_SHAPES
from pointdistill.engine.features import (
    Samples,
    Score,
    cross_validate,
    logistic_probe,
    nearest_neighbour_probe,
)
from pointdistill.engine.features.extract import extract_features, unit_features
from pointdistill.engine.features.fitted_probes import NEIGHBOURS
from pointdistill.engine.features.inputs import ProtocolInput
from pointdistill.engine.pretraining.run_folder import JUDGEMENT
from pointdistill.engine.runtime.devices import process_count
from pointdistill.engine.weights.encoders import load_encoder, read_facts
from pointdistill.errors import ConfigError
from pointdistill.model.config import AugmentConfig, Mode
from pointdistill.model.encoder import Encoder
from pointdistill.reporter import Reporter, plural

MOST_JUDGED = 500
"""Shapes that are judged, drawn at random from a larger corpus, so that a judgement takes seconds to minutes."""

MOST_NEIGHBOURS = 10
FOLDS = 5
SEED = 20_260_000
"""Of the choice of shapes, their points and the folds: the same before and after."""

HEALTHY = (0.8, 1.25)
"""First losses within this range of the expected one, relative to it, are no reason to worry."""


def expected_first_loss(config: PretrainConfig) -> float | None:
    """The loss, in nats, of a first step with new heads; None in MPM mode, where it has no such simple value.

    New heads know nothing of the teacher's answers and give every one of the K prototypes about the same
    probability, so each cross-entropy is near ln K, however good the encoder's weights are. KoLeo is left out: its
    weight is a hundredth of theirs.
    """
    if not config.mode.has_cls:
        return None
    entropies = 2 if config.mode.has_patches else 1
    chance = math.log(config.head.prototypes)
    return entropies * chance / (entropies + config.koleo_weight)


def is_healthy(loss: float, expected: float) -> bool:
    """Whether a first loss is near enough to the expected one."""
    low, high = HEALTHY
    return low * expected <= loss <= high * expected


def mode_of_weights(weights: Path) -> Mode:
    """The mode to continue in: the one that an encoder was trained in, as far as it has the tokens for it."""
    if not load_encoder(weights).config.cls_token:
        return Mode.MPM
    training = read_facts(weights).get("training")
    recorded = training.get("mode") if isinstance(training, dict) else None
    return Mode.CLS if recorded == Mode.CLS else Mode.DUAL


def is_folder_of_files(data: Path) -> bool:
    """Whether ``data`` is a folder, and no corpus, finished or not."""
    return data.is_dir() and not any((data / n).exists() for n in (MANIFEST_NAME, BUILDING_NAME))


def open_own_folder(data: Path, up: str | None) -> Source:
    """A user's own folder as the source of a corpus; ``up`` is that of files that state none, z by default.

    Raises:
        ConfigError: with several processes, which would all build the corpus; or for too few files.
        DataError: if the folder holds no mesh or cloud.
    """
    if process_count() > 1:
        msg = (
            f"{data} is a folder of files, and {process_count()} processes would all make a corpus of it; make it "
            "first with `pointdistill prepare-data folder`, and name the corpus"
        )
        raise ConfigError(msg, settings=("data",))
    source = open_source("folder", SourceRequest(path=data, up=up))
    check_enough(len(source.entries()), data)
    return source


def corpus_of_folder(
    source: Source, data: Path, run: Path, reporter: Reporter
) -> tuple[Corpus, str]:
    """The corpus of the source that `open_own_folder` gave, built beside the run, and a line that says so.

    Raises:
        ConfigError: if too few of its files can be used.
        DataError: if none can be used, or the disk is full.
    """
    report = build_source(source, corpus_beside(run), BuildSettings(), reporter=reporter)
    first = next((f"{cause.example_id}: {cause.example}" for cause in report.causes), "")
    beside = f" beside {report.refused:,} that cannot be used ({first})" if report.refused else ""
    check_enough(report.kept, data, beside)
    left_out = f", {report.refused:,} refused (see refused.jsonl there)" if report.refused else ""
    line = f"corpus: {report.path}, made of {plural(report.kept, 'file')} in {data}{left_out}"
    return open_corpus(report.path), line


def corpus_beside(run: Path) -> Path:
    """Where the corpus of a user's own folder is made."""
    run = run if run.name else run.absolute()  # the current folder
    return run.with_name(f"{run.name}-corpus")


def check_enough(shapes: int, data: Path, beside: str = "") -> None:
    """Refuse to adapt to fewer shapes than an encoder can be adapted to.

    Args:
        shapes: how many there are.
        data: the corpus or folder that they are in.
        beside: a clause about what else is there.

    Raises:
        ConfigError: if there are too few.
    """
    if shapes < FEWEST_SHAPES:
        msg = (
            f"{data}: {plural(shapes, 'shape is', 'shapes are')} too few to adapt to{beside}; "
            f"{FEWEST_SHAPES} are the least, and hundreds are better"
        )
        raise ConfigError(msg, settings=("data",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What one encoder's features are worth on the shapes of a corpus; percentages."""

    twins: float
    """Draws whose nearest among all other draws is the other one of the same shape."""

    agreement: float
    """Mean share of a shape's k nearest neighbours that its two draws have in common."""

    knn: float | None = None
    """Shapes classified correctly by their nearest neighbours, cross-validated; None without labels."""

    logistic: float | None = None
    """The same by a logistic regression on standardised features."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The features of the shapes of a corpus before and after a run."""

    shapes: int
    neighbours: int
    """k."""

    classes: int = 0
    """Classes that the probes tell apart; 0 without labels."""

    folds: int = 0
    before: Scores
    after: Scores | None = None
    """None while the run is not finished."""

    unchanged: float | None = None
    """Mean share of a shape's k nearest neighbours that are the same before and after, in percent."""

    nearest_before: tuple[tuple[int, ...], ...] = ()
    """The k nearest of each shape before the run, by their numbers in the corpus."""


class Judge:
    """Measures encoders on the same draws of the same shapes of a corpus."""

    def __init__(self, corpus: Corpus, *, points: int, device: torch.device | str = "cpu") -> None:
        """Choose the shapes and draw their points, N = ``points`` each.

        Raises:
            ConfigError: if there are too few shapes for neighbours to mean anything.
        """
        labels = corpus.labels()
        self._labels, self._folds = _usable_labels(labels)
        usable = self._labels != UNKNOWN_LABEL
        candidates = np.flatnonzero(usable) if self._folds else np.arange(len(corpus))
        if len(candidates) < 3:
            few = plural(len(candidates), "shape has", "shapes have")
            msg = f"{corpus.path}: {few} too few neighbours to be judged"
            raise ConfigError(msg)
        rng = np.random.default_rng(SEED)
        self.numbers = np.sort(rng.permutation(candidates)[:MOST_JUDGED])
        # Again, since the choice may have left a class with too few of its shapes.
        self._labels, self._folds = _usable_labels(self._labels[self.numbers])
        self.neighbours = max(1, min(MOST_NEIGHBOURS, len(self.numbers) // 10))
        drawn = [two_draws(corpus.points(int(n)), points, number=int(n)) for n in self.numbers]
        self._draws = np.stack(drawn)  # (n, 2, N, 3)
        self._device = device

    def begin(self, encoder: Encoder) -> Judgement:
        """Judge the weights before the run."""
        scores, nearest = self._measure(encoder)
        named = self.numbers[nearest.numpy()]
        return Judgement(
            shapes=len(self.numbers),
            neighbours=self.neighbours,
            classes=len(np.unique(self._labels[self._labels != UNKNOWN_LABEL])),
            folds=self._folds,
            before=scores,
            nearest_before=tuple(tuple(map(int, row)) for row in named),
        )

    def finish(self, begun: Judgement, encoder: Encoder) -> Judgement:
        """Judge the weights after the run."""
        scores, nearest = self._measure(encoder)
        places = {int(number): place for place, number in enumerate(self.numbers)}
        before = torch.tensor([[places[number] for number in row] for row in begun.nearest_before])
        return Judgement(
            shapes=begun.shapes,
            neighbours=begun.neighbours,
            classes=begun.classes,
            folds=begun.folds,
            before=begun.before,
            after=scores,
            unchanged=overlap(before, nearest),
            nearest_before=begun.nearest_before,
        )

    def _measure(self, encoder: Encoder) -> tuple[Scores, Tensor]:
        """Scores, and (n, k) the places of each shape's nearest shapes."""
        config = encoder.config
        inputs = ProtocolInput(
            points=config.points,
            patches=config.patches,
            subsampling="uniform",
            augment=AugmentConfig(),
        )
        whole = [
            extract_features(
                encoder,
                np.ascontiguousarray(self._draws[:, draw]),
                inputs=inputs,
                seed=SEED,
                device=self._device,
            )
            for draw in (0, 1)
        ]
        first, second = (unit_features(features, encoder) for features in whole)
        nearest = [nearest_rows(features, self.neighbours) for features in (first, second)]
        scores = Scores(
            twins=twins_found(first, second),
            agreement=overlap(*nearest),
            knn=self._probe(partial(nearest_neighbour_probe, neighbours=self._votes), first),
            logistic=self._probe(logistic_probe, whole[0]),
        )
        return scores, nearest[0]

    @property
    def _votes(self) -> int:
        labelled = int((self._labels != UNKNOWN_LABEL).sum())
        return min(NEIGHBOURS, labelled - -(-labelled // max(2, self._folds)))

    def _probe(self, probe: Callable[[Samples, Samples], Score], features: Tensor) -> float | None:
        """Mean accuracy over the folds, in percent; None without labels."""
        if not self._folds:
            return None
        known = torch.from_numpy(self._labels != UNKNOWN_LABEL)
        _, dense = np.unique(self._labels[known.numpy()], return_inverse=True)
        samples = Samples(features[known], torch.from_numpy(dense.astype(np.int64)))
        return cross_validate(probe, samples, folds=self._folds, seed=SEED).accuracy


def two_draws(points: NDArray[np.float32], count: int, *, number: int) -> NDArray[np.float32]:
    """(2, count, 3): two random draws of a shape's points, without a common point if there are enough of them."""
    rng = np.random.default_rng((SEED, number))
    first = rng.permutation(len(points))
    second = first[count:] if len(points) >= 2 * count else rng.permutation(len(points))
    return np.stack([points[np.resize(order, count)] for order in (first, second)])


def nearest_rows(features: Tensor, count: int) -> Tensor:
    """(n, count) the nearest other rows of each of (n, F) rows of length 1."""
    similarity = features @ features.T
    return similarity.fill_diagonal_(-math.inf).topk(count, dim=1).indices


def twins_found(first: Tensor, second: Tensor) -> float:
    """Percentage of rows of two (n, F) sets, of length 1, whose nearest is the same row of the other set."""
    count = len(first)
    nearest = nearest_rows(torch.cat([first, second]), 1)[:, 0]
    other = torch.arange(2 * count).roll(count)
    return 100.0 * (nearest == other).double().mean().item()


def overlap(first: Tensor, second: Tensor) -> float:
    """Mean percentage of the entries of a row of (n, k) that the same row of the other has too."""
    shared = (first[:, :, None] == second[:, None, :]).any(dim=2)
    return 100.0 * shared.double().mean().item()


def _usable_labels(labels: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], int]:
    """Labels of the classes that can be cross-validated, -1 for all others; and the number of folds or 0."""
    values, counts = np.unique(labels[labels != UNKNOWN_LABEL], return_counts=True)
    # Classes large enough for all folds, or if there are not two of these, any of at least two shapes.
    for fewest in (FOLDS, 2):
        kept = values[counts >= fewest]
        if len(kept) >= 2:
            folds = min(FOLDS, int(counts[counts >= fewest].min()))
            usable = np.where(np.isin(labels, kept), labels, UNKNOWN_LABEL).astype(np.int64)
            return usable, folds
    return np.full(len(labels), UNKNOWN_LABEL, np.int64), 0


def write_judgement(run: Path, judgement: Judgement) -> None:
    """Keep a judgement in its run."""
    write_json(run / JUDGEMENT, to_plain(judgement))


def read_judgement(run: Path) -> Judgement | None:
    """The judgement in a run; None if there is none."""
    path = run / JUDGEMENT
    return read_record(path, Judgement) if path.is_file() else None


def judgement_rows(judgement: Judgement) -> Sequence[tuple[str, str, str]]:
    """What was judged, before and after, in words."""
    k, after = judgement.neighbours, judgement.after
    probes = f"{judgement.folds} folds, {judgement.classes} classes"
    rows = (
        (f"nearest neighbours with your labels, {probes}", "knn"),
        (f"logistic regression with your labels, {probes}", "logistic"),
        ("a shape found by another draw of its points", "twins"),
        (f"the same {k} nearest for two draws" if k > 1 else "the same nearest", "agreement"),
    )
    return [
        (text, f"{value:.1f}", "-" if after is None else f"{getattr(after, name):.1f}")
        for text, name in rows
        if (value := getattr(judgement.before, name)) is not None
    ]
