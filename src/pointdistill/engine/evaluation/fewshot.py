"""ModelNet40 few-shot: four settings of ten folds each, every fold a training of its own, kept when it is done."""

from __future__ import annotations

from dataclasses import replace

from pointdistill.data.benchmarks.modelnet_fewshot import (
    FEWSHOT_SETTINGS,
    read_modelnet_fewshot,
)
from pointdistill.data.benchmarks.records import Benchmark
from pointdistill.engine.evaluation.bench import Bench, measure_units
from pointdistill.engine.evaluation.job import Job
from pointdistill.engine.evaluation.results import FOLDS, Result

SPLITS = {f"{way}w{shot}s": (way, shot) for way, shot in FEWSHOT_SETTINGS}
"""Way and shot by the name that a user types."""


def evaluate_fewshot(job: Job) -> list[Result]:
    """Every fold of every setting; the results that this job asked for, one a fold.

    A fold's number is also the seed of everything random in it.
    """
    folds = [(split, fold) for split in job.splits for fold in job.seeds]
    found: list[Result] = []
    for place, (split, fold) in enumerate(folds):
        assert split is not None
        way, shot = SPLITS[split]
        benchmark = _read(job, way=way, shot=shot, fold=fold)
        if fold == job.seeds[0]:
            job.announce(benchmark)
        size = _cost(way, shot, benchmark)
        later = sum(_cost(*SPLITS[s or ""], benchmark) for s, _ in folds[place + 1 :])
        bench = Bench(
            job.describer(benchmark.name),
            benchmark,
            job.evaluation(seeds=(fold,), repeated_over=FOLDS),
            published_model=job.published_model,
            fingerprint=job.fingerprint,
            later_runs=later / size,
        )
        units = measure_units(bench, job.kept, progress=job.progress, say=job.say)
        found += [unit.result for unit in units]
    return found


def _read(job: Job, *, way: int, shot: int, fold: int) -> Benchmark:
    """One fold; what a result says of its form is what all folds of a setting share."""
    benchmark = read_modelnet_fewshot(job.archive, way=way, shot=shot, fold=fold)
    folder = benchmark.form.rsplit("/", 1)[0]
    return replace(benchmark, form=f"{folder}/*.pkl")


def _cost(way: int, shot: int, like: Benchmark) -> float:
    """What an epoch of a fold costs, in test clouds: a training cloud costs three, and each class has as many test
    clouds as in the fold ``like``.
    """
    return way * (3 * shot + len(like.test) / len(like.classes))
