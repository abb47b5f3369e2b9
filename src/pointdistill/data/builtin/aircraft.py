"""Things that fly: airplane, rocket."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pointdistill.data.builtin.mesh import Assembly, Draw, Mesh, category
from pointdistill.data.builtin.primitives import (
    box,
    cylinder,
    lathe,
    ring,
    rod,
    sheet,
    skin,
)


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
