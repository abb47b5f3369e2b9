"""Parts shared by furniture: carcasses, feet, doors and drawers with handles, legs and other supports."""

from __future__ import annotations

import numpy as np

from pointdistill.data.synthetic_shapes.primitives import box, cylinder, ellipsoid, lathe, rod, tube
from pointdistill.data.synthetic_shapes.shape import Assembly, Draw, Mesh

Cell = tuple[float, float, float, float]  # x from, x to, z from, z to


GRIPS = ("knob", "bar", "upright", "none")


CASE_PARTS = ("body", "door", "drawer", "handle", "leg")
"""The part names that `add_front` and `feet` need."""


def handle(draw: Draw, kind: str, width: float, height: float) -> list[Mesh]:
    """A grip that sticks out of the plane y = 0 towards the front, centred on the origin."""
    if kind == "knob":
        size = 0.03 + 0.02 * draw.between(0, 1)
        return [ellipsoid((size, size * 1.3, size), (0, -size * 0.5, -size / 2), around=10, rows=6)]
    if kind == "bar":
        reach = 0.3 * width
        path = np.array([(-1, 0, 0), (-1, -1, 0), (1, -1, 0), (1, 0, 0)])
        return [tube(path * (reach, 0.035, 1.0), 0.009, around=6)]
    if kind == "upright":
        reach = 0.2 * height
        path = np.array([(0, 0, -1), (0, -1, -1), (0, -1, 1), (0, 0, 1)])
        return [tube(path * (1.0, 0.035, reach), 0.009, around=6)]
    return []


def carcass(
    width: float, depth: float, height: float, at_z: float, board: float, *, back: bool
) -> list[Mesh]:
    """Two sides, bottom, top and perhaps a back; open at the front."""
    x = (width - board) / 2
    pieces = [
        box((board, depth, height), (-x, 0, at_z)),
        box((board, depth, height), (x, 0, at_z)),
        box((width, depth, board), (0, 0, at_z)),
        box((width, depth, board), (0, 0, at_z + height - board)),
    ]
    if back:
        pieces.append(box((width, board * 0.5, height), (0, depth / 2, at_z)))
    return pieces


def feet(draw: Draw, width: float, depth: float) -> tuple[list[Mesh], float]:
    """What furniture stands on, and how high it lifts it: nothing, a plinth, pegs or slanted legs."""
    kind = draw.pick(("none", "plinth", "pegs", "slanted"))
    if kind == "none":
        return [], 0.0
    if kind == "plinth":
        lift = draw.between(0.03, 0.1)
        return [box((width * 0.95, depth * 0.88, lift))], lift
    lift = draw.between(0.04, 0.24)
    x, y = width * 0.44, depth * 0.42
    out = 0.0 if kind == "pegs" else min(0.05, lift / 3)
    radius = draw.between(0.015, 0.035)
    return [
        rod(
            (sx * (x + out), sy * (y + out), 0),
            (sx * x, sy * y, lift),
            radius * 0.7,
            end_radius=radius,
        )
        for sx in (-1, 1)
        for sy in (-1, 1)
    ], lift


def add_front(
    shape: Assembly, draw: Draw, cell: Cell, front: float, *, part: str, grip: str
) -> None:
    """Close a cell of a carcass with a door or drawer front at y = ``front``; some are inset, some ajar."""
    left, right, low, high = cell
    width, height = right - left, high - low
    thick, gap = draw.between(0.015, 0.045), draw.between(0.008, 0.04)
    panel = [box((width - gap, thick, height - gap), (0, 0, -height / 2))]
    aside = 0.0 if part == "drawer" else draw.pick((-0.4, 0.4)) * width
    rise = 0.0 if part == "drawer" else draw.between(-0.2, 0.2) * height
    grips = [piece.moved(aside, -thick / 2, rise) for piece in handle(draw, grip, width, height)]
    center = ((left + right) / 2, (low + high) / 2)
    out = 0.0
    if part == "drawer" and draw.chance(0.12):
        out = draw.between(0.05, 0.2)
        panel.append(box((width * 0.92, out, height * 0.7), (0, out / 2, -height / 2)))
    pieces = panel
    if part == "door" and draw.chance(0.15):
        hinge = width / 2 if aside < 0 else -width / 2
        angle = draw.between(15, 100) * (1 if hinge > 0 else -1)
        pieces = [piece.turned("z", angle, about=(hinge, 0, 0)) for piece in panel]
        grips = [piece.turned("z", angle, about=(hinge, 0, 0)) for piece in grips]
    place = {"x": center[0], "y": front - out, "z": center[1]}
    shape.add(part, *(piece.moved(**place) for piece in pieces))
    if grips:
        shape.add("handle", *(piece.moved(**place) for piece in grips))


def uneven_levels(draw: Draw, low: float, high: float, count: int) -> list[float]:
    """``count`` + 1 levels from low to high, unevenly spaced on some."""
    share = np.ones(count) if draw.chance(0.6) else 0.6 + draw.rng.random(count)
    return [low, *(low + (high - low) * np.cumsum(share / share.sum()))]


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
