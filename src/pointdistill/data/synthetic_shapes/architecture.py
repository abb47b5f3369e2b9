"""Parts of buildings and what stands outdoors: door, curtain, mantel, stairs, traffic cone, tent."""

from __future__ import annotations

import numpy as np

from pointdistill.data.synthetic_shapes.primitives import (
    box,
    cylinder,
    ellipsoid,
    lathe,
    prism,
    rod,
    sheet,
    tube,
)
from pointdistill.data.synthetic_shapes.shape import Assembly, Draw, Mesh, category


@category("door", "leaf", "frame", "handle", "panel")
def door(shape: Assembly, draw: Draw) -> None:
    """A leaf, or two, in a frame: plain, panelled or glazed; shut, ajar or wide open."""
    width, height, thick = draw.between(0.65, 1.1), draw.between(1.7, 2.4), draw.between(0.03, 0.09)
    double, post = draw.chance(0.2), draw.between(0.04, 0.14)
    deep = thick * draw.between(1.2, 5.0)
    total = width * (2 if double else 1)
    if draw.chance(0.75):
        for side in (-1, 1):
            shape.add("frame", box((post, deep, height), (side * (total + post) / 2, 0, 0)))
        shape.add("frame", box((total + 2 * post, deep, post), (0, 0, height)))
    kind = draw.pick(("plain", "panels", "glazed", "boards"))
    swing = draw.pick((0.0, 0.0, draw.between(10, 110)))
    pieces: list[tuple[str, Mesh]] = []
    if kind == "glazed":
        rail = width * draw.between(0.1, 0.2)
        for x in (rail / 2, width - rail / 2):
            pieces.append(("leaf", box((rail, thick, height), (x, 0, 0))))
        rows = np.linspace(0, height - rail, draw.count(2, 5))
        pieces += [("leaf", box((width, thick, rail), (width / 2, 0, z))) for z in rows]
        pieces.append(("panel", box((width * 0.9, 0.008, height * 0.98), (width / 2, 0, 0))))
    else:
        pieces.append(("leaf", box((width, thick, height), (width / 2, 0, 0))))
    if kind in ("panels", "boards"):
        columns, rows_count = (2, draw.count(2, 3)) if kind == "panels" else (draw.count(3, 6), 1)
        cell = (width / columns, height / rows_count)
        size = (cell[0] * 0.7, thick * draw.between(1.3, 1.9), cell[1] * 0.82)
        for i in range(columns):
            for j in range(rows_count):
                at = ((i + 0.5) * cell[0], 0.0, (j + 0.09) * cell[1])
                pieces.append(("panel", box(size, at)))
    for side in (-1, 1):
        grip = rod(
            (width * 0.92, 0, height * 0.47),
            (width * 0.92, side * (thick + 0.04), height * 0.47),
            0.012,
        )
        lever = rod(
            (width * 0.92, side * (thick + 0.04), height * 0.47),
            (width * 0.8, side * (thick + 0.04), height * 0.47),
            0.012,
        )
        pieces += [("handle", grip), ("handle", lever)]
    for part, piece in pieces:
        leaf = piece.turned("z", -swing).moved(-total / 2)
        shape.add(part, leaf)
        if double:
            shape.add(part, leaf.mirrored())


@category("curtain", "cloth", "rail", "tie")
def curtain(shape: Assembly, draw: Draw) -> None:
    """Hanging cloth in folds from a rail: one length or two, gathered or straight."""
    width, height = draw.between(0.9, 2.4), draw.between(1.0, 2.4)
    folds, swing = draw.between(3, 9), draw.between(0.03, 0.09)
    double, gather = draw.chance(0.6), draw.pick((0.0, draw.between(0.2, 0.6)))
    u, v = np.meshgrid(np.linspace(0, 1, 33), np.linspace(0, 1, 7))
    tie = draw.between(0.3, 0.6)
    waist = 1.0 - gather * np.exp(-(((v - tie) / 0.25) ** 2))
    half = width * (0.46 if double else 0.98)
    x = u * half * waist - width / 2
    y = swing * np.sin(u * folds * 2 * np.pi) * (0.6 + 0.4 * (1 - v)) * waist
    pieces = [("cloth", sheet(np.stack((x, y, v * height), axis=-1), 0.008))]
    if gather:
        wide, level = half * (1 - gather) * 1.05, height * tie
        band = box((wide, swing * 2.4, 0.06), (wide / 2 - width / 2, 0, level), edge=0.02)
        pieces.append(("tie", band))
    for part, piece in pieces:
        shape.add(part, piece)
        if double:
            shape.add(part, piece.mirrored())
    if draw.chance(0.8):
        over = width * draw.between(0.5, 0.58)
        shape.add(
            "rail",
            rod((-over, 0, height + 0.02), (over, 0, height + 0.02), draw.between(0.012, 0.03)),
        )
        knob = 0.08
        shape.add(
            "rail",
            *(
                ellipsoid((knob, knob, knob), (s * over, 0, height - 0.02), around=10, rows=6)
                for s in (-1, 1)
            ),
        )
    elif draw.chance(0.6):
        shape.add("rail", box((width * 1.05, 0.18, draw.between(0.1, 0.3)), (0, 0, height - 0.08)))


