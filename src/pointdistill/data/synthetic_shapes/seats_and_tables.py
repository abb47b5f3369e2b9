"""Seats, and objects with a large flat top: chair, stool, bench, sofa; table, desk, piano."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from pointdistill.data.synthetic_shapes.furniture_parts import (
    GRIPS,
    add_front,
    legs,
    pedestal,
    sled,
    support,
    uneven_levels,
)
from pointdistill.data.synthetic_shapes.primitives import (
    arc,
    box,
    cushion,
    cylinder,
    prism,
    rod,
    sheet,
    tube,
)
from pointdistill.data.synthetic_shapes.shape import Assembly, Draw, Mesh, category


def seat(draw: Draw, width: float, depth: float, thickness: float, level: float) -> Mesh:
    """A seat plate or pad whose upper face is near ``level`` + ``thickness``."""
    kind = draw.pick(("plate", "round", "pad", "soft"))
    at = (0.0, 0.0, level)
    if kind == "round":
        return cylinder(0.5, thickness, at, power=draw.between(2.0, 5.0), stretch=(width, depth))
    if kind == "pad":
        return cushion((width, depth, thickness * 1.6), at, pinch=draw.between(0.1, 0.4))
    return box((width, depth, thickness), at, edge=thickness * 0.45 if kind == "soft" else 0.0)


def backrest(draw: Draw, width: float, height: float) -> list[Mesh]:
    """A back in the plane y = 0, from z = 0 up: panel, frame, slats, spindles, ladder or bent shell."""
    kind = draw.pick(("panel", "shell", "slats", "ladder", "frame", "pad"))
    thick = draw.between(0.015, 0.05)
    if kind == "panel":
        return [box((width, thick, height), edge=draw.pick((0.0, thick * 0.4)))]
    if kind == "pad":
        start = draw.between(0.15, 0.4) * height
        pole = rod((0, thick, -0.04), (0, thick, start + 0.1), 0.025)
        pad = cushion((width, height - start, 0.1), pinch=0.2).turned("x", 90)
        return [pole, pad.moved(0, 0.05, (height + start) / 2)]
    if kind == "shell":
        bow = draw.between(0.05, 0.3) * width
        u, v = np.meshgrid(np.linspace(-1, 1, 11), np.linspace(0, 1, 7))
        narrow = 1.0 - draw.between(0.0, 0.45) * v**3
        grid = np.stack((u * width / 2 * narrow, -bow * u**2 + 0.1 * bow * v, v * height), axis=-1)
        return [sheet(grid, thick)]
    post = draw.between(0.012, 0.03)
    x = width / 2 - post
    pieces = [rod((side * x, 0, -0.02), (side * x, 0, height), post) for side in (-1, 1)]
    rail = draw.between(0.03, 0.1)
    pieces.append(box((width, post * 1.6, rail), (0, 0, height - rail)))
    if kind == "slats":
        places = np.linspace(-x, x, draw.count(4, 9))[1:-1]
        pieces += [
            box((post * draw.between(0.8, 2), post, height - rail), (p, 0, 0)) for p in places
        ]
    elif kind == "ladder":
        levels = np.linspace(0.15, 0.8, draw.count(2, 5)) * height
        pieces += [box((width - post, post, rail * 0.7), (0, 0, z)) for z in levels]
    return pieces


def armrests(draw: Draw, width: float, depth: float, rise: float, level: float) -> list[Mesh]:
    """A pair of arms beside a seat at ``level``, ``rise`` above it: bent bars, posts with pads, or plates."""
    kind = draw.pick(("loop", "post", "plate"))
    radius = draw.between(0.013, 0.03)
    front, back = -depth * draw.between(0.2, 0.45), depth * 0.46
    if kind == "loop":
        path = [(0, front, level), (0, front, level + rise * 0.85),
                (0, front + 0.05, level + rise), (0, back, level + rise)]  # fmt: skip
        arm = tube(np.array(path), radius)
    elif kind == "plate":
        size = (radius * 2, back - front, rise)
        arm = box(size, (0, (front + back) / 2, level))
    else:
        arm = box((radius * 3.5, back - front, radius * 1.6), (0, (front + back) / 2, level + rise))
        post = rod((0, front * 0.7, level), (0, front * 0.7, level + rise), radius)
        return [piece.moved(side * width / 2) for side in (-1, 1) for piece in (arm, post)]
    return [arm.moved(side * width / 2) for side in (-1, 1)]


@category("chair", "back", "seat", "leg", "arm")
def chair(shape: Assembly, draw: Draw) -> None:
    """One seat with a back; arms on some."""
    width, depth = draw.between(0.36, 0.72), draw.between(0.36, 0.66)
    level, thickness = draw.between(0.28, 0.6), draw.between(0.02, 0.12)
    rise = draw.between(0.25, 0.85)
    shape.add("leg", *support(draw, width, depth, level))
    shape.add("seat", seat(draw, width, depth, thickness, level))
    lean = draw.between(-2.0, 22.0)
    back = backrest(draw, width * draw.between(0.75, 1.0), rise)
    top = level + thickness
    shape.add("back", *(piece.turned("x", -lean).moved(0, depth * 0.46, top) for piece in back))
    if draw.chance(0.45):
        shape.add("arm", *armrests(draw, width, depth, draw.between(0.14, 0.3), top))


@category("stool", "seat", "leg")
def stool(shape: Assembly, draw: Draw) -> None:
    """A seat without a back, low or as high as a bar."""
    width = draw.between(0.28, 0.6)
    depth = width * draw.between(0.75, 1.2)
    level = draw.between(0.2, 0.85)
    shape.add("leg", *support(draw, width, depth, level))
    shape.add("seat", seat(draw, width, depth, draw.between(0.02, 0.14), level))


@category("bench", "seat", "leg", "back", "arm")
def bench(shape: Assembly, draw: Draw) -> None:
    """A long seat for several, with or without a back."""
    width, depth = draw.between(0.7, 2.0), draw.between(0.26, 0.6)
    level, thickness = draw.between(0.3, 0.55), draw.between(0.03, 0.1)
    kind = draw.pick(("legs", "legs", "plates", "sled"))
    if kind == "legs":
        shape.add("leg", *legs(draw, width, depth, level))
    elif kind == "sled":
        shape.add(
            "leg", *sled(width * draw.between(0.7, 1), depth, level, draw.between(0.02, 0.04))
        )
    else:
        place, plate = width * draw.between(0.3, 0.46), draw.between(0.03, 0.12)
        sides = [box((plate, depth * 0.9, level), (side * place, 0, 0)) for side in (-1, 1)]
        shape.add("leg", *sides)
    count = draw.pick((1, 1, draw.count(3, 6)))
    board = depth / count
    for place in (np.arange(count) + 0.5) * board - depth / 2:
        plank = board * (0.8 if count > 1 else 1.0)
        shape.add("seat", box((width, plank, thickness), (0, place, level)))
    if draw.chance(0.45):
        back = backrest(draw, width, draw.between(0.25, 0.6))
        lean = draw.between(0, 18)
        top = level + thickness
        shape.add("back", *(piece.turned("x", -lean).moved(0, depth * 0.45, top) for piece in back))
        if draw.chance(0.5):
            shape.add("arm", *armrests(draw, width, depth, draw.between(0.15, 0.25), top))


@category("sofa", "seat", "back", "arm", "base")
def sofa(shape: Assembly, draw: Draw) -> None:
    """An upholstered seat between arms: one place or three, straight or with a chaise."""
    width, depth = draw.between(0.75, 2.3), draw.between(0.65, 1.05)
    foot, base = draw.pick((0.0, draw.between(0.05, 0.16))), draw.between(0.12, 0.3)
    arm_width = draw.pick((0.0, 1.0, 1.0, 1.0)) * draw.between(0.06, 0.24)
    back_depth = draw.between(0.12, 0.28)
    soft = draw.between(0.015, 0.07)
    if foot:
        feet = [rod((sx * width * 0.44, sy * depth * 0.42, 0), (sx * width * 0.42, sy * depth * 0.4, foot), 0.025)
                for sx in (-1, 1) for sy in (-1, 1)]  # fmt: skip
        shape.add("base", *feet)
    shape.add("base", box((width, depth, base), (0, 0, foot), edge=soft))
    level = foot + base
    places = draw.count(1, 3) if width > 1.1 else 1
    inner, seat_depth = width - 2 * arm_width, depth - back_depth
    pad, rise = draw.between(0.08, 0.2), draw.between(0.28, 0.6)
    lean, chaise = draw.between(0, 14), draw.chance(0.2) and places > 1
    back = box((width, back_depth, rise + pad), edge=soft * 1.3).turned("x", -lean)
    shape.add("back", back.moved(0, (depth - back_depth) / 2, level))
    for i in range(places):
        x = (i + 0.5) * inner / places - inner / 2
        reach = seat_depth * (1.7 if chaise and i == 0 else 1.0)
        y = -depth / 2 + seat_depth - reach / 2
        shape.add("seat", box((inner / places * 0.98, reach, pad), (x, y, level), edge=pad * 0.45))
        if chaise and i == 0:
            shape.add("base", box((inner / places, reach, base), (x, y, foot), edge=soft))
        if draw.chance(0.4):
            loose = cushion((inner / places * 0.9, rise, 0.18), pinch=0.4).turned("x", 90 - lean)
            shape.add("back", loose.moved(x, seat_depth - depth / 2, level + pad + rise / 2))
    if arm_width:
        height = pad + rise * draw.between(0.2, 0.95)
        rolled = draw.chance(0.35)
        for side in (-1, 1):
            x = side * (width - arm_width) / 2
            shape.add("arm", box((arm_width, depth, height), (x, 0, level), edge=soft))
            if rolled:
                y = depth / 2 - 0.02
                shape.add(
                    "arm",
                    rod(
                        (x, -y, level + height), (x, y, level + height), arm_width * 0.6, around=14
                    ),
                )


def table_top(draw: Draw, width: float, depth: float, thick: float, level: float) -> Mesh:
    """A plate: rectangular, rounded, oval or a half disc."""
    kind = draw.pick(("plain", "plain", "soft", "oval", "half"))
    if kind == "oval":
        return cylinder(
            0.5, thick, (0, 0, level), power=draw.between(2, 4), around=32, stretch=(width, depth)
        )
    if kind == "half":
        outline = arc(1.0, 0, 180, 18) * np.array((width / 2, depth)) - np.array((0, depth / 2))
        return prism(outline, thick, (0, 0, level)).turned("z", 180)
    edge = thick * 0.45 if kind == "soft" else 0.0
    return box((width, depth, thick), (0, 0, level), edge=edge)


@category("table", "top", "leg", "drawer")
def table(shape: Assembly, draw: Draw) -> None:
    """A top on four legs, a column, trestles, runners or panels; a shelf or drawer below some."""
    width, depth = draw.between(0.5, 2.1), draw.between(0.45, 1.05)
    level, thick = draw.between(0.3, 0.95), draw.between(0.015, 0.07)
    shape.add("top", table_top(draw, width, depth, thick, level))
    kind = draw.pick(("legs", "legs", "column", "twin", "trestle", "sled", "panels"))
    inner, across = width * draw.between(0.7, 0.95), depth * draw.between(0.7, 0.95)
    if kind == "legs":
        shape.add("leg", *legs(draw, inner, across, level))
    elif kind == "column":
        shape.add("leg", *pedestal(draw, min(width, depth), level))
    elif kind == "twin":
        pieces = pedestal(draw, depth * 0.9, level)
        shape.add(
            "leg", *(piece.moved(side * width * 0.28) for piece in pieces for side in (-1, 1))
        )
    elif kind == "sled":
        shape.add("leg", *sled(inner, across, level, draw.between(0.015, 0.04)))
    elif kind == "panels":
        plate = draw.between(0.03, 0.08)
        shape.add("leg", *(box((plate, across, level), (s * inner / 2, 0, 0)) for s in (-1, 1)))
    else:
        for side in (-1, 1):
            for lean in (-1, 1):
                foot = (side * inner / 2, lean * across / 2, 0)
                shape.add("leg", rod(foot, (side * inner / 2, lean * across * 0.08, level), 0.03))
        shape.add("leg", rod((-inner / 2, 0, level * 0.5), (inner / 2, 0, level * 0.5), 0.025))
    if kind in ("legs", "panels") and draw.chance(0.5):
        if draw.chance(0.5):
            size = (inner * 0.94, across * 0.9, 0.025)
            shape.add("drawer", box(size, (0, 0, level * draw.between(0.15, 0.6))))
        else:
            deep = draw.between(0.06, 0.16)
            shape.add("drawer", box((inner * 0.92, across * 0.9, deep), (0, 0, level - deep)))


def desk_pedestal(
    shape: Assembly, draw: Draw, x: float, width: float, depth: float, height: float
) -> None:
    """A column of drawers or a cupboard under one end of a desk top."""
    lift = draw.pick((0.0, 0.04, height * draw.between(0.2, 0.6)))
    shape.add("body", box((width, depth, height - lift), (x, 0, lift)))
    grip = draw.pick(GRIPS)
    part = draw.pick(("drawer", "drawer", "door"))
    levels = uneven_levels(
        draw, lift + 0.02, height - 0.02, draw.count(1, 4) if part == "drawer" else 1
    )
    for low, high in pairwise(levels):
        add_front(
            shape, draw, (x - width / 2, x + width / 2, low, high), -depth / 2, part=part, grip=grip
        )


@category("desk", "top", "body", "leg", "drawer", "door", "handle", "hutch")
def desk(shape: Assembly, draw: Draw) -> None:
    """A work table: drawers under one end or both, a back panel, an angled wing, a hutch or a screen."""
    width, depth = draw.between(0.8, 2.0), draw.between(0.5, 0.9)
    level, thick = draw.between(0.6, 0.85), draw.between(0.02, 0.06)
    shape.add("top", box((width, depth, thick), (0, 0, level), edge=draw.pick((0.0, thick * 0.4))))
    kind = draw.pick(("left", "right", "both", "apron", "panels"))
    wide = min(draw.between(0.28, 0.5), width * 0.36)
    for side, name in ((-1, "left"), (1, "right")):
        x = side * (width - wide) / 2
        if kind in (name, "both"):
            desk_pedestal(shape, draw, x * 0.97, wide, depth * 0.92, level)
        elif kind == "panels":
            shape.add("leg", box((0.035, depth * 0.92, level), (side * width * 0.48, 0, 0)))
        else:
            radius, end = draw.between(0.015, 0.035), side * (width / 2 - 0.05)
            for y in (-depth * 0.43, depth * 0.43):
                shape.add(
                    "leg", rod((end, y, 0), (end, y, level), radius, power=draw.pick((2.0, 7.0)))
                )
    if kind == "apron":
        tall = draw.between(0.08, 0.18)
        shape.add("body", box((width * 0.9, depth * 0.9, tall), (0, 0, level - tall)))
        add_front(
            shape, draw, (-0.2, 0.2, level - tall, level), -depth * 0.46, part="drawer", grip="knob"
        )
    if draw.chance(0.55):
        tall = level * draw.between(0.3, 0.95)
        shape.add("body", box((width * 0.92, 0.02, tall), (0, depth * 0.42, level - tall)))
    extra = draw.pick(("none", "none", "wing", "hutch", "screen"))
    if extra == "wing":
        side, reach = draw.pick((-1, 1)), draw.between(0.4, 0.9)
        at = (side * (width / 2 - 0.25), -(depth + reach) / 2, level)
        shape.add("top", box((0.5, reach, thick), at))
        shape.add("leg", box((0.45, 0.03, level), (at[0], -depth / 2 - reach + 0.03, 0)))
    elif extra == "hutch":
        tall, deep = draw.between(0.25, 0.6), depth * 0.35
        for x in (-width * 0.48, width * draw.between(-0.1, 0.2), width * 0.48):
            shape.add("hutch", box((0.022, deep, tall), (x, depth * 0.32, level + thick)))
        shape.add("hutch", box((width, deep, 0.022), (0, depth * 0.32, level + thick + tall)))
    elif extra == "screen":
        shape.add("hutch", box((width, 0.025, draw.between(0.2, 0.5)), (0, depth / 2, level)))


@category("piano", "body", "keys", "leg", "lid", "pedal")
def piano(shape: Assembly, draw: Draw) -> None:
    """A grand with a curved case and a raised lid, or an upright; keys to the front."""
    width = draw.between(1.3, 1.6)
    keys = draw.between(0.6, 0.8)
    if draw.chance(0.5):
        long, thick = draw.between(1.2, 2.2), draw.between(0.22, 0.35)
        bow = np.linspace(0, 1, 10)
        right = np.column_stack(
            (width / 2 - width * 0.55 * bow**2 * (3 - 2 * bow), 0.35 + bow * (long - 0.35))
        )
        outline = np.concatenate(([(-width / 2, 0), (width / 2, 0)], right, [(-width / 2, long)]))
        shape.add("body", prism(outline, thick, (0, 0, keys)))
        tilt = draw.pick((0.0, draw.between(15, 40)))
        lid = prism(outline, 0.03).turned("y", -tilt, about=(-width / 2, 0, 0))
        shape.add("lid", lid.moved(z=keys + thick))
        for x, y in ((-0.4, 0.15), (0.4, 0.15), (-0.2, 0.8)):
            foot = (x * width, y * long, 0)
            shape.add("leg", rod(foot, (foot[0], foot[1], keys), 0.04, end_radius=0.07))
        shape.add("keys", box((width * 0.92, 0.25, 0.06), (0, -0.12, keys + 0.04)))
        shape.add("pedal", box((0.25, 0.06, keys), (0, long * 0.2, 0.05)))
        return
    depth, height = draw.between(0.35, 0.6), draw.between(1.0, 1.35)
    shape.add("body", box((width, depth, height)))
    shape.add("body", box((width, 0.3, 0.1), (0, -depth / 2 - 0.1, keys - 0.1)))
    shape.add("keys", box((width * 0.9, 0.18, 0.05), (0, -depth / 2 - 0.12, keys)))
    for side in (-1, 1):
        shape.add(
            "leg",
            rod(
                (side * width * 0.46, -depth / 2 - 0.2, 0),
                (side * width * 0.46, -depth / 2 - 0.2, keys),
                0.035,
            ),
        )
    shape.add("lid", box((width * 1.03, depth * 1.05, 0.03), (0, 0, height)))
    shape.add("pedal", box((0.2, 0.1, 0.03), (0, -depth / 2 - 0.05, 0.06)))
