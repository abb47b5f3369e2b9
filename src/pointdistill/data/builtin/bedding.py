"""What one lies on: bed, pillow."""

from __future__ import annotations

import numpy as np

from pointdistill.data.builtin.primitives import (
    arc,
    box,
    cushion,
    cylinder,
    ellipsoid,
    prism,
    rod,
    tube,
)
from pointdistill.data.builtin.registry import Assembly, Draw, category


@category("bed", "frame", "mattress", "headboard", "footboard", "pillow", "leg")
def bed(shape: Assembly, draw: Draw) -> None:
    """A mattress on a frame, its head to the back: boards, pillows, posts, a bunk above or a canopy."""
    width, depth = draw.between(0.8, 2.0), draw.between(1.5, 2.2)
    lift, frame, mattress = draw.between(0.0, 0.3), draw.between(0.08, 0.3), draw.between(0.1, 0.3)
    shape.add("frame", box((width, depth, frame), (0, 0, lift)))
    level = lift + frame
    pad = box((width * 0.97, depth * 0.97, mattress), edge=mattress * 0.4)
    shape.add("mattress", pad.moved(z=level))
    top = level + mattress
    bunk = width < 1.2 and draw.chance(0.25)
    rise = draw.between(0.9, 1.3) if bunk else draw.pick((0.0, 0.0, 0.0, draw.between(0.6, 1.6)))
    x, y = width * 0.48, depth * 0.48
    if rise or lift > 0.06:
        height = top + rise if rise else lift
        post = cylinder(draw.between(0.025, 0.05), height, power=draw.pick((2.0, 6.0)), around=10)
        shape.add("leg", *(post.moved(sx * x, sy * y) for sx in (-1, 1) for sy in (-1, 1)))
    if bunk:
        shape.add("frame", box((width, depth, 0.1), (0, 0, level + rise)))
        shape.add("mattress", pad.moved(z=level + rise + 0.1))
    elif rise:
        bar = rod((0, -y, top + rise), (0, y, top + rise), 0.02)
        shape.add("frame", bar.moved(-x), bar.moved(x))
    _bed_ends(shape, draw, width, depth, level)
    count = draw.count(0, 1 if width < 1.2 else 2)
    for i in range(count):
        room = width / count
        size = (room * 0.8, draw.between(0.3, 0.5), draw.between(0.1, 0.2))
        place = ((i + 0.5) * room - width / 2, depth * 0.33, top - 0.02)
        shape.add("pillow", cushion(size, pinch=0.5).turned("x", draw.between(0, 30)).moved(*place))
    if draw.chance(0.4):
        quilt = (width * 1.04, depth * draw.between(0.3, 0.7), mattress * 1.2)
        shape.add("mattress", box(quilt, (0, -depth * 0.15, level - mattress * 0.1), edge=0.04))


def _bed_ends(shape: Assembly, draw: Draw, width: float, depth: float, level: float) -> None:
    """A straight or arched board at the head, a lower one at the foot; either may be missing."""
    if draw.chance(0.75):
        tall = draw.between(0.3, 1.0)
        if draw.chance(0.3):
            outline = arc(1.0, 0, 180, 16) * np.array((width / 2, tall))
            board = prism(outline, 0.05).turned("x", 90)
        else:
            size = (width * draw.between(1, 1.15), draw.between(0.03, 0.12), tall)
            board = box(size, edge=draw.pick((0.0, 0.02)))
        shape.add("headboard", board.moved(0, depth / 2 + 0.04, level))
    if draw.chance(0.35):
        size = (width, 0.05, draw.between(0.25, 0.6))
        shape.add("footboard", box(size, (0, -depth / 2, level - 0.05)))


@category("pillow", "pillow", "trim")
def pillow(shape: Assembly, draw: Draw) -> None:
    """A stuffed cushion: square, long, round, a bolster, a roll or a collar; lying, leaning or piled."""
    width = draw.between(0.35, 0.75)
    depth, thick = width * draw.between(0.5, 1.05), draw.between(0.09, 0.3)
    kind = draw.pick(("square", "square", "square", "round", "bolster", "collar", "block"))
    if kind == "square":
        pieces = [cushion((width, depth, thick), pinch=draw.between(0.1, 1.0), cells=14)]
    elif kind == "round":
        pieces = [ellipsoid((width, width, thick), power=draw.between(2.0, 3.5), around=24)]
    elif kind == "bolster":
        path = np.column_stack(
            (np.linspace(-0.5, 0.5, 9) * width * 1.3, np.zeros(9), np.full(9, thick * 0.6))
        )
        pieces = [
            tube(path, thick * 0.6 * np.array([0.15, 0.8, 1, 1, 1, 1, 1, 0.8, 0.15]), around=16)
        ]
    elif kind == "collar":
        thick = min(thick, width * 0.3)
        bow = arc(width * 0.4, 120, 420, 20)
        path = np.column_stack((bow, np.full(20, thick * 0.5)))
        pieces = [tube(path, thick * 0.5 * np.array([0.3, 0.8, *np.ones(16), 0.8, 0.3]), around=14)]
    else:
        pieces = [box((width, depth, thick), edge=thick * draw.between(0.2, 0.48))]
    if kind == "square" and draw.chance(0.25):
        angle, smaller = draw.between(-40, 40), draw.between(0.7, 1.0)
        second = pieces[0].scaled(smaller, smaller, smaller).turned("z", angle)
        pieces.append(second.moved(draw.between(-0.1, 0.1), draw.between(-0.1, 0.1), thick * 0.8))
    tilt = draw.pick((0.0, 0.0, draw.between(20, 90)))
    pieces = [piece.turned("x", tilt) for piece in pieces]
    shape.add("pillow", *pieces)
    if kind in ("square", "block") and draw.chance(0.35):
        seam = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * np.array((width, depth)) / 2
        loop = np.column_stack((seam, np.full(4, thick / 2)))
        shape.add("trim", tube(loop, 0.012, closed=True).turned("x", tilt))
