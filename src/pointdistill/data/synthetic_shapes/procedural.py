"""Procedural shapes, without a category: random parts, combined at random, then cut, bent and mirrored as a whole.

A corpus of them covers many kinds of surfaces rather than kinds of furniture. Parts overlap where they meet,
layers may be open or double, and bodies may float, as in meshes from the Web.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pointdistill.data.synthetic_shapes.primitives import rod, skin, surface, tube
from pointdistill.data.synthetic_shapes.procedural_parts import (
    blade,
    choose,
    curve,
    cut,
    deformed,
    fitted,
    loft,
    log_between,
    opened,
    path,
    random_limb,
    random_part,
    random_rotation,
    rotated,
    swept,
    towards,
)
from pointdistill.data.synthetic_shapes.shape import (
    SMALLEST_FACE,
    BuiltinShape,
    Draw,
    Floats,
    Mesh,
    bounds,
    face_areas,
    join,
)

PROCEDURAL = "procedural"
"""Stands in the place of the category's name."""

_MOST_FACES = 60_000
# Second longest side of the bounding box over the longest; below that a shape is a line.
_THINNEST = 0.04
_TRIES = 20


def make_procedural(*, rng: np.random.Generator) -> BuiltinShape:
    """A new procedural shape, in the frame of `make_shape`: z up, standing on z = 0, centred in x and y."""
    draw = Draw(rng)
    for _ in range(_TRIES):
        with np.errstate(all="ignore"):  # an overflow makes a draw unusable, and another is made
            mesh = _finished(_whole(draw), draw)
        if mesh is not None:
            part = np.zeros(len(mesh.faces), dtype=np.uint8)
            return BuiltinShape(PROCEDURAL, mesh.vertices, mesh.faces, part, (PROCEDURAL,))
    msg = f"no usable shape in {_TRIES} draws"
    raise AssertionError(msg)


def _whole(draw: Draw) -> Mesh:
    mesh = random_arrangement(draw)
    if draw.chance(0.3):
        mesh = _mirrored(mesh, draw)
    for chance in (0.35, 0.1):
        if draw.chance(chance):
            mesh = deformed(mesh, draw, strength=0.8)
    if draw.chance(0.06):
        mesh = cut(mesh, draw)
    if draw.chance(0.04):
        mesh = opened(mesh, draw)
    if draw.chance(0.7):
        mesh = fitted(mesh).scaled(*np.exp(np.clip(draw.rng.normal(0.0, 0.25, 3), -0.7, 0.7)))
    if draw.chance(0.12):
        mesh = rotated(mesh, random_rotation(draw))
    elif draw.chance(0.2):
        mesh = mesh.turned(draw.pick(("x", "y")), draw.pick((-90.0, 90.0, 180.0)))
    return mesh.turned("z", draw.pick((0.0, 90.0, draw.between(0.0, 360.0))))


def _finished(mesh: Mesh, draw: Draw) -> Mesh | None:
    """Standing on z = 0, of a random size, without faces of no area; None if it cannot be used."""
    vertices = fitted(mesh).vertices * log_between(draw, 0.3, 3.0)
    if not np.isfinite(vertices).all() or len(mesh.faces) > _MOST_FACES:
        return None
    area = face_areas(vertices, mesh.faces)
    used = area > SMALLEST_FACE * float((np.ptp(vertices, axis=0) ** 2).sum())
    if used.sum() < 2:
        return None
    faces = mesh.faces[used]
    corners = vertices[faces.ravel()]
    low, high = bounds(corners)
    size = np.sort(high - low)
    if size[1] < _THINNEST * size[2]:
        return None
    middle = (low + high) / 2.0
    return Mesh(vertices - (middle[0], middle[1], low[2]), faces)


def _mirrored(mesh: Mesh, draw: Draw) -> Mesh:
    """The mesh and its mirror image in a vertical plane, which it may cross; some in two planes."""
    mesh = fitted(mesh)
    for axis in ("x", "y") if draw.chance(0.2) else ("x",):
        turned = mesh if axis == "x" else mesh.turned("z", 90.0)
        half = float(turned.vertices[:, 0].max()) * draw.pick((0.0, draw.between(-0.5, 1.0)))
        turned = turned.moved(half)
        mesh = join(turned, turned.mirrored())
    return mesh


# --- arrangements -----------------------------------------------------------------------------------------
# Each returns a mesh of any size and position; ``depth`` counts the arrangements that it is nested in.