@category("mantel", "pillar", "shelf", "lintel", "hearth")
def mantel(shape: Assembly, draw: Draw) -> None:
    """A fireplace surround: two pillars, a lintel and a shelf; a hearth or a chimney on some."""
    width, depth, height = draw.between(1.1, 2.0), draw.between(0.2, 0.5), draw.between(0.9, 1.4)
    pillar, lintel = width * draw.between(0.1, 0.22), height * draw.between(0.15, 0.3)
    for side in (-1, 1):
        x = side * (width - pillar) / 2
        if draw.chance(0.3):
            shape.add("pillar", cylinder(pillar * 0.4, height - lintel, (x, -depth * 0.1, 0)))
        shape.add("pillar", box((pillar, depth * 0.8, height - lintel), (x, 0, 0)))
        if draw.chance(0.5):
            shape.add("pillar", box((pillar * 1.15, depth * 0.95, height * 0.1), (x, 0, 0)))
    shape.add("lintel", box((width, depth * 0.8, lintel), (0, 0, height - lintel)))
    for step in range(draw.count(1, 3)):
        size = (width * (1.06 + 0.05 * step), depth * (1.0 + 0.12 * step), draw.between(0.03, 0.07))
        shape.add("shelf", box(size, (0, -depth * 0.05 * step, height + 0.04 * step)))
    if draw.chance(0.6):
        shape.add(
            "hearth",
            box((width * 1.05, depth * draw.between(1.2, 2.2), 0.05), (0, -depth * 0.3, 0)),
        )
    if draw.chance(0.6):
        shape.add("hearth", box((width * 0.8, 0.03, height), (0, depth * 0.35, 0)))
    if draw.chance(0.25):
        shape.add(
            "lintel",
            box(
                (width * 0.7, depth * 0.5, height * draw.between(0.4, 0.9)),
                (0, depth * 0.15, height),
            ),
        )


@category("stairs", "step", "rail", "side")
def stairs(shape: Assembly, draw: Draw) -> None:
    """A flight: solid, open or spiral, some with rails."""
    count, width = draw.count(4, 14), draw.between(0.6, 1.3)
    rise, run = draw.between(0.13, 0.22), draw.between(0.22, 0.34)
    kind, railed = draw.pick(("solid", "open", "open", "spiral")), draw.chance(0.6)
    rail_height = draw.between(0.7, 1.0)
    if kind == "spiral":
        turn = draw.between(18, 32)
        height = rise * count
        shape.add("side", rod((0, 0, 0), (0, 0, height + (rail_height if railed else 0.1)), 0.06))
        wedge = np.array(
            [(0.02, -0.05), (width, -width * 0.25), (width, width * 0.25), (0.02, 0.05)]
        )
        for i in range(count):
            tread = prism(wedge, 0.05, (0, 0, rise * (i + 1) - 0.05))
            shape.add("step", tread.turned("z", turn * i))
        if railed and count > 3:
            angle = np.deg2rad(turn * np.arange(count))
            path = np.column_stack(
                (
                    width * np.cos(angle),
                    width * np.sin(angle),
                    rise * (np.arange(count) + 1) + rail_height,
                )
            )
            shape.add("rail", tube(path, 0.025))
        return
    for i in range(count):
        y, z = run * (i + 0.5), rise * i
        tall = rise * (i + 1) if kind == "solid" else draw.between(0.03, 0.05)
        shape.add(
            "step",
            box((width, run * 1.08, tall), (0, y, 0 if kind == "solid" else z + rise - tall)),
        )
    top = (run * count, rise * count)
    for side in (-1, 1):
        x = side * width / 2
        if kind == "open":
            shape.add("side", rod((x, 0, rise * 0.4), (x, top[0], top[1]), rise * 0.4, power=7))
        if railed:
            shape.add("rail", rod((x, 0, rail_height), (x, top[0], top[1] + rail_height), 0.03))
            for share in np.linspace(0.03, 0.97, draw.count(2, 6)):
                shape.add(
                    "rail",
                    rod(
                        (x, share * top[0], share * top[1]),
                        (x, share * top[0], share * top[1] + rail_height),
                        0.018,
                    ),
                )


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
