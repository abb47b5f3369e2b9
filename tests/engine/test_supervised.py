"""Training a classifier: it learns, the same seed gives the same result, and what each protocol trains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pointdistill.data.benchmarks.records import LabelledClouds
from pointdistill.engine.features.probe_heads import split_batches
from pointdistill.engine.finetuning.classification import (
    ClassifierResult,
    build_classifier,
    patchify_clouds,
    predict_classes,
    train_classifier,
    training_patches,
)
from pointdistill.engine.finetuning.epochs import EpochRecord
from pointdistill.engine.finetuning.recipes import RECIPES, ClassifierRecipe
from pointdistill.engine.runtime.schedules import two_stage, warmup_cosine
from pointdistill.errors import ConfigError, DataError, DivergenceError
from pointdistill.model.encoder import Encoder
from pointdistill.model.patches import Patches
from pointdistill.model.transformer import StochasticDepth
from tests.engine.labelled import INPUTS, make_clouds, make_encoder

SCRATCH = replace(RECIPES["scratch"], batch_size=8)


def train(
    recipe: ClassifierRecipe = SCRATCH,
    *,
    epochs: int = 2,
    seed: int = 0,
    clouds: LabelledClouds | None = None,
    encoder: Encoder | None = None,
    report: list[EpochRecord] | None = None,
) -> ClassifierResult:
    return train_classifier(
        encoder or make_encoder(),
        clouds or make_clouds(),
        make_clouds(20, seed=1),
        classes=3,
        recipe=recipe,
        inputs=INPUTS,
        seed=seed,
        epochs=epochs,
        report=None if report is None else report.append,
    )


def weights(result: ClassifierResult) -> dict[str, Tensor]:
    return result.classifier.state_dict()


def test_it_learns_to_tell_needles_discs_and_balls_apart() -> None:
    records: list[EpochRecord] = []
    result = train(epochs=12, report=records)
    assert result.score.accuracy >= 90.0
    assert records[-1].loss < records[0].loss
    assert [record.epoch for record in records] == list(range(1, 13))
    accuracies = [record.accuracy for record in records]
    assert result.score.accuracy == accuracies[-1]
    assert result.score.best_accuracy == max(accuracies)
    assert result.score.best_epoch == 1 + accuracies.index(max(accuracies))


def test_the_score_is_that_of_the_classifier_returned() -> None:
    result, test = train(), make_clouds(20, seed=1)
    predicted = predict_classes(result.classifier, patchify_clouds(test, INPUTS, 8, seed=0))
    right = predicted == torch.from_numpy(test.labels)
    assert result.score.accuracy == pytest.approx(100.0 * right.double().mean().item())
    by_class = [right[test.labels == label].double().mean().item() for label in range(3)]
    assert result.score.class_accuracy == pytest.approx(100.0 * np.mean(by_class))


def test_same_seed_same_weights_whatever_was_drawn_before() -> None:
    first = train(SCRATCH)
    torch.rand(5)
    again, other = train(SCRATCH), train(SCRATCH, seed=1)
    assert first.score == again.score
    for name, value in weights(first).items():
        assert torch.equal(value, weights(again)[name]), name
    assert not torch.equal(weights(first)["encoder.cls_token"], weights(other)["encoder.cls_token"])


def test_a_training_cloud_depends_on_seed_epoch_and_index_alone() -> None:
    points = torch.from_numpy(make_clouds().points)

    def offsets(*index: int, seed: int = 0, epoch: int = 0) -> Tensor:
        return training_patches(
            points, torch.tensor(index), INPUTS, 8, seed=seed, epoch=epoch
        ).offsets

    batch = offsets(4, 9, 2)
    for place, index in enumerate((4, 9, 2)):
        torch.testing.assert_close(offsets(index)[0], batch[place], rtol=0, atol=1e-6)
    for other in (offsets(4, seed=1), offsets(4, epoch=1)):
        assert not torch.allclose(other[0], batch[0])


def test_the_batch_of_the_evaluation_does_not_matter() -> None:
    result, test = train(epochs=1), make_clouds(20, seed=1)
    patches = patchify_clouds(test, INPUTS, 8, seed=0)
    whole = result.classifier(patches)
    alone = [
        result.classifier(Patches(patches.centers[i : i + 1], patches.offsets[i : i + 1]))
        for i in range(20)
    ]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=0, atol=1e-5)
    assert torch.equal(predict_classes(result.classifier, patches, batch_size=1), whole.argmax(1))
    assert not result.classifier.training


def test_from_scratch_draws_the_encoder_anew_and_leaves_the_given_one() -> None:
    """With a learning rate of zero the weights after training are those drawn before."""
    still = replace(
        SCRATCH, peak_learning_rate=0.0, first_learning_rate=0.0, final_learning_rate=0.0
    )
    given, before = make_encoder(), make_encoder().state_dict()
    drawn = train(still, epochs=1, encoder=given).classifier.encoder.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())
    assert not any(p.requires_grad for p in given.parameters())
    assert not torch.equal(drawn["cls_token"], before["cls_token"])
    kept = train(replace(still, random_encoder=False), epochs=1).classifier.encoder.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in before.items())


def test_finetuning_trains_every_weight_of_a_frozen_encoder() -> None:
    recipe = replace(RECIPES["finetune-scanobjectnn"], batch_size=8)
    before, result = make_encoder().state_dict(), train(recipe, epochs=1)
    after = result.classifier.encoder.state_dict()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    rates = [block.depth.rate for block in result.classifier.encoder.transformer.blocks]
    assert rates == [0.0, 0.2]


def test_the_frozen_stage_trains_the_head_alone() -> None:
    """140 of 150 epochs are all four steps of a run this short; 50 of 150 are not."""
    recipe = replace(RECIPES["finetune-modelnet40"], batch_size=8)
    before = make_encoder().state_dict()
    frozen = train(replace(recipe, frozen_epochs=140), epochs=1).classifier
    after = frozen.encoder.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    thawed = train(recipe, epochs=1).classifier.encoder.state_dict()
    assert [name for name in before if torch.equal(before[name], thawed[name])] == []


def test_the_truncated_head_has_its_deviation() -> None:
    """At a learning rate of zero the weights are those drawn; others are U(-1, 1) / sqrt(inputs)."""
    still = replace(
        SCRATCH, peak_learning_rate=0.0, first_learning_rate=0.0, final_learning_rate=0.0
    )
    for truncated, deviation in ((True, 0.02), (False, 1 / 3**0.5 / 32**0.5)):
        head = train(replace(still, truncated_head=truncated), epochs=1).classifier.head
        assert head.first_linear.weight.std().item() == pytest.approx(deviation, rel=0.05)


def test_learning_rates_of_the_published_lengths() -> None:
    """Ten steps an epoch; the two-stage clock starts anew after 50 epochs."""
    total = 1500
    scratch, two = RECIPES["scratch"], RECIPES["finetune-modelnet40"]
    for step in range(0, total, 7):
        assert scratch.learning_rate(step, total=total) == warmup_cosine(
            step, first=1e-7, peak=1e-3, final=1e-7, warmup=100, total=total
        )
        assert two.learning_rate(step, total=total) == two_stage(
            step, frozen_first=5e-4, frozen_last=5e-5, frozen_span=500,
            peak=2e-5, final=1e-7, warmup=100, total=total,
        )  # fmt: skip
    assert two.frozen_steps(total) == 500
    assert two.learning_rate(600, total=total) == 2e-5
    assert RECIPES["finetune-scanobjectnn"].learning_rate(0, total=total) == 0.0


def test_a_shorter_run_keeps_the_proportions() -> None:
    """A tenth of the epochs: the peak after a tenth of the warm-up."""
    scratch = RECIPES["scratch"]
    assert scratch.learning_rate(10, total=150) == scratch.peak_learning_rate
    assert scratch.learning_rate(150, total=150) == pytest.approx(1e-7)


@pytest.mark.parametrize(
    ("clouds", "sizes"), [(6, [3, 3]), (8, [3, 3]), (7, [3, 3]), (2, [2]), (1, [1])]
)
def test_batches(clouds: int, sizes: list[int]) -> None:
    """The last partial batch is dropped, unless it is the only one."""
    batches = split_batches(torch.arange(clouds), 3)
    assert [len(batch) for batch in batches] == sizes
    assert torch.cat(batches).tolist() == list(range(sum(sizes)))


def test_few_shot_of_five_classes_takes_one_step_an_epoch() -> None:
    """5 way, 10 shot: 50 clouds, of which 32 are a batch; 200 clouds are 6."""
    size = RECIPES["few-shot"].batch_size
    assert len(split_batches(torch.arange(50), size)) == 1
    assert len(split_batches(torch.arange(200), size)) == 6


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_stochastic_depth(name: str) -> None:
    """0 in the first block, 0.2 in the last, as in the authors' code."""
    classifier = build_classifier(make_encoder(), 3, RECIPES[name], seed=0)
    rates = [part.rate for part in classifier.modules() if isinstance(part, StochasticDepth)]
    assert (rates[0], rates[-1]) == (0.0, 0.2)
    assert rates == sorted(rates)