def surface_place(draw: Draw, mesh: Mesh) -> tuple[Floats, Floats]:
    """A point of the surface, uniform by area, and the unit normal there."""
    reach = np.cumsum(face_areas(mesh.vertices, mesh.faces))
    face = int(np.searchsorted(reach, draw.between(0.0, float(reach[-1]))))
    a, b, c = mesh.vertices[mesh.faces[min(face, len(mesh.faces) - 1)]]
    normal = np.cross(b - a, c - a)
    weight = draw.rng.dirichlet((1.0, 1.0, 1.0))
    place = weight[0] * a + weight[1] * b + weight[2] * c
    return place, normal / max(float(np.linalg.norm(normal)), 1e-12)


def random_arrangement(draw: Draw, depth: int = 0) -> Mesh:
    """One of `ARRANGEMENTS`."""
    return choose(draw, ARRANGEMENTS)(draw, depth)


def _item(draw: Draw, depth: int) -> Mesh:
    """What an arrangement puts in one position, in the unit box: a part, sometimes a nested arrangement."""
    if depth < 1 and draw.chance(0.15):
        return fitted(random_arrangement(draw, depth + 1))
    return random_part(draw)


def _items(draw: Draw, depth: int, count: int) -> list[Mesh]:
    """``count`` items, some of which are the same."""
    kinds = [_item(draw, depth) for _ in range(min(count, draw.count(1, 4)))]
    again = [draw.pick(kinds) for _ in range(count - len(kinds))]
    if draw.chance(0.4):
        again = [_item(draw, depth) for _ in again]
    return kinds + again


def _one(draw: Draw, depth: int) -> Mesh:
    return _item(draw, depth)


def _cluster(draw: Draw, depth: int) -> Mesh:
    """Parts attached to parts, each at a random point of the surface so far, along or across the normal."""
    count = draw.pick((2, 2, 3, 4, 6, 9, 12))
    shrink = draw.between(0.3, 2.3)
    pieces = _items(draw, depth, count)[:1]
    mirror = draw.chance(0.5)
    for item in _items(draw, depth, count - 1):
        place, normal = surface_place(draw, pieces[0] if draw.chance(0.6) else draw.pick(pieces))
        size = float(np.exp(-draw.between(0.0, shrink)))
        if draw.chance(0.4):
            grown = random_limb(draw) if draw.chance(0.5) else item.moved(z=0.5)
            piece = rotated(grown.scaled(size, size, size), towards(normal, draw.between(0, 6.3)))
        else:
            piece = item.scaled(size, size, size).moved(*(normal * size * draw.between(0.0, 0.5)))
        piece = piece.moved(*place)
        pieces.append(piece)
        if mirror and draw.chance(0.8):
            pieces.append(piece.mirrored())
    return join(*pieces)


def _stack(draw: Draw, depth: int) -> Mesh:
    """Items on top of each other."""
    pieces, level = [], 0.0
    slide = draw.pick((0.0, 0.0, 0.3))
    for item in _items(draw, depth, draw.count(2, 6)):
        wide, high = log_between(draw, 0.15, 1.0), log_between(draw, 0.05, 1.0)
        piece = item.scaled(wide, wide, high)
        low, top = float(piece.vertices[:, 2].min()), float(piece.vertices[:, 2].max())
        x, y = draw.rng.uniform(-slide, slide, size=2)
        pieces.append(piece.moved(x, y, level - low))
        level += (top - low) * draw.between(0.8, 1.0)
    return join(*pieces)


def _raised(draw: Draw, depth: int) -> Mesh:
    """An item on supports below its corners, its sides or its middle, and perhaps another item on top."""
    top = _item(draw, depth).scaled(1.0, log_between(draw, 0.3, 1.0), log_between(draw, 0.03, 0.8))
    low, high = bounds(top.vertices)
    length = log_between(draw, 0.1, 1.5)
    limb = random_limb(draw)
    thick = log_between(draw, 0.12, 0.8)
    limb = limb.scaled(thick, thick, 1.0)
    lean = draw.pick((0.0, 0.0, draw.between(-0.3, 0.5)))
    kind = draw.pick(("corners", "corners", "pair", "ring", "middle"))
    inset = draw.between(0.6, 1.0)
    if kind == "corners":
        places = np.array([(x, y) for x in (-1, 1) for y in (-1, 1)], dtype=float)
    elif kind == "pair":
        places = np.array([(-1.0, 0.0), (1.0, 0.0)])
    elif kind == "ring":
        angle = np.linspace(0.0, 2.0 * np.pi, draw.count(3, 8), endpoint=False)
        places = np.column_stack((np.cos(angle), np.sin(angle)))
    else:
        places = np.zeros((1, 2))
    half = (high - low)[:2] / 2.0 * inset
    pieces = [top]
    for place in places:
        x, y = place * half
        foot = np.array((*(place * half * (1.0 + lean)), low[2] - length))
        way = np.array((x, y, low[2] + 0.02)) - foot
        leg = limb.scaled(1.0, 1.0, float(np.linalg.norm(way)))
        leg = rotated(leg, towards(way)) if lean else leg
        pieces.append(leg.moved(*foot) if place[0] <= 0 else leg.mirrored().moved(*foot))
    if draw.chance(0.6):
        back = _item(draw, 1).scaled(*np.exp(-draw.rng.uniform(0.0, 2.0, 3)))
        spot = draw.pick(((0.0, 1.0), (0.0, 0.0), (1.0, 0.0)))
        base = -float(back.vertices[:, 2].min())
        pieces.append(back.moved(spot[0] * half[0], spot[1] * half[1], high[2] + base * 0.95))
    return join(*pieces)


