"""What a user can choose for ``finetune``, and its defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pointdistill.data.benchmarks.records import Benchmark, PartBenchmark
from pointdistill.data.builtin import PART_NAMES
from pointdistill.data.workspace import given_or_last_run
from pointdistill.engine.finetuning.recipes import RECIPES, ClassifierRecipe, recipe_for
from pointdistill.engine.finetuning.segmentation import SegmenterRecipe
from pointdistill.engine.finetuning.training_data import FOLDER, check_choice
from pointdistill.errors import ConfigError, DataError

TRAINING = "training.safetensors"
"""Beside ``config.json`` until the training is finished: what is needed to go on."""

SMALL_SET = 1000
"""Training clouds of a folder below which the few-shot recipe is taken; the published larger ones have 2,309."""

Recipe = ClassifierRecipe | SegmenterRecipe


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneRequest:
    """What a user wants trained; everything but a benchmark or a folder may be left out."""

    benchmark: str = FOLDER
    """A benchmark that can be trained on, or ``folder``."""

    data: Path | None = None
    """A benchmark's archive, ``data/<archive>`` by default; or a user's own folder."""

    split: str | None = None
    stand_in: bool = False
    held_out: float | None = None
    up: str | None = None

    encoder: Path | None = None
    """A run or an encoder folder; the last run in ``folder`` by default."""

    from_scratch: bool = False
    """Train the encoder's architecture from random weights."""

    frozen: bool = False
    """Train the head alone."""

    epochs: int | None = None
    """Instead of the recipe's."""

    seed: int = 0
    output: Path | None = None
    """Folder of the model; a new one under ``models/`` by default."""

    device: str = "auto"
    folder: Path = Path()
    """Where defaults are looked for."""

    def __post_init__(self) -> None:
        if self.frozen and self.from_scratch:
            msg = "a frozen encoder keeps its weights, and training from scratch draws new ones; choose one"
            raise ConfigError(msg, settings=("frozen", "from_scratch"))
        if self.epochs is not None and self.epochs < 1:
            msg = f"epochs must be at least 1, got {self.epochs}"
            raise ConfigError(msg)
        check_choice(
            self.benchmark,
            data=self.data,
            split=self.split,
            stand_in=self.stand_in,
            held_out=self.held_out,
            up=self.up,
        )


def choose_recipe(request: FinetuneRequest, data: Benchmark | PartBenchmark) -> Recipe:
    """The published recipe for these data; for a user's own folder, the one published for as many clouds."""
    if isinstance(data, PartBenchmark):
        return SegmenterRecipe(random_encoder=request.from_scratch, frozen_encoder=request.frozen)
    if request.benchmark != FOLDER:
        recipe = recipe_for(data.name, "scratch" if request.from_scratch else "finetune")
    elif request.from_scratch:
        recipe = RECIPES["scratch"]
    else:
        few = len(data.train) < SMALL_SET
        recipe = RECIPES["few-shot" if few else "finetune-scanobjectnn"]
    return head_only(recipe) if request.frozen else recipe


def head_only(recipe: ClassifierRecipe) -> ClassifierRecipe:
    """The recipe with the encoder frozen throughout, at the rates published for a head: 5e-4 falling to 1e-7."""
    return replace(
        recipe,
        name="head",
        frozen_epochs=recipe.epochs,
        frozen_learning_rates=(5e-4, 1e-7),
        warmup_epochs=0,
        first_learning_rate=0.0,
    )


def encoder_path(request: FinetuneRequest) -> Path | str:
    """The encoder that was named, or the last run.

    Raises:
        CheckpointError: if there is neither.
    """
    return given_or_last_run(request.encoder, folder=request.folder)


def default_output(request: FinetuneRequest) -> Path:
    """Under ``models/``, by the benchmark or the name of a user's own folder."""
    if request.benchmark == FOLDER and request.data is not None:
        return request.folder / "models" / request.data.resolve().name
    split = f"-{request.split}" if request.split else ""
    name = f"{request.benchmark}{split}{'-stand-in' if request.stand_in else ''}"
    return request.folder / "models" / name


def check_free(output: Path) -> None:
    """Raise unless a model can be written to ``output``.

    Raises:
        DataError: if it holds something.
    """
    if output.is_dir() and not any(output.iterdir()):
        return
    if (output / TRAINING).is_file():
        msg = f"{output} holds a training that was interrupted; resume it, or choose another output folder"
        raise DataError(msg, settings=("resume", "output"))
    if output.exists():
        msg = f"{output} exists already; choose another output folder, or remove it"
        raise DataError(msg, settings=("output",))


def part_names(data: PartBenchmark) -> tuple[str, ...]:
    """A name for every part label, such as ``chair seat``; by its number where a category has no names."""
    names = {
        label: f"{category} {name}"
        for category, labels in zip(data.categories, data.category_parts, strict=True)
        for label, name in zip(labels, _names_within(category, len(labels)), strict=True)
    }
    return tuple(names.get(label, f"part {label}") for label in range(1 + max(names)))


def _names_within(category: str, count: int) -> tuple[str, ...]:
    """Names of a category's parts: those of the built-in shapes, which are ShapeNetPart's in name and order."""
    known = PART_NAMES.get(category, ())
    return known if len(known) == count else tuple(str(number + 1) for number in range(count))
