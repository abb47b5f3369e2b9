"""The loop of epochs: the same to the bit after a stop, one thread for a narrow encoder, nothing broken kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pointdistill.engine.features.inputs import ProtocolInput
from pointdistill.engine.finetuning import training_file
from pointdistill.engine.finetuning.classification import ClassifierTask, build_classifier
from pointdistill.engine.finetuning.epochs import EpochRecord, Trained, train_epochs
from pointdistill.engine.finetuning.recipes import RECIPES, ClassifierRecipe
from pointdistill.engine.finetuning.training_file import TrainingFile, write_start
from pointdistill.errors import CheckpointError, DivergenceError
from pointdistill.model.classifier import Classifier
from tests.engine.labelled import INPUTS, make_clouds, make_encoder

RECIPE = replace(RECIPES["finetune-modelnet40"], batch_size=8)
"""With a frozen stage, stochastic depth and dropout; 32 clouds make 4 steps an epoch."""


def new_classifier(seed: int = 0) -> Classifier:
    return build_classifier(make_encoder(), 3, RECIPE, seed=seed)


def train(
    classifier: Classifier,
    *,
    file: TrainingFile | None = None,
    report: Callable[[EpochRecord], None] | None = None,
    epochs: int = 4,
    recipe: ClassifierRecipe = RECIPE,
    inputs: ProtocolInput = INPUTS,
    seed: int = 3,
) -> Trained:
    test = make_clouds(9, seed=1)
    task = ClassifierTask(classifier, make_clouds(32), test, recipe, inputs, seed)
    return train_epochs(task, recipe, seed=seed, epochs=epochs, file=file, report=report)


def after(steps: int) -> Callable[[], bool]:
    """An answer that is yes from the ``steps``-th question on."""
    asked = iter(range(1, 10_000))
    return lambda: next(asked) >= steps


def weights(classifier: Classifier) -> dict[str, Tensor]:
    return classifier.state_dict()


@pytest.mark.parametrize("stops", [(1,), (4,), (7, 1, 3), (15,)])
def test_stopped_anywhere_and_gone_on_with_is_the_same_to_the_bit(
    stops: tuple[int, ...], tmp_path: Path
) -> None:
    """4 steps are an epoch, so 4 stops between two; the encoder thaws after 5 of the 16."""
    whole = new_classifier()
    records: list[EpochRecord] = []
    expected = train(whole, report=records.append)
    path = tmp_path / "training.safetensors"
    taken, seen = 0, []
    for stop in stops:
        trained = train(new_classifier(), file=TrainingFile(path, after(stop)), report=seen.append)
        taken += stop
        assert not trained.finished
        assert trained.epochs == taken // 4
    split = new_classifier(seed=5)  # its own weights do not matter
    assert train(split, file=TrainingFile(path), report=seen.append) == expected
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(split)[name]), name
    assert [(r.epoch, r.loss, r.accuracy) for r in seen] == [
        (r.epoch, r.loss, r.accuracy) for r in records
    ]


def test_nothing_is_written_before_it_is_time_or_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "training.safetensors"
    train(new_classifier(), file=TrainingFile(path), epochs=1)
    assert not path.exists()
    monkeypatch.setattr(training_file, "SAVE_SECONDS", 0.0)
    train(new_classifier(), file=TrainingFile(path), epochs=1)
    assert path.exists()


def test_a_start_is_gone_on_with_as_a_beginning(tmp_path: Path) -> None:
    begun, path = new_classifier(), tmp_path / "training.safetensors"
    write_start(path, begun)
    expected = train(begun)
    other = new_classifier(seed=5)
    assert train(other, file=TrainingFile(path)) == expected
    assert all(torch.equal(v, weights(other)[name]) for name, v in weights(begun).items())


def test_a_loss_that_is_not_finite_is_never_kept(tmp_path: Path) -> None:
    path, broken = tmp_path / "training.safetensors", new_classifier()
    with torch.no_grad():
        broken.encoder.transformer.norm.weight.fill_(torch.inf)
    with pytest.raises(DivergenceError, match="epoch 1 of 4: the loss is nan"):
        train(broken, file=TrainingFile(path, after(1)))
    assert not path.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"not safetensors", "damaged"), (b"", "damaged")],
)
def test_a_damaged_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        train(new_classifier(), file=TrainingFile(path))


def test_a_file_of_another_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    write_start(path, build_classifier(make_encoder(), 4, RECIPE, seed=0))
    with pytest.raises(CheckpointError, match="does not fit this model: head"):
        train(new_classifier(), file=TrainingFile(path))


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 5},
        {"seed": 4},
        {"recipe": replace(RECIPE, weight_decay=0.1)},
        {"inputs": replace(INPUTS, augment=replace(INPUTS.augment, scale_low=0.8))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_file_of_other_settings_is_not_gone_on_with(
    change: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "training.safetensors"
    train(new_classifier(), file=TrainingFile(path, after(1)))
    kept = path.read_bytes()
    with pytest.raises(
        CheckpointError, match=r"started with another recipe, .*remove it to start over"
    ):
        train(new_classifier(), file=TrainingFile(path), **change)
    assert path.read_bytes() == kept


def test_every_step_has_noise_of_its_own_and_every_epoch_an_order(tmp_path: Path) -> None:
    """The first four steps are an epoch; steps 3 and 4 after a stop see what they see without one."""

    class Watched(ClassifierTask):
        def loss(self, index: Tensor, *, epoch: int, noise: torch.Generator) -> Tensor:
            seen.append((tuple(index.tolist()), noise.initial_seed()))
            return super().loss(index, epoch=epoch, noise=noise)

    def watch(file: TrainingFile | None = None) -> list[tuple[tuple[int, ...], int]]:
        seen.clear()
        task = Watched(new_classifier(), make_clouds(32), make_clouds(9), RECIPE, INPUTS, seed=3)
        train_epochs(task, RECIPE, seed=3, epochs=2, file=file)
        return list(seen)

    seen: list[tuple[tuple[int, ...], int]] = []
    whole = watch()
    orders = [sum((index for index, _ in half), ()) for half in (whole[:4], whole[4:])]
    assert [sorted(order) for order in orders] == [list(range(32))] * 2
    assert orders[0] != orders[1]
    assert len({seed for _, seed in whole}) == 8
    path = tmp_path / "training.safetensors"
    assert watch(TrainingFile(path, after(2))) + watch(TrainingFile(path)) == whole


def test_a_narrow_encoder_trains_on_one_thread() -> None:
    """Width 16; the caller's own number of threads is there again afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen: list[int] = []
        train(new_classifier(), epochs=1, report=lambda _: seen.append(torch.get_num_threads()))
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
