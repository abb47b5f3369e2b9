"""From one scanned scene to the clouds of ScanObjectNN's three splits.

Every cloud is cut by a box, drawn to a fixed count, fitted into the unit sphere and made noisy;
z up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.standins.hardness import Hardness
from pointdistill.data.standins.scans import Flags, Points, Scene, rotation_about_z

OBJECT = 0
BACKGROUND = -1

_SHIFT = 0.5
"""PB-T50-RS moves the box by up to this share of its size along each axis (the T50)."""

_SCALE = (0.75, 1.25)
"""PB-T50-RS scales the box, and then the cloud, along each axis (the S)."""

_LEAST_SHARE = 0.3
"""A perturbed box is drawn again while it keeps less of the seen object than this."""

_DRAWS = 8


@dataclass(frozen=True, slots=True)
class Cloud:
    """One cloud of a split.

    Sizes: N points.
    """

    points: NDArray[np.float32]  # (N, 3), z up, in the unit sphere
    mask: NDArray[np.int32]  # (N,), BACKGROUND or OBJECT


def without_background(
    scene: Scene, count: int, hardness: Hardness, *, rng: np.random.Generator
) -> Cloud:
    """OBJ-ONLY: what was seen of the object itself, as ``count`` points."""
    return _cloud(scene.object_points, scene.background_points[:0], count, hardness, rng=rng)


def with_background(
    scene: Scene, count: int, hardness: Hardness, *, rng: np.random.Generator
) -> Cloud:
    """OBJ-BG: the object and a share of background from within its own box."""
    middle, half = (scene.low + scene.high) / 2.0, (scene.high - scene.low) / 2.0
    nearby = scene.background_points[_inside(scene.background_points - middle, half)]
    clutter = round(count * rng.uniform(*hardness.clutter_share)) if len(nearby) else 0
    chosen = nearby[_draw(len(nearby), clutter, rng=rng)]
    return _cloud(scene.object_points, chosen, count - clutter, hardness, rng=rng)


def perturbed(scene: Scene, count: int, hardness: Hardness, *, rng: np.random.Generator) -> Cloud:
    """PB-T50-RS: what a center, turned and scaled box holds, then turned and scaled itself."""
    in_object, in_background = _perturbed_box(scene, rng=rng)
    kept, clutter = scene.object_points[in_object], scene.background_points[in_background]
    share = min(len(clutter) / (len(kept) + len(clutter)), 2.0 * hardness.clutter_share[1])
    background = clutter[_draw(len(clutter), round(count * share), rng=rng)]
    turn, scale = rotation_about_z(rng.uniform(0.0, 2.0 * np.pi)), rng.uniform(*_SCALE, size=3)
    return _cloud(
        (kept @ turn.T) * scale,
        (background @ turn.T) * scale,
        count - len(background),
        hardness,
        rng=rng,
    )


def _perturbed_box(scene: Scene, *, rng: np.random.Generator) -> tuple[Flags, Flags]:
    """Flags of the object's (n,) and the background's (m,) points inside a perturbed box."""
    middle, half = (scene.low + scene.high) / 2.0, (scene.high - scene.low) / 2.0
    for draw in range(_DRAWS):
        # Later draws stay closer to the object, so that one of the first few nearly always ends it.
        reach = 2.0 * half * _SHIFT * (1.0 - draw / _DRAWS)
        center = middle + rng.uniform(-reach, reach)
        turn = rotation_about_z(rng.uniform(0.0, 2.0 * np.pi))
        sides = half * rng.uniform(*_SCALE, size=3)
        in_object = _inside((scene.object_points - center) @ turn.T, sides)
        if in_object.mean() >= _LEAST_SHARE:
            return in_object, _inside((scene.background_points - center) @ turn.T, sides)
    return (
        np.ones(len(scene.object_points), dtype=bool),
        _inside(scene.background_points - middle, half),
    )


def _inside(points: Points, half: Points) -> Flags:
    """Which points (n, 3) lie in the box about the origin with the half-sides ``half``."""
    return np.asarray((np.abs(points) <= half).all(axis=1))


def _cloud(
    object_points: Points,
    background: Points,
    count: int,
    hardness: Hardness,
    *,
    rng: np.random.Generator,
) -> Cloud:
    """``count`` object points and all the background, shuffled, in the unit sphere, noisy."""
    drawn = object_points[_draw(len(object_points), count, rng=rng)]
    points = np.concatenate([drawn, background])
    mask = np.repeat(np.array([OBJECT, BACKGROUND], dtype=np.int32), [len(drawn), len(background)])
    order = rng.permutation(len(points))
    points = points[order] - points.mean(axis=0)
    points /= np.linalg.norm(points, axis=1).max()
    noisy = points + hardness.jitter * rng.normal(size=points.shape)
    return Cloud(noisy.astype(np.float32), mask[order])


def _draw(available: int, count: int, *, rng: np.random.Generator) -> NDArray[np.intp]:
    """``count`` of ``available`` indices, each as often as any other give or take one.

    Where there are too few, points repeat; noise then keeps the copies apart, as a sensor that
    measures a place twice does.
    """
    if not count:
        return np.arange(0)
    rounds = -(-count // available)
    return np.concatenate([rng.permutation(available) for _ in range(rounds)])[:count]
