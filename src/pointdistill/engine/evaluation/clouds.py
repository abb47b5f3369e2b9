"""Classification of whole clouds from an archive: ScanObjectNN and ModelNet40."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pointdistill.data.benchmarks.records import Benchmark
from pointdistill.engine.evaluation.bench import Bench, measure_units
from pointdistill.engine.evaluation.forecast import Count
from pointdistill.engine.evaluation.job import Job
from pointdistill.engine.evaluation.results import Result

Read = Callable[[Path, str | None, Count], Benchmark]
"""Read one split of an archive; refuses an absent one by saying where it comes from."""


def evaluate_clouds(job: Job, read: Read) -> list[Result]:
    """Every split, protocol and seed; the results that this job asked for, one a seed."""
    found: list[Result] = []
    for split in job.splits:
        benchmark = read(job.archive, split, job.counting("reading the archive"))
        job.announce(benchmark)
        bench = Bench(
            job.describer(benchmark.name),
            benchmark,
            job.evaluation(seeds=job.seeds),
            published_model=job.published_model,
            fingerprint=job.fingerprint,
        )
        units = measure_units(
            bench, job.kept, progress=job.progress, say=job.say, on_signal=job.on_signal
        )
        here = [unit.result for unit in units]
        job.kept.draw(here)
        found += here
    return found
