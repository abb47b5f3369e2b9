"""Clouds of different sizes on a device, and points drawn from them.

Sizes: n clouds, M points of all of them, B clouds a batch, N points drawn of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pointdistill.data.benchmarks.records import PartClouds
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