def _rows(draw: Draw, depth: int) -> Mesh:
    """One item repeated along a line, over a grid or along a path, some with changing size or with rails."""
    item = _item(draw, depth) if draw.chance(0.5) else random_limb(draw)
    item = item.scaled(*np.exp(-draw.rng.uniform(0.0, 1.5, 3)))
    size = np.ptp(item.vertices, axis=0)
    gap = size * draw.between(0.6, 2.2)
    kind = draw.pick(("line", "line", "grid", "way", "rise"))
    count = draw.count(3, 14)
    if kind == "grid":
        x, y = np.meshgrid(np.arange(draw.count(2, 6)), np.arange(draw.count(2, 6)))
        places = np.column_stack((x.ravel(), y.ravel(), 0 * x.ravel())) * gap
    elif kind == "way":
        places = path(draw, count) * count * float(np.linalg.norm(gap)) * 0.4
        places = places[:, [2, 0, 1]]
    else:
        step = gap * (draw.pick(((1, 0, 0), (0, 1, 0), (0, 0, 1))) if kind == "line" else (1, 0, 1))
        places = np.arange(count)[:, None] * step
    share = np.linspace(1.0, draw.pick((1.0, 1.0, 0.2, 0.6)), len(places))
    turn = draw.pick((0.0, 0.0, draw.between(-60.0, 60.0)))
    pieces = [
        item.scaled(s, s, s).turned("z", turn * i).moved(*place)
        for i, (s, place) in enumerate(zip(share, places, strict=True))
    ]
    if draw.chance(0.5) and kind != "grid":
        thick = float(size.max()) * log_between(draw, 0.01, 0.15)
        side = size * draw.pick(((0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5), (0, 0, 0)))
        pieces += [tube(places + way * side, thick, around=6) for way in (-1.0, 1.0)]
    return join(*pieces)


def _radial(draw: Draw, depth: int) -> Mesh:
    """One item or limb again and again about an axis, about a hub or on a rim."""
    count = draw.count(2, 14)
    if draw.chance(0.55):
        limb = random_limb(draw)
        piece = limb.scaled(*(log_between(draw, 0.3, 1.0),) * 2, 1.0).turned(
            "y", draw.between(20, 130)
        )
    else:
        size = log_between(draw, 0.2, 1.5)
        piece = _item(draw, depth).scaled(size, size, size).moved(draw.between(0.3, 1.2))
    rise = draw.pick((0.0, 0.0, draw.between(0.02, 0.2)))
    sweep = draw.pick((360.0, 360.0, 360.0, draw.between(60.0, 300.0)))
    pieces = [piece.turned("z", sweep * i / count).moved(z=rise * i) for i in range(count)]
    if draw.chance(0.6):
        hub = random_part(draw)
        size = log_between(draw, 0.1, 1.0)
        pieces.append(hub.scaled(size, size, size * log_between(draw, 0.3, 3.0)))
    if draw.chance(0.25):
        angle = np.arange(32) * (2.0 * np.pi / 32)
        circle = np.column_stack((np.cos(angle), np.sin(angle), 0 * angle)) * draw.between(0.6, 1.3)
        pieces.append(tube(circle, log_between(draw, 0.02, 0.15), closed=True))
    if draw.chance(0.25):
        pieces.append(rod((0, 0, -draw.between(0.2, 2)), (0, 0, 0), log_between(draw, 0.02, 0.1)))
    whole = join(*pieces)
    return whole.turned("x", 90.0) if draw.chance(0.35) else whole


