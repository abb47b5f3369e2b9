"""Clouds with a part label at every point: random points of them, and the intersection over union of labels.

Sizes: n clouds, M points of all of them, B clouds a batch, N points drawn of each, K part labels of all categories
together, C categories. Source of the metric: section 7 of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pointdistill.data.benchmarks.part_records import PartClouds
from pointdistill.errors import DataError
from pointdistill.model.random import KeyedRandom


@dataclass(frozen=True, slots=True)
class PackedClouds:
    """Clouds of different sizes end to end, on a device."""

    points: Tensor
    """(M, 3) float32."""

    parts: Tensor
    """(M,) uint8: a byte a point; int64 where a batch is drawn."""

    starts: Tensor
    """(n,) int64, the first point of each cloud."""

    sizes: Tensor
    """(n,) int64, its number of points."""

    categories: Tensor
    """(n,) int64."""

    largest: int
    """Points of the largest cloud, known without asking the device."""

    @classmethod
    def of(cls, clouds: PartClouds, device: torch.device, *, side: str) -> PackedClouds:
        """Pack one side of a benchmark.

        Raises:
            DataError: if there are no clouds, points and parts of one differ in number, or a point is not finite.
        """
        sizes = np.array([len(points) for points in clouds.points], dtype=np.int64)
        labelled = [len(parts) for parts in clouds.parts]
        if not len(sizes) or sizes.tolist() != labelled or len(sizes) != len(clouds):
            msg = (
                f"expected {side} clouds with a part at every point, got {len(sizes)} clouds of "
                f"{int(sizes.sum())} points with {sum(labelled)} parts"
            )
            raise DataError(msg)
        points = np.concatenate(clouds.points)
        if not np.isfinite(points).all():
            msg = f"{side} clouds have points that are not finite; take those clouds out"
            raise DataError(msg)
        return cls(
            points=torch.from_numpy(points).to(device),
            parts=torch.from_numpy(np.concatenate(clouds.parts)).to(device),
            starts=torch.from_numpy(np.cumsum(sizes) - sizes).to(device),
            sizes=torch.from_numpy(sizes).to(device),
            categories=torch.from_numpy(clouds.categories).to(device),
            largest=int(sizes.max()),
        )

    def draw(self, index: Tensor, count: int, random: KeyedRandom) -> tuple[Tensor, Tensor]:
        """``count`` points of each of the (B,) clouds at ``index``: (B, N, 3), and their parts (B, N) int64.

        Drawn without replacement; a cloud with fewer gives all, then the same again in the same order.
        """
        sizes = self.sizes[index]
        # 64 random bits a point: no ties worth fearing, so any sort gives the same subset.
        keys = random.bits("subset", (self.largest,))
        place = torch.arange(self.largest, device=keys.device)
        order = keys.masked_fill(place >= sizes[:, None], torch.iinfo(keys.dtype).max).argsort(1)
        turn = torch.arange(count, device=keys.device) % sizes[:, None]
        chosen = self.starts[index][:, None] + order.gather(1, turn)
        return self.points[chosen], self.parts[chosen].long()


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
