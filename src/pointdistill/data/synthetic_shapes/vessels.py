"""Vessels, and plants in them: bottle, bowl, cup, mug, vase, flower pot, plant."""

from __future__ import annotations

import numpy as np

from pointdistill.data.synthetic_shapes.primitives import (
    cylinder,
    ellipsoid,
    lathe,
    rod,
    sheet,
    tube,
    vessel,
)
from pointdistill.data.synthetic_shapes.shape import Assembly, Draw, Floats, Mesh, category


def bow(width: float, height: float, *, count: int = 12, power: float = 1.0) -> Floats:
    """(count, 3) points of an arch over the x axis; a power below 1 squares its shoulders."""
    angle = np.linspace(0, np.pi, count)
    x = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power * width / 2
    return np.column_stack((x, np.zeros(count), np.sin(angle) ** power * height))


def ear(draw: Draw, height: float, radius: float) -> Mesh:
    """A cup's handle on its +x side: round, tall, or square."""
    tall, out = height * draw.between(0.45, 0.75), radius * draw.between(0.5, 0.95)
    loop = bow(tall, out, power=draw.pick((1.0, 0.6, 0.4)))
    bar = tube(loop, radius * draw.between(0.08, 0.16), flatten=draw.between(0.5, 1.2))
    return bar.turned("y", 90).moved(radius * 0.9, 0, height * 0.5)


@category("bottle", "body", "neck", "cap")
def bottle(shape: Assembly, draw: Draw) -> None:
    """A vessel with a neck and a stopper; round or squarish."""
    radius, height = draw.between(0.03, 0.07), draw.between(0.15, 0.36)
    neck, shoulder = radius * draw.between(0.22, 0.55), height * draw.between(0.45, 0.78)
    power, stretch = draw.pick((2.0, 2.0, 4.0)), (1.0, draw.between(0.6, 1.0))
    waist = draw.between(0.75, 1.05)
    slope = shoulder + (height * 0.92 - shoulder) * draw.between(0.2, 0.9)
    body = [(radius * 0.9, 0), (radius, 0.01), (radius * waist, shoulder / 2), (radius, shoulder)]
    shape.add(
        "body",
        lathe([*body, (neck * 1.4, slope), (neck, slope + 0.01)], power=power, stretch=stretch),
    )
    shape.add("neck", cylinder(neck, height - slope, (0, 0, slope), around=14))
    if draw.chance(0.75):
        tall = draw.between(0.015, 0.05)
        shape.add(
            "cap",
            cylinder(neck * draw.between(1.05, 1.4), tall, (0, 0, height - tall * 0.5), around=14),
        )


@category("bowl", "body", "foot")
def bowl(shape: Assembly, draw: Draw) -> None:
    """An open round dish, shallow or deep."""
    radius, depth = draw.between(0.08, 0.2), draw.between(0.35, 1.05)
    t = np.linspace(0.35, np.pi / 2 * draw.between(0.75, 1.1), 8)
    curve = np.column_stack((np.sin(t), 1 - np.cos(t))) * radius * np.array((1.0, depth))
    curve[:, 1] -= curve[0, 1] - 0.01
    curve[:, 1] = np.maximum.accumulate(curve[:, 1])
    power = draw.pick((2.0, 2.0, 2.0, 4.5))
    shape.add("body", vessel(curve, radius * draw.between(0.03, 0.1), power=power))
    if draw.chance(0.6):
        shape.add(
            "foot", cylinder(radius * draw.between(0.35, 0.55), 0.02, top=curve[0, 0], around=24)
        )


def tumbler(draw: Draw, radius: float, height: float) -> Mesh:
    """A straight, flared or rounded drinking vessel."""
    low = draw.between(0.55, 1.05) * radius
    belly = draw.between(0.95, 1.2) * (low + radius) / 2
    outline = [(low, 0.0), (low * 1.02, height * 0.05), (belly, height * 0.5), (radius, height)]
    return vessel(outline, radius * draw.between(0.05, 0.12), power=draw.pick((2.0, 2.0, 3.5)))


@category("cup", "body", "handle", "saucer", "stem")
def cup(shape: Assembly, draw: Draw) -> None:
    """A drinking vessel: beaker, tea cup with a saucer, or on a stem."""
    radius, height = draw.between(0.03, 0.055), draw.between(0.05, 0.14)
    kind = draw.pick(("beaker", "tea", "stem"))
    body = tumbler(draw, radius, height)
    if kind == "stem":
        tall = draw.between(0.02, 0.1)
        foot = [
            (radius * 0.9, 0),
            (radius * 0.9, 0.004),
            (0.007, 0.012),
            (0.006, tall),
            (radius * 0.4, tall + 0.01),
        ]
        shape.add("stem", lathe(foot))
        shape.add("body", body.moved(z=tall))
        return
    shape.add("body", body)
    if kind == "tea":
        shape.add("handle", ear(draw, height, radius).turned("z", draw.between(-180, 180)))
        if draw.chance(0.6):
            wide = radius * draw.between(1.5, 2.0)
            shape.add(
                "saucer", vessel([(wide * 0.5, -0.008), (wide * 0.8, -0.004), (wide, 0.008)], 0.004)
            )


