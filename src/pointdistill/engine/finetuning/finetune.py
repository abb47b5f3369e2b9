"""Trains a classifier or segmenter from an encoder and labelled shapes, and resumes interrupted training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pointdistill.data.benchmarks.records import Benchmark, PartBenchmark
from pointdistill.data.files.files import disk_is_full, hold_folder
from pointdistill.data.files.schema import from_plain, refusing_damage, to_plain
from pointdistill.engine.features.inputs import protocol_input
from pointdistill.engine.finetuning.classification import (
    ClassifierTask,
    build_classifier,
    check_labelled,
)
from pointdistill.engine.finetuning.epochs import EpochRecord, Trained, train_epochs
from pointdistill.engine.finetuning.models import (
    ClassifierSpec,
    InputSpec,
    SegmenterSpec,
    Spec,
    build_model,
    read_description,
    save_weights,
    spec_tensors,
    write_description,
)
from pointdistill.engine.finetuning.recipes import ClassifierRecipe
from pointdistill.engine.finetuning.request import (
    FOLDER,
    TRAINING,
    DataChoice,
    FinetuneRequest,
    Recipe,
    check_free,
    choose_data,
    choose_recipe,
    default_output,
    encoder_path,
    licence_of,
    part_names,
    read_data,
)
from pointdistill.engine.finetuning.segmentation import (
    SegmenterRecipe,
    SegmenterTask,
    build_segmenter,
)
from pointdistill.engine.finetuning.training_file import MODEL, TrainingFile, write_start
from pointdistill.engine.pretraining.run_folder import choose_encoder
from pointdistill.engine.runtime.devices import interruptible, pick_device
from pointdistill.engine.weights.encoders import (
    CONFIG,
    WEIGHTS,
    check_sizes,
    load_encoder,
    locate_encoder,
    read_facts,
)
from pointdistill.errors import CheckpointError, DataError
from pointdistill.model.classifier import Classifier
from pointdistill.model.encoder import Encoder
from pointdistill.model.segmenter import Segmenter
from pointdistill.reporter import SILENT, Reporter, format_speed, plural


@dataclass(frozen=True, slots=True)
class Finetuned:
    """The outcome of ``finetune`` or ``resume_finetune``."""

    output: Path
    finished: bool
    """False if it was interrupted; ``resume_finetune`` continues it."""

    kind: str
    """``classifier`` or ``segmenter``."""

    epochs: int
    """Number of completed epochs."""

    score: Mapping[str, Any]
    """As in the model's ``config.json``; empty if it was interrupted."""

    classes: tuple[str, ...] = ()
    """Of a classifier."""

    confusion: NDArray[np.int64] | None = None
    """(C, C) test shapes by true and predicted class after the last epoch; only of a finished classifier."""


def finetune(request: FinetuneRequest, *, reporter: Reporter = SILENT) -> Finetuned:
    """Train a classifier or a segmenter, and save it as a folder for ``predict`` and ``load_classifier``.

    Raises:
        ConfigError: for settings that do not exist or contradict each other.
        DataError: if the data are absent, damaged or too few, or the output folder is not empty.
        CheckpointError: if there is no encoder.
        DivergenceError: if a loss is not finite.
    """
    pick_device(request.device)
    if request.from_scratch:
        stored = locate_encoder(encoder_path(request, reporter=reporter), reporter=reporter)
        reporter.say(f"encoder: {stored}, with new random weights")
    else:
        stored = choose_encoder(request.encoder, folder=request.folder, reporter=reporter)
    output = request.output or default_output(request)
    with _room_in(output), _held(output):
        check_free(output)
        return _begin(request, stored, output, reporter)


@contextmanager
def _room_in(output: Path) -> Iterator[None]:
    """Turn a full disk into a one-line error that says how to go on."""
    try:
        yield
    except OSError as error:
        if not disk_is_full(error):
            raise
        begun = (output / TRAINING).is_file() and (output / CONFIG).is_file()
        rest = "resume the training" if begun else "run the same again"
        msg = f"{output}: no space left on the disk; what was saved before is safe: make room, and {rest}"
        raise DataError(msg, settings=("resume",) if begun else ()) from error


def _held(output: Path) -> AbstractContextManager[None]:
    """Keep other processes out of the folder of a model while it is trained."""
    msg = f"{output}: another process is training a model there; wait for it, or choose another output folder"
    return hold_folder(output, DataError(msg, settings=("output",)))


def _begin(request: FinetuneRequest, stored: Path, output: Path, reporter: Reporter) -> Finetuned:
    """Read the data, write the folder of the training, and train."""
    encoder = load_encoder(stored)
    choice = choose_data(
        request.benchmark,
        data=request.data,
        split=request.split,
        stand_in=request.stand_in,
        held_out=request.held_out,
        up=request.up,
        seed=request.seed,
        folder=request.folder,
        reporter=reporter,
    )
    if choice.benchmark == FOLDER:
        choice = replace(choice, points=protocol_input("ScanObjectNN", encoder.config).points)
    data = read_data(choice, reporter=reporter)
    _write_folder(request, choice, data, encoder, read_facts(stored), output)
    return _train(output, data, request.device, reporter)