def test_a_cloud_left_over_can_be_trained_on() -> None:
    assert 0.0 <= train(epochs=1, clouds=make_clouds(9)).score.accuracy <= 100.0


def test_divergence_is_named() -> None:
    wild = replace(SCRATCH, peak_learning_rate=1e30, warmup_epochs=0)
    with pytest.raises(DivergenceError, match="epoch 1 of 2: the loss is nan; lower the recipe's"):
        train(wild)


def test_points_that_are_not_finite_are_refused() -> None:
    broken = make_clouds()
    broken.points[3] = np.nan
    with pytest.raises(DataError, match="1 of 30 training clouds have points that are not finite"):
        train(clouds=broken)


@pytest.mark.parametrize(
    ("clouds", "message"),
    [
        (make_clouds(1), "at least 2 training clouds, got 1"),
        (
            LabelledClouds(make_clouds(6).points, np.arange(6)),
            "labels must lie in 0 to 2, got 0 to 5",
        ),
        (LabelledClouds(make_clouds(6).points, np.arange(5)), r"got \(6, 60, 3\) and \(5,\)"),
        (
            LabelledClouds(make_clouds(6).points[:, :4], np.arange(6) % 3),
            "needs 8 points, the clouds have 4",
        ),
    ],
)
def test_unusable_clouds_are_named(clouds: LabelledClouds, message: str) -> None:
    with pytest.raises(DataError, match=message):
        train(clouds=clouds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"frozen_epochs": 145}, "must fit into the 150 epochs, got 145 and 10"),
        ({"frozen_epochs": 50}, "warm-up begins at 0, got first_learning_rate 1e-07"),
    ],
)
def test_impossible_recipes_are_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(RECIPES["scratch"], **changes)


def test_no_epochs_are_refused() -> None:
    with pytest.raises(ConfigError, match="epochs must be at least 1, got 0"):
        train(epochs=0)