@category("mug", "handle", "cup")
def mug(shape: Assembly, draw: Draw) -> None:
    """A drinking vessel with one handle."""
    radius, height = draw.between(0.035, 0.06), draw.between(0.06, 0.15)
    shape.add("cup", tumbler(draw, radius, height))
    shape.add("handle", ear(draw, height, radius))
    if draw.chance(0.4):
        foot, low = radius * draw.between(0.6, 1.3), height * draw.between(0.04, 0.12)
        shape.add("cup", cylinder(foot, low, (0, 0, -low * 0.9), top=radius * 0.6))


@category("vase", "body", "handle")
def vase(shape: Assembly, draw: Draw) -> None:
    """A tall vessel with a belly, a waist, or both."""
    height, radius = draw.between(0.2, 0.6), draw.between(0.06, 0.16)
    levels = np.linspace(0, 1, 10)
    peak, lip = draw.between(0.25, 0.75), draw.between(0.3, 1.0)
    belly = np.exp(-(((levels - peak) / draw.between(0.2, 0.5)) ** 2))
    radii = radius * np.maximum(0.25 + 0.75 * belly, lip * np.clip(levels * 6 - 5, 0, 1))
    outline = np.column_stack((radii, levels * height))
    shape.add("body", vessel(outline, radius * 0.08, power=draw.pick((2.0, 2.0, 3.0, 6.0))))
    if draw.chance(0.25):
        loop = ear(draw, height * 0.7, radius * 0.8).moved(radius * 0.1, 0, height * 0.2)
        shape.add("handle", loop, loop.mirrored())


def pot(draw: Draw, radius: float, height: float) -> Mesh:
    """A planter with a rim: round, square or oblong."""
    low, power = draw.between(0.55, 0.95) * radius, draw.pick((2.0, 2.0, 7.0))
    rim = height * draw.between(0.7, 0.9)
    wide = radius * draw.between(1.0, 1.12)
    outline = [(low, 0), (radius * 0.97, rim - 0.002), (wide, rim), (wide, height)]
    stretch = (draw.pick((1.0, 1.0, 1.8)), 1.0)
    return vessel(outline, radius * 0.1, power=power, stretch=stretch)


def leaf(draw: Draw, length: float, width: float) -> Mesh:
    """A pointed blade from the origin along +x that droops at its end."""
    u, v = np.meshgrid(np.linspace(0, 1, 7), np.linspace(-1, 1, 3))
    spread = width * np.sin(np.pi * (0.08 + 0.88 * u)) * v
    droop = draw.between(0.1, 0.6) * length * u**2
    rise = draw.between(0.3, 1.0) * length * u
    return sheet(
        np.stack((u * length, spread, rise - droop + 0.1 * np.abs(spread)), axis=-1), 0.003
    )


def foliage(draw: Draw, size: float) -> list[Mesh]:
    """A bush over the origin: blades from one point, leaves along stems, or round masses."""
    kind = draw.pick(("blades", "stems", "masses"))
    if kind == "masses":
        pieces = [rod((0, 0, -0.05), (0, 0, size * 0.6), size * 0.04)]
        for _ in range(draw.count(1, 6)):
            wide = size * draw.between(0.35, 0.8)
            aside = wide * 0.35
            at = (
                draw.between(-aside, aside),
                draw.between(-aside, aside),
                draw.between(0.2, 0.55) * size,
            )
            pieces.append(
                ellipsoid((wide, wide, wide * draw.between(0.7, 1.2)), at, around=12, rows=7)
            )
        return pieces
    pieces = []
    for _ in range(draw.count(8, 22)):
        turn, start = draw.between(0, 360), 0.0
        if kind == "stems":
            start = size * draw.between(0.1, 0.8)
        length = size * (draw.between(0.7, 1.1) if kind == "blades" else draw.between(0.25, 0.5))
        blade = leaf(draw, length, length * draw.between(0.06, 0.25))
        tilt = 0.0 if kind == "stems" else draw.between(-50, 10)
        pieces.append(blade.turned("y", tilt).turned("z", turn).moved(0, 0, start))
    if kind == "stems":
        pieces.append(rod((0, 0, -0.02), (0, 0, size * 0.85), size * 0.025))
    return pieces


@category("flower_pot", "pot", "plant")
def flower_pot(shape: Assembly, draw: Draw) -> None:
    """A planter, empty or with something small in it."""
    radius = draw.between(0.08, 0.25)
    height = radius * draw.between(0.9, 2.4)
    shape.add("pot", pot(draw, radius, height))
    if draw.chance(0.7):
        size = radius * draw.between(0.9, 2.2)
        shape.add("plant", *(piece.moved(0, 0, height * 0.85) for piece in foliage(draw, size)))


@category("plant", "pot", "plant")
def plant(shape: Assembly, draw: Draw) -> None:
    """Foliage that outgrows its pot, or grows without one."""
    size = draw.between(0.4, 1.4)
    if draw.chance(0.7):
        radius = size * draw.between(0.12, 0.22)
        height = radius * draw.between(1.0, 2.0)
        shape.add("pot", pot(draw, radius, height))
        shape.add("plant", *(piece.moved(0, 0, height * 0.9) for piece in foliage(draw, size)))
        return
    shape.add("plant", *foliage(draw, size))
