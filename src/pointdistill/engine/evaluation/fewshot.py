"""ModelNet40 few-shot: four settings of ten folds each, every fold a training of its own, kept when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pointdistill.data.benchmarks.modelnet_fewshot import (
    FEWSHOT_SETTINGS,
    read_modelnet_fewshot,
)
from pointdistill.data.benchmarks.records import Benchmark, LabelledClouds
from pointdistill.engine.evaluation.bench import Bench, measure_units
from pointdistill.engine.evaluation.job import Job
from pointdistill.engine.evaluation.results import FOLDS, Result

SPLITS = {f"{way}w{shot}s": (way, shot) for way, shot in FEWSHOT_SETTINGS}
"""Way and shot by the name that a user types."""


def evaluate_fewshot(job: Job) -> list[Result]:
    """Every fold of every setting; the results that this job asked for, one a fold.

    A fold's number is also the seed of everything random in it. All folds of a setting are read before the first
    is measured, 0.4 GiB for the largest published one, since a leak in any of them is to be said first.
    """
    found: list[Result] = []
    for place, split in enumerate(job.splits):
        assert split is not None
        folds = [_read(job, split, fold) for fold in job.seeds]
        job.announce(folds[0], tested=_as_one(folds))
        found += _measure(job, folds, job.splits[place + 1 :])
    return found


def _measure(
    job: Job, folds: Sequence[Benchmark], later_splits: Sequence[str | None]
) -> list[Result]:
    """The folds of one setting; forecasts cover ``later_splits`` too."""
    found: list[Result] = []
    for place, (fold, benchmark) in enumerate(zip(job.seeds, folds, strict=True)):
        size = _cost(benchmark.split, benchmark)
        others = len(folds) * sum(_cost(split, benchmark) for split in later_splits)
        bench = Bench(
            job.describer(benchmark.name),
            benchmark,
            job.evaluation(seeds=(fold,), repeated_over=FOLDS),
            published_model=job.published_model,
            fingerprint=job.fingerprint,
            later_runs=len(folds) - place - 1 + others / size,
        )
        units = measure_units(
            bench, job.kept, progress=job.progress, say=job.say, on_signal=job.on_signal
        )
        found += [unit.result for unit in units]
    return found


def _read(job: Job, split: str, fold: int) -> Benchmark:
    """One fold; what a result says of its form is what all folds of a setting share."""
    way, shot = SPLITS[split]
    benchmark = read_modelnet_fewshot(job.archive, way=way, shot=shot, fold=fold)
    folder = benchmark.form.rsplit("/", 1)[0]
    return replace(benchmark, form=f"{folder}/*.pkl")


def _as_one(folds: Sequence[Benchmark]) -> Benchmark:
    """The test clouds of all folds side by side; their labels, which differ in meaning, are no use then."""
    least = min(fold.test.points.shape[1] for fold in folds)
    points = np.concatenate([fold.test.points[:, :least] for fold in folds])
    labels = np.concatenate([fold.test.labels for fold in folds])
    return replace(folds[0], test=LabelledClouds(points, labels))


def _cost(split: str | None, like: Benchmark) -> float:
    """What an epoch of a fold costs, in test clouds: a training cloud costs three, and each class has as many test
    clouds as in the fold ``like``.
    """
    way, shot = SPLITS[split or ""]
    return way * (3 * shot + len(like.test) / len(like.classes))
