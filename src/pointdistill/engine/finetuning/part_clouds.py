"""Clouds with a part label at every point: random subsets of their points, and the IoU of predicted labels.

Sizes: n clouds, M points of all clouds together, B clouds per batch, N points drawn from each, K part labels of
all categories together, C categories. Source of the metric: section 7 of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pointdistill.data.benchmarks.records import PartClouds
from pointdistill.errors import DataError
from pointdistill.model.random import KeyedRandom

CategoryParts = Sequence[Sequence[int]]
"""The part labels of each category, in the order of the categories."""


@dataclass(frozen=True, slots=True)
class PackedClouds:
    """Clouds of different sizes, concatenated in one tensor on a device."""

    points: Tensor
    """(M, 3) float32."""

    parts: Tensor
    """(M,) uint8 part labels; ``draw`` makes them int64."""

    starts: Tensor
    """(n,) int64, the first point of each cloud."""

    sizes: Tensor
    """(n,) int64, the number of points of each cloud."""

    categories: Tensor
    """(n,) int64."""

    largest: int
    """Points of the largest cloud; a Python number, since reading it from ``sizes`` would make the host wait."""

    @classmethod
    def pack(cls, clouds: PartClouds, device: torch.device, *, side: str) -> PackedClouds:
        """Pack the clouds of one split; ``side`` names it in messages.

        Raises:
            DataError: if there are no clouds, a cloud's points and parts differ in number, or a point is not
                finite.
        """
        sizes = np.array([len(points) for points in clouds.points], dtype=np.int64)
        label_counts = [len(parts) for parts in clouds.parts]
        if not len(sizes) or sizes.tolist() != label_counts or len(sizes) != len(clouds):
            msg = (
                f"expected {side} clouds with a part at every point, got {len(sizes)} clouds of "
                f"{int(sizes.sum())} points with {sum(label_counts)} parts"
            )
            raise DataError(msg)
        points = np.concatenate(clouds.points)
        if not np.isfinite(points).all():
            msg = f"{side} clouds have points that are not finite; remove these clouds"
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
        """``count`` points of each of the clouds at ``index`` (B,): (B, N, 3), and their parts (B, N) int64.

        Points are drawn without replacement; a cloud with too few gives all of them, then repeats them in the same
        order.
        """
        sizes = self.sizes[index]
        # With 64 random bits per point ties are so unlikely that any sort, stable or not, gives the same subset.
        keys = random.bits("subset", (self.largest,))
        # Positions beyond a cloud's own points get the largest key, and so are sorted behind all of them.
        place = torch.arange(self.largest, device=keys.device)
        order = keys.masked_fill(place >= sizes[:, None], torch.iinfo(keys.dtype).max).argsort(1)
        rank = torch.arange(count, device=keys.device) % sizes[:, None]
        chosen = self.starts[index][:, None] + order.gather(1, rank)
        return self.points[chosen], self.parts[chosen].long()


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
    """The most likely part at each point, among those of the shape's own category: (n, N) int64.

    Args:
        logits: (n, N, K).
        categories: (n,) int64, indices into ``parts``.
        parts: part labels of every category.
    """
    foreign = ~_own_parts(parts, logits.shape[-1]).to(logits.device)[categories]
    return logits.masked_fill(foreign[:, None], -torch.inf).argmax(-1)


def shape_ious(
    predicted: Tensor, truth: Tensor, categories: Tensor, parts: CategoryParts
) -> Tensor:
    """(n,) float64 mean IoU of each shape over the parts of its category.

    A part that occurs neither in the prediction nor in the truth counts as 1.

    Args:
        predicted: (n, N) int64 part labels.
        truth: (n, N) int64 part labels.
        categories: (n,) int64, indices into ``parts``.
        parts: part labels of every category.

    Raises:
        DataError: if a true label is not a part of its shape's category.
    """
    own = _own_parts(parts).to(truth.device)[categories]
    _check_truth(truth, own, categories)
    in_both = _count_labels(truth, own.shape[1], where=predicted == truth)
    in_either = (
        _count_labels(truth, own.shape[1]) + _count_labels(predicted, own.shape[1]) - in_both
    )
    ious = torch.where(in_either > 0, in_both / in_either.clamp(min=1), 1.0)
    return (ious * own).sum(1) / own.sum(1)


def mean_part_iou(ious: Tensor, categories: Tensor) -> PartIou:
    """Means of the IoUs (n,) of all shapes of a test set.

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


def _count_labels(labels: Tensor, size: int, *, where: Tensor | None = None) -> Tensor:
    """(n, K) float64: points of each label in each shape of (n, N), all or those ``where`` allows."""
    ones = torch.ones_like(labels) if where is None else where
    counts = torch.zeros(len(labels), size, dtype=torch.float64, device=labels.device)
    return counts.scatter_add_(1, labels, ones.to(torch.float64))


def _check_truth(truth: Tensor, own: Tensor, categories: Tensor) -> None:
    """Check that every true label is a part of its shape's category; ``own`` is (n, K)."""
    known = (truth >= 0) & (truth < own.shape[1])
    right = own.gather(1, truth.clamp(0, own.shape[1] - 1)) & known
    if not right.all():
        shape, point = (~right).nonzero()[0].tolist()
        msg = (
            f"shape {shape}, point {point}: part label {int(truth[shape, point])} is not a part of its category "
            f"{int(categories[shape])}; check the order of the categories against the labels"
        )
        raise DataError(msg)
