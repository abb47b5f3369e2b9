"""Vehicles: airplane and rocket; car, motorbike and skateboard."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from pointdistill.data.synthetic_shapes.primitives import (
    arc,
    box,
    cylinder,
    ellipsoid,
    lathe,
    ring,
    rod,
    sheet,
    skin,
    torus,
    tube,
)
from pointdistill.data.synthetic_shapes.shape import Assembly, Draw, Floats, Mesh, Vector, category


def fin(root: ArrayLike, tip: ArrayLike, chord: float, tip_chord: float, thick: float) -> Mesh:
    """A wing from ``root`` to ``tip`` (the middle of each chord), its chords along y."""
    section = ring(12) * np.array((0.5, 0.5))
    share = np.linspace(0, 1, 5)[:, None]
    center = np.asarray(root) * (1 - share) + np.asarray(tip) * share
    width = chord * (1 - share) + tip_chord * share
    across = np.cross(np.asarray(tip, dtype=float) - np.asarray(root, dtype=float), (0.0, 1.0, 0.0))
    across /= np.linalg.norm(across)
    along = width[:, :, None] * section[None, :, :1] * np.array((0.0, 1.0, 0.0))
    up = (thick * width / chord)[:, :, None] * section[None, :, 1:] * across
    return skin(center[:, None] + along + up)


def fuselage(radii: ArrayLike, places: ArrayLike, drop: ArrayLike, *, wide: float = 1.0) -> Mesh:
    """A round body along y: radius, y and centre height of each section."""
    size, y, z = (np.asarray(values, dtype=np.float64) for values in (radii, places, drop))
    section = ring(18)
    x = size[:, None] * section[:, 0] * wide
    height = size[:, None] * section[:, 1] + z[:, None]
    depth = np.broadcast_to(y[:, None], x.shape)
    return skin(np.stack((x, depth, height), axis=-1)[:, ::-1])


@category("airplane", "body", "wing", "tail", "engine")
def airplane(shape: Assembly, draw: Draw) -> None:
    """An airliner, propeller plane, fighter or glider, its nose to the front."""
    long = draw.between(0.8, 1.4)
    kind = draw.pick(("liner", "liner", "propeller", "fighter", "glider"))
    radius = long * {"liner": draw.between(0.045, 0.075), "propeller": draw.between(0.05, 0.08),
                     "fighter": draw.between(0.04, 0.065), "glider": draw.between(0.03, 0.045)}[kind]  # fmt: skip
    nose = draw.between(0.05, 0.3) if kind != "liner" else 0.15
    places = np.array([-0.5, -0.47, -0.4, -0.2, 0.1, 0.3, 0.5]) * long
    profile = np.array([nose * 0.4, nose + 0.35, 0.9, 1.0, 1.0, 0.75, draw.between(0.12, 0.4)])
    shape.add(
        "body", fuselage(profile * radius, places, np.array([0, 0, 0, 0, 0, 0.2, 0.45]) * radius)
    )
    span = long * {"liner": draw.between(0.38, 0.52), "propeller": draw.between(0.45, 0.6),
                   "fighter": draw.between(0.22, 0.34), "glider": draw.between(0.6, 0.85)}[kind]  # fmt: skip
    chord = long * (draw.between(0.3, 0.5) if kind == "fighter" else draw.between(0.12, 0.22))
    sweep = long * {"liner": draw.between(0.1, 0.28), "fighter": draw.between(0.08, 0.25)}.get(
        kind, draw.between(-0.02, 0.05)
    )
    level, rise = radius * draw.between(-0.7, 0.8), draw.between(-0.04, 0.1) * long
    start, tip_chord = long * draw.between(-0.12, 0.05), chord * draw.between(0.2, 0.75)
    tip = (span, start + sweep, level + rise)
    wing = fin((0, start, level), tip, chord, tip_chord, radius * 0.35)
    shape.add("wing", wing, wing.mirrored())
    end, tail = long * 0.43, draw.between(0.13, 0.22) * long
    high = draw.chance(0.3)
    height = radius * 0.3 + (tail * 0.9 if high else 0.0)
    small = fin(
        (0, end, height),
        (tail, end + tail * 0.3, height + 0.01),
        chord * 0.5,
        chord * 0.3,
        radius * 0.2,
    )
    upright = fin(
        (0, end, 0),
        (0, end + tail * draw.between(0.2, 0.6), tail),
        chord * 0.65,
        chord * 0.35,
        radius * 0.2,
    )
    shape.add("tail", small, small.mirrored(), upright)
    size, length = radius * draw.between(0.35, 0.6), long * draw.between(0.08, 0.16)
    if kind == "liner" and draw.chance(0.3):
        jet = _jet(size, length).moved(radius * 1.5, long * 0.28, radius * 0.5)
        shape.add("engine", jet, jet.mirrored())
    elif kind == "liner":
        for share in draw.pick(((0.35,), (0.3, 0.6))):
            place = (
                span * share,
                start + sweep * share - length * 0.6,
                level + rise * share - size,
            )
            jet = _jet(size, length).moved(*place)
            shape.add("engine", jet, jet.mirrored())
    elif kind == "propeller":
        hubs = [(0.0, -long * 0.51, 0.0)]
        if draw.chance(0.4):
            hubs = [(side * span * 0.3, start - length, level) for side in (-1, 1)]
        pieces = _propeller(draw, size, length)
        shape.add("engine", *(piece.moved(*hub) for piece in pieces for hub in hubs))
    elif kind == "fighter":
        nozzle = rod((radius * 0.6, long * 0.1, 0), (radius * 0.6, long * 0.52, 0), size)
        shape.add("engine", nozzle, nozzle.mirrored())


def _jet(size: float, length: float) -> Mesh:
    """A jet engine about the origin."""
    radii, places = np.array([0.8, 1, 1, 0.6]), np.array([-0.5, -0.4, 0.1, 0.5])
    return fuselage(radii * size, places * length, np.zeros(4))


def _propeller(draw: Draw, size: float, length: float) -> list[Mesh]:
    """Blades about the y axis at the origin, and the engine behind them."""
    count, reach = draw.count(2, 4), size * draw.between(2.5, 4)
    blade = box((size * 0.5, 0.008, reach))
    angles = np.arange(count) * (360.0 / count) + draw.between(0, 90)
    engine = rod((0, 0, 0), (0, length * 1.5, 0), size * 0.4, end_radius=size * 0.7)
    return [engine, *(blade.turned("y", float(angle)) for angle in angles)]


@category("rocket", "body", "fin", "nose")
def rocket(shape: Assembly, draw: Draw) -> None:
    """A rocket on its tail: one stage or more, fins, boosters on some."""
    radius, height = draw.between(0.06, 0.16), draw.between(0.6, 1.4)
    cigar, waist = draw.chance(0.4), draw.between(0.65, 1.0)
    levels = np.linspace(0, 1, 9)
    if cigar:
        radii = radius * (0.55 + 0.45 * np.sin(np.pi * (0.15 + 0.6 * levels)))
    else:
        radii = radius * np.where(levels > draw.between(0.4, 0.7), waist, 1.0)
    foot = draw.between(0.0, 0.12) * height
    shape.add("body", lathe(np.column_stack((radii, levels * height)), (0, 0, foot)))
    tip, blunt = draw.between(1.2, 4.0) * radius, draw.between(0.5, 1.1)
    t = np.linspace(0, 1, 7)
    shape.add(
        "nose",
        lathe(np.column_stack((radii[-1] * (1 - t**1.6) ** blunt, t * tip)), (0, 0, height + foot)),
    )
    if draw.chance(0.6):
        shape.add("body", cylinder(radius * 0.8, foot + 0.02, top=radius * 0.4))
    count, reach = draw.count(3, 4), radius * draw.between(0.7, 2.0)
    tall, sweep = height * draw.between(0.12, 0.35), draw.between(-0.1, 0.3) * height
    low = radii[0] * 0.8
    outline = np.array(
        [
            (low, foot),
            (low + reach, foot - sweep * 0.4),
            (low + reach, foot - sweep * 0.4 + tall * 0.4),
            (low, foot + tall),
        ]
    )
    grid = np.stack(
        (np.linspace(outline[0], outline[1], 4), np.linspace(outline[3], outline[2], 4))
    )
    blade = sheet(np.stack((grid[..., 0], np.zeros((2, 4)), grid[..., 1]), axis=-1), 0.012)
    boosters = draw.chance(0.35)
    for i in range(count):
        angle = 360.0 / count * i
        shape.add("fin", blade.turned("z", angle))
        if boosters:
            small = [
                (radius * 0.5, 0),
                (radius * 0.5, height * 0.5),
                (0.3 * radius, height * 0.56),
                (0.01, height * 0.6),
            ]
            shape.add(
                "body",
                lathe(small, around=14)
                .moved(radius * 1.5, 0, foot)
                .turned("z", angle + 180.0 / count),
            )


def wheel(radius: float, width: float, at: Vector) -> Mesh:
    """A wheel about the x axis, ``at`` its centre; its faces are hollowed a little."""
    rim = [(radius * 0.5, width * 0.15), (radius * 0.75, 0), (radius, width * 0.1), (radius, width * 0.9),
           (radius * 0.75, width), (radius * 0.5, width * 0.85)]  # fmt: skip
    return lathe(rim, (0, 0, -width / 2), around=20).turned("y", 90).moved(*at)


def _shell(outline: Sequence[Vector], half_widths: Floats) -> Mesh:
    """A car body: S rows of (y, lower z, upper z) and (S,) half widths, rounded at the upper edges."""
    rows = []
    for (y, low, high), half in zip(outline, half_widths, strict=True):
        edge = min(0.12, (high - low) * 0.4)
        x = np.array([-half, half, half, half - edge * 0.6, edge * 0.6 - half, -half])
        z = np.array([low, low, high - edge, high, high, high - edge])
        rows.append(np.column_stack((x, np.full(6, y), z)))
    return skin(np.stack(rows)[::-1])


@category("car", "roof", "hood", "wheel", "body")
def car(shape: Assembly, draw: Draw) -> None:
    """A saloon, hatchback, estate, pick-up, van, roadster or bus, its bonnet to the front."""
    kind = draw.pick(("saloon", "hatch", "estate", "pickup", "van", "roadster", "bus"))
    long = draw.between(3.4, 5.0) * (1.5 if kind == "bus" else 1.0)
    half, radius = draw.between(0.75, 0.98), draw.between(0.28, 0.4)
    low, belt = draw.between(0.15, 0.35), draw.between(0.75, 1.05)
    roof = belt + draw.between(0.4, 0.65)
    front, rear = -long / 2, long / 2
    bonnet = front + long * draw.between(0.22, 0.32)
    if kind in ("van", "bus"):
        bonnet, roof = front + long * 0.06, roof * draw.between(1.2, 1.7)
    nose = belt * draw.between(0.65, 0.9)
    sides = [(bonnet, low, belt), (0.3 * front, low, belt), (0.5 * rear, low, belt)]
    stern = [(rear * 0.96, low, belt * 0.97), (rear, low + 0.15, belt * 0.8)]
    shape.add("body", _shell([*sides, *stern], half * np.array([1, 1, 1, 0.97, 0.9])))
    hood = [(front, low + 0.12, nose * 0.75), (front * 0.97, low, nose), (bonnet, low, belt)]
    shape.add("hood", _shell(hood, half * np.array([0.85, 0.93, 1.0])))
    _cabin(shape, draw, kind, half=half, rear=rear, bonnet=bonnet, belt=belt, roof=roof)
    width = draw.between(0.16, 0.26)
    for y in (front * draw.between(0.58, 0.7), rear * draw.between(0.52, 0.68)):
        for side in (-1, 1):
            shape.add("wheel", wheel(radius, width, (side * (half - width * 0.35), y, radius)))
    if draw.chance(0.3):
        shape.add("body", box((half * 1.7, 0.25, 0.04), (0, rear * 0.95, belt + 0.2)))
        for side in (-1, 1):
            shape.add("body", box((0.05, 0.1, 0.25), (side * half * 0.6, rear * 0.95, belt - 0.03)))


def _cabin(
    shape: Assembly,
    draw: Draw,
    kind: str,
    *,
    half: float,
    rear: float,
    bonnet: float,
    belt: float,
    roof: float,
) -> None:
    """The roof over the seats, or a roadster's windscreen; the sides of a pick-up's bed."""
    steep = 0.3 if kind in ("van", "bus") else 1.0
    screen = bonnet + (roof - belt) * draw.between(0.4, 1.2) * steep
    shares = {"saloon": 0.45, "hatch": 0.8, "pickup": 0.1, "roadster": 0.2}
    back = rear * shares.get(kind, 0.93)
    foot = min(rear * 0.97, back + (roof - belt) * draw.between(0.2, 1.1))
    if kind == "roadster":
        glass = box((half * 1.7, 0.04, roof - belt)).turned("x", -35)
        shape.add("roof", glass.moved(0, bonnet, belt))
        chair = box((half * 0.6, 0.2, 0.45), (0, rear * 0.2, belt * 0.9), edge=0.05)
        shape.add("body", *(chair.moved(side * half * 0.45) for side in (-1, 1)))
        return
    sill, ledge = belt * 0.98, belt + 0.02
    ahead = [(bonnet, sill, ledge), (screen, sill, roof * 0.98), ((screen + back) / 2, sill, roof)]
    behind = [(back, sill, roof * 0.97), (foot, sill, ledge)]
    shape.add("roof", _shell([*ahead, *behind], half * np.array([0.95, 0.82, 0.8, 0.82, 0.93])))
    if kind == "pickup":
        wall = box((0.06, rear - foot, 0.25), (0, (rear + foot) / 2, belt))
        shape.add("body", *(wall.moved(side * half * 0.96) for side in (-1, 1)))


def _bike_wheel(draw: Draw, radius: float, tyre: float) -> list[Mesh]:
    """A wheel about the x axis with its centre at the origin: a disc, or a hub with spokes."""
    pieces = [torus(radius - tyre, tyre).turned("y", 90)]
    if draw.chance(0.5):
        return [*pieces, cylinder(radius * 0.75, 0.03, (0, 0, -0.015)).turned("y", 90)]
    pieces.append(rod((-0.06, 0, 0), (0.06, 0, 0), radius * 0.2))
    spoke = rod((0, 0, 0), (0, 0, radius - tyre), 0.012, around=5)
    return pieces + [spoke.turned("x", angle) for angle in (0, 72, 144, 216, 288)]


@category("motorbike", "tank", "seat", "wheel", "handle", "light", "frame")
def motorbike(shape: Assembly, draw: Draw) -> None:
    """A motorcycle or scooter, its front wheel to the front."""
    base, radius = draw.between(1.2, 1.6), draw.between(0.24, 0.36)
    tyre = draw.between(0.05, 0.1)
    front, rear = -base / 2, base / 2
    for y in (front, rear):
        pieces = _bike_wheel(draw, radius, tyre)
        shape.add("wheel", *(piece.moved(0, y, radius) for piece in pieces))
    head = (0.0, front + draw.between(0.25, 0.5), radius * 2 + draw.between(0.2, 0.45))
    saddle = head[2] * draw.between(0.72, 0.88)
    for side in (-1, 1):
        x, axle = side * (tyre + 0.03), (side * (tyre + 0.03), rear, radius)
        shape.add("frame", rod((x, front, radius), (x, head[1], head[2]), 0.025))
        shape.add("frame", rod(axle, (x, 0.1, radius), 0.025))
        shape.add("frame", rod(axle, (x * 0.8, rear * 0.55, head[2] * 0.75), 0.022))
    shape.add("frame", rod(head, (0, rear * 0.6, saddle - 0.05), 0.035))
    if draw.chance(0.7):
        size, long = draw.between(0.25, 0.4), draw.between(0.4, 0.6)
        shape.add("frame", box((size, size * 1.3, size), (0, -0.05, radius * 0.7), edge=0.05))
        shape.add("frame", rod((0.16, -0.2, radius * 0.8), (0.16, rear * 1.1, radius * 0.9), 0.05))
        shape.add("tank", ellipsoid((0.3, long, 0.25), (0, -0.08, saddle - 0.06), power=2.6))
    else:
        shield = (0.38, 0.06, head[2] - radius)
        shape.add("frame", box((0.35, base * 0.7, 0.06), (0, 0.1, radius * 0.9)))
        shape.add("frame", box(shield, (0, head[1] - 0.1, radius), edge=0.02))
        tail = (0.3, base * 0.4, saddle - radius)
        shape.add("tank", box(tail, (0, rear * 0.55, radius), edge=0.08))
    long = draw.between(0.4, 0.75)
    pad = (draw.between(0.2, 0.32), long, 0.1)
    shape.add("seat", box(pad, (0, 0.1 + long / 2, saddle), edge=0.04))
    wide, rise = draw.between(0.28, 0.45), draw.between(0.02, 0.3)
    bar = np.array([(-1, 0.12, 1), (-0.4, 0, 0.8), (0, 0, 0), (0.4, 0, 0.8), (1, 0.12, 1)])
    shape.add("handle", tube(np.array(head) + bar * (wide, 1.0, rise), 0.018))
    lamp = draw.between(0.14, 0.24)
    place = (0.0, head[1] - 0.12, head[2] - lamp / 2)
    shape.add("light", ellipsoid((lamp, lamp * 0.8, lamp), place, around=14))
    curve = arc(radius + 0.05, 30, 140, 8)
    mudguard = tube(np.column_stack((np.zeros(8), curve)), tyre * 1.1, flatten=0.3)
    shape.add("frame", *(mudguard.moved(0, y, radius) for y in (front, rear)))


@category("skateboard", "wheel", "deck", "truck")
def skateboard(shape: Assembly, draw: Draw) -> None:
    """A deck with upturned ends on two trucks; short, long or pointed."""
    long, wide = draw.between(0.6, 1.1), draw.between(0.09, 0.14)
    kick, thick = draw.between(0.0, 0.08), draw.between(0.008, 0.02)
    radius, level = draw.between(0.022, 0.04), draw.between(0.07, 0.11)
    power = draw.between(2.5, 6.0)
    u, v = np.meshgrid(np.linspace(-1, 1, 21), np.linspace(-1, 1, 7))
    taper = np.maximum(1 - np.abs(u) ** power, 0.02) ** (1 / power)
    dish = draw.between(0.0, 0.015) * v**2
    rise = kick * np.clip((np.abs(u) - 0.65) / 0.35, 0, 1) ** 1.3
    shape.add(
        "deck",
        sheet(np.stack((u * long / 2, v * wide * taper, level + rise + dish), axis=-1), thick),
    )
    for side in (-1, 1):
        x, axle = side * long * draw.between(0.28, 0.36), wide * draw.between(0.8, 1.1)
        shape.add("truck", box((0.06, wide * 0.8, level - radius - 0.01), (x, 0, radius)))
        shape.add("truck", rod((x, -axle, radius), (x, axle, radius), 0.01))
        for end in (-1, 1):
            roller = cylinder(radius, 0.035, (0, 0, -0.017), around=14).turned("x", 90)
            shape.add("wheel", roller.moved(x, end * axle, radius))
