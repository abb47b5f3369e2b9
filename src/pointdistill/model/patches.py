"""Divides clouds into patches: unit sphere, farthest point sampling, nearest neighbours; batched, on any device.

Sizes: B clouds (any leading axes), N points, P patches, K points per patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pointdistill.model import kernels
from pointdistill.model.selection import in_numpy, largest_index, smallest_indices


@dataclass(frozen=True, slots=True)
class Patches:
    """The overlapping patches of a cloud."""

    centers: Tensor
    """(..., P, 3) coordinates of the patch centres, in the view's unit sphere."""

    offsets: Tensor
    """(..., P, K, 3) each patch's points relative to its centre."""

    def flatten(self) -> Patches:
        """The same patches with all leading axes merged into one."""
        return Patches(self.centers.flatten(0, -3), self.offsets.flatten(0, -4))


def to_unit_sphere(points: Tensor) -> Tensor:
    """Subtract the mean of the points (..., N, 3), and divide by the largest norm.

    A cloud of one repeated point, whose radius is 0, ends up at the origin and not as NaN.
    """
    centered = points - points.mean(dim=-2, keepdim=True)
    radius = centered.square().sum(-1).amax(-1).sqrt()[..., None, None]
    return centered / torch.where(radius > 0, radius, torch.ones_like(radius))


def farthest_points(points: Tensor, count: int, *, start: Tensor) -> Tensor:
    """Exact farthest point sampling: (B, count) int64 indices, the first of which is ``start``.

    It computes count · N distances per cloud. Of equally far points the one with the lower index is chosen.

    Args:
        points: (B, N, 3).
        count: number of points to choose, at most N.
        start: (B,) int64 index of each cloud's first point.

    Raises:
        ValueError: if ``count`` is more than N.
    """
    clouds, size, _ = points.shape
    if count > size:
        msg = f"cannot choose {count} farthest points out of {size}"
        raise ValueError(msg)
    if points.dtype == torch.float32 and kernels.usable(points, size):
        return kernels.farthest_points(points, count, start)
    # Coordinates as three long rows, since operations on rows of three numbers would not vectorise.
    planes = points.transpose(1, 2).contiguous()
    # Reused by every step, to save an allocation in each.
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
    """Indices (B, P, count) of the points (B, N, 3) nearest to each centre (B, P, 3), ascending in each patch.

    Distances are squares of differences, not |a|² - 2ab + |b|², whose rounding would misplace points that are
    almost equally far.

    Raises:
        ValueError: if ``count`` is more than N.
    """
    if count > points.shape[1]:
        msg = f"cannot take {count} neighbours out of {points.shape[1]} points"
        raise ValueError(msg)
    if not in_numpy(points):
        return smallest_indices(_squared_distances(centers, points), count)
    # Cloud by cloud, because the (P, N) distances of one fit into a CPU's cache, and those of a batch do not.
    clouds = zip(centers.split(1), points.split(1), strict=True)
    return torch.cat([smallest_indices(_squared_distances(c, p), count) for c, p in clouds])


def _squared_distances(centers: Tensor, points: Tensor) -> Tensor:
    """Squared distances (B, P, N) between centres (B, P, 3) and points (B, N, 3)."""
    planes = points.transpose(1, 2).contiguous().unsqueeze(1).unbind(2)  # three of (B, 1, N)
    x, y, z = (
        plane - center for plane, center in zip(planes, centers.unsqueeze(2).unbind(3), strict=True)
    )
    return x.square_().addcmul_(y, y).addcmul_(z, z)


def gather_points(points: Tensor, index: Tensor) -> Tensor:
    """Rows of ``points`` (B, N, C) at ``index`` (B, ...): (B, ..., C)."""
    flat = index.flatten(1)[..., None].expand(-1, -1, points.shape[-1])
    return points.gather(1, flat).view(*index.shape, points.shape[-1])


def cut_patches(points: Tensor, center_index: Tensor, patch_index: Tensor) -> Patches:
    """Patches of points (B, N, 3), from the indices of their centres (B, P) and of their members (B, P, K)."""
    centers = gather_points(points, center_index)
    return Patches(centers, gather_points(points, patch_index) - centers[:, :, None])


def patchify(points: Tensor, *, patches: int, patch_points: int, start: Tensor) -> Patches:
    """Divide clouds into patches: farthest point sampling of centres, then the nearest points of each centre.

    Args:
        points: (B, N, 3) clouds in their unit spheres.
        patches: P.
        patch_points: K.
        start: (B,) int64 index of each cloud's first centre.
    """
    center_index = farthest_points(points, patches, start=start)
    member_index = nearest_points(points, gather_points(points, center_index), patch_points)
    return cut_patches(points, center_index, member_index)
