"""What plays: radio, earphones, game console."""

from __future__ import annotations

import numpy as np

from pointdistill.data.builtin.mesh import Floats, Mesh
from pointdistill.data.builtin.primitives import (
    arc,
    box,
    cylinder,
    ellipsoid,
    lathe,
    rod,
    tube,
)
from pointdistill.data.builtin.registry import Assembly, Draw, category


@category("radio", "body", "speaker", "knob", "antenna", "handle")
def radio(shape: Assembly, draw: Draw) -> None:
    """A portable or table radio: one or two loudspeakers, knobs, an antenna or a handle."""
    width, depth = draw.between(0.18, 0.5), draw.between(0.07, 0.2)
    height = width * draw.between(0.45, 0.9)
    edge = draw.between(0.005, 0.035)
    shape.add("body", box((width, depth, height), edge=edge))
    front, double = -depth / 2, draw.chance(0.45)
    radius = min(height * 0.32, width * 0.2)
    for side in (-1, 1) if double else (draw.pick((-1, 1)),):
        x = side * width * 0.27
        ring = lathe([(radius, 0), (radius, 0.015), (radius * 0.85, 0.015), (radius * 0.4, 0.004)])
        shape.add("speaker", ring.turned("x", 90).moved(x, front, height * 0.45))
    for i in range(draw.count(1, 4)):
        size = draw.between(0.012, 0.025)
        x = (i - 1) * width * 0.13
        dial = cylinder(size, 0.025, around=12).turned("x", 90)
        shape.add("knob", dial.moved(x, front, height * draw.between(0.75, 0.85)))
    if draw.chance(0.6):
        lean, long = draw.between(-0.7, 0.7), draw.between(0.6, 1.6) * height
        start = (width * 0.42, depth * 0.35, height * 0.95)
        shape.add(
            "antenna",
            rod(start, (start[0] + lean * long, start[1], height + long), 0.006, around=6),
        )
    if draw.chance(0.5):
        x, rise = width * 0.42, draw.between(0.15, 0.45) * height
        path = np.array(
            [
                (-x, 0, height * 0.9),
                (-x, 0, height + rise),
                (x, 0, height + rise),
                (x, 0, height * 0.9),
            ]
        )
        shape.add("handle", tube(path, draw.between(0.008, 0.016)))
    if draw.chance(0.4):
        shape.add("body", box((width * 0.35, 0.012, height * 0.2), (0, front, height * 0.45)))


@category("xbox", "body", "drive", "button", "controller")
def xbox(shape: Assembly, draw: Draw) -> None:
    """A game console, lying or standing, some with a controller beside it."""
    width, depth, height = (
        draw.between(0.24, 0.36),
        draw.between(0.2, 0.3),
        draw.between(0.05, 0.12),
    )
    pieces: list[tuple[str, Mesh]] = [
        ("body", box((width, depth, height), edge=draw.pick((0.0, 0.01))))
    ]
    if draw.chance(0.5):
        slab = box((width * 1.02, depth * 0.98, height * 0.45), edge=0.01).moved(z=height * 0.75)
        pieces.append(("body", slab.moved(draw.between(-0.02, 0.02))))
    tray = box((width * 0.45, 0.012, height * 0.15)).moved(-width * 0.15, -depth / 2, height * 0.6)
    button = cylinder(height * 0.16, 0.014, around=14).turned("x", 90)
    pieces += [("drive", tray), ("button", button.moved(width * 0.38, -depth / 2, height * 0.5))]
    for i in range(draw.count(0, 5)):
        x = width * (0.1 + 0.07 * i)
        pieces.append(
            (
                "body",
                box((width * 0.03, depth * 0.8, 0.008)).moved(x - width * 0.3, 0, height * 0.99),
            )
        )
    upright = draw.chance(0.35)
    for part, piece in pieces:
        shape.add(part, piece.turned("y", 90).moved(0, 0, width / 2) if upright else piece)
    if draw.chance(0.5):
        y = -depth / 2 - draw.between(0.08, 0.15)
        shape.add("controller", ellipsoid((0.14, 0.07, 0.045), (0, y, 0), power=2.8, around=16))
        for side in (-1, 1):
            shape.add(
                "controller",
                rod(
                    (side * 0.05, y, 0.02), (side * 0.075, y - 0.07, 0.012), 0.022, end_radius=0.014
                ),
            )
            shape.add("controller", cylinder(0.009, 0.018, (side * 0.035, y, 0.038), around=8))


@category("earphone", "earpiece", "band", "wire")
def earphone(shape: Assembly, draw: Draw) -> None:
    """Headphones with a band over the head, or a pair of earbuds on a wire."""
    width, rise = draw.between(0.13, 0.2), draw.between(0.12, 0.22)
    cup, thick = draw.between(0.03, 0.05), draw.between(0.02, 0.05)
    if draw.chance(0.75):
        angle = np.linspace(-10, 190, 17)
        path = arc(1.0, -10, 190, 17) * np.array((width / 2, rise))
        band = np.column_stack((path[:, 0], np.zeros_like(angle), path[:, 1]))
        shape.add("band", tube(band, draw.between(0.005, 0.013), flatten=draw.between(0.3, 1)))
        power = draw.pick((2.0, 2.0, 3.0))
        pad = lathe(
            [(cup, 0), (cup * 1.05, thick * 0.5), (cup * 0.8, thick), (cup * 0.4, thick * 0.7)],
            power=power,
            stretch=(1.0, 0.85),
        )
        for side in (-1, 1):
            turned = pad.turned("y", -90 * side).moved(
                side * (width / 2 + thick * 0.4), 0, -rise * 0.25
            )
            shape.add("earpiece", turned)
        if draw.chance(0.6):
            start = np.array((-width / 2, 0.0, -rise * 0.25 - cup))
            shape.add("wire", _wire(draw, start, draw.between(0.1, 0.3)))
        return
    drop = draw.between(0.15, 0.35)
    gap = draw.between(0.04, 0.1)
    for side in (-1, 1):
        bud = ellipsoid((0.022, 0.026, 0.026), (side * gap, 0, drop), around=12, rows=8)
        stem = rod((side * gap, 0.005, drop - 0.03), (side * gap, 0.005, drop + 0.01), 0.006)
        shape.add("earpiece", bud, stem)
        share = np.linspace(0, 1, 8)
        side_way = side * gap * (1 - share**2)
        path = np.column_stack(
            (side_way, 0.005 + 0.02 * np.sin(share * 5), drop - 0.03 - share * drop * 0.5)
        )
        shape.add("wire", tube(path, 0.003, around=5))
    shape.add("wire", _wire(draw, np.array((0.0, 0.005, drop * 0.5 - 0.03)), drop * 0.6))


def _wire(draw: Draw, start: Floats, length: float) -> Mesh:
    """A cord that hangs down from ``start`` in a wave."""
    share = np.linspace(0, 1, 10)
    wave = draw.between(0.01, 0.06) * np.sin(share * draw.between(2, 7))
    path = start + np.column_stack((wave, 0.3 * wave, -share * length))
    return tube(path, 0.0035, around=5)
