"""Bathroom fixtures: sink, toilet, bathtub."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from pointdistill.data.synthetic_shapes.furniture_parts import GRIPS, add_front, handle
from pointdistill.data.synthetic_shapes.primitives import box, cylinder, lathe, rod, tube
from pointdistill.data.synthetic_shapes.shape import Assembly, Draw, Mesh, category


def faucet(draw: Draw, reach: float) -> list[Mesh]:
    """A spout from the origin that bends towards the front, and its lever or pair of knobs."""
    rise, radius = reach * draw.between(0.6, 2.0), draw.between(0.01, 0.018)
    bend = np.linspace(0, np.pi * draw.between(0.5, 0.95), 8)
    path = np.column_stack(
        (np.zeros(8), -reach / 2 * (1 - np.cos(bend)), rise + reach / 2 * np.sin(bend))
    )
    pieces = [tube(np.concatenate(([(0, 0, 0)], path)), radius)]
    if draw.chance(0.5):
        pieces.append(rod((0, 0, rise * 0.4), (reach * 0.4, 0, rise * 0.6), radius * 0.8))
    else:
        pieces += [
            cylinder(radius * 1.6, 0.06, (side * reach * 0.6, 0, 0), around=10) for side in (-1, 1)
        ]
    return pieces


def basin(draw: Draw, width: float, depth: float, deep: float, power: float) -> Mesh:
    """A bowl with a flat rim; ``width`` x ``depth`` over the rim."""
    rim, slope = draw.between(0.03, 0.09), draw.between(0.45, 0.85)
    floor = 0.03
    outside = [(0.45 * slope, 0.0), (0.5 * slope, 0.01), (0.5 - rim * 0.3, deep - 0.02)]
    edge = [(0.5, deep - 0.015), (0.5, deep), (0.5 - rim, deep)]
    profile = [*outside, *edge, (0.45 * slope, floor + 0.01), (0.01, floor)]
    return lathe(profile, power=power, around=32, stretch=(width, depth))


@category("sink", "basin", "faucet", "support", "counter")
def sink(shape: Assembly, draw: Draw) -> None:
    """A wash basin on a column, a wall, a cupboard or a counter, or a kitchen sink with two bowls."""
    width, depth, deep = draw.between(0.4, 0.75), draw.between(0.35, 0.55), draw.between(0.1, 0.24)
    kind = draw.pick(("column", "wall", "cupboard", "counter", "double"))
    power = draw.pick((2.0, 2.6, 4.0, 8.0))
    level = 0.0 if kind in ("wall", "double") else draw.between(0.45, 0.8)
    bowl = basin(draw, width, depth, deep, power).moved(z=level)
    if kind == "double":
        half = basin(draw, width * 0.8, depth, deep, 8.0)
        shape.add("basin", *(half.moved(side * width * 0.42) for side in (-1, 1)))
        if draw.chance(0.6):
            plate = width * draw.between(0.4, 0.9)
            shape.add(
                "counter", box((plate, depth, 0.025), (width * 0.82 + plate / 2, 0, deep - 0.025))
            )
    else:
        shape.add("basin", bowl)
    if kind == "column":
        foot = width * draw.between(0.15, 0.24)
        column = [
            (foot * 1.2, 0),
            (foot * 0.75, level * 0.3),
            (foot * 0.7, level * 0.7),
            (foot * 1.3, level + 0.03),
        ]
        shape.add("support", lathe(column, (0, depth * 0.1, 0), power=draw.pick((2.0, 4.0))))
    elif kind == "cupboard":
        shape.add("support", box((width * 0.95, depth * 0.95, level)))
        columns, grip = draw.count(1, 2), draw.pick(GRIPS)
        edges = np.linspace(-width * 0.45, width * 0.45, columns + 1)
        for left, right in pairwise(edges):
            add_front(
                shape,
                draw,
                (left, right, 0.04, level - 0.02),
                -depth * 0.475,
                part="support",
                grip="none",
            )
        shape.add(
            "faucet",
            *(piece.moved(0, -depth * 0.48, level * 0.7) for piece in handle(draw, grip, 0.2, 0.2)),
        )
    elif kind == "counter":
        long, thick = width * draw.between(1.3, 2.4), draw.between(0.03, 0.08)
        top = (long, depth * 1.2, thick)
        shape.add("counter", box(top, (draw.between(-0.2, 0.2) * (long - width), 0, level)))
        if draw.chance(0.5):
            shape.add("support", box((long * 0.95, depth * 1.1, level)))
    tap = faucet(draw, depth * draw.between(0.25, 0.45))
    shape.add("faucet", *(piece.moved(0, depth * 0.42, level + deep) for piece in tap))


@category("toilet", "bowl", "seat", "tank", "base")
def toilet(shape: Assembly, draw: Draw) -> None:
    """A bowl with a seat and a cover, with a cistern behind or hung on a wall."""
    width, length = draw.between(0.34, 0.42), draw.between(0.42, 0.58)
    level = draw.between(0.34, 0.45)
    hung, power = draw.chance(0.25), draw.pick((2.0, 2.4, 3.2))
    stretch = (width / 2, length / 2)
    foot = draw.between(0.45, 0.8)
    low = level * 0.35 if hung else 0.0
    outside = [
        (foot * 0.95, low),
        (foot * 0.8, low + (level - low) * 0.4),
        (0.9, level * 0.8),
        (1.0, level),
    ]
    inside = [(0.78, level), (0.55, level * 0.65), (0.15, level * 0.5)]
    shape.add("bowl", lathe(outside + inside, power=power, stretch=stretch, around=28))
    rim = [(1.03, level), (1.03, level + 0.02), (0.65, level + 0.025), (0.65, level)]
    shape.add("seat", lathe(rim, closed=True, power=power, stretch=stretch, around=28))
    cover = cylinder(1.02, 0.02, power=power, stretch=stretch, around=28)
    tilt = draw.pick((0.0, draw.between(80, 105), draw.between(80, 105)))
    cover = cover.turned("x", -tilt, about=(0, length / 2, 0))
    shape.add("seat", cover.moved(0, 0, level + 0.025))
    if hung:
        shape.add(
            "tank",
            box(
                (width * draw.between(1, 1.4), 0.06, draw.between(0.5, 1.0)),
                (0, length / 2 + 0.03, 0),
            ),
        )
        return
    if not draw.chance(0.3):
        shape.add(
            "base", box((width * 0.6, length * 0.4, level * 0.95), (0, length * 0.45, 0), edge=0.03)
        )
    deep, wide = draw.between(0.14, 0.22), width * draw.between(0.95, 1.3)
    tall, start = draw.between(0.28, 0.45), level * draw.between(0.85, 1.05)
    if draw.chance(0.12):
        start += draw.between(0.3, 0.7)
        shape.add("tank", rod((0, length * 0.62, level), (0, length * 0.62, start), 0.025))
    back = length / 2 + deep / 2
    shape.add("tank", box((wide, deep, tall), (0, back, start), edge=draw.between(0.005, 0.05)))
    shape.add("tank", box((wide * 1.05, deep * 1.1, 0.03), (0, back, start + tall)))
    if draw.chance(0.6):
        shape.add("tank", cylinder(0.03, 0.015, (0, back, start + tall + 0.03), around=12))


@category("bathtub", "tub", "foot", "faucet", "apron")
def bathtub(shape: Assembly, draw: Draw) -> None:
    """A tub: oval on feet, sunk in a block, or angular."""
    width, depth, deep = draw.between(1.2, 1.9), draw.between(0.65, 0.95), draw.between(0.38, 0.6)
    power, lift = draw.pick((2.2, 3.0, 6.0)), draw.pick((0.0, 0.1))
    shape.add("tub", basin(draw, width, depth, deep, power).moved(z=lift))
    if lift:
        for sx in (-1, 1):
            for sy in (-1, 1):
                x, y = sx * width * 0.3, sy * depth * 0.25
                shape.add("foot", rod((x * 1.1, y * 1.1, 0), (x, y, lift + 0.08), 0.03))
    elif draw.chance(0.5):
        shape.add(
            "apron",
            *(box((width, 0.02, deep * 0.98), (0, side * depth / 2, 0)) for side in (-1, 1)),
        )
        shape.add(
            "apron",
            *(box((0.02, depth, deep * 0.98), (side * width / 2, 0, 0)) for side in (-1, 1)),
        )
    if draw.chance(0.6):
        tap = [piece.turned("z", -90) for piece in faucet(draw, 0.15)]
        shape.add("faucet", *(piece.moved(-width * 0.46, 0, lift + deep) for piece in tap))
