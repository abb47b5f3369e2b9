"""ModelNet40 few-shot: four settings of ten folds each; every fold has its own training and test shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pointdistill.data.benchmarks.modelnet_fewshot import SPLITS
from pointdistill.data.benchmarks.records import Benchmark, LabelledClouds
from pointdistill.engine.evaluation.classification import measure_seeds
from pointdistill.engine.evaluation.results import Result
from pointdistill.engine.evaluation.run import EvaluationRun


def evaluate_folds(run: EvaluationRun) -> list[Result]:
    """One result for every fold of every setting of a run.

    A fold's number is also the seed of everything random in it. All folds of a setting are read before the first
    is measured, so that a leak in any of them is reported before work begins; the largest published setting takes
    0.4 GiB.
    """
    found: list[Result] = []
    for index, split in enumerate(run.splits):
        folds = [_read(run, split, fold) for fold in run.seeds]
        run.announce(folds[0], tested=_as_one(folds))
        found += _measure(run, folds, run.splits[index + 1 :])
    return found


def _measure(
    run: EvaluationRun, folds: Sequence[Benchmark], later_splits: Sequence[str | None]
) -> list[Result]:
    """The folds of one setting; forecasts cover ``later_splits`` too."""
    found: list[Result] = []
    for index, (fold, benchmark) in enumerate(zip(run.seeds, folds, strict=True)):
        size = _cost(benchmark.split, benchmark)
        others = len(folds) * sum(_cost(split, benchmark) for split in later_splits)
        later = len(folds) - index - 1 + others / size
        found += measure_seeds(replace(run, seeds=(fold,), later_runs=later), benchmark)
    return found


def _read(run: EvaluationRun, split: str | None, fold: int) -> Benchmark:
    """One fold; its ``form`` names what all folds of a setting share, so that they become one result."""
    benchmark = run.read(split, fold=fold)
    assert isinstance(benchmark, Benchmark)
    folder = benchmark.form.rsplit("/", 1)[0]
    return replace(benchmark, form=f"{folder}/*.pkl")


def _as_one(folds: Sequence[Benchmark]) -> Benchmark:
    """The test clouds of all folds together. Their labels must not be used: every fold has its own classes."""
    least = min(fold.test.points.shape[1] for fold in folds)
    points = np.concatenate([fold.test.points[:, :least] for fold in folds])
    labels = np.concatenate([fold.test.labels for fold in folds])
    return replace(folds[0], test=LabelledClouds(points, labels))


def _cost(split: str | None, like: Benchmark) -> float:
    """Cost of an epoch of a fold, in test clouds: a training cloud costs as much as three of them, and there are
    as many test clouds per class as in the fold ``like``.
    """
    way, shot = SPLITS[split or ""]
    return way * (3 * shot + len(like.test) / len(like.classes))
