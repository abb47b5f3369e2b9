"""What seats and tables stand on."""

from __future__ import annotations

import numpy as np

from pointdistill.data.builtin.mesh import Mesh
from pointdistill.data.builtin.primitives import (
    box,
    cylinder,
    lathe,
    rod,
    tube,
)
from pointdistill.data.builtin.registry import Draw


def legs(draw: Draw, width: float, depth: float, height: float) -> list[Mesh]:
    """Four legs under a top of width x depth: straight or splayed, round or square, some with stretchers."""
    radius = draw.between(0.014, 0.045)
    splay = draw.pick((0.0, 0.0, draw.between(0.02, 0.14)))
    power = draw.pick((2.0, 8.0))
    foot = draw.between(0.5, 1.2) * radius
    inset = radius * draw.between(1.0, 2.5)
    x, y = width / 2 - inset, depth / 2 - inset
    pieces = [
        rod((sx * (x + splay), sy * (y + splay), 0.0), (sx * x, sy * y, height), foot,
            end_radius=radius, power=power)
        for sx in (-1, 1) for sy in (-1, 1)
    ]  # fmt: skip
    if draw.chance(0.35):
        level, bar = height * draw.between(0.15, 0.6), radius * draw.between(0.4, 0.8)
        out = splay * (1.0 - level / height)
        for side in (-1, 1):
            at_x, at_y = side * (x + out), y + out
            pieces.append(rod((at_x, -at_y, level), (at_x, at_y, level), bar))
        if draw.chance(0.5):
            pieces.append(rod((-x - out, 0.0, level), (x + out, 0.0, level), bar))
    return pieces


def pedestal(draw: Draw, width: float, height: float) -> list[Mesh]:
    """One column on a disc, a star of feet, or a cross."""
    reach = width * draw.between(0.38, 0.55)
    pole = draw.between(0.02, 0.06)
    kind = draw.pick(("disc", "star", "star", "trumpet"))
    if kind == "trumpet":
        flare = [
            (reach, 0.0),
            (reach, 0.02),
            (pole * 2, 0.06),
            (pole, height / 2),
            (pole * 1.6, height),
        ]
        return [lathe(flare)]
    low = 0.03 if kind == "disc" else draw.between(0.05, 0.1)
    pieces = [cylinder(pole, height - low, (0.0, 0.0, low))]
    if kind == "disc":
        return [*pieces, cylinder(reach, low, top=reach * draw.between(0.6, 1.0))]
    count = draw.count(3, 6)
    casters = draw.chance(0.5)
    for angle in np.arange(count) * (2 * np.pi / count) + draw.between(0, 1):
        x, y = reach * np.cos(angle), reach * np.sin(angle)
        pieces.append(rod((0.0, 0.0, low * 1.6), (x, y, low * 0.7), 0.026, end_radius=0.016))
        if casters:
            pieces.append(cylinder(low * 0.4, 0.03, (0.0, 0.0, -0.015), around=12)
                          .turned("x", 90.0).moved(x, y, low * 0.4))  # fmt: skip
    return pieces


def sled(width: float, depth: float, height: float, radius: float) -> list[Mesh]:
    """Two bent runners."""
    y = depth / 2 - radius
    loop = [(-y, height), (-y, radius * 2), (-y + radius * 2, radius), (y - radius * 2, radius),
            (y, radius * 2), (y, height)]  # fmt: skip
    path = np.array([(0.0, *point) for point in loop])
    x = width / 2 - radius
    return [tube(path + np.array((side * x, 0.0, 0.0)), radius) for side in (-1, 1)]


def support(draw: Draw, width: float, depth: float, height: float) -> list[Mesh]:
    """What holds a seat up: legs, a pedestal, runners or a solid block."""
    kind = draw.pick(("legs", "legs", "legs", "pedestal", "pedestal", "sled", "block"))
    if kind == "legs":
        return legs(draw, width, depth, height)
    if kind == "pedestal":
        return pedestal(draw, max(width, depth), height)
    if kind == "sled":
        return sled(width, depth, height, draw.between(0.012, 0.03))
    inset = draw.between(0.75, 1.0)
    return [box((width * inset, depth * inset, height))]
