"""Electronics: display, laptop, keyboard, radio, game console, headphones."""

from __future__ import annotations

import numpy as np

from pointdistill.data.synthetic_shapes.primitives import (
    arc,
    box,
    cylinder,
    ellipsoid,
    lathe,
    rod,
    sheet,
    skin,
    tube,
)
from pointdistill.data.synthetic_shapes.shape import Assembly, Draw, Floats, Mesh, category


def _tube_screen(draw: Draw, width: float, height: float) -> list[Mesh]:
    """An old television's case: a deep frame and a back that narrows."""
    deep = height * draw.between(0.5, 1.0)
    case = box((width, deep * 0.3, height), edge=0.02)
    corner = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)]) * (width, height)
    sections = [
        np.column_stack(
            (corner[:, 0] * half, np.full(4, y * deep), corner[:, 1] * half + height / 2)
        )
        for y, half in ((0.1, 0.48), (0.45, 0.4), (0.75, 0.26), (1.0, 0.24))
    ]
    return [case, skin(np.stack(sections))]


def _flat_screen(draw: Draw, width: float, height: float, thick: float) -> list[Mesh]:
    """A panel; some with a sunken picture, some with the works behind it."""
    pieces = [box((width, thick, height), edge=draw.pick((0.0, thick * 0.4)))]
    if draw.chance(0.6):
        rim = draw.between(0.012, 0.05)
        size = (width - 2 * rim, thick * 0.6, height - 2 * rim)
        pieces.append(box(size, (0, -thick * 0.25, rim)))
    if draw.chance(0.6):
        swell = (width * 0.6, thick * draw.between(1, 3), height * 0.6)
        pieces.append(box(swell, (0, thick, height * 0.15), edge=thick * 0.4))
    return pieces


@category("display", "screen", "stand", "base")
def display(shape: Assembly, draw: Draw) -> None:
    """A monitor or television: flat, curved or a deep tube; on a foot, two feet, an arm or a wall."""
    width = draw.between(0.4, 1.3)
    height = width * draw.between(0.5, 0.85)
    kind = draw.pick(("flat", "flat", "curved", "tube", "portrait"))
    if kind == "portrait":
        width, height = height, width
    lift, thick = height * draw.between(0.08, 0.45), draw.between(0.02, 0.09)
    if kind == "tube":
        pieces = _tube_screen(draw, width, height)
    elif kind == "curved":
        u, v = np.meshgrid(np.linspace(-1, 1, 15), np.linspace(0, 1, 4))
        sag = draw.between(0.05, 0.2) * width
        pieces = [sheet(np.stack((u * width / 2, sag * (1 - u**2), v * height), axis=-1), thick)]
    else:
        pieces = _flat_screen(draw, width, height, thick)
    shape.add("screen", *(piece.moved(z=lift) for piece in pieces))
    _stand(shape, draw, width, lift=lift, hold=lift + height * 0.35, behind=thick * 0.5 + 0.02)


def _stand(
    shape: Assembly, draw: Draw, width: float, *, lift: float, hold: float, behind: float
) -> None:
    """The support of a screen, attached ``behind`` its front at the height ``hold``."""
    kind = draw.pick(("plate", "round", "feet", "arch", "arm", "wall"))
    if kind in ("plate", "round"):
        wide, deep = width * draw.between(0.25, 0.6), draw.between(0.12, 0.3)
        power, thick = 8.0 if kind == "plate" else 2.0, draw.between(0.012, 0.04)
        foot = cylinder(0.5, thick, power=power, stretch=(wide, deep), around=28)
        shape.add("base", foot.moved(0, behind))
        shape.add("stand", box((width * draw.between(0.05, 0.2), 0.035, hold), (0, behind, 0)))
    elif kind == "feet":
        for side in (-1, 1):
            x, spread = side * width * draw.between(0.3, 0.42), draw.between(0.1, 0.2)
            for y in (-spread, spread):
                shape.add("base", rod((x, y, 0.008), (x, 0, lift * 1.1), 0.014))
    elif kind == "arch":
        corner = np.array([(-1, -0.1), (-1, 0.08), (1, 0.08), (1, -0.1)])
        path = np.column_stack((corner, np.full(4, 0.01)))
        shape.add("base", tube(path * (width * draw.between(0.15, 0.3), 1.0, 1.0), 0.014))
        shape.add("stand", rod((0, 0.08, 0.01), (0, behind, hold), 0.02))
    elif kind == "arm":
        elbow = (0.0, draw.between(0.15, 0.3), lift * 1.2)
        shape.add("base", cylinder(0.08, 0.02).moved(0, elbow[1]))
        shape.add("stand", rod((0, elbow[1], 0), elbow, 0.02), rod(elbow, (0, behind, hold), 0.02))
    else:
        shape.add("stand", box((width * 0.3, 0.08, width * 0.2), (0, behind + 0.03, hold)))


