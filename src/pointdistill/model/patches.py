"""Points to patches: unit sphere, farthest point sampling, nearest neighbours. Batched, on any device.

Sizes: B clouds (any leading sizes), N points, P patches, K points a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pointdistill.model.selection import in_numpy, largest_index, smallest_indices


@dataclass(frozen=True, slots=True)
class Patches:
    """A cloud cut into overlapping patches."""

    centers: Tensor
    """(..., P, 3) coordinates of the patch centres, in the view's unit sphere."""

    offsets: Tensor
    """(..., P, K, 3) each patch's points relative to its centre."""

    def flatten(self) -> Patches:
        """All leading sizes merged into one."""
        return Patches(self.centers.flatten(0, -3), self.offsets.flatten(0, -4))


def to_unit_sphere(points: Tensor) -> Tensor:
    """Centre (..., N, 3) points on their mean and divide by the largest norm.

    A cloud of one repeated point has radius 0; it stays at the origin and does not become NaN.
    """
    centered = points - points.mean(dim=-2, keepdim=True)
    radius = centered.square().sum(-1).amax(-1).sqrt()[..., None, None]
    return centered / torch.where(radius > 0, radius, torch.ones_like(radius))


def farthest_points(points: Tensor, count: int, *, start: Tensor) -> Tensor:
    """Exact farthest point sampling: (B, count) int64 indices, the first of them ``start``.

    Args:
        points: (B, N, 3).
        count: number of points to choose, at most N.
        start: (B,) int64 index of each cloud's first point.

    Costs count · N distances a cloud. Of points equally far the one with the lower index is chosen.

    Raises:
        ValueError: if ``count`` is more than N.
    """
    clouds, size, _ = points.shape
    if count > size:
        msg = f"cannot choose {count} farthest points out of {size}"
        raise ValueError(msg)
    # Coordinates as three long rows, which every step streams through; rows of three numbers would not vectorise.
    planes = points.transpose(1, 2).contiguous()
    # Reused by every step, where a new one would cost an allocation each.
    offset = torch.empty_like(planes)
    chosen = torch.empty(clouds, count, dtype=torch.int64, device=points.device)
    nearest = torch.full((clouds, size), torch.inf, dtype=points.dtype, device=points.device)
    current = start
    for step in range(count):
        chosen[:, step] = current
        if step + 1 == count:
            break
        center = planes.gather(2, current[:, None, None].expand(-1, 3, 1))
        gap = torch.sub(planes, center, out=offset).square_().sum(1)
        torch.minimum(nearest, gap, out=nearest)
        current = largest_index(nearest)
    return chosen


def nearest_points(points: Tensor, centers: Tensor, count: int) -> Tensor:
    """(B, P, count) int64 indices of the points of (B, N, 3) nearest to each of (B, P, 3) centres.

    Distances are squares of differences, not |a|² - 2ab + |b|², whose rounding would misplace points that are
    almost equally far. The indices of a patch rise.

    Raises:
        ValueError: if ``count`` is more than N.
    """
    if count > points.shape[1]:
        msg = f"cannot take {count} neighbours out of {points.shape[1]} points"
        raise ValueError(msg)
    if not in_numpy(points):
        return smallest_indices(_squared_distances(centers, points), count)
    # Cloud by cloud: the (P, N) distances of one fit into a CPU's cache, those of a batch do not.
    clouds = zip(centers.split(1), points.split(1), strict=True)
    return torch.cat([smallest_indices(_squared_distances(c, p), count) for c, p in clouds])


def _squared_distances(centers: Tensor, points: Tensor) -> Tensor:
    """(B, P, N) between (B, P, 3) centres and (B, N, 3) points."""
    planes = points.transpose(1, 2).contiguous().unsqueeze(1).unbind(2)  # three of (B, 1, N)
    x, y, z = (
        plane - center for plane, center in zip(planes, centers.unsqueeze(2).unbind(3), strict=True)
    )
    return x.square_().addcmul_(y, y).addcmul_(z, z)


def gather_points(points: Tensor, index: Tensor) -> Tensor:
    """Rows of (B, N, C) ``points`` at (B, ...) ``index``: (B, ..., C)."""
    flat = index.flatten(1)[..., None].expand(-1, -1, points.shape[-1])
    return points.gather(1, flat).view(*index.shape, points.shape[-1])


def cut_patches(points: Tensor, center_index: Tensor, patch_index: Tensor) -> Patches:
    """Patches of (B, N, 3) points, from (B, P) indices of their centres and (B, P, K) of their members."""
    centers = gather_points(points, center_index)
    return Patches(centers, gather_points(points, patch_index) - centers[:, :, None])


def patchify(points: Tensor, *, patches: int, patch_points: int, start: Tensor) -> Patches:
    """Cut clouds into patches: farthest point sampling of centres, then the nearest points of each centre.

    Args:
        points: (B, N, 3) clouds in their unit spheres.
        patches: P.
        patch_points: K.
        start: (B,) int64 index of each cloud's first centre.
    """
    center_index = farthest_points(points, patches, start=start)
    member_index = nearest_points(points, gather_points(points, center_index), patch_points)
    return cut_patches(points, center_index, member_index)
