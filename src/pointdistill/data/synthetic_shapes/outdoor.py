"""Outdoor objects: traffic cone, tent."""

from __future__ import annotations

import numpy as np

from pointdistill.data.synthetic_shapes.mesh import Assembly, Draw, category
from pointdistill.data.synthetic_shapes.primitives import box, cylinder, lathe, prism, rod, sheet


@category("cone", "cone", "base", "stripe")
def cone(shape: Assembly, draw: Draw) -> None:
    """A cone, blunt or pointed, some with a foot like a traffic cone."""
    radius = draw.between(0.12, 0.3)
    height, tip = (
        radius * draw.between(1.2, 4.0),
        radius * draw.pick((0.01, draw.between(0.05, 0.35))),
    )
    power, base = draw.pick((2.0, 2.0, 2.0, 4.0)), 0.0
    if draw.chance(0.6):
        base = radius * draw.between(0.06, 0.2)
        wide = radius * draw.between(1.1, 1.6)
        shape.add("base", cylinder(wide, base, power=draw.pick((2.0, 8.0)), around=24))
    shape.add("cone", cylinder(radius, height, (0, 0, base), top=tip, power=power, around=24))
    if draw.chance(0.4):
        low, high = draw.between(0.3, 0.5), draw.between(0.55, 0.75)
        radii = [radius + (tip - radius) * level + radius * 0.04 for level in (low, high)]
        at = (0.0, 0.0, base + low * height)
        shape.add(
            "stripe", cylinder(radii[0], (high - low) * height, at, top=radii[1], power=power)
        )


@category("tent", "canvas", "pole", "floor")
def tent(shape: Assembly, draw: Draw) -> None:
    """A ridge tent, a dome, a tipi or a pavilion on posts."""
    width, depth, height = draw.between(1.4, 3.0), draw.between(1.6, 3.2), draw.between(1.0, 2.4)
    kind = draw.pick(("ridge", "dome", "tipi", "pavilion"))
    if kind == "pavilion":
        eave = height * draw.between(0.55, 0.75)
        slope = (draw.between(0.2, 0.32), (eave + height) / 2)
        roof = [(0.5, eave), (0.5, eave + 0.12), slope, (0.01, height), (0.45, eave + 0.05)]
        canvas = lathe(roof, closed=True, power=9, around=28, stretch=(width, depth))
        shape.add("canvas", canvas)
        post = rod((0, 0, 0), (0, 0, eave + 0.1), 0.035)
        x, y = width * 0.46, depth * 0.46
        shape.add("pole", *(post.moved(sx * x, sy * y) for sx in (-1, 1) for sy in (-1, 1)))
    elif kind == "tipi":
        sides = draw.pick((2.0, 1.2, 6.0))
        outside = [(0.5, 0.0), (0.28, height * 0.45), (0.04, height * 0.95)]
        cover = [*outside, (0.02, height * 0.95), (0.47, 0.02)]
        shape.add("canvas", lathe(cover, closed=True, power=sides, stretch=(width, width)))
        pole = rod((width * 0.1, 0, height * 0.8), (-0.12, 0, height * 1.1), 0.02)
        shape.add("pole", *(pole.turned("z", angle) for angle in (20, 110, 200, 290)))
    else:
        _vault(shape, draw, width, depth, height, ridge=kind == "ridge")
        if draw.chance(0.7):
            shape.add("floor", box((width, depth, 0.03)))


def _vault(
    shape: Assembly, draw: Draw, width: float, depth: float, height: float, *, ridge: bool
) -> None:
    """Canvas from floor to floor along y: a straight ridge between walls, or a dome open at its ends."""
    power = 1.0 if ridge else draw.between(1.8, 2.4)
    t = np.linspace(0, np.pi, 17)
    cos, sin = np.cos(t), np.sin(t)
    reach = (np.abs(cos) ** power + sin**power) ** (-1 / power)
    along = np.linspace(-1, 1, 9)[:, None]
    narrow = np.ones((9, 1)) if ridge else np.sqrt(np.maximum(1 - 0.75 * along**2, 0.1))
    across, up = reach * cos * width / 2 * narrow, reach * sin * height * narrow**0.7
    back = np.broadcast_to(along * depth / 2, across.shape)
    shape.add("canvas", sheet(np.stack((across, back, up), axis=-1), 0.02))
    if ridge:
        outline = [(-width / 2, 0), (width / 2, 0), (0, height)]
        wall = prism(outline, 0.015).turned("x", 90)
        ends = draw.pick(((1,), (1,), (-1, 1)))
        shape.add("canvas", *(wall.moved(0, end * depth / 2) for end in ends))
        pole = rod((0, 0, 0), (0, 0, height * 1.03), 0.025)
        shape.add("pole", *(pole.moved(0, end * depth / 2) for end in (-1, 1)))
