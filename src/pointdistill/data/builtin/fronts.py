"""The makings of case furniture: a carcass, its feet, and doors and drawers with handles."""

from __future__ import annotations

import numpy as np

from pointdistill.data.builtin.mesh import Mesh
from pointdistill.data.builtin.primitives import (
    box,
    ellipsoid,
    rod,
    tube,
)
from pointdistill.data.builtin.registry import Assembly, Draw

Cell = tuple[float, float, float, float]  # x from, x to, z from, z to


GRIPS = ("knob", "bar", "upright", "none")


CASE_PARTS = ("body", "door", "drawer", "handle", "leg")
"""The part names that `close` and `feet` need."""


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


def close(shape: Assembly, draw: Draw, cell: Cell, front: float, *, part: str, grip: str) -> None:
    """Shut a cell of a carcass with a door or drawer front at y = ``front``; some are inset, some ajar."""
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


def stack(draw: Draw, low: float, high: float, count: int) -> list[float]:
    """``count`` + 1 levels from low to high, unevenly spaced on some."""
    share = np.ones(count) if draw.chance(0.6) else 0.6 + draw.rng.random(count)
    return [low, *(low + (high - low) * np.cumsum(share / share.sum()))]
