"""Parts of procedural shapes: solids, tubes, sheets and frames of random proportions; deforming and cutting them.

Every maker takes its randomness from a `Draw` and returns a mesh of any size and position; `random_part` then
deforms it and fits it into the unit box about the origin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pointdistill.data.synthetic_shapes.primitives import (
    box,
    cushion,
    cylinder,
    ellipsoid,
    lathe,
    prism,
    ring,
    rod,
    sheet,
    skin,
    surface,
    torus,
    tube,
    vessel,
)
from pointdistill.data.synthetic_shapes.shape import (
    Draw,
    Floats,
    Mesh,
    bend,
    bounds,
    bulge,
    join,
    shear,
    taper,
    twist,
)

_SMALLEST = 1e-9  # keeps lengths that are divided by away from 0

# --- curves, frames and changes of a mesh -----------------------------------------------------------------


def log_between(draw: Draw, low: float, high: float) -> float:
    """A number between two positive ones, uniform in its logarithm."""
    return float(np.exp(draw.between(np.log(low), np.log(high))))


def fitted(mesh: Mesh) -> Mesh:
    """Centred on the origin, the longest side of its box 1."""
    low, high = bounds(mesh.vertices)
    longest = max(float((high - low).max()), _SMALLEST)
    return Mesh((mesh.vertices - (low + high) / 2.0) / longest, mesh.faces)


def rotated(mesh: Mesh, matrix: Floats) -> Mesh:
    """Rotated by a (3, 3) matrix."""
    return Mesh(mesh.vertices @ matrix.T, mesh.faces)


def random_rotation(draw: Draw) -> Floats:
    """A (3, 3) rotation, uniform over all rotations."""
    # QR of a Gaussian matrix is uniform once the signs of the diagonal are fixed.
    matrix, upper = np.linalg.qr(draw.rng.normal(size=(3, 3)))
    matrix *= np.sign(np.diag(upper))
    if np.linalg.det(matrix) < 0.0:
        matrix[:, 0] *= -1.0
    return matrix


def towards(direction: ArrayLike, spin: float = 0.0) -> Floats:
    """A (3, 3) rotation that takes z to ``direction``, after a turn about z by ``spin`` radians."""
    z = np.asarray(direction, dtype=np.float64)
    z = z / max(float(np.linalg.norm(z)), _SMALLEST)
    x = np.cross(np.eye(3)[int(np.abs(z).argmin())], z)
    x /= np.linalg.norm(x)
    cos, sin = np.cos(spin), np.sin(spin)
    turn = np.array(((cos, -sin, 0.0), (sin, cos, 0.0), (0.0, 0.0, 1.0)))
    result: Floats = np.column_stack((x, np.cross(z, x), z)) @ turn
    return result


def curve(draw: Draw, count: int, low: float, high: float) -> Floats:
    """(count,) values between two bounds that go up and down smoothly, in straight lines or in steps."""
    knots = draw.rng.uniform(low, high, size=draw.count(2, 6))
    place = np.linspace(0.0, len(knots) - 1.0, count)
    kind = draw.pick(("smooth", "smooth", "straight", "steps"))
    if kind == "steps":
        return knots[np.minimum(place.round().astype(np.intp), len(knots) - 1)]
    if kind == "smooth":
        whole = np.floor(place)
        place = whole + (1.0 - np.cos(np.pi * (place - whole))) / 2.0
    return np.interp(place, np.arange(len(knots)), knots)


def path(draw: Draw, count: int, *, curl: float | None = None) -> Floats:
    """(count, 3) points of a path that starts upwards: straight, bowed, coiled or wandering; about 1 long."""
    strength = draw.pick((0.0, 0.5, 1.5, 4.0, 9.0)) if curl is None else curl
    x, y, z = draw.rng.normal(size=3) * strength / count
    # To first order, a rotation about the vector (x, y, z) by its length.
    turn = np.array(((1.0, -z, y), (z, 1.0, -x), (-y, x, 1.0)))
    drift = draw.rng.normal(size=(count, 3)) * (draw.between(0.0, 0.12) * (strength > 0.0))
    way = np.array((0.0, 0.0, 1.0))
    steps = np.empty((count - 1, 3))
    for i in range(count - 1):
        steps[i] = way
        way = turn @ way + drift[i]
        way /= np.sqrt(way @ way)
    return np.concatenate((np.zeros((1, 3)), np.cumsum(steps, axis=0))) / count


def waves(vertices: Floats, draw: Draw, amount: float, frequency: float) -> Floats:
    """Moved by a smooth random field: ``amount`` of the longest side, ``frequency`` half waves along it."""
    size = max(float(np.ptp(vertices, axis=0).max()), _SMALLEST)
    numbers = draw.rng.normal(size=(4, 3)) * (np.pi * frequency / size / np.sqrt(3.0))
    phase = draw.rng.uniform(0.0, 2.0 * np.pi, size=4)
    way = draw.rng.normal(size=(4, 3)) * (amount * size / 2.0)
    moved: Floats = vertices + np.sin(vertices @ numbers.T + phase) @ way
    return moved


def cut(mesh: Mesh, draw: Draw) -> Mesh:
    """Cut by a plane: what lies beyond it is flattened onto it, or left out, which opens the surface."""
    direction = draw.rng.normal(size=3)
    if draw.chance(0.6):
        direction = np.eye(3)[draw.count(0, 2)] * draw.pick((-1.0, 1.0))
    direction /= np.linalg.norm(direction)
    height = mesh.vertices @ direction
    low, high = float(height.min()), float(height.max())
    level = low + (high - low) * draw.between(0.4, 0.85)
    if draw.chance(0.6):
        return Mesh(
            mesh.vertices - np.maximum(height - level, 0.0)[:, None] * direction, mesh.faces
        )
    return _kept(mesh, height[mesh.faces].mean(axis=1) <= level)


def opened(mesh: Mesh, draw: Draw) -> Mesh:
    """Without the faces whose normals point one way, or without those near some points."""
    corner = mesh.vertices[mesh.faces]
    if draw.chance(0.6) or len(mesh.faces) < 300:
        normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), _SMALLEST)
        direction = np.eye(3)[draw.count(0, 2)] * draw.pick((-1.0, 1.0))
        return _kept(mesh, normal @ direction < draw.between(0.7, 0.98))
    center = corner.mean(axis=1)
    holes = center[draw.rng.integers(len(center), size=draw.count(1, 4))]
    size = float(np.ptp(mesh.vertices, axis=0).max()) * draw.between(0.08, 0.35)
    far = np.linalg.norm(center[:, None] - holes[None], axis=-1).min(axis=1)
    return _kept(mesh, far > size)


def _kept(mesh: Mesh, kept: NDArray[np.bool_]) -> Mesh:
    """With only the faces in ``kept``; the whole mesh if these are less than a fifth."""
    return Mesh(mesh.vertices, mesh.faces[kept]) if kept.mean() > 0.2 else mesh


def deformed(mesh: Mesh, draw: Draw, strength: float = 1.0) -> Mesh:
    """Bent, twisted, tapered, bulged, sheared or moved by noise, about one of the three axes."""
    turn = np.roll(np.eye(3), draw.count(0, 2), axis=0)
    vertices = mesh.vertices @ turn.T
    amount = strength * draw.between(0.15, 0.7) * draw.pick((-1.0, 1.0))
    kind = draw.count(0, 5)
    if kind == 0:
        vertices = bend(vertices, amount, 2)
    elif kind == 1:
        vertices = twist(vertices, 1.5 * amount)
    elif kind == 2:
        vertices = taper(vertices, amount)
    elif kind == 3:
        vertices = bulge(vertices, amount)
    elif kind == 4:
        vertices = shear(vertices, amount, draw.between(0.0, 2.0 * np.pi))
    else:
        vertices = waves(vertices, draw, 0.25 * abs(amount), draw.between(0.8, 2.5))
    return Mesh(vertices @ turn, mesh.faces)


# --- solids -----------------------------------------------------------------------------------------------


def _block(draw: Draw) -> Mesh:
    size = (log_between(draw, 0.1, 1), log_between(draw, 0.1, 1), log_between(draw, 0.1, 1))
    return box(size, edge=draw.pick((0.0, 0.0, draw.between(0.05, 0.45) * min(size))))


def _superquadric(draw: Draw) -> Mesh:
    size = (log_between(draw, 0.2, 1), log_between(draw, 0.2, 1), log_between(draw, 0.2, 1))
    return ellipsoid(size, power=draw.pick((2.0, 2.0, log_between(draw, 0.8, 8.0))))


def _frustum(draw: Draw) -> Mesh:
    radius, height = log_between(draw, 0.05, 0.6), log_between(draw, 0.05, 1.2)
    top = radius * draw.pick((1.0, 1.0, 0.02, draw.between(0.2, 1.6)))
    around = draw.pick((3, 4, 6, 8, 20, 20))
    stretch = (1.0, draw.pick((1.0, draw.between(0.2, 1.0))))
    power = draw.pick((2.0, 2.0, draw.between(2.0, 6.0)))
    return cylinder(radius, height, top=top, around=around, power=power, stretch=stretch)


def _ring(draw: Draw) -> Mesh:
    thick = log_between(draw, 0.03, 0.45)
    if draw.chance(0.4):
        return torus(1.0, thick)
    closed = draw.chance(0.4)
    angle = np.linspace(0.0, draw.between(0.6, 1.9) * np.pi if not closed else 2 * np.pi, 25)
    angle = angle[:-1] if closed else angle
    circle = np.column_stack((np.cos(angle), np.sin(angle) * draw.between(0.4, 1.0), 0 * angle))
    around, power = draw.pick((4, 8, 12)), draw.pick((2.0, 6.0))
    flat = draw.pick((1.0, log_between(draw, 0.1, 3.0)))
    return tube(circle, thick, around=around, power=power, closed=closed, flatten=flat)


def _capsule(draw: Draw) -> Mesh:
    radius = log_between(draw, 0.05, 0.5)
    angle = np.linspace(0.0, np.pi / 2.0, 6)
    low = np.column_stack((np.sin(angle), -np.cos(angle))) * radius
    high = low[::-1] * (1.0, -1.0) * draw.between(0.3, 1.0) + (0.0, 1.0)
    return lathe(np.concatenate((low, high)), around=16)


def outline(draw: Draw) -> Floats:
    """(M, 2) corners of a flat shape about the origin: a random, mirrored, starred or toothed polygon."""
    kind = draw.pick(("random", "mirrored", "star", "rounded"))
    angle: NDArray[np.floating]
    reach: NDArray[np.floating]
    if kind == "star":
        teeth = draw.count(3, 12)
        reach = np.tile((1.0, draw.between(0.25, 0.9)), teeth)
        angle = np.arange(2 * teeth) * np.pi / teeth
    elif kind == "rounded":
        angle = np.arange(32) * (2.0 * np.pi / 32)
        many = np.arange(2, 6)[:, None]
        shares = draw.rng.normal(size=(4, 1)) * 0.5 / many
        reach = 1.0 + (shares * np.cos(many * angle + draw.rng.uniform(0, 6.3, (4, 1)))).sum(axis=0)
        reach = np.maximum(reach, 0.15)
    else:
        corners = draw.count(3, 9)
        angle = (np.arange(corners) + draw.rng.uniform(0.0, 0.7, corners)) * (2 * np.pi / corners)
        reach = draw.rng.uniform(0.35, 1.0, corners)
    flat = np.column_stack((np.cos(angle), np.sin(angle))) * reach[:, None]
    if kind == "mirrored":
        half = np.arctan2(flat[:, 1], flat[:, 0])
        right = flat[np.abs(half) < 0.5 * np.pi]
        if len(right) >= 2:
            flat = np.concatenate((right, right[::-1] * (-1.0, 1.0)))
            flat = flat[np.argsort(np.arctan2(flat[:, 1], flat[:, 0]))]
    result: Floats = flat * (1.0, draw.between(0.4, 1.0))
    return result


def _prism(draw: Draw) -> Mesh:
    flat, height = outline(draw), log_between(draw, 0.03, 2.0)
    if draw.chance(0.5):
        return prism(flat, height)
    share = np.linspace(0.0, 1.0, 9)
    size, turn = curve(draw, 9, 0.25, 1.0), share * draw.pick((0.0, draw.between(-2.0, 2.0)))
    cos, sin = np.cos(turn)[:, None] * size[:, None], np.sin(turn)[:, None] * size[:, None]
    x, y = flat[None, :, 0], flat[None, :, 1]
    rows = np.stack((cos * x - sin * y, sin * x + cos * y), axis=-1)
    z = np.broadcast_to((share * height)[:, None, None], (*rows.shape[:2], 1))
    return skin(np.concatenate((rows, z), axis=-1))


def _revolved(draw: Draw) -> Mesh:
    height, count = log_between(draw, 0.2, 3.0), draw.pick((8, 16, 24))
    radius = np.maximum(curve(draw, count, 0.03, 0.6), 0.02)
    power = draw.pick((2.0, 2.0, 2.0, draw.between(1.0, 8.0)))
    around, stretch = draw.pick((6, 16, 24, 24)), (1.0, draw.pick((1.0, draw.between(0.3, 1.0))))
    rows = np.column_stack((radius, np.linspace(0.0, height, count)))
    kind = draw.pick(("solid", "solid", "vessel", "open"))
    if kind == "vessel":
        wall = draw.between(0.1, 0.9) * float(radius.min())
        return vessel(rows, wall, around=around, power=power, stretch=stretch)
    solid = lathe(rows, around=around, power=power, stretch=stretch)
    if kind == "open":
        first, last = 2 * (count - 1) * around, len(solid.faces)
        return Mesh(solid.vertices, solid.faces[: draw.pick((first, last - around))])
    return solid


def loft(draw: Draw) -> Mesh:
    """A long body upwards whose cross-section changes on the way."""
    count, around = 16, 16
    share = np.linspace(0.0, 1.0, count)
    ends = np.minimum(
        1.0, np.sin(np.pi * np.clip(share, 0.02, 0.98)) ** draw.pick((0.05, 0.5, 1.0))
    )
    wide = curve(draw, count, 0.3, 1.0) * ends * log_between(draw, 0.05, 0.4)
    deep = wide * (
        curve(draw, count, 0.5, 1.5) if draw.chance(0.5) else log_between(draw, 0.2, 2.0)
    )
    section = ring(around, draw.pick((2.0, 2.0, draw.between(1.2, 6.0))))
    if draw.chance(0.3):
        angle = np.arange(around) * (2 * np.pi / around)
        swell = 1.0 + draw.between(-0.4, 0.4) * np.cos(
            draw.count(1, 4) * angle + draw.between(0, 6)
        )
        section = section * swell[:, None]
    x = wide[:, None] * section[:, 0]
    y = deep[:, None] * section[:, 1] + (curve(draw, count, -0.2, 0.2) * draw.pick((0, 1)))[:, None]
    return skin(np.stack((x, y, np.broadcast_to(share[:, None], x.shape)), axis=-1))


def _blob(draw: Draw) -> Mesh:
    size = (draw.between(0.4, 1), draw.between(0.4, 1), draw.between(0.4, 1))
    ball = ellipsoid(size, around=24, rows=14)
    return Mesh(waves(ball.vertices, draw, draw.between(0.1, 0.35), draw.between(1, 3)), ball.faces)


def _cushion(draw: Draw) -> Mesh:
    size = (1.0, log_between(draw, 0.3, 1.0), log_between(draw, 0.1, 0.6))
    return cushion(size, pinch=draw.between(0.0, 1.0))


# --- thin parts -------------------------------------------------------------------------------------------


def swept(draw: Draw) -> Mesh:
    """A tube along a random path; its radius is constant, tapers or varies."""
    points = path(draw, draw.pick((8, 16, 32)))
    thick = log_between(draw, 0.008, 0.15)
    taper_off = np.linspace(1.0, draw.pick((1.0, 0.05, 0.4)), len(points))
    radius = thick * (curve(draw, len(points), 0.3, 1.5) if draw.chance(0.3) else taper_off)
    around, power = draw.pick((4, 6, 10)), draw.pick((2.0, 2.0, 8.0))
    flat = draw.pick((1.0, 1.0, log_between(draw, 0.1, 4.0)))
    return tube(points, radius, around=around, power=power, flatten=flat)


def _coil(draw: Draw) -> Mesh:
    turns, count = draw.between(1.0, 6.0), 64
    angle = np.linspace(0.0, 2.0 * np.pi * turns, count)
    reach = np.linspace(1.0, draw.between(0.1, 1.0), count)
    rise = np.linspace(0.0, draw.between(0.0, 3.0), count)
    points = np.column_stack((reach * np.cos(angle), reach * np.sin(angle), rise))
    return tube(points, log_between(draw, 0.03, 0.15), around=6)


def blade(draw: Draw) -> Mesh:
    """A curved strip from the origin upwards, its width changing."""
    rows, columns = 14, 7
    share = np.linspace(0.0, 1.0, rows)
    wide = curve(draw, rows, 0.1, 0.5) * np.clip(share * draw.pick((4.0, 99.0)) + 0.1, 0.0, 1.0)
    wide *= (1.0 - share) ** draw.pick((0.0, 0.0, 0.5, 1.0)) + 0.02
    across = np.linspace(-1.0, 1.0, columns)
    x = wide[:, None] * across + (share * draw.between(-0.6, 0.6))[:, None]
    trough = draw.between(-0.4, 0.4) * wide[:, None] * across**2
    y = trough + (share**2 * draw.pick((0.0, draw.between(-0.7, 0.7))))[:, None]
    grid = np.stack((x, y, np.broadcast_to(share[:, None], x.shape)), axis=-1)
    return _layered(draw, grid)


def _sheet(draw: Draw) -> Mesh:
    """A rectangle that is bowed, rolled, folded or wavy."""
    size = draw.pick((4, 12, 20))
    u, v = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    long = log_between(draw, 0.3, 1.0)
    kind = draw.pick(("flat", "bowed", "rolled", "folded", "waves"))
    x, y, z = u, v * long, np.zeros_like(u)
    if kind == "bowed":
        a, b, c = draw.rng.normal(0.0, 0.4, size=3)
        z = a * u**2 + b * v**2 + c * u * v
    elif kind == "rolled":
        angle = draw.between(0.3, 3.1)
        x, z = np.sin(u * angle) / angle, np.cos(u * angle) / angle
    elif kind == "folded":
        folds = draw.count(1, 6)
        z = np.abs((u * folds / 2.0) % 1.0 - 0.5) * draw.between(0.1, 1.5) / folds * 2
    elif kind == "waves":
        z = draw.between(0.05, 0.3) * np.sin(u * draw.between(1, 9) + draw.between(0, 6))
        z = z * (np.cos(v * draw.between(0, 6)) if draw.chance(0.5) else 1.0)
    return _layered(draw, np.stack((x, y, z), axis=-1))


def _layered(draw: Draw, grid: Floats) -> Mesh:
    """A grid as one layer, as two that coincide or nearly, or as a thin solid."""
    kind = draw.pick(("one", "one", "two", "solid", "solid"))
    if kind == "solid":
        return sheet(grid, log_between(draw, 0.005, 0.12))
    layer = surface(grid)
    if kind == "one":
        return layer
    return join(layer, Mesh(layer.vertices + draw.between(0.0, 0.01), layer.faces[:, ::-1]))


def _plate(draw: Draw) -> Mesh:
    """A flat outline: a thin slab, or a single layer."""
    flat = outline(draw)
    slab = prism(flat, log_between(draw, 0.005, 0.15))
    return slab if draw.chance(0.7) else Mesh(slab.vertices, slab.faces[-len(flat) :])


def _height_field(draw: Draw) -> Mesh:
    size = 24
    u, v = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    flat = np.column_stack((u.ravel(), v.ravel(), np.zeros(u.size)))
    z = waves(flat, draw, draw.between(0.1, 0.5), draw.between(1.0, 5.0))[:, 2].reshape(u.shape)
    if draw.chance(0.3):
        z = np.round(z * draw.between(4, 12)) / 8.0
    grid = np.stack((u, v, z), axis=-1)
    if draw.chance(0.4):
        return surface(grid)
    rim = np.concatenate((grid[0], grid[1:, -1], grid[-1, -2::-1], grid[-2:0:-1, 0]))
    foot = rim * (1.0, 1.0, 0.0) + (0.0, 0.0, float(z.min()) - draw.between(0.02, 0.5))
    wall = skin(np.stack((foot, rim)))
    return join(surface(grid), Mesh(wall.vertices, wall.faces[: -len(rim)]))


def _frame(draw: Draw) -> Mesh:
    """Struts along the edges of a box or a drum, between random points, or of a lattice."""
    kind = draw.pick(("box", "drum", "points", "lattice"))
    if kind in ("box", "lattice"):
        top = (2, 2, 2) if kind == "box" else (draw.count(2, 5), draw.count(1, 3), draw.count(2, 5))
        cells = np.stack(np.meshgrid(*(np.arange(n) for n in top), indexing="ij"), -1).reshape(
            -1, 3
        )
        gap = np.abs(cells[:, None] - cells[None]).sum(axis=-1)
        nodes = cells * np.array([log_between(draw, 0.3, 1.0) for _ in range(3)])
    elif kind == "drum":
        count = draw.count(3, 8)
        circle = np.column_stack((ring(count), np.zeros(count)))
        height = log_between(draw, 0.2, 3.0)
        nodes = np.concatenate((circle, circle * draw.between(0.1, 1.2) + (0, 0, height)))
        along = np.isin(np.abs(np.arange(count)[:, None] - np.arange(count)), (1, count - 1))
        gap = np.block([[along, np.eye(count)], [np.eye(count), along]])
    else:
        nodes = draw.rng.normal(size=(draw.count(4, 9), 3))
        far = np.linalg.norm(nodes[:, None] - nodes[None], axis=-1)
        gap = (far <= np.sort(far, axis=1)[:, 2:3]) & (far > 0.0)
        gap |= gap.T
    first, second = np.nonzero(np.triu(gap == 1))
    kept = draw.rng.random(len(first)) < draw.pick((1.0, 1.0, 0.7))
    kept[:1] = True
    size = float(np.ptp(nodes, axis=0).max())
    radius, power = log_between(draw, 0.008, 0.06) * size, draw.pick((2.0, 8.0))
    pairs = zip(nodes[first[kept]], nodes[second[kept]], strict=True)
    return join(*(rod(tuple(a), tuple(b), radius, around=6, power=power) for a, b in pairs))


Maker = Callable[[Draw], Mesh]
Choice = TypeVar("Choice")

MAKERS: tuple[tuple[Maker, float], ...] = (
    (_block, 3.0), (_superquadric, 2.0), (_frustum, 2.0), (_ring, 1.0), (_capsule, 1.0), (_prism, 2.0),
    (_revolved, 2.0), (loft, 2.0), (_blob, 1.0), (_cushion, 0.5), (swept, 1.5), (_coil, 0.4),
    (blade, 1.5), (_sheet, 1.5), (_plate, 1.5), (_height_field, 0.5), (_frame, 1.2),
)  # fmt: skip
"""Makers of parts and their weights, see `choose`."""

THIN: tuple[tuple[Maker, float], ...] = (
    (swept, 2.0), (blade, 2.0), (_frustum, 1.0), (_block, 1.0), (loft, 1.0), (_capsule, 1.0),
)  # fmt: skip
"""Makers of limbs, which start at their lower end and go up: legs, arms, leaves, fins."""


def choose(draw: Draw, weighted: Sequence[tuple[Choice, float]]) -> Choice:
    """One of several, with a probability in proportion to its weight."""
    reach = np.cumsum([weight for _, weight in weighted])
    return weighted[int(np.searchsorted(reach, draw.between(0.0, reach[-1]), side="right"))][0]


def random_part(draw: Draw) -> Mesh:
    """A part in the unit box about the origin, its axis mostly vertical or horizontal."""
    part = choose(draw, MAKERS)(draw)
    if draw.chance(0.25):
        part = deformed(part, draw)
    if draw.chance(0.12):
        part = cut(part, draw)
    if draw.chance(0.12):
        part = opened(part, draw)
    if draw.chance(0.5):
        part = fitted(part).scaled(*np.exp(np.clip(draw.rng.normal(0.0, 0.4, 3), -1.2, 1.2)))
    if draw.chance(0.4):
        part = part.turned(draw.pick(("x", "y")), 90.0)
    elif draw.chance(0.15):
        part = rotated(part, random_rotation(draw))
    return fitted(part)


def random_limb(draw: Draw) -> Mesh:
    """A long part whose foot is at the origin and whose length, 1, goes up."""
    limb = fitted(choose(draw, THIN)(draw))
    length = float(np.ptp(limb.vertices[:, 2]))
    limb = limb.moved(z=-float(limb.vertices[:, 2].min()))
    wide = draw.pick((1.0, log_between(draw, 0.15, 1.0)))
    grow = 1.0 / max(length, 0.2)
    return limb.scaled(wide * min(grow, 1.5), wide * min(grow, 1.5), grow)
