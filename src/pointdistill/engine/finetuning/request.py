"""A request to fine-tune: its options and their defaults; and the data it names, located and read."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pointdistill.data.benchmarks.records import Benchmark, PartBenchmark
from pointdistill.data.benchmarks.registry import (
    BenchmarkPaths,
    benchmark_spec,
    check_data_choice,
    choose_splits,
    find_archive,
    find_stand_in,
    trainable_benchmarks,
)
from pointdistill.data.files.files import LOCK_NAME
from pointdistill.data.sources import source_info
from pointdistill.data.sources.folder import read_labelled_folder
from pointdistill.data.synthetic_shapes import PART_NAMES
from pointdistill.engine.finetuning.recipes import RECIPES, ClassifierRecipe, recipe_for
from pointdistill.engine.finetuning.segmentation import SegmenterRecipe
from pointdistill.engine.weights import given_or_default
from pointdistill.engine.weights.encoders import WEIGHTS
from pointdistill.errors import ConfigError, DataError
from pointdistill.reporter import SILENT, Reporter

FOLDER = "folder"
HELD_OUT = 0.2
"""Default share of every class of a folder that is held out for testing."""

STAND_IN_LICENCE = "CC0-1.0 (made on the spot)"

TRAINING = "training.safetensors"
"""State of an unfinished training, in the model's folder."""

SMALL_SET = 1000
"""A folder with fewer training clouds gets the few-shot recipe; the smallest set with a published larger recipe
has 2,309."""

Recipe = ClassifierRecipe | SegmenterRecipe


@dataclass(frozen=True, kw_only=True, slots=True)
class DataChoice:
    """The data of a training, described so that they can be read again when it is resumed."""

    benchmark: str
    """A benchmark that can be trained on, or ``folder``."""

    path: str
    split: str | None = None
    """Split of ScanObjectNN."""

    held_out: float = HELD_OUT
    """Share of every class of a folder that is held out for testing."""

    up: str = "z"
    """Up axis of a folder's files that do not state their own."""

    points: int = 0
    """Points to sample from each file of a folder."""

    seed: int = 0
    """Seed of a folder's points and of its split."""


def check_choice(
    benchmark: str,
    *,
    data: Path | None,
    split: str | None,
    stand_in: bool,
    held_out: float | None,
    up: str | None,
) -> None:
    """Check that these options belong together; arguments are those of ``choose_data``.

    Raises:
        ConfigError: for a benchmark or split that does not exist, or options that do not belong to it.
    """
    if benchmark == FOLDER:
        if data is None or split is not None or stand_in:
            msg = (
                "your own shapes are a folder of data, with one sub-folder per class; they have neither official "
                "splits nor a stand-in"
            )
            raise ConfigError(msg, settings=("data", "split", "stand_in"))
        return
    if benchmark not in trainable_benchmarks():
        known = ", ".join(trainable_benchmarks())
        msg = f"no model is trained on {benchmark!r}; choose one of {known}, or a data folder of your own"
        raise ConfigError(msg, settings=("data",))
    if held_out is not None or up is not None:
        msg = f"{benchmark} has its own split and axes; a share held out and an up axis are for your own folder"
        raise ConfigError(msg, settings=("held_out", "up"))
    choose_splits(benchmark, (split,) if split is not None else ())
    check_data_choice(stand_in=stand_in, data=data)


def choose_data(
    benchmark: str,
    *,
    data: Path | None,
    split: str | None,
    stand_in: bool,
    held_out: float | None,
    up: str | None,
    seed: int,
    folder: Path,
    reporter: Reporter = SILENT,
) -> DataChoice:
    """Choose the training data; a stand-in is created if it does not exist yet.

    Args:
        benchmark: one that can be trained on, or ``folder``.
        data: the archive, or a user's own folder.
        split: split of ScanObjectNN.
        stand_in: use the benchmark's stand-in instead of its archive.
        held_out: share of every class of a folder that is held out for testing.
        up: up axis of a folder's files.
        seed: seed of a folder's points and split.
        folder: where to look for defaults.
        reporter: receives progress while a stand-in is created.

    Raises:
        ConfigError: as ``check_choice``.
    """
    check_choice(benchmark, data=data, split=split, stand_in=stand_in, held_out=held_out, up=up)
    if benchmark == FOLDER:
        assert data is not None
        return DataChoice(
            benchmark=FOLDER,
            path=str(data.resolve()),
            held_out=HELD_OUT if held_out is None else held_out,
            up=up or "z",
            seed=seed,
        )
    if stand_in:
        path = find_stand_in(benchmark, folder=folder, reporter=reporter).archive
    else:
        path = data or find_archive(benchmark, data=None, folder=folder)
    split = split or benchmark_spec(benchmark).training_split
    return DataChoice(benchmark=benchmark, path=str(path.resolve()), split=split)