def _branches(draw: Draw, depth: int) -> Mesh:
    """A stem that divides, again and again; leaves or items at the ends or all along."""
    del depth
    levels, split = draw.pick(((1, 8), (2, 3), (2, 4), (2, 6), (3, 2), (3, 3)))
    spread, curl = draw.between(0.2, 1.2), draw.pick((0.3, 1.0, 3.0))
    shrink = draw.between(0.45, 0.85)
    leaf = draw.pick((None, "blade", "blade", "item"))
    leaf_mesh = blade(draw) if leaf == "blade" else fitted(_item(draw, 1)).moved(z=0.4)
    leaf_size = log_between(draw, 0.08, 0.6)
    thick = log_between(draw, 0.01, 0.1)
    pieces: list[Mesh] = []

    def grow(start: Floats, frame: Floats, length: float, radius: float, level: int) -> None:
        way = path(draw, 8, curl=curl) @ frame.T * length + start
        radii = np.linspace(radius, radius * 0.6, 8)
        pieces.append(tube(way, radii, around=6 if level else 8))
        ends = [draw.count(3, 7) for _ in range(split)] if level < levels else []
        for i, end in enumerate(ends):
            spin = i * 2.4 + draw.between(-0.4, 0.4)
            tilt = spread * draw.between(0.6, 1.4)
            side = np.array(
                (np.cos(spin) * np.sin(tilt), np.sin(spin) * np.sin(tilt), np.cos(tilt))
            )
            turned = towards(frame @ side, spin)
            grow(
                way[end], turned, length * shrink * draw.between(0.7, 1.2), radius * 0.6, level + 1
            )
        if leaf and level == levels:
            for end in (7, 5, 3)[: draw.count(1, 3)]:
                lean = draw.rng.normal(0.0, 0.7, size=3) + np.array((0.0, 0.0, 0.6))
                size = leaf_size * draw.between(0.7, 1.3)
                piece = rotated(leaf_mesh.scaled(size, size, size), towards(frame @ lean))
                pieces.append(piece.moved(*way[end]))

    grow(np.zeros(3), np.eye(3), 1.0, thick, 0)
    if draw.chance(0.35):
        size = log_between(draw, 0.15, 0.6)
        pieces.append(random_part(draw).scaled(size, size, size))
    return join(*pieces)


def _limbed(draw: Draw, depth: int) -> Mesh:
    """A long horizontal body with pairs of limbs on both sides, and items at its ends and in its mirror plane."""
    del depth
    body = fitted(loft(draw) if draw.chance(0.6) else random_part(draw)).turned("x", 90.0)
    if draw.chance(0.2):
        body = body.turned("x", 90.0)
    body = body.scaled(1.0, log_between(draw, 1.0, 2.5), 1.0)
    pieces = [body]
    down = draw.chance(0.45)
    for _ in range(draw.count(1, 4)):
        limb = random_limb(draw)
        size, wide = log_between(draw, 0.15, 1.3), log_between(draw, 0.3, 1.0)
        limb = limb.scaled(size * wide, size * wide, size)
        place, normal = surface_place(draw, body)
        place[0] = abs(place[0])
        way = np.array(
            (abs(normal[0]) + draw.between(0.0, 1.0), draw.between(-0.6, 0.6), normal[2])
        )
        if down and draw.chance(0.7):
            way = np.array((draw.between(0.0, 0.3), draw.between(-0.3, 0.3), -1.0))
        elif draw.chance(0.4):
            way[2] = draw.between(-0.2, 0.2)
        piece = rotated(limb, towards(way, draw.pick((0.0, np.pi / 2, draw.between(0, 6.3)))))
        for step in range(draw.pick((1, 1, 1, 2, 3))):
            moved = piece.moved(*(place * (1.0, 1.0 - 0.6 * step, 1.0)))
            pieces += [moved, moved.mirrored()]
    low, high = bounds(body.vertices)
    for end in (low[1], high[1], draw.between(low[1], high[1])):
        if draw.chance(0.55):
            size = log_between(draw, 0.08, 0.6)
            if draw.chance(0.6):
                piece = _item(draw, 1).scaled(size, size, size)
            else:
                tilt = np.array((0.0, np.sign(end) * draw.between(0, 1.5), draw.between(-0.5, 1.5)))
                piece = rotated(random_limb(draw).scaled(size, size, size), towards(tilt))
            pieces.append(piece.moved(0.0, end, draw.between(low[2], high[2]) * 0.7))
    return join(*pieces)


def _divided(draw: Draw) -> list[tuple[Floats, Floats]]:
    """The cells of a box that axis-aligned planes split recursively: lowest and highest corner of each."""
    cells = [(np.zeros(3), np.array([log_between(draw, 0.2, 1.0) for _ in range(3)]))]
    for _ in range(draw.count(1, 12)):
        low, high = cells.pop(draw.count(0, len(cells) - 1))
        axis = int(np.argmax((high - low) * draw.rng.uniform(0.3, 1.0, size=3)))
        level = low[axis] + (high[axis] - low[axis]) * draw.between(0.2, 0.8)
        first, second = high.copy(), low.copy()
        first[axis] = second[axis] = level
        cells += [(low, first), (second, high)]
    return cells