def keys(draw: Draw, width: float, depth: float, level: float, rows: int) -> list[Mesh]:
    """A field of key caps centred on the origin, ``rows`` deep, standing at ``level``."""
    pieces = []
    pitch = depth / rows
    for row in range(rows):
        y = depth / 2 - (row + 0.5) * pitch
        wide = row == rows - 1
        count = draw.count(5, 7) if wide else max(4, round(width / (pitch * 1.9)))
        cell = width / count
        for i in range(count):
            x = (i + 0.5) * cell - width / 2
            pieces.append(
                skin(_cap(cell * 0.82, pitch * 0.8, pitch * 0.35) + np.array((x, y, level)))
            )
    return pieces


def _cap(width: float, depth: float, height: float) -> Floats:
    """(2, 4, 3) sections of one key, narrower at the top."""
    low = (
        np.array([(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)]) * np.array((width, depth, 0)) / 2
    )
    return np.stack((low, low * 0.75 + np.array((0, 0, height))))


@category("laptop", "keyboard", "screen")
def laptop(shape: Assembly, draw: Draw) -> None:
    """A screen hinged to a keyboard, opened to some angle."""
    width, thick = draw.between(0.26, 0.42), draw.between(0.01, 0.035)
    depth = width * draw.between(0.58, 0.85)
    shape.add("keyboard", box((width, depth, thick), edge=draw.pick((0.0, thick * 0.3))))
    if draw.chance(0.7):
        field = keys(draw, width * 0.88, depth * 0.45, thick * 0.95, draw.count(3, 5))
        shape.add("keyboard", *(piece.moved(0, depth * 0.15) for piece in field))
    if draw.chance(0.6):
        shape.add("keyboard", box((width * 0.3, depth * 0.22, 0.003), (0, -depth * 0.3, thick)))
    screen = thick * draw.between(0.4, 0.9)
    lid = box((width, depth, screen), edge=draw.pick((0.0, screen * 0.4)))
    rim = draw.between(0.03, 0.1) * width
    glass = box((width - 2 * rim, depth - 2 * rim, screen * 0.3)).moved(z=-screen * 0.2)
    angle = draw.between(45, 175)
    for piece in (lid, glass):
        raised = piece.moved(0, -depth / 2).turned("x", -angle)
        shape.add("screen", raised.moved(0, depth / 2, thick))