def resume_finetune(
    output: Path, *, device: str = "auto", reporter: Reporter = SILENT
) -> Finetuned:
    """Continue a training that was interrupted; on a CPU the result is bit for bit that of an uninterrupted one.

    Raises:
        CheckpointError: if ``output`` holds no interrupted training, or the data have changed since.
    """
    read_description(
        output
    )  # refuses a folder that holds no training before anything is written there
    with _room_in(output), _held(output):
        return _resume(output, device, reporter)


def _resume(output: Path, device: str, reporter: Reporter) -> Finetuned:
    spec, facts = read_description(output)
    if not (output / TRAINING).is_file():
        finished = (output / WEIGHTS).is_file()
        state = "is finished" if finished else "cannot be resumed, its state is missing"
        msg = f"{output}: its training {state}; start another in a new folder"
        raise CheckpointError(msg, settings=("output",))
    if facts.get("score"):
        # It was killed after the finished model had been saved; only removing the training file was left to do.
        (output / TRAINING).unlink()
        epochs = int(_training(facts, output)["epochs"])
        kind = "classifier" if isinstance(spec, ClassifierSpec) else "segmenter"
        return Finetuned(output, True, kind, epochs, facts["score"])
    choice = from_plain(DataChoice, _training(facts, output)["data"], where="training.data")
    data = read_data(choice, reporter=reporter)
    if data.checksum != _training(facts, output)["checksum"]:
        msg = f"{choice.path}: not the data that {output} was started with; restore them, or start a new training"
        raise CheckpointError(msg)
    return _train(output, data, device, reporter)


def _write_folder(
    request: FinetuneRequest,
    choice: DataChoice,
    data: Benchmark | PartBenchmark,
    encoder: Encoder,
    encoder_facts: Mapping[str, Any],
    output: Path,
) -> None:
    """Write the output folder of a training before its first step."""
    recipe = choose_recipe(request, data)
    name = "ScanObjectNN" if choice.benchmark == FOLDER else data.name
    inputs = protocol_input(name, encoder.config)
    input_spec = InputSpec(
        points=inputs.points,
        patches=inputs.patches,
        subsampling=inputs.subsampling,
        augment=inputs.augment,
        cloud_points=_cloud_points(data, inputs.points),
        up=choice.up,
    )
    model: Classifier | Segmenter
    spec: Spec
    if isinstance(data, Benchmark):
        assert isinstance(recipe, ClassifierRecipe)
        check_labelled(
            data.train, data.test, classes=len(data.classes), inputs=inputs, encoder=encoder.config
        )
        model = build_classifier(encoder, len(data.classes), recipe, seed=request.seed)
        spec = ClassifierSpec(
            encoder=encoder.config, classifier=model.config, classes=data.classes, input=input_spec
        )
    else:
        assert isinstance(recipe, SegmenterRecipe)
        model = build_segmenter(encoder, data.category_parts, recipe, seed=request.seed)
        spec = SegmenterSpec(
            encoder=encoder.config,
            segmenter=model.config,
            categories=data.categories,
            category_parts=data.category_parts,
            part_names=part_names(data),
            input=input_spec,
        )
    # The weights first, so that any folder with a configuration can be resumed.
    write_start(output / TRAINING, model)
    write_description(output, spec, _facts(request, recipe, choice, data, encoder_facts))


def _facts(
    request: FinetuneRequest,
    recipe: Recipe,
    choice: DataChoice,
    data: Benchmark | PartBenchmark,
    encoder: Mapping[str, Any],
) -> dict[str, Any]:
    """The entries of ``config.json`` besides the model: licences, recipe and data."""
    licence = licence_of(choice, stand_in=data.stand_in)
    own_source = {"name": data.data_name, "licence": licence, "shapes": len(data.train)}
    return {
        "sources": [*([] if request.from_scratch else encoder.get("sources", [])), own_source],
        "pretraining": {} if request.from_scratch else encoder.get("training", {}),
        "training": {
            "recipe": to_plain(recipe),
            "seed": request.seed,
            "epochs": request.epochs or recipe.epochs,
            "data": to_plain(choice),
            "data_name": data.data_name,
            "form": data.form,
            "checksum": data.checksum,
            "stand_in": data.stand_in,
            "train_clouds": len(data.train),
            "test_clouds": len(data.test),
        },
        "score": None,
    }