def _cell(draw: Draw, kind: str) -> Mesh:
    """What fills a cell, about the origin, 1 along every side: a block, some of its sides, or an item."""
    if kind == "items":
        item = _item(draw, 1)
        return item.scaled(*(1.0 / np.maximum(np.ptp(item.vertices, axis=0), 0.05)))
    square = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))
    block = skin([[(x, y, z) for x, y in square] for z in (-0.5, 0.5)])
    if kind == "blocks":
        return block
    sides, ends = draw.rng.random(4) < 0.7, draw.rng.random(2) < 0.7
    sides[0] |= not ends.any()
    return Mesh(block.vertices, block.faces[np.concatenate((sides, sides, np.repeat(ends, 4)))])


def _cells(draw: Draw, depth: int) -> Mesh:
    """A box divided into cells, some of them empty; the others are blocks, hollows with walls, or items."""
    del depth
    cells = _divided(draw)
    shrink = draw.pick((1.0, 0.97, draw.between(0.6, 0.95)))
    empty, uneven = draw.between(0.0, 0.5), draw.chance(0.5)
    fill = draw.pick(("blocks", "walls", "items", "mixed"))
    pieces: list[Mesh] = []
    for low, high in cells:
        if pieces and draw.chance(empty):
            continue
        extent = (high - low) * shrink
        if uneven:
            lower = draw.pick((1.0, draw.between(0.3, 1.0)))
            extent = extent * (1.0, draw.between(0.5, 1.0), lower)
        kind = draw.pick(("blocks", "walls", "items")) if fill == "mixed" else fill
        pieces.append(_cell(draw, kind).scaled(*extent).moved(*((low + high) / 2.0)))
    return join(*pieces)


def _scatter(draw: Draw, depth: int) -> Mesh:
    """Several separate bodies, on the ground or in space."""
    pieces = []
    flat = draw.chance(0.6)
    spread = draw.between(0.4, 1.3)
    for item in _items(draw, depth, draw.pick((2, 3, 5, 8))):
        size = log_between(draw, 0.2, 1.0)
        piece = item.scaled(size, size, size)
        x, y, z = draw.rng.uniform(-spread, spread, size=3)
        pieces.append(piece.moved(x, y, -float(piece.vertices[:, 2].min()) if flat else z))
    if flat and draw.chance(0.5):
        square = np.array(((-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0), (1.0, 1.0))) * spread
        pieces.append(surface(np.column_stack((square, np.zeros(4))).reshape(2, 2, 3)))
    return join(*pieces)


def _chain(draw: Draw, depth: int) -> Mesh:
    """Items of varying size along a winding path, some with a tube through them."""
    count = draw.count(3, 10)
    way = path(draw, count) * draw.between(1.5, 4.0)
    size = curve(draw, count, 0.2, 1.2)
    items = _items(draw, depth, count)
    pieces = [i.scaled(s, s, s).moved(*p) for i, s, p in zip(items, size, way, strict=True)]
    if draw.chance(0.7):
        pieces.append(tube(way, log_between(draw, 0.02, 0.15)))
    whole = join(*pieces)
    return whole if draw.chance(0.5) else whole.turned("x", 90.0)


def _bundle(draw: Draw, depth: int) -> Mesh:
    """Several tubes or strips that start near one point."""
    del depth
    pieces = []
    for _ in range(draw.count(2, 9)):
        limb = swept(draw) if draw.chance(0.6) else blade(draw)
        way = draw.rng.normal(size=3) + np.array((0.0, 0.0, draw.pick((0.0, 2.0))))
        frame = towards(way, draw.between(0.0, 6.0))
        start = draw.rng.normal(0.0, 0.1, size=3)
        pieces.append(rotated(limb, frame).moved(*start))
    return join(*pieces)


Arrangement = Callable[[Draw, int], Mesh]

ARRANGEMENTS: tuple[tuple[Arrangement, float], ...] = (
    (_one, 1.5), (_cluster, 3.5), (_stack, 2.0), (_raised, 3.0), (_rows, 1.5), (_radial, 1.8),
    (_branches, 1.6), (_limbed, 4.0), (_cells, 2.0), (_scatter, 0.6), (_chain, 1.0), (_bundle, 0.6),
)  # fmt: skip
"""Arrangements and their weights, see `choose`."""
