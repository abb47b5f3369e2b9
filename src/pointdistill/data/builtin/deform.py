"""Mild changes of a whole shape, so that no two objects of a category share their proportions.

Every function takes vertices (V, 3) in any unit and returns new ones. None moves a point up or down by its
place in the plane, so what stood on the floor still stands on it.
"""

from __future__ import annotations

import numpy as np

from pointdistill.data.builtin.mesh import Floats


def _unit(values: Floats) -> Floats:
    """Values mapped from their own range to [-1, 1]; all 0 where they do not vary."""
    low, high = float(values.min()), float(values.max())
    span = max(high - low, 1e-9)
    return (values - (low + high) / 2.0) * (2.0 / span)


def taper(vertices: Floats, amount: float) -> Floats:
    """Widen towards the top by ``amount`` and narrow towards the floor by as much."""
    factor = 1.0 + amount * _unit(vertices[:, 2])
    return vertices * np.column_stack((factor, factor, np.ones_like(factor)))


def bulge(vertices: Floats, amount: float) -> Floats:
    """Widen at half height by ``amount``; the floor and the top keep their size."""
    factor = 1.0 + amount * (1.0 - _unit(vertices[:, 2]) ** 2)
    return vertices * np.column_stack((factor, factor, np.ones_like(factor)))


def shear(vertices: Floats, amount: float, direction: float) -> Floats:
    """Lean over: the top moves by ``amount`` of the height, towards the angle ``direction`` in radians."""
    way = np.array((np.cos(direction), np.sin(direction), 0.0))
    return vertices + amount * vertices[:, 2:] * way


def bend(vertices: Floats, amount: float, axis: int) -> Floats:
    """Curve along ``axis`` (0, 1 or 2) into a bow whose ends move sideways by ``amount`` of its length."""
    length = float(np.ptp(vertices[:, axis]))
    moved = vertices.copy()
    moved[:, 0 if axis == 1 else 1] += amount * length * _unit(vertices[:, axis]) ** 2
    return moved


def twist(vertices: Floats, radians: float) -> Floats:
    """Turn the top by ``radians`` and the floor by as much the other way."""
    angle = radians * _unit(vertices[:, 2])
    cos, sin = np.cos(angle), np.sin(angle)
    x, y, z = vertices.T
    return np.column_stack((cos * x - sin * y, sin * x + cos * y, z))


def random_deformation(vertices: Floats, *, rng: np.random.Generator) -> Floats:
    """Uneven scaling of every shape, and up to two of the changes above."""
    spread = np.clip(rng.normal(0.0, 0.14, size=3), -0.3, 0.3)
    result: Floats = vertices * np.exp(spread + rng.normal(0.0, 0.2))
    for kind in rng.choice(5, size=rng.integers(0, 3), replace=False):
        amount = rng.uniform(-0.13, 0.13)
        if kind == 0:
            result = taper(result, amount)
        elif kind == 1:
            result = bulge(result, amount)
        elif kind == 2:
            result = shear(result, amount, rng.uniform(0.0, 2.0 * np.pi))
        elif kind == 3:
            result = bend(result, 0.6 * amount, int(rng.integers(3)))
        else:
            result = twist(result, amount)
    return result
