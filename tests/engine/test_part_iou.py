"""Part IoU against stored figures, against counting by hand, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pointdistill.data.benchmarks.shapenetpart import CATEGORY_PARTS
from pointdistill.engine.finetuning.part_clouds import mean_part_iou, predict_parts, shape_ious
from pointdistill.errors import DataError

PARTS = ((0, 1), (2, 3, 4))
"""Two categories: the second has a third part."""


def test_golden_means(golden_dir: Path) -> None:
    expected = json.loads((golden_dir / "part_iou.json").read_text())
    tensors = load_file(golden_dir / "part_iou.safetensors")
    truth, categories = tensors["point_labels"], tensors["shape_labels"]
    parts = expected["parts_per_category"]
    predicted = predict_parts(tensors["logits"], categories, parts)
    result = mean_part_iou(shape_ious(predicted, truth, categories, parts), categories)
    assert result.instance == pytest.approx(expected["instance_mIoU"], rel=1e-6)
    assert result.category == pytest.approx(expected["class_mIoU"], rel=1e-6)
    assert list(result.by_category) == expected["categories_present"]
    assert [list(group) for group in CATEGORY_PARTS] == parts


def test_iou_by_hand() -> None:
    """Truth 0 0 1 1, predicted 0 1 1 1: 1/2 and 2/3. The other shape: 3 right, 2 and 4 absent from both."""
    predicted = torch.tensor([[0, 1, 1, 1], [3, 3, 3, 3]])
    truth = torch.tensor([[0, 0, 1, 1], [3, 3, 3, 3]])
    categories = torch.tensor([0, 1])
    ious = shape_ious(predicted, truth, categories, PARTS)
    assert ious.tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2, 1.0])


def test_a_part_of_the_truth_alone_counts_zero() -> None:
    """Of 2, 3 and 4: 2 is half right, 3 was missed, 4 is absent from both."""
    ious = shape_ious(torch.tensor([[2, 2]]), torch.tensor([[2, 3]]), torch.tensor([1]), PARTS)
    assert ious.item() == pytest.approx((1 / 2 + 0 + 1) / 3)


def test_a_prediction_is_one_of_its_own_categorys_parts() -> None:
    """The highest logit belongs to part 0; a shape of the second category chooses among 2, 3 and 4."""
    logits = torch.tensor([[[9.0, 1.0, 2.0, 4.0, 3.0]]])
    assert predict_parts(logits, torch.tensor([0]), PARTS).tolist() == [[0]]
    assert predict_parts(logits, torch.tensor([1]), PARTS).tolist() == [[3]]


def test_means_over_shapes_and_over_categories() -> None:
    """Shapes 1.0 and 0.5 of one category, 0.0 of another; the third category does not occur."""
    result = mean_part_iou(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0, 0, 2]))
    assert result.instance == 0.5
    assert result.by_category == {0: 0.75, 2: 0.0}
    assert result.category == 0.375


def by_definition(predicted: Tensor, truth: Tensor, category: int) -> float:
    """One shape's mean IoU with sets of points."""
    ious = []
    for part in CATEGORY_PARTS[category]:
        ours = {i for i, label in enumerate(predicted.tolist()) if label == part}
        theirs = {i for i, label in enumerate(truth.tolist()) if label == part}
        ious.append(len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0)
    return float(np.mean(ious))


def test_counts_match_the_definition() -> None:
    draw = torch.Generator().manual_seed(0)
    categories = torch.randint(0, 16, (20,), generator=draw)
    labels = torch.tensor([min(group) for group in CATEGORY_PARTS])[categories]
    predicted, truth = (
        labels[:, None] + torch.randint(0, 2, (20, 12), generator=draw) for _ in range(2)
    )
    ious = shape_ious(predicted, truth, categories, CATEGORY_PARTS)
    rows = zip(predicted, truth, categories.tolist(), strict=True)
    assert ious.tolist() == pytest.approx([by_definition(*row) for row in rows])


@pytest.mark.parametrize("label", [2, 7, -1])
def test_a_label_of_another_category_is_refused(label: int) -> None:
    truth = torch.tensor([[0, label]])
    message = f"shape 0, point 1: part label {label} is not a part of its category 0"
    with pytest.raises(DataError, match=message):
        shape_ious(truth.clamp(0, 4), truth, torch.tensor([0]), PARTS)


def test_no_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="at least one shape"):
        mean_part_iou(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
