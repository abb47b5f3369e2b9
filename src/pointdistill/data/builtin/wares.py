"""Things to carry and to place: bag, cap, cone, lamp."""

from __future__ import annotations

import numpy as np

from pointdistill.data.builtin.primitives import (
    box,
    cylinder,
    ellipsoid,
    lathe,
    rod,
    sheet,
    tube,
    vessel,
)
from pointdistill.data.builtin.registry import Assembly, Draw, category
from pointdistill.data.builtin.vessels import bow


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