@category("keyboard", "body", "key", "stand")
def keyboard(shape: Assembly, draw: Draw) -> None:
    """A computer keyboard with rows of keys, or a musical one with long keys, some on a stand."""
    width, thick = draw.between(0.28, 0.48), draw.between(0.012, 0.035)
    depth = width * draw.between(0.25, 0.5)
    shape.add("body", box((width, depth, thick), edge=draw.pick((0.0, thick * 0.4))))
    tilt = draw.between(0, 9)
    if draw.chance(0.3):
        count = draw.count(14, 28)
        cell = width * 0.94 / count
        for i in range(count):
            x = (i + 0.5) * cell - width * 0.47
            shape.add("key", box((cell * 0.9, depth * 0.6, 0.012), (x, -depth * 0.18, thick)))
            if i % 7 not in (2, 6):
                shape.add(
                    "key",
                    box(
                        (cell * 0.5, depth * 0.35, 0.01),
                        (x + cell / 2, -depth * 0.06, thick + 0.01),
                    ),
                )
        return
    split = draw.chance(0.5)
    field = keys(draw, width * (0.7 if split else 0.94), depth * 0.85, thick, draw.count(4, 6))
    shape.add("key", *(piece.moved(-width * 0.12 if split else 0.0) for piece in field))
    if split:
        pad = keys(draw, width * 0.2, depth * 0.85, thick, 4)
        shape.add("key", *(piece.moved(width * 0.36) for piece in pad))
    if tilt > 4:
        rest = box((width * 0.15, 0.012, depth * 0.2))
        shape.add(
            "stand", *(rest.moved(s * width * 0.38, depth * 0.42, -depth * 0.15) for s in (-1, 1))
        )


@category("radio", "body", "speaker", "knob", "antenna", "handle")
def radio(shape: Assembly, draw: Draw) -> None:
    """A portable or table radio: one or two loudspeakers, knobs, an antenna or a handle."""
    width, depth = draw.between(0.18, 0.5), draw.between(0.07, 0.2)
    height = width * draw.between(0.45, 0.9)
    edge = draw.between(0.005, 0.035)
    shape.add("body", box((width, depth, height), edge=edge))
    front, double = -depth / 2, draw.chance(0.45)
    radius = min(height * 0.32, width * 0.2)
    for side in (-1, 1) if double else (draw.pick((-1, 1)),):
        x = side * width * 0.27
        ring = lathe([(radius, 0), (radius, 0.015), (radius * 0.85, 0.015), (radius * 0.4, 0.004)])
        shape.add("speaker", ring.turned("x", 90).moved(x, front, height * 0.45))
    for i in range(draw.count(1, 4)):
        size = draw.between(0.012, 0.025)
        x = (i - 1) * width * 0.13
        dial = cylinder(size, 0.025, around=12).turned("x", 90)
        shape.add("knob", dial.moved(x, front, height * draw.between(0.75, 0.85)))
    if draw.chance(0.6):
        lean, long = draw.between(-0.7, 0.7), draw.between(0.6, 1.6) * height
        start = (width * 0.42, depth * 0.35, height * 0.95)
        shape.add(
            "antenna",
            rod(start, (start[0] + lean * long, start[1], height + long), 0.006, around=6),
        )
    if draw.chance(0.5):
        x, rise = width * 0.42, draw.between(0.15, 0.45) * height
        path = np.array(
            [
                (-x, 0, height * 0.9),
                (-x, 0, height + rise),
                (x, 0, height + rise),
                (x, 0, height * 0.9),
            ]
        )
        shape.add("handle", tube(path, draw.between(0.008, 0.016)))
    if draw.chance(0.4):
        shape.add("body", box((width * 0.35, 0.012, height * 0.2), (0, front, height * 0.45)))


