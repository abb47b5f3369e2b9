"""ShapeNetPart: part segmentation, every seed a training of its own, kept when it is done."""

from __future__ import annotations

from dataclasses import replace

from pointdistill.data.benchmarks.part_records import PartBenchmark
from pointdistill.data.benchmarks.shapenetpart import read_shapenetpart
from pointdistill.engine.evaluation.bench import SHORTER
from pointdistill.engine.evaluation.forecast import Forecast
from pointdistill.engine.evaluation.job import Job
from pointdistill.engine.evaluation.results import Result
from pointdistill.engine.evaluation.units import NOT_MEASURED, Unit
from pointdistill.engine.finetuning.segment import PROTOCOL, measure_parts
from pointdistill.engine.finetuning.segmenter_task import SegmenterRecipe

PROTOCOLS = (PROTOCOL,)


def evaluate_parts(job: Job) -> list[Result]:
    """Every seed; the results that this job asked for, one a seed."""
    benchmark = read_shapenetpart(job.archive, progress=job.counting("reading the archive"))
    job.announce(benchmark)
    found = []
    for place, seed in enumerate(job.seeds):
        asked = _asked(job, benchmark, seed)
        unit = job.kept.find(asked)
        if unit is None:
            unit = Unit(_measure(job, benchmark, seed, later=len(job.seeds) - place - 1))
            job.kept.keep(asked, unit)
        found.append(unit.result)
    return found


def _asked(job: Job, benchmark: PartBenchmark, seed: int) -> Result:
    """The result of one seed with everything in it but the figures."""
    inputs = job.describer(benchmark.name).inputs
    return Result(
        features=job.name,
        benchmark=benchmark.name,
        split=None,
        data_name=benchmark.data_name,
        form=benchmark.form,
        checksum=benchmark.checksum,
        stand_in=benchmark.stand_in,
        train_clouds=len(benchmark.train),
        test_clouds=len(benchmark.test),
        protocol=PROTOCOL,
        points=inputs.points,
        patches=inputs.patches,
        subsampling=inputs.subsampling,
        augmentation="training clouds augmented anew each epoch",
        seeds=(seed,),
        accuracy=NOT_MEASURED,
        class_accuracy=NOT_MEASURED,
        best_epoch_accuracy=None,
        published=None,
        fingerprint=job.fingerprint,
        epochs=job.epochs or SegmenterRecipe().epochs,
        protocol_epochs=SegmenterRecipe().epochs,
    )


def _measure(job: Job, benchmark: PartBenchmark, seed: int, *, later: int) -> Result:
    """One training, its forecast for the ``later`` ones too."""
    task = f"{benchmark.name}, seed {seed}"
    forecast = Forecast(job.say, task, hint=SHORTER if job.epochs is None else "")

    def show(_task: str, done: int, total: int) -> None:
        forecast(done, total * (1 + later))
        job.progress(task, done, total)

    (result,) = measure_parts(
        job.encoder,
        benchmark,
        name=job.name,
        seeds=(seed,),
        epochs=job.epochs,
        published_model=job.published_model,
        device=job.device,
        progress=show,
    )
    return replace(result, fingerprint=job.fingerprint).beside(result.published)
