"""Training a segmenter: it learns, repeats, sees what it should, and is measured as published."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pointdistill.data.benchmarks.records import PartClouds
from pointdistill.data.benchmarks.shapenetpart import CATEGORY_PARTS as SHAPENET
from pointdistill.engine.features.inputs import published_input
from pointdistill.engine.finetuning.epochs import EpochRecord
from pointdistill.engine.finetuning.part_clouds import (
    PackedClouds,
    mean_part_iou,
    predict_parts,
    shape_ious,
)
from pointdistill.engine.finetuning.segmentation import (
    SegmenterRecipe,
    SegmenterResult,
    SegmenterTask,
    build_segmenter,
    segment,
    segmenter_config,
    train_segmenter,
)
from pointdistill.errors import ConfigError, DataError
from pointdistill.model.config import EncoderConfig
from pointdistill.model.encoder import Encoder
from pointdistill.model.random import KeyedRandom, sample_keys
from pointdistill.model.segmenter import SegmenterConfig
from pointdistill.model.transformer import StochasticDepth
from tests.engine.labelled import (
    CATEGORY_PARTS,
    CONFIG,
    INPUTS,
    make_encoder,
    make_parts,
)

RECIPE = SegmenterRecipe(batch_size=4, peak_learning_rate=1e-2)


def train(
    recipe: SegmenterRecipe = RECIPE,
    *,
    epochs: int = 2,
    seed: int = 0,
    clouds: PartClouds | None = None,
    report: list[EpochRecord] | None = None,
    held_out: PartClouds | None = None,
) -> SegmenterResult:
    return train_segmenter(
        make_encoder(),
        make_parts() if clouds is None else clouds,
        make_parts(10, seed=1),
        category_parts=CATEGORY_PARTS,
        recipe=recipe,
        inputs=INPUTS,
        seed=seed,
        epochs=epochs,
        report=None if report is None else report.append,
        held_out=held_out,
    )


def weights(result: SegmenterResult) -> dict[str, Tensor]:
    return result.segmenter.state_dict()


def test_it_learns_to_tell_a_head_from_a_shaft() -> None:
    records: list[EpochRecord] = []
    score = train(epochs=14, report=records).score
    assert score.instance >= 85.0
    assert records[-1].loss < records[0].loss
    instances = [record.accuracy for record in records]
    assert score.instance == instances[-1]
    assert score.best_instance == max(instances)
    assert score.best_epoch == 1 + instances.index(max(instances))
    # Five shapes of each category: the mean over shapes is the mean over categories.
    assert score.category == pytest.approx(score.instance)
    assert score.category == pytest.approx(np.mean(list(score.by_category.values())))


def test_clouds_held_out_select_an_epoch_and_change_nothing_else() -> None:
    """Held out are the test clouds themselves, so that the selected epoch is the last of the best."""
    records: list[EpochRecord] = []
    result = train(epochs=3, report=records, held_out=make_parts(10, seed=1))
    assert result.score.selected_instance == max(record.accuracy for record in records)
    plain = train(epochs=3)
    assert plain.score.selected_instance is None
    assert plain.score.instance == result.score.instance


def test_the_score_is_that_of_the_segmenter_returned() -> None:
    """Shape by shape instead of in batches, its 48 points drawn one shape at a time."""
    result, test = train(), make_parts(10, seed=1)
    task = SegmenterTask(result.segmenter, test, test, CATEGORY_PARTS, INPUTS, seed=0)
    ious = []
    for number in range(10):
        points, truth = (
            task._test.points[number : number + 1],
            task._test.truth[number : number + 1],
        )
        category = torch.tensor([number % 2])
        with torch.inference_mode():
            logits = segment(result.segmenter, points, points, category, INPUTS)
        predicted = predict_parts(logits, category, CATEGORY_PARTS)
        ious.append(shape_ious(predicted, truth, category, CATEGORY_PARTS))
    means = mean_part_iou(torch.cat(ious), torch.arange(10) % 2)
    assert result.score.instance == pytest.approx(100 * means.instance)
    assert result.score.category == pytest.approx(100 * means.category)


def test_same_seed_same_weights_whatever_was_drawn_before() -> None:
    first = train()
    torch.rand(5)
    again, other = train(), train(seed=1)
    assert first.score == again.score
    for name, value in weights(first).items():
        assert torch.equal(value, weights(again)[name]), name
    assert not torch.equal(
        weights(first)["category_embedding.weight"], weights(other)["category_embedding.weight"]
    )


def test_points_drawn_are_the_clouds_own_with_their_parts() -> None:
    """Against the plain way: all of a smaller cloud, then the same again; no point twice of a larger one."""
    clouds = make_parts()
    packed = PackedClouds.pack(clouds, torch.device("cpu"), side="training")
    index = torch.tensor([5, 0, 11])
    random = KeyedRandom(sample_keys(seed=0, epoch=0, index=index), "test")
    points, parts = packed.draw(index, 60, random)
    for row, number in enumerate(index.tolist()):
        pairs = list(zip(points[row].tolist(), parts[row].tolist(), strict=True))
        own = list(zip(clouds.points[number].tolist(), clouds.parts[number].tolist(), strict=True))
        size = len(own)
        assert all(pair in own for pair in pairs)
        assert len({tuple(point) for point, _ in pairs}) == min(size, 60)
        assert pairs[size:] == pairs[: max(0, 60 - size)]
    assert {len(clouds.points[number]) < 60 for number in index.tolist()} == {True, False}


def test_a_cloud_is_drawn_alike_in_any_batch() -> None:
    packed = PackedClouds.pack(make_parts(), torch.device("cpu"), side="training")

    def draw(*index: int) -> Tensor:
        keys = sample_keys(seed=0, epoch=0, index=torch.tensor(index))
        return packed.draw(torch.tensor(index), 48, KeyedRandom(keys, "test"))[0]

    together = draw(3, 8, 1)
    assert all(torch.equal(draw(k)[0], together[row]) for row, k in enumerate((3, 8, 1)))
    assert not torch.equal(draw(3)[0], draw(8)[0])


def test_a_frozen_encoder_stays_and_everything_else_learns() -> None:
    result, before = train(replace(RECIPE, frozen_encoder=True)), make_encoder().state_dict()
    fresh = build_segmenter(make_encoder(), CATEGORY_PARTS, RECIPE, seed=0).state_dict()
    for name, value in weights(result).items():
        stays = name.startswith("encoder.")
        assert torch.equal(value, before[name[8:]] if stays else fresh[name]) == stays, name
    trained = weights(train())
    moved = [n for n in before if not torch.equal(before[n], trained[f"encoder.{n}"])]
    assert moved == list(before)


def test_stochastic_depth_of_pretraining_does_not_stay() -> None:
    """Large is pretrained with 0.4 in every block; the protocol has 0 to 0.2."""
    encoder = Encoder(replace(CONFIG, drop_path=0.4))
    segmenter = build_segmenter(encoder, CATEGORY_PARTS, RECIPE, seed=0)
    rates = [part.rate for part in segmenter.modules() if isinstance(part, StochasticDepth)]
    assert rates == pytest.approx([0.2 * n / (CONFIG.depth - 1) for n in range(CONFIG.depth)])


def test_no_weight_escapes_the_drawing() -> None:
    """Two segmenters of one seed agree, whatever torch's own generator did in between."""
    first = build_segmenter(make_encoder(), CATEGORY_PARTS, RECIPE, seed=0).state_dict()
    torch.rand(3)
    second = build_segmenter(make_encoder(), CATEGORY_PARTS, RECIPE, seed=0).state_dict()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    scratch = replace(RECIPE, random_encoder=True)
    drawn = build_segmenter(make_encoder(), CATEGORY_PARTS, scratch, seed=0).state_dict()
    assert not torch.equal(drawn["encoder.cls_token"], first["encoder.cls_token"])