def _train(
    output: Path, data: Benchmark | PartBenchmark, device: str, reporter: Reporter
) -> Finetuned:
    """Start or resume the training that the folder describes, and save the model when it is finished."""
    spec, facts = read_description(output)
    training = _training(facts, output)
    seed, epochs = int(training["seed"]), int(training["epochs"])
    torch_device, inputs = pick_device(device), spec.input.protocol()
    check_sizes(output / TRAINING, lambda: {MODEL: build_model(spec)}, least=spec_tensors(spec))
    model = build_model(spec).to(torch_device)
    task: ClassifierTask | SegmenterTask
    recipe: Recipe
    if isinstance(data, Benchmark):
        assert isinstance(model, Classifier)
        recipe = from_plain(ClassifierRecipe, training["recipe"], where="training.recipe")
        task = ClassifierTask(model, data.train, data.test, recipe, inputs, seed)
    else:
        assert isinstance(model, Segmenter)
        recipe = from_plain(SegmenterRecipe, training["recipe"], where="training.recipe")
        task = SegmenterTask(model, data.train, data.test, data.category_parts, inputs, seed)
    reporter.say(_summary(data, recipe, epochs, torch_device))
    with interruptible(reporter.on_signal) as stop:
        trained = train_epochs(
            task,
            recipe,
            seed=seed,
            epochs=epochs,
            report=partial(_show_epoch, reporter),
            file=TrainingFile(output / TRAINING, stop),
        )
    kind = "classifier" if isinstance(data, Benchmark) else "segmenter"
    if not trained.finished:
        return Finetuned(output, False, kind, trained.epochs, {})
    score = _score(task, trained, data)
    # In this order a kill at any point leaves a folder that ``resume_finetune`` can finish.
    save_weights(output, model)
    write_description(output, spec, _finished_facts(facts, score))
    (output / TRAINING).unlink()
    if not (isinstance(task, ClassifierTask) and isinstance(data, Benchmark)):
        return Finetuned(output, True, kind, trained.epochs, score)
    counts = task.confusion()
    return Finetuned(output, True, kind, trained.epochs, score, data.classes, counts)


def _show_epoch(reporter: Reporter, record: EpochRecord) -> None:
    note = (
        f"loss {record.loss:.3f}, test {record.accuracy:.1f} %, "
        f"{format_speed(record.clouds_per_second)} shapes/s"
    )
    reporter.progress("training", record.epoch, record.epochs, note=note)


def _score(
    task: ClassifierTask | SegmenterTask, trained: Trained, data: Benchmark | PartBenchmark
) -> dict[str, Any]:
    """The figures of the last and of the best epoch, in percent, as in ``config.json``."""
    assert trained.last is not None
    last, best = trained.last, {"best_epoch": trained.best_epoch}
    if isinstance(data, Benchmark):
        score = {"accuracy": last.overall, "class_accuracy": last.class_mean}
        return score | {"best_epoch_accuracy": trained.best_overall} | best
    assert isinstance(task, SegmenterTask)
    parts = task.score(trained)
    return {
        "instance_miou": parts.instance,
        "class_miou": parts.category,
        "best_epoch_instance_miou": parts.best_instance,
        **best,
        "by_category": {data.categories[k]: iou for k, iou in parts.by_category.items()},
    }


def _cloud_points(data: Benchmark | PartBenchmark, network_points: int) -> int:
    """Points of a stored cloud; if clouds differ in size, the number of points that the network sees."""
    return int(data.train.points.shape[1]) if isinstance(data, Benchmark) else network_points


def _training(facts: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """The ``training`` part of a ``config.json``.

    Raises:
        CheckpointError: if it is missing.
    """
    training = facts.get("training")
    advice = "it does not say how the model is trained; start a new training"
    with refusing_damage(output / CONFIG, advice=advice, error=CheckpointError):
        stated = from_plain(_TrainingFacts, training or {}, where="training", partial=True)
        from_plain(DataChoice, stated.data, where="training.data")
    return dict(training or {})


@dataclass(frozen=True, kw_only=True, slots=True)
class _TrainingFacts:
    """The part of ``training`` in ``config.json`` that a resumed training needs."""

    recipe: Mapping[str, Any]
    seed: int
    epochs: int
    data: Mapping[str, Any]
    checksum: str


def _finished_facts(facts: Mapping[str, Any], score: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a finished model's ``config.json``, with its score."""
    # Only the name of the data is left of their path: models are shared, paths of this machine are not.
    training = dict(facts["training"])
    training["data"] = {**training["data"], "path": Path(training["data"]["path"]).name}
    origin = {"sources": facts.get("sources", []), "pretraining": facts.get("pretraining", {})}
    return {**origin, "training": training, "score": dict(score)}


def _summary(
    data: Benchmark | PartBenchmark, recipe: Recipe, epochs: int, device: torch.device
) -> str:
    split = f" {data.split}" if isinstance(data, Benchmark) and data.split else ""
    length = f"{plural(epochs, 'epoch')}" + (
        f" instead of the recipe's {recipe.epochs}" if epochs != recipe.epochs else ""
    )
    return (
        f"{data.data_name}{split}: {plural(len(data.train), 'shape')} to train on, {len(data.test):,} to test; "
        f"recipe {recipe.name}, {length}, on {device}"
    )
