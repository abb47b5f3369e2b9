"""ShapeNetPart: part segmentation, one training per seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.benchmarks.records import PartBenchmark, PartClouds
from pointdistill.data.benchmarks.registry import PARTS
from pointdistill.engine.evaluation.protocols import held_out_part
from pointdistill.engine.evaluation.results import Result
from pointdistill.engine.evaluation.run import EvaluationRun, side_sizes
from pointdistill.engine.features import Score
from pointdistill.engine.features.feature_extractors import EncoderFeatures
from pointdistill.engine.finetuning.epochs import EpochRecord
from pointdistill.engine.finetuning.segmentation import SegmenterRecipe, train_segmenter
from pointdistill.engine.finetuning.training_file import TrainingFile
from pointdistill.reporter import SHORTER, Forecast


def evaluate_parts(run: EvaluationRun) -> list[Result]:
    """One result for every seed of a run."""
    (split,) = run.splits
    benchmark = run.read(split)
    assert isinstance(benchmark, PartBenchmark)
    run.announce(benchmark)
    found = []
    for index, seed in enumerate(run.seeds):
        template = run.template(
            benchmark,
            PARTS,
            seed,
            sizes=side_sizes(benchmark),
            protocol_epochs=SegmenterRecipe().epochs,
            metrics=("instance mIoU", "class mIoU"),
        )
        result = run.find(template)
        if result is None:
            with run.training_file(template) as file:
                later = len(run.seeds) - index - 1
                result = run.record(template, _train(run, benchmark, seed, later=later, file=file))
        found.append(result)
    return found


def _train(
    run: EvaluationRun,
    benchmark: PartBenchmark,
    seed: int,
    *,
    later: int,
    file: TrainingFile | None,
) -> Score:
    """One training; its forecast covers the ``later`` ones too."""
    extractor = run.extractor
    assert isinstance(extractor, EncoderFeatures)
    task = f"{benchmark.name}, seed {seed}: parts"
    forecast = Forecast(run.reporter, task)
    if run.epochs is None:
        forecast.hint, forecast.settings = SHORTER

    def report(record: EpochRecord) -> None:
        forecast(record.epoch, record.epochs * (1 + later), latest=1)
        run.reporter.progress(task, record.epoch, record.epochs)

    train, held_out = benchmark.train, None
    share = run.hold_out_of(PARTS)
    if share is not None:
        chosen = held_out_part(train.categories, share, seed=seed)
        train, held_out = _chosen_clouds(train, ~chosen), _chosen_clouds(train, chosen)
    score = train_segmenter(
        extractor.encoder,
        train,
        benchmark.test,
        category_parts=benchmark.category_parts,
        recipe=SegmenterRecipe(),
        inputs=extractor.inputs,
        seed=seed,
        epochs=run.epochs,
        device=extractor.device,
        report=report,
        file=file,
        held_out=held_out,
    ).score
    return Score(
        accuracy=score.instance,
        class_accuracy=score.category,
        best_accuracy=score.best_instance,
        selected_accuracy=score.selected_instance,
    )


def _chosen_clouds(clouds: PartClouds, chosen: NDArray[np.bool_]) -> PartClouds:
    """Some of the clouds, by an (n,) mask."""
    rows = np.flatnonzero(chosen)
    return PartClouds(
        points=tuple(clouds.points[row] for row in rows),
        parts=tuple(clouds.parts[row] for row in rows),
        categories=clouds.categories[rows],
        ids=tuple(clouds.ids[row] for row in rows),
    )