@category("xbox", "body", "drive", "button", "controller")
def xbox(shape: Assembly, draw: Draw) -> None:
    """A game console, lying or standing, some with a controller beside it."""
    width, depth, height = (
        draw.between(0.24, 0.36),
        draw.between(0.2, 0.3),
        draw.between(0.05, 0.12),
    )
    pieces: list[tuple[str, Mesh]] = [
        ("body", box((width, depth, height), edge=draw.pick((0.0, 0.01))))
    ]
    if draw.chance(0.5):
        slab = box((width * 1.02, depth * 0.98, height * 0.45), edge=0.01).moved(z=height * 0.75)
        pieces.append(("body", slab.moved(draw.between(-0.02, 0.02))))
    tray = box((width * 0.45, 0.012, height * 0.15)).moved(-width * 0.15, -depth / 2, height * 0.6)
    button = cylinder(height * 0.16, 0.014, around=14).turned("x", 90)
    pieces += [("drive", tray), ("button", button.moved(width * 0.38, -depth / 2, height * 0.5))]
    for i in range(draw.count(0, 5)):
        x = width * (0.1 + 0.07 * i)
        pieces.append(
            (
                "body",
                box((width * 0.03, depth * 0.8, 0.008)).moved(x - width * 0.3, 0, height * 0.99),
            )
        )
    upright = draw.chance(0.35)
    for part, piece in pieces:
        shape.add(part, piece.turned("y", 90).moved(0, 0, width / 2) if upright else piece)
    if draw.chance(0.5):
        y = -depth / 2 - draw.between(0.08, 0.15)
        shape.add("controller", ellipsoid((0.14, 0.07, 0.045), (0, y, 0), power=2.8, around=16))
        for side in (-1, 1):
            shape.add(
                "controller",
                rod(
                    (side * 0.05, y, 0.02), (side * 0.075, y - 0.07, 0.012), 0.022, end_radius=0.014
                ),
            )
            shape.add("controller", cylinder(0.009, 0.018, (side * 0.035, y, 0.038), around=8))


@category("earphone", "earpiece", "band", "wire")
def earphone(shape: Assembly, draw: Draw) -> None:
    """Headphones with a band over the head, or a pair of earbuds on a wire."""
    width, rise = draw.between(0.13, 0.2), draw.between(0.12, 0.22)
    cup, thick = draw.between(0.03, 0.05), draw.between(0.02, 0.05)
    if draw.chance(0.75):
        angle = np.linspace(-10, 190, 17)
        path = arc(1.0, -10, 190, 17) * np.array((width / 2, rise))
        band = np.column_stack((path[:, 0], np.zeros_like(angle), path[:, 1]))
        shape.add("band", tube(band, draw.between(0.005, 0.013), flatten=draw.between(0.3, 1)))
        power = draw.pick((2.0, 2.0, 3.0))
        pad = lathe(
            [(cup, 0), (cup * 1.05, thick * 0.5), (cup * 0.8, thick), (cup * 0.4, thick * 0.7)],
            power=power,
            stretch=(1.0, 0.85),
        )
        for side in (-1, 1):
            turned = pad.turned("y", -90 * side).moved(
                side * (width / 2 + thick * 0.4), 0, -rise * 0.25
            )
            shape.add("earpiece", turned)
        if draw.chance(0.6):
            start = np.array((-width / 2, 0.0, -rise * 0.25 - cup))
            shape.add("wire", _wire(draw, start, draw.between(0.1, 0.3)))
        return
    drop = draw.between(0.15, 0.35)
    gap = draw.between(0.04, 0.1)
    for side in (-1, 1):
        bud = ellipsoid((0.022, 0.026, 0.026), (side * gap, 0, drop), around=12, rows=8)
        stem = rod((side * gap, 0.005, drop - 0.03), (side * gap, 0.005, drop + 0.01), 0.006)
        shape.add("earpiece", bud, stem)
        share = np.linspace(0, 1, 8)
        side_way = side * gap * (1 - share**2)
        path = np.column_stack(
            (side_way, 0.005 + 0.02 * np.sin(share * 5), drop - 0.03 - share * drop * 0.5)
        )
        shape.add("wire", tube(path, 0.003, around=5))
    shape.add("wire", _wire(draw, np.array((0.0, 0.005, drop * 0.5 - 0.03)), drop * 0.6))


def _wire(draw: Draw, start: Floats, length: float) -> Mesh:
    """A cord that hangs down from ``start`` in a wave."""
    share = np.linspace(0, 1, 10)
    wave = draw.between(0.01, 0.06) * np.sin(share * draw.between(2, 7))
    path = start + np.column_stack((wave, 0.3 * wave, -share * length))
    return tube(path, 0.0035, around=5)