def read_data(choice: DataChoice, *, reporter: Reporter = SILENT) -> Benchmark | PartBenchmark:
    """Read the chosen data; files of a folder that cannot be used are reported and left out.

    Raises:
        DataError: if they are absent or damaged; says where an archive can be obtained.
    """
    path = Path(choice.path)
    if choice.benchmark != FOLDER:
        benchmark = benchmark_spec(choice.benchmark).read(
            BenchmarkPaths(path),
            choice.split,
            progress=partial(reporter.progress, "reading the shapes"),
        )
        assert isinstance(benchmark, Benchmark | PartBenchmark)
        return benchmark
    labelled = read_labelled_folder(
        path,
        points=choice.points,
        seed=choice.seed,
        held_out=choice.held_out,
        up=choice.up,
        progress=partial(reporter.progress, "reading your files"),
    )
    for line in labelled.remarks:
        reporter.say(line)
    for line in labelled.refused:
        reporter.say(f"left out: {line}")
    if line := labelled.left_out.line():
        reporter.say(line)
    if labelled.unlabelled:
        reporter.say(f"left out: files in no sub-folder, so of no class: {labelled.unlabelled:,}")
    return labelled.benchmark


def licence_of(choice: DataChoice, *, stand_in: bool) -> str:
    """The licence of the training data, in a few words."""
    if stand_in:
        return STAND_IN_LICENCE
    if choice.benchmark == FOLDER:
        return source_info(FOLDER).licence
    return benchmark_spec(choice.benchmark).licence


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneRequest:
    """What to train, on which data; everything but a benchmark or a folder may be left out."""

    benchmark: str = FOLDER
    """A benchmark that can be trained on, or ``folder``."""

    data: Path | None = None
    """A benchmark's archive, by default ``data/<archive>``; or a user's own folder."""

    split: str | None = None
    stand_in: bool = False
    held_out: float | None = None
    up: str | None = None

    encoder: Path | str | None = None
    """As for ``load_encoder``; by default the last run in ``folder``, or else the program's own encoder."""

    from_scratch: bool = False
    """Train the encoder's architecture from random weights."""

    frozen: bool = False
    """Train only the head."""

    epochs: int | None = None
    """Overrides the recipe's."""

    seed: int = 0
    output: Path | None = None
    """Folder of the model; by default a new one under ``models/``."""

    device: str = "auto"
    folder: Path = Path()
    """Where to look for defaults."""

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
    """The published recipe for a benchmark; for a user's own folder, one that suits its number of clouds."""
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
    """The recipe with a frozen encoder, at the learning rates published for a head: from 5e-4 down to 1e-7."""
    return replace(
        recipe,
        name="head",
        frozen_epochs=recipe.epochs,
        frozen_learning_rates=(5e-4, 1e-7),
        warmup_epochs=0,
        first_learning_rate=0.0,
    )


def encoder_path(request: FinetuneRequest, *, reporter: Reporter = SILENT) -> Path | str:
    """The requested encoder, else the last run, else the encoder that comes with the program.

    Raises:
        CheckpointError: if there is none of them.
    """
    return given_or_default(request.encoder, folder=request.folder, reporter=reporter)


def default_output(request: FinetuneRequest) -> Path:
    """A folder under ``models/``, named after the benchmark or the user's own folder.

    Beside a finished model of that name it gets a number, from 2 on. A training that was interrupted is not passed
    over, since it is to be resumed.
    """
    if request.benchmark == FOLDER and request.data is not None:
        name = request.data.resolve().name
    else:
        split = f"-{request.split}" if request.split else ""
        name = f"{request.benchmark}{split}{'-stand-in' if request.stand_in else ''}"
    models = request.folder / "models"
    numbered = (models / f"{name}-{number}" for number in itertools.count(2))
    return next(
        path
        for path in itertools.chain([models / name], numbered)
        if not (path / WEIGHTS).is_file() or (path / TRAINING).is_file()
    )


def check_free(output: Path) -> None:
    """Check that a model can be written to ``output``.

    Raises:
        DataError: if it exists and is not an empty folder.
    """
    if output.is_dir() and all(path.name == LOCK_NAME for path in output.iterdir()):
        return
    if (output / TRAINING).is_file():
        msg = f"{output} holds a training that was interrupted; resume it, or choose another output folder"
        raise DataError(msg, settings=("resume", "output"))
    if output.exists():
        msg = f"{output} exists already; choose another output folder, or remove it"
        raise DataError(msg, settings=("output",))


def part_names(data: PartBenchmark) -> tuple[str, ...]:
    """A name for every part label, such as ``chair seat``; a number if a category's parts have no names."""
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
