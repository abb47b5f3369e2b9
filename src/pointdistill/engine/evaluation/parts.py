"""ShapeNetPart: part segmentation, every seed a training of its own, kept when it is done."""

from __future__ import annotations

from dataclasses import replace

from pointdistill.data.benchmarks.part_records import PartBenchmark
from pointdistill.data.benchmarks.shapenetpart import read_shapenetpart
from pointdistill.engine.evaluation.bench import SHORTER
from pointdistill.engine.evaluation.forecast import Forecast
from pointdistill.engine.evaluation.job import Job
from pointdistill.engine.evaluation.published import published_figure
from pointdistill.engine.evaluation.results import Result, Spread
from pointdistill.engine.evaluation.units import NOT_MEASURED, Unit, kept_training
from pointdistill.engine.finetuning.epochs import EpochRecord
from pointdistill.engine.finetuning.segmentation import PartScore, SegmenterRecipe, train_segmenter
from pointdistill.engine.finetuning.training_file import TrainingFile

PROTOCOL = "parts"
"""What results and published figures call it."""

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
            with kept_training(job.kept, asked, job.on_signal) as file:
                score = _train(job, benchmark, seed, later=len(job.seeds) - place - 1, file=file)
                unit = Unit(_measured(asked, score))
                job.kept.keep(asked, unit)
        found.append(unit.result)
    return found


def _asked(job: Job, benchmark: PartBenchmark, seed: int) -> Result:
    """The result of one seed with everything in it but the figures."""
    inputs = job.describer(benchmark.name).inputs
    asked = Result(
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
        metrics=("instance mIoU", "class mIoU"),
        fingerprint=job.fingerprint,
        epochs=job.epochs or SegmenterRecipe().epochs,
        protocol_epochs=SegmenterRecipe().epochs,
    )
    return asked.beside(
        published_figure(
            job.published_model, benchmark=benchmark.name, split=None, protocol=PROTOCOL
        )
    )


def _measured(asked: Result, score: PartScore) -> Result:
    """The result that was asked for, with its figures."""
    return replace(
        asked,
        accuracy=Spread.of([score.instance]),
        class_accuracy=Spread.of([score.category]),
        best_epoch_accuracy=Spread.of([score.best_instance]),
        each=(score.instance,),
    )


def _train(
    job: Job, benchmark: PartBenchmark, seed: int, *, later: int, file: TrainingFile | None
) -> PartScore:
    """One training, its forecast for the ``later`` ones too."""
    task = f"{benchmark.name}, seed {seed}: parts"
    forecast = Forecast(job.say, task, hint=SHORTER if job.epochs is None else "")

    def report(record: EpochRecord) -> None:
        forecast(record.epoch, record.epochs * (1 + later), latest=1)
        job.progress(task, record.epoch, record.epochs)

    return train_segmenter(
        job.encoder,
        benchmark.train,
        benchmark.test,
        category_parts=benchmark.category_parts,
        recipe=SegmenterRecipe(),
        inputs=job.describer(benchmark.name).inputs,
        seed=seed,
        epochs=job.epochs,
        device=job.device,
        report=report,
        file=file,
    ).score
