"""Views of a batch of stored shapes: crop, augment, normalise, divide into patches; on any device.

Sizes: B shapes, N stored points (padded to the largest), C crops, n points per view, P patches, K points per
    patch.
Source: AsymDSD (arXiv 2506.21724); the numbers are in docs/method.md, section 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pointdistill.model.config import AugmentConfig, CropConfig
from pointdistill.model.patches import Patches, gather_points, patchify, to_unit_sphere
from pointdistill.model.random import KeyedRandom
from pointdistill.model.selection import draw_nearest, in_numpy

ASPECT_RANGE = (0.33, 3.0)


def draw_views(
    points: Tensor,
    counts: Tensor,
    crop: CropConfig,
    random: KeyedRandom,
    augment: AugmentConfig | None = None,
) -> tuple[Patches, Tensor]:
    """Views of one kind: their patches (B, C, P, ...) and their points (B, C, n, 3).

    Args:
        points: (B, N, 3) stored points, z up, in any unit; rows beyond a shape's count are ignored.
        counts: (B,) int64, points of each shape. A shape with fewer than ``crop.points`` gives all of them, and
            then repeats them.
        crop: number and size of the views.
        random: random numbers with the shapes' keys.
        augment: the augmentation; by default the paper's.
    """
    views = crop_points(points, counts, crop, random)
    views = to_unit_sphere(augment_points(views, augment or AugmentConfig(), random))
    flat = views.flatten(0, 1)
    start = random.integers("start", torch.full_like(views[..., 0, 0], crop.points))
    patches = patchify(
        flat, patches=crop.patches, patch_points=crop.patch_points, start=start.flatten()
    )
    shape = views.shape[:2]
    by_crop = Patches(patches.centers.unflatten(0, shape), patches.offsets.unflatten(0, shape))
    return by_crop, views


def crop_points(points: Tensor, counts: Tensor, crop: CropConfig, random: KeyedRandom) -> Tensor:
    """Random subsets (B, C, n, 3) of the points in random boxes, not yet augmented.

    A box with random rotation and proportions grows around one point of the shape until it contains the crop's
    share of the points, and at least as many as the view needs. Of these a random subset is drawn without
    replacement.
    """
    share = random.uniform("share", (crop.count,), low=crop.share_low, high=crop.share_high)
    inside = (share * counts[:, None]).floor().to(torch.int64).clamp(min=crop.points)
    keep = torch.minimum(inside, counts[:, None])
    seeds = random.bits("subset", (crop.count,))
    boxes, centers = draw_boxes(points, counts, crop.count, random)
    # Reading `counts` from a GPU would make the host wait, so there the padding is always masked.
    padded = not in_numpy(points) or int(counts.min()) < points.shape[1]

    def crop_rows(rows: slice) -> Tensor:
        distance = box_distance(points[rows], boxes[rows], centers[rows])
        if padded:
            place = torch.arange(points.shape[1], device=points.device)
            distance.masked_fill_((place >= counts[rows, None])[:, None], torch.inf)
        chosen = draw_nearest(distance, keep[rows], seeds[rows], crop.points)
        return gather_points(points[rows], chosen)

    if not in_numpy(points):
        return crop_rows(slice(None))
    # Shape by shape, because the distances of one shape's crops fit into a CPU's cache, and those of a batch do
    # not.
    return torch.cat([crop_rows(slice(row, row + 1)) for row in range(len(points))])


def draw_boxes(
    points: Tensor, counts: Tensor, crops: int, random: KeyedRandom
) -> tuple[Tensor, Tensor]:
    """Random boxes: matrices (B, C, 3 box axes, 3 coordinates) that rotate and scale, and centres (B, C, 3)."""
    center_index = random.integers("center", counts[:, None].expand(-1, crops))
    low, high = ASPECT_RANGE
    aspect = random.uniform("aspect", (crops,), low=low, high=high)
    scales = torch.stack([torch.ones_like(aspect), aspect.rsqrt(), aspect.sqrt()], dim=-1)
    axis_order = random.uniform("axes", (crops, 3)).argsort(-1)
    scales = scales.gather(-1, axis_order)
    boxes = scales[..., None] * random_rotations(random.uniform("rotation", (crops, 3)))
    return boxes, gather_points(points, center_index)


def box_distance(points: Tensor, boxes: Tensor, centers: Tensor) -> Tensor:
    """Distances (B, C, N) of points (B, N, 3) from the centres of boxes, in each box's own metric.

    The distance is the largest of |scale · rotated offset| over the axes, so points at equal distance lie on the
    surface of a box. ``boxes`` (B, C, 3, 3) and ``centers`` (B, C, 3) are those of ``draw_boxes``.
    """
    middle = boxes @ centers[..., None]  # (B, C, 3, 1)
    # One row of N numbers for each box axis, because long rows vectorise and rows of three numbers do not.
    along = boxes.flatten(1, 2) @ points.transpose(1, 2).contiguous()
    along = along.unflatten(1, boxes.shape[1:3]).sub_(middle).abs_()
    return torch.maximum(torch.maximum(along[:, :, 0], along[:, :, 1]), along[:, :, 2])


def random_rotations(uniform: Tensor) -> Tensor:
    """Uniformly distributed rotations (..., 3, 3) from numbers (..., 3) that are uniform in [0, 1).

    Source: uniform unit quaternions (Shoemake, Graphics Gems III, 1992).
    """
    u, v, w = uniform.unbind(-1)
    turn = 2.0 * torch.pi
    short, long = (1.0 - u).sqrt(), u.sqrt()
    x, y = short * (turn * v).sin(), short * (turn * v).cos()
    z, s = long * (turn * w).sin(), long * (turn * w).cos()
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * s), 2 * (x * z + y * s)], -1),
        torch.stack([2 * (x * y + z * s), 1 - 2 * (x * x + z * z), 2 * (y * z - x * s)], -1),
        torch.stack([2 * (x * z - y * s), 2 * (y * z + x * s), 1 - 2 * (x * x + y * y)], -1),
    ]
    return torch.stack(rows, -2)


def augment_points(views: Tensor, augment: AugmentConfig, random: KeyedRandom) -> Tensor:
    """Rotate each crop (B, C, n, 3) about z by its own angle, then scale each axis by its own factor.

    With the settings of ``augment`` that are not the paper's, some crops are rotated about any axis instead, and
    crops lose points and repeat others.
    """
    crops, count = views.shape[1:3]
    stored = views
    if augment.rotate_z:
        angle = random.uniform("angle", (crops,), high=2.0 * torch.pi)
        cos, sin = angle.cos()[..., None], angle.sin()[..., None]
        x, y, z = views.unbind(-1)
        views = torch.stack([cos * x - sin * y, sin * x + cos * y, z], dim=-1)
    if augment.tilt_share > 0.0:
        rotations = random_rotations(random.uniform("tilt", (crops, 3)))
        tilted = random.uniform("tilted", (crops,)) < augment.tilt_share
        views = torch.where(tilted[..., None, None], stored @ rotations.mT, views)
    if augment.density_low < 1.0:
        share = random.uniform("density", (crops,), low=augment.density_low)
        kept = (share * count).ceil().to(torch.int64)[..., None]
        # The points of a crop are in the order of the stored ones, which need not be random.
        order = random.bits("thinned", (crops, count)).argsort(-1)
        place = torch.arange(count, device=views.device)
        views = gather_points(views.flatten(0, 1), order.gather(-1, place % kept).flatten(0, 1))
        views = views.unflatten(0, stored.shape[:2])
    scale = random.uniform("scale", (crops, 1, 3), low=augment.scale_low, high=augment.scale_high)
    return views * scale
