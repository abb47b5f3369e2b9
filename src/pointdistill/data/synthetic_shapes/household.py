"""Household goods and bathroom fixtures: bed, pillow, bag, lamp, cap, range hood; sink, toilet, bathtub."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from pointdistill.data.synthetic_shapes.furniture_parts import GRIPS, add_front, handle
from pointdistill.data.synthetic_shapes.primitives import (
    arc,
    box,
    cushion,
    cylinder,
    ellipsoid,
    lathe,
    prism,
    rod,
    sheet,
    tube,
    vessel,
)
from pointdistill.data.synthetic_shapes.shape import Assembly, Draw, Mesh, category
from pointdistill.data.synthetic_shapes.vessels import bow


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


@category("bag", "handle", "body")
def bag(shape: Assembly, draw: Draw) -> None:
    """A shopper, handbag, backpack, duffel or suitcase."""
    width, depth, height = draw.between(0.25, 0.6), draw.between(0.1, 0.35), draw.between(0.2, 0.65)
    kind = draw.pick(("shopper", "handbag", "backpack", "duffel", "case"))
    loop, cord = draw.between(0.08, 0.35), draw.between(0.006, 0.016)
    if kind == "shopper":
        narrow = draw.between(0.7, 1.1)
        outline = [
            (0.5 * narrow, 0.0),
            (0.5, height * 0.5),
            (0.5 * draw.between(0.85, 1.1), height),
        ]
        shape.add("body", vessel(outline, 0.03, power=6, stretch=(width, depth)))
        strap = tube(bow(width * 0.4, loop), cord, flatten=2.0)
        shape.add("handle", *(strap.moved(0, s * depth * 0.46, height * 0.98) for s in (-1, 1)))
    elif kind == "handbag":
        top = draw.between(0.3, 0.9)
        outline = [(0.42, 0), (0.5, height * 0.15), (0.48, height * 0.5), (0.5 * top, height)]
        shape.add("body", lathe(outline, power=draw.between(3, 7), stretch=(width, depth)))
        strap = tube(bow(width * draw.between(0.4, 0.8), loop * 1.2), cord)
        shape.add("handle", *(strap.moved(0, s * depth * 0.15, height * 0.95) for s in (-1, 1)))
    elif kind == "backpack":
        shape.add("body", ellipsoid((width * 0.75, depth, height), power=draw.between(2.8, 5)))
        pocket = (width * 0.55, depth * 0.5, height * draw.between(0.3, 0.5))
        shape.add("body", ellipsoid(pocket, (0, -depth * 0.45, height * 0.08), power=4))
        strap = (
            tube(bow(height * 0.75, depth * 0.7, power=0.7), 0.02, flatten=0.4)
            .turned("y", 90)
            .turned("z", 90)
        )
        shape.add(
            "handle", *(strap.moved(s * width * 0.2, depth * 0.42, height * 0.5) for s in (-1, 1))
        )
        shape.add(
            "handle", tube(bow(width * 0.25, 0.06), 0.01).moved(0, depth * 0.2, height * 0.93)
        )
    elif kind == "duffel":
        radius = height * 0.4
        path = np.column_stack(
            (np.linspace(-0.6, 0.6, 7) * width * 1.3, np.zeros(7), np.full(7, radius))
        )
        ends = np.array([0.7, 0.97, 1, 1, 1, 0.97, 0.7])
        shape.add("body", tube(path, radius * ends, around=18, flatten=draw.between(0.8, 1.3)))
        strap = tube(bow(width * 0.5, loop), cord * 1.3)
        shape.add("handle", *(strap.moved(0, s * radius * 0.6, radius * 1.7) for s in (-1, 1)))
    else:
        shape.add("body", box((width, depth, height), edge=draw.between(0.02, 0.08)))
        grip = tube(bow(width * 0.4, draw.between(0.04, 0.35), power=0.3), cord * 1.2)
        shape.add("handle", grip.moved(0, 0, height))


@category("lamp", "base", "shade", "canopy", "stem")
def lamp(shape: Assembly, draw: Draw) -> None:
    """A table, floor, desk or ceiling lamp."""
    kind = draw.pick(("table", "floor", "arm", "ceiling"))
    height = {"table": draw.between(0.3, 0.7), "floor": draw.between(1.2, 1.8), "arm": draw.between(0.35, 0.6),
              "ceiling": draw.between(0.5, 1.2)}[kind]  # fmt: skip
    wide = draw.between(0.12, 0.3)
    tall, top = wide * draw.between(0.6, 1.4), draw.between(0.25, 1.0)
    form = draw.pick(("drum", "dome", "globe", "cone"))
    if form == "globe":
        cover = ellipsoid((wide * 1.5, wide * 1.5, tall * 1.5))
    elif form == "dome":
        curve = [(wide * np.cos(t), tall * np.sin(t)) for t in np.linspace(0, 1.4, 7)]
        cover = lathe([*curve, *((r * 0.94, z * 0.96) for r, z in curve[::-1])], closed=True)
    else:
        upper = wide * (top if form == "drum" else 0.2)
        cover = lathe(
            [(wide, 0), (upper, tall), (upper * 0.95, tall), (wide * 0.95, 0)],
            closed=True,
            power=draw.pick((2.0, 2.0, 7.0)),
        )
    pole = draw.between(0.008, 0.02)
    if kind == "ceiling":
        shape.add("canopy", cylinder(0.06, 0.03, (0, 0, height + tall)))
        shape.add("stem", rod((0, 0, tall * 0.8), (0, 0, height + tall), pole * 0.6))
        shape.add("shade", cover)
        return
    foot = wide * draw.between(0.5, 0.9)
    shape.add("base", cylinder(foot, draw.between(0.015, 0.05), top=foot * draw.between(0.7, 1.0)))
    if kind == "arm":
        bend = (draw.between(-0.25, -0.1), 0, height * draw.between(0.5, 0.8))
        head = (draw.between(0.1, 0.3), 0, height)
        shape.add("stem", rod((0, 0, 0), bend, pole), rod(bend, head, pole))
        small = cover.scaled(0.5, 0.5, 0.6).turned("y", -draw.between(0, 50))
        shape.add("shade", small.moved(head[0], 0, height - tall * 0.5))
        return
    if kind == "table" and draw.chance(0.6):
        belly = draw.between(0.05, 0.12)
        body = [
            (belly * 0.6, 0),
            (belly, height * 0.35),
            (belly * 0.4, height * 0.75),
            (pole, height),
        ]
        shape.add("stem", lathe(body, power=draw.pick((2.0, 6.0))))
    else:
        shape.add("stem", rod((0, 0, 0), (0, 0, height + tall * 0.4), pole))
    shape.add("shade", cover.moved(z=height))


@category("cap", "panel", "peak")
def cap(shape: Assembly, draw: Draw) -> None:
    """A hat: a dome with a peak, or with a brim all around."""
    radius, rise = draw.between(0.09, 0.12), draw.between(0.08, 0.17)
    power = draw.between(2.0, 3.5)
    t = np.linspace(0, np.pi / 2, 8)
    dome = np.column_stack((radius * np.cos(t) ** (2 / power), rise * np.sin(t) ** (2 / power)))
    inside = (dome * 0.94)[::-1]
    oval = (1.0, draw.between(1.0, 1.25))
    shape.add("panel", lathe(np.concatenate((dome, inside)), closed=True, stretch=oval))
    if draw.chance(0.3):
        wide = radius * draw.between(1.35, 1.9)
        brim = [(radius * 0.97, -0.002), (wide, draw.between(-0.02, 0.03)), (radius * 0.97, 0.004)]
        shape.add("peak", lathe(brim, closed=True))
    else:
        reach, drop = draw.between(0.05, 0.1), draw.between(0.0, 0.04)
        turn = np.deg2rad(np.linspace(-155, -25, 11))
        out = np.linspace(0, 1, 4)[:, None]
        away = radius * 0.97 + reach * out * np.sin(np.linspace(0, np.pi, 11)) ** 0.5
        x, y = away * np.cos(turn) * (1 - 0.1 * out), away * np.sin(turn) * 1.1
        z = 0.004 - drop * out * (np.abs(np.cos(turn)) + out)
        shape.add("peak", sheet(np.stack((x, y, z), axis=-1), 0.004))
    if draw.chance(0.6):
        shape.add("panel", ellipsoid((0.018, 0.018, 0.012), (0, 0, rise - 0.003), around=8, rows=5))


@category("range_hood", "hood", "duct", "panel")
def range_hood(shape: Assembly, draw: Draw) -> None:
    """A hood over a stove: pyramid, curved or box, with a duct that goes up."""
    width, depth = draw.between(0.5, 1.0), draw.between(0.4, 0.6)
    rim, slope, duct = draw.between(0.03, 0.1), draw.between(0.12, 0.4), draw.between(0.2, 0.8)
    kind, neck = draw.pick(("pyramid", "pyramid", "curved", "slab")), draw.between(0.25, 0.5)
    shape.add("hood", box((width, depth, rim)))
    stretch = (width / 1.95, depth / 1.95)
    if kind == "slab":
        slope = 0.0
    else:
        t = np.linspace(0, 1, 6)
        shrink = 1 - (1 - neck) * (t if kind == "pyramid" else np.sqrt(t))
        shape.add(
            "hood",
            lathe(np.column_stack((shrink, rim + slope * t)), power=9, around=28, stretch=stretch),
        )
    if kind == "slab" or draw.chance(0.85):
        size = (width * neck, depth * neck * draw.between(0.9, 1.4), duct)
        shape.add("duct", box(size, (0, depth * draw.between(0, 0.2), rim + slope)))
    if draw.chance(0.5):
        shape.add("panel", box((width * 0.8, depth * 0.7, 0.02), (0, 0, -0.02)))
    if draw.chance(0.2):
        shape.add("panel", box((width, 0.02, slope + duct), (0, depth / 2, 0)))


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