def test_the_published_segmenter_and_recipe() -> None:
    """Ten steps an epoch: 3,000 in all, the peak after 100."""
    assert segmenter_config(EncoderConfig(), SHAPENET) == SegmenterConfig()
    recipe, inputs = SegmenterRecipe(), published_input("ShapeNetPart")
    assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (300, 16, 0.05)
    assert recipe.learning_rate(0, total=3000) == pytest.approx(1e-7)
    assert recipe.learning_rate(100, total=3000) == pytest.approx(2e-4)
    assert recipe.learning_rate(1550, total=3000) == pytest.approx((2e-4 + 1e-7) / 2)
    assert recipe.learning_rate(3000, total=3000) == pytest.approx(1e-7)
    assert (inputs.points, inputs.patches, inputs.subsampling) == (2048, 128, "uniform")
    assert (inputs.augment.scale_low, inputs.augment.scale_high) == (0.8, 1.25)
    assert not inputs.augment.rotate_z


@pytest.mark.parametrize(
    ("depth", "layers"), [(24, (8, 16, 24)), (4, (1, 3, 4)), (2, (1, 2)), (1, (1,))]
)
def test_layers_of_other_depths(depth: int, layers: tuple[int, ...]) -> None:
    config = segmenter_config(EncoderConfig(depth=depth), SHAPENET)
    assert config.layers == layers


def test_a_narrow_encoder_gets_a_narrow_head() -> None:
    """16 of 384 is a 24th."""
    config = segmenter_config(CONFIG, CATEGORY_PARTS)
    assert config.point_widths == (16, 16)
    assert config.head_widths == (21, 11)
    assert (config.parts, config.categories) == (5, 2)


def test_a_part_of_another_category_in_the_test_split_is_named() -> None:
    test = make_parts(4, seed=1)
    test.parts[0][:] = 3
    with pytest.raises(DataError, match="part label 3 is not a part of its category 0"):
        train_segmenter(
            make_encoder(), make_parts(), test, category_parts=CATEGORY_PARTS,
            recipe=RECIPE, inputs=INPUTS, seed=0, epochs=1,
        )  # fmt: skip


def test_clouds_without_a_part_at_every_point_are_refused() -> None:
    clouds = make_parts(2)
    short = replace(clouds, parts=(clouds.parts[0][:-1], clouds.parts[1]))
    with pytest.raises(DataError, match="expected training clouds with a part at every point"):
        train(clouds=short)
    with pytest.raises(DataError, match="got 0 clouds"):
        train(clouds=PartClouds((), (), np.empty(0, dtype=np.int64), ()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"epochs": 5}, "epochs 5, warmup_epochs 10"), ({"batch_size": 0}, "batch_size must be")],
)
def test_impossible_recipes_are_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SegmenterRecipe(), **changes)
