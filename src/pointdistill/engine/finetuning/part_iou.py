"""Intersection over union of part labels, as ShapeNetPart counts it. Pure functions of tensors.

Sizes: n shapes, N points a shape, K part labels of all categories together, C categories. Source: section 7
of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pointdistill.errors import DataError

CategoryParts = Sequence[Sequence[int]]
"""For each category in turn, the part labels that belong to it."""


@dataclass(frozen=True, slots=True)
class PartIou:
    """Mean intersections over union, as fractions of 1."""

    instance: float
    """Mean over all shapes."""

    category: float
    """Mean over the categories that occur of the mean over their shapes ("class mIoU")."""

    by_category: dict[int, float]
    """Mean over the shapes of each category that occurs."""


def predict_parts(logits: Tensor, categories: Tensor, parts: CategoryParts) -> Tensor:
    """The best of its own category's parts at each point: (n, N) int64.

    Args:
        logits: (n, N, K).
        categories: (n,) int64, indices into ``parts``.
        parts: of every category.
    """
    foreign = ~_own_parts(parts, logits.shape[-1]).to(logits.device)[categories]
    return logits.masked_fill(foreign[:, None], -torch.inf).argmax(-1)


def shape_ious(
    predicted: Tensor, truth: Tensor, categories: Tensor, parts: CategoryParts
) -> Tensor:
    """(n,) float64: of each shape, the mean IoU over its category's parts.

    A part that neither the prediction nor the truth has counts as 1.

    Args:
        predicted: (n, N) int64 part labels.
        truth: (n, N) int64 part labels.
        categories: (n,) int64, indices into ``parts``.
        parts: of every category.

    Raises:
        DataError: if a true label is not a part of its shape's category.
    """
    own = _own_parts(parts).to(truth.device)[categories]
    _check_truth(truth, own, categories)
    in_both = _count(truth, own.shape[1], where=predicted == truth)
    in_either = _count(truth, own.shape[1]) + _count(predicted, own.shape[1]) - in_both
    ious = torch.where(in_either > 0, in_both / in_either.clamp(min=1), 1.0)
    return (ious * own).sum(1) / own.sum(1)


def mean_part_iou(ious: Tensor, categories: Tensor) -> PartIou:
    """Summary of (n,) IoUs of all shapes of a test set, in whatever batches they were taken.

    Raises:
        DataError: if there are no shapes.
    """
    if len(ious) == 0:
        msg = "the mean IoU needs at least one shape, got none"
        raise DataError(msg)
    present = categories.unique().tolist()
    by_category = {index: ious[categories == index].mean().item() for index in present}
    return PartIou(
        instance=ious.mean().item(),
        category=sum(by_category.values()) / len(by_category),
        by_category=by_category,
    )


def _own_parts(parts: CategoryParts, labels: int | None = None) -> Tensor:
    """(C, K) bool: which part labels belong to which category."""
    size = labels or 1 + max(part for group in parts for part in group)
    own = torch.zeros(len(parts), size, dtype=torch.bool)
    for category, group in enumerate(parts):
        own[category, list(group)] = True
    return own


def _count(labels: Tensor, size: int, *, where: Tensor | None = None) -> Tensor:
    """(n, K) float64: points of each label in each shape of (n, N), all or those ``where`` allows."""
    ones = torch.ones_like(labels) if where is None else where
    counts = torch.zeros(len(labels), size, dtype=torch.float64, device=labels.device)
    return counts.scatter_add_(1, labels, ones.to(torch.float64))


def _check_truth(truth: Tensor, own: Tensor, categories: Tensor) -> None:
    """Raise unless every true label is a part of its shape's category; ``own`` is (n, K)."""
    known = (truth >= 0) & (truth < own.shape[1])
    right = own.gather(1, truth.clamp(0, own.shape[1] - 1)) & known
    if not right.all():
        shape, point = (~right).nonzero()[0].tolist()
        msg = (
            f"shape {shape}, point {point}: part label {int(truth[shape, point])} is not a part of its category "
            f"{int(categories[shape])}; check the order of the categories against the labels"
        )
        raise DataError(msg)
