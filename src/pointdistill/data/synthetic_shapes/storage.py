"""Furniture and containers that hold things: cabinet, dresser, wardrobe, night stand, TV stand, bookshelf, shelf,
box, bin, glass box.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np

from pointdistill.data.synthetic_shapes.furniture_parts import (
    CASE_PARTS,
    GRIPS,
    add_front,
    carcass,
    feet,
    uneven_levels,
)
from pointdistill.data.synthetic_shapes.primitives import (
    arc,
    box,
    cushion,
    cylinder,
    ellipsoid,
    lathe,
    rod,
    torus,
    vessel,
)
from pointdistill.data.synthetic_shapes.shape import Assembly, Draw, Mesh, category


@category("cabinet", *CASE_PARTS)
def cabinet(shape: Assembly, draw: Draw) -> None:
    """A closed case with doors, and perhaps a row of drawers above or below them."""
    width, depth, height = draw.between(0.4, 1.5), draw.between(0.3, 0.7), draw.between(0.45, 1.9)
    pieces, lift = feet(draw, width, depth)
    shape.add("leg", *pieces)
    shape.add("body", box((width, depth, height), (0, 0, lift)))
    if draw.chance(0.4):
        over = draw.between(1.02, 1.1)
        shape.add("body", box((width * over, depth * over, 0.03), (0, 0, lift + height)))
    grip, columns = draw.pick(GRIPS), draw.count(1, 3) if width > 0.7 else draw.count(1, 2)
    edges = np.linspace(-width / 2 + 0.02, width / 2 - 0.02, columns + 1)
    base, top = lift + 0.03, lift + height - 0.03
    split = top - draw.pick((0.0, 0.0, draw.between(0.12, 0.3))) * height
    for left, right in pairwise(edges):
        add_front(shape, draw, (left, right, base, split), -depth / 2, part="door", grip=grip)
        if split < top:
            add_front(shape, draw, (left, right, split, top), -depth / 2, part="drawer", grip=grip)


@category("dresser", "body", "drawer", "handle", "leg", "mirror")
def dresser(shape: Assembly, draw: Draw) -> None:
    """A chest of drawers, some with a mirror on top."""
    width, depth, height = draw.between(0.5, 1.6), draw.between(0.35, 0.6), draw.between(0.55, 1.3)
    pieces, lift = feet(draw, width, depth)
    shape.add("leg", *pieces)
    shape.add("body", box((width, depth, height), (0, 0, lift)))
    grip = draw.pick(GRIPS[:2])
    levels = uneven_levels(draw, lift + 0.03, lift + height - 0.03, draw.count(2, 6))
    for low, high in pairwise(levels):
        edges = np.linspace(
            -width / 2 + 0.02, width / 2 - 0.02, draw.count(1, 2 if width < 1 else 3) + 1
        )
        for left, right in pairwise(edges):
            add_front(shape, draw, (left, right, low, high), -depth / 2, part="drawer", grip=grip)
    if draw.chance(0.3):
        tall, wide = draw.between(0.4, 0.9), width * draw.between(0.45, 0.9)
        kind = draw.pick((2.0, 8.0))
        glass = cylinder(0.5, 0.03, power=kind, stretch=(wide, tall), around=24).turned("x", 90)
        shape.add("mirror", glass.moved(0, depth * 0.4, lift + height + tall / 2))


@category("wardrobe", *CASE_PARTS)
def wardrobe(shape: Assembly, draw: Draw) -> None:
    """A tall case for clothes: long doors, perhaps drawers below, a cornice on some."""
    width, depth, height = draw.between(0.7, 2.0), draw.between(0.4, 0.75), draw.between(1.4, 2.4)
    pieces, lift = feet(draw, width, depth)
    shape.add("leg", *pieces)
    shape.add("body", box((width, depth, height), (0, 0, lift)))
    if draw.chance(0.5):
        shape.add(
            "body",
            box((width * 1.08, depth * 1.1, draw.between(0.04, 0.14)), (0, 0, lift + height)),
        )
    low = lift + draw.pick((0.02, draw.between(0.15, 0.35))) * height
    columns, grip = draw.count(2, 4), draw.pick(GRIPS[1:])
    edges = np.linspace(-width / 2 + 0.02, width / 2 - 0.02, columns + 1)
    for left, right in pairwise(edges):
        cell = (left, right, low, lift + height - 0.04)
        add_front(shape, draw, cell, -depth / 2, part="door", grip=grip)
    if low > lift + 0.1:
        cell = (edges[0], edges[-1], lift + 0.02, low)
        add_front(shape, draw, cell, -depth / 2, part="drawer", grip="bar")


@category("night_stand", *CASE_PARTS)
def night_stand(shape: Assembly, draw: Draw) -> None:
    """A small chest for the bedside: an open niche and one or two drawers or a door."""
    width, depth, height = draw.between(0.35, 0.65), draw.between(0.3, 0.5), draw.between(0.3, 0.7)
    pieces, lift = feet(draw, width, depth)
    shape.add("leg", *pieces)
    board = draw.between(0.015, 0.035)
    shape.add("body", *carcass(width, depth, height, lift, board, back=draw.chance(0.8)))
    levels = uneven_levels(draw, lift + board, lift + height - board, draw.count(2, 3))
    niche = draw.count(0, len(levels) - 1)
    part, grip = draw.pick(("drawer", "drawer", "door")), draw.pick(GRIPS)
    for i, (low, high) in enumerate(pairwise(levels)):
        shape.add("body", box((width - board, depth * 0.96, board * 0.8), (0, 0, low)))
        if i != niche:
            cell = (-width / 2 + board, width / 2 - board, low, high)
            add_front(shape, draw, cell, -depth / 2, part=part, grip=grip)


@category("tv_stand", *CASE_PARTS)
def tv_stand(shape: Assembly, draw: Draw) -> None:
    """A low wide case: open niches for devices between doors or drawers."""
    width, depth, height = draw.between(0.8, 2.1), draw.between(0.32, 0.6), draw.between(0.25, 0.65)
    pieces, lift = feet(draw, width, depth)
    shape.add("leg", *pieces)
    board = draw.between(0.018, 0.045)
    shape.add("body", *carcass(width, depth, height, lift, board, back=draw.chance(0.6)))
    columns = draw.count(2, 4)
    edges = uneven_levels(draw, -width / 2 + board, width / 2 - board, columns)
    grip = draw.pick(GRIPS)
    for left, right in pairwise(edges):
        shape.add("body", box((board, depth * 0.96, height), (right, 0, lift)))
        low, high = lift + board, lift + height - board
        kind = draw.pick(("open", "open", "shelf", "drawer", "door"))
        if kind == "shelf":
            middle = (low + high) / 2
            shape.add(
                "body",
                box((right - left, depth * 0.9, board * 0.8), ((left + right) / 2, 0, middle)),
            )
        elif kind != "open":
            add_front(shape, draw, (left, right, low, high), -depth / 2, part=kind, grip=grip)


def books(
    draw: Draw, left: float, right: float, level: float, room: float, depth: float
) -> list[Mesh]:
    """Books side by side from ``left``, some leaning, up to somewhere before ``right``."""
    pieces, x = [], left
    stop = left + (right - left) * draw.between(0.3, 1.0)
    while x < stop - 0.06:
        thick, tall = draw.between(0.02, 0.07), room * draw.between(0.6, 0.95)
        book = box((thick, depth * draw.between(0.55, 0.85), tall), (x + thick / 2, 0, level))
        if draw.chance(0.1) and x + thick + tall * 0.3 < stop:
            book = book.turned("y", 12, about=(x + thick, 0, level))
            x += tall * 0.2
        pieces.append(book)
        x += thick * 1.05
    return pieces


@category("bookshelf", "frame", "board", "book")
def bookshelf(shape: Assembly, draw: Draw) -> None:
    """A case of open compartments with books in many of them."""
    width, depth, height = draw.between(0.5, 1.6), draw.between(0.22, 0.42), draw.between(0.8, 2.2)
    board = draw.between(0.018, 0.04)
    shape.add("frame", *carcass(width, depth, height, 0.0, board, back=draw.chance(0.85)))
    edges = uneven_levels(
        draw, -width / 2 + board, width / 2 - board, draw.count(1, 1 if width < 0.8 else 2)
    )
    for x in edges[1:-1]:
        shape.add("frame", box((board, depth * 0.95, height), (x, 0, 0)))
    levels = uneven_levels(draw, board, height - board, draw.count(3, 6))
    filled = draw.between(0.35, 0.95)
    for low, high in pairwise(levels):
        shape.add("board", box((width - board, depth * 0.95, board), (0, 0, low)))
        for left, right in pairwise(edges):
            if draw.chance(filled):
                row = books(
                    draw, left + board, right - board, low + board, high - low - board, depth
                )
                if row:
                    shape.add("book", *row)


@category("shelf", "frame", "board", "item")
def shelf(shape: Assembly, draw: Draw) -> None:
    """Open boards one over the other: on posts, between side panels, on a ladder or on a wall plate."""
    width, depth, height = draw.between(0.45, 1.7), draw.between(0.2, 0.6), draw.between(0.5, 2.1)
    thick, count = draw.between(0.015, 0.05), draw.count(2, 6)
    kind = draw.pick(("posts", "panels", "ladder", "wall", "grid"))
    levels = np.linspace(draw.between(0.02, 0.25), height - thick, count)
    x = width / 2
    if kind in ("panels", "grid"):
        sides = np.linspace(-x, x, 2 if kind == "panels" else draw.count(3, 5))
        shape.add("frame", *(box((thick, depth, height), (side, 0, 0)) for side in sides))
    elif kind == "wall":
        shape.add("frame", box((width * draw.between(0.5, 1), thick, height), (0, depth / 2, 0)))
    else:
        lean = 0.0 if kind == "posts" else depth * 0.7
        post = draw.between(0.01, 0.03)
        for sx in (-1, 1):
            shape.add(
                "frame", rod((sx * x, depth / 2, 0), (sx * x, depth / 2, height), post, power=5)
            )
            start, end = (sx * x, -depth / 2, 0), (sx * x, -depth / 2 + lean, height)
            shape.add("frame", rod(start, end, post, power=5))
    for level in levels:
        cut = 0.7 * level / height if kind == "ladder" else 0.0
        shape.add("board", box((width, depth * (1 - cut), thick), (0, depth * cut / 2, level)))
    for level in levels[:-1]:
        room = levels[1] - levels[0] - thick
        for _ in range(draw.pick((0, 0, 1, 2))):
            size = room * draw.between(0.3, 0.8)
            at = (draw.between(-0.38, 0.38) * width, 0.1 * depth, level + thick)
            wide = min(size, depth * 0.6)
            item = draw.pick((box((wide, wide, size), at), cylinder(wide / 2, size, at, around=14)))
            shape.add("item", item)


@category("box", "body", "lid", "handle")
def open_box(shape: Assembly, draw: Draw) -> None:
    """A carton, crate or chest: shut, open, with flaps up or a lid beside it."""
    width, depth, height = (
        draw.between(0.25, 1.1),
        draw.between(0.25, 0.8),
        draw.between(0.12, 0.85),
    )
    kind = draw.pick(("shut", "flaps", "flaps", "lid", "crate", "hinged"))
    wall = draw.between(0.008, 0.03)
    if kind == "shut":
        shape.add("body", box((width, depth, height), edge=draw.pick((0.0, 0.02))))
        shape.add("lid", box((width * 1.005, draw.between(0.05, 0.12), height * 1.01)))
        return
    sides = [
        box((width, depth, wall)),
        box((wall, depth, height), (-width / 2, 0, 0)),
        box((wall, depth, height), (width / 2, 0, 0)),
        box((width, wall, height), (0, -depth / 2, 0)),
        box((width, wall, height), (0, depth / 2, 0)),
    ]
    shape.add("body", *sides)
    if kind == "flaps":
        for side in (-1, 1):
            tilt = draw.between(-100, 60)
            flap = box((wall, depth, width * 0.48), (0, 0, 0)).turned("y", side * (90 + tilt) * 0.7)
            shape.add("lid", flap.moved(side * width / 2, 0, height))
            flap = box((width, wall, depth * 0.45)).turned("x", -side * draw.between(-40, 110))
            shape.add("lid", flap.moved(0, side * depth / 2, height))
    elif kind == "lid":
        over = box((width * 1.04, depth * 1.04, height * draw.between(0.1, 0.3)))
        shape.add(
            "lid", over.moved(draw.between(-0.1, 0.1) * width, 0, height * draw.between(0.8, 1))
        )
    elif kind == "hinged":
        cover = box((width, depth, wall * 2)).moved(0, -depth / 2)
        shape.add("lid", cover.turned("x", -draw.between(0, 110)).moved(0, depth / 2, height))
    else:
        for side in (-1, 1):
            grip = torus(min(0.06, depth * 0.2), 0.012, around=14).turned("y", 90)
            shape.add("handle", grip.moved(side * (width / 2 + 0.01), 0, height * 0.7))


@category("bin", "body", "lid", "pedal", "wheel", "content")
def bin_(shape: Assembly, draw: Draw) -> None:
    """A waste bin: an open bucket, a pedal bin with a domed lid, a swing top or a wheeled one."""
    radius, height = draw.between(0.13, 0.34), draw.between(0.22, 1.0)
    power, stretch = draw.pick((2.0, 2.0, 3.0, 7.0)), (1.0, draw.between(0.6, 1.2))
    kind = draw.pick(("open", "open", "dome", "swing", "wheels"))
    turn = partial(lathe, power=power, stretch=stretch)
    flare = draw.between(0.65, 1.05)
    outline = [(radius * flare, 0.0), (radius * (1 + flare) / 2, height / 2), (radius, height)]
    lift = 0.06 if kind == "wheels" else 0.0
    shape.add("body", vessel(outline, 0.015, (0, 0, lift), power=power, stretch=stretch))
    top = height + lift
    if kind == "open":
        bead = [(0.98, -0.02), (1.05, -0.02), (1.06, 0.01), (0.97, 0.01)]
        shape.add("body", turn(np.array(bead) * (radius, 1.0), (0, 0, top), closed=True))
        if draw.chance(0.4):
            pile = (radius * 1.7, radius * 1.7 * stretch[1], height * draw.between(0.2, 0.5))
            middle = (0.0, 0.0, height * draw.between(0.5, 0.8))
            shape.add("content", ellipsoid(pile, middle, power=2.6))
    elif kind == "dome":
        rise = radius * draw.between(0.2, 0.9)
        dome = arc(1.0, 0, 90, 6) * (radius * 1.03, rise)
        tilt = draw.pick((0.0, draw.between(0, 60)))
        shape.add("lid", turn(dome).turned("x", -tilt, about=(0, radius, 0)).moved(z=top))
        shape.add("pedal", box((0.08, 0.1, 0.015), (0, -radius, 0.02)))
    elif kind == "swing":
        slope, upper = height * draw.between(0.15, 0.35), radius * draw.between(0.3, 0.6)
        hood = [(radius * 1.03, 0), (radius * 1.03, 0.04), (upper, slope)]
        shape.add("lid", turn(hood, (0, 0, top)))
    else:
        cover = box((radius * 2.1, radius * 2.2, 0.04)).moved(0, -radius)
        cover = cover.turned("x", -draw.pick((0.0, 8.0, 60.0)))
        shape.add("lid", cover.moved(0, radius, top))
        roller = cylinder(0.09, 0.05, (0, 0, -0.025), around=14).turned("y", 90)
        for side in (-1, 1):
            shape.add("wheel", roller.moved(side * radius * 0.8, radius * 0.8, 0.09))


@category("glass_box", "pane", "frame", "content")
def glass_box(shape: Assembly, draw: Draw) -> None:
    """A case of glass: panes in a frame, open or shut, some with an object inside."""
    width, depth, height = draw.between(0.3, 1.0), draw.between(0.25, 0.7), draw.between(0.25, 0.9)
    bar = draw.between(0.008, 0.025)
    x, y = width / 2, depth / 2
    for sx in (-1, 1):
        shape.add("pane", box((0.006, depth, height), (sx * x, 0, 0)))
        for sy in (-1, 1):
            shape.add("frame", rod((sx * x, sy * y, 0), (sx * x, sy * y, height), bar, power=7))
    for sy in (-1, 1):
        shape.add("pane", box((width, 0.006, height), (0, sy * y, 0)))
    levels = (0.0, height) if draw.chance(0.7) else (0.0,)
    for level in levels:
        shape.add("pane", box((width, depth, 0.006), (0, 0, level)))
        edge = np.array([(-x, -y), (x, -y), (x, y), (-x, y)])
        ends = [(float(a), float(b), level) for a, b in edge]
        for start, end in zip(ends, ends[1:] + ends[:1], strict=True):
            shape.add("frame", rod(start, end, bar, power=7))
    if draw.chance(0.4):
        size = min(width, depth, height) * draw.between(0.3, 0.6)
        at = (0.0, 0.0, bar)
        item = draw.pick(
            (
                ellipsoid((size, size, size), at),
                cushion((size, size, size), at),
                torus(size / 3, size / 8, (0, 0, size / 5)),
            )
        )
        shape.add("content", item)
    if draw.chance(0.3):
        shape.add(
            "frame", box((width * 1.05, depth * 1.05, draw.between(0.05, 0.3))).moved(z=-0.05)
        )
