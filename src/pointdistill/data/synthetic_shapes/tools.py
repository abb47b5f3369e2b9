"""Hand-held objects, and a person: guitar, knife, pistol, person."""

from __future__ import annotations

import numpy as np

from pointdistill.data.synthetic_shapes.primitives import box, cylinder, ellipsoid, rod, skin, tube
from pointdistill.data.synthetic_shapes.shape import Assembly, Draw, Floats, Mesh, category


def plate(outline: Floats, thick: float) -> Mesh:
    """A flat solid between the curves of (S, 3) rows (z, left x, right x), ``thick`` deep about y = 0."""
    rows = [
        [(left, -thick / 2, z), (right, -thick / 2, z), (right, thick / 2, z), (left, thick / 2, z)]
        for z, left, right in outline
    ]
    return skin(np.array(rows))


def upright(shape: Assembly, draw: Draw, pieces: list[tuple[str, Mesh]], *, lying: float) -> None:
    """Add pieces made upright, laid on their back on some."""
    flat = draw.chance(lying)
    for part, piece in pieces:
        shape.add(part, piece.turned("x", -90) if flat else piece)


@category("guitar", "head", "neck", "body")
def guitar(shape: Assembly, draw: Draw) -> None:
    """An acoustic, electric or bass guitar; standing or lying."""
    long, wide = draw.between(0.42, 0.55), draw.between(0.28, 0.42)
    kind = draw.pick(("acoustic", "acoustic", "electric", "flying"))
    thick = draw.between(0.08, 0.13) if kind == "acoustic" else draw.between(0.035, 0.06)
    z = np.linspace(0, 1, 19)
    if kind == "flying":
        half = wide / 2 * np.interp(z, [0, 0.1, 1], [1.0, 1.05, 0.25])
        left, right = -half, half
        pieces: list[tuple[str, Mesh]] = [
            ("body", plate(np.column_stack((z * long, left, right)), thick))
        ]
    else:
        waist, upper = draw.between(0.5, 0.8), draw.between(0.65, 0.95)
        knots = (
            [0, 0.04, 0.12, 0.28, 0.6, 0.82, 0.94, 1.0],
            [0.3, 0.65, 0.92, 1.0, waist, upper, upper * 0.75, 0.2],
        )
        half = wide / 2 * np.interp(z, *knots)
        left, right = -half, half.copy()
        if kind == "electric":
            right = half * np.where(z > 0.85, draw.between(0.2, 1.0), 1.0)
        pieces = [("body", plate(np.column_stack((z * long, left, right)), thick))]
        if kind == "acoustic":
            hole = cylinder(wide * 0.13, 0.008, around=18).turned("x", 90)
            pieces.append(("body", hole.moved(0, -thick / 2, long * 0.62)))
    pieces.append(("body", box((wide * 0.3, 0.018, 0.03), (0, -thick / 2 - 0.009, long * 0.25))))
    neck = draw.between(0.35, 0.65)
    grip = draw.between(0.04, 0.06)
    front = -thick / 2 + 0.01
    pieces.append(("neck", box((grip, 0.025, neck + long * 0.1), (0, front, long * 0.9))))
    top, head = long + neck, draw.between(0.13, 0.2)
    skew = draw.pick((0.0, 0.35))
    outline = np.array(
        [(0, -0.5, 0.5), (0.25, -0.9, 0.9 - skew), (0.9, -0.8, 0.8 - skew), (1, -0.5, 0.5 - skew)]
    )
    scale = np.array((head, grip, grip))
    board = plate(outline * scale, 0.018).turned("x", -draw.between(0, 14))
    pieces.append(("head", board.moved(0, front, top)))
    for side in (-1, 1):
        for share in np.linspace(0.25, 0.85, draw.count(2, 3)):
            reach = grip * 1.35 * side
            pieces.append(
                (
                    "head",
                    rod(
                        (0, front, top + share * head),
                        (reach, front, top + share * head),
                        0.006,
                        around=6,
                    ),
                )
            )
    upright(shape, draw, pieces, lying=0.3)


@category("knife", "blade", "handle")
def knife(shape: Assembly, draw: Draw) -> None:
    """A kitchen knife, dagger, cleaver or sword."""
    long, wide = draw.between(0.12, 0.32), draw.between(0.02, 0.05)
    kind = draw.pick(("kitchen", "dagger", "cleaver", "sword"))
    if kind == "cleaver":
        wide *= draw.between(1.6, 2.6)
    if kind == "sword":
        long *= draw.between(1.6, 2.6)
    z = np.linspace(0, 1, 12)
    shrink = {
        "kitchen": 1 - z ** draw.between(1.8, 5),
        "cleaver": np.where(z > 0.95, 0.85, 1.0),
    }.get(kind, 1 - z ** draw.between(3, 8))
    back = -0.5 * (shrink if kind in ("dagger", "sword") else np.ones_like(z) * (1 - 0.2 * z))
    edge = back + np.maximum(shrink, 0.03) * (1.0 if kind not in ("kitchen",) else 0.95)
    bend = draw.pick((0.0, 0.0, draw.between(-0.6, 0.6))) * z**2
    outline = np.column_stack((z * long, (back + bend) * wide, (edge + bend) * wide))
    pieces = [("blade", plate(outline, draw.between(0.002, 0.006)))]
    grip, fat = draw.between(0.08, 0.13), draw.between(0.009, 0.016)
    flat = draw.between(1.0, 1.8)
    form = np.array([0.9, 1.0, draw.between(0.8, 1.2), 1.0, draw.between(0.9, 1.4)])
    path = np.column_stack((np.zeros(5), np.zeros(5), np.linspace(0, -grip, 5)))
    handle = tube(path, fat * form, around=12, power=draw.between(2, 5)).scaled(flat, 1, 1)
    pieces.append(("handle", handle))
    if kind in ("dagger", "sword") or draw.chance(0.3):
        pieces.append(("handle", box((wide * draw.between(1.4, 2.8), 0.02, 0.012)).moved(z=-0.006)))
    if kind == "sword" and draw.chance(0.6):
        pieces.append(
            ("handle", ellipsoid((0.035, 0.03, 0.035), (0, 0, -grip - 0.03), around=10, rows=6))
        )
    turn = draw.pick((0.0, 90.0, 90.0))
    for part, piece in pieces:
        shape.add(part, piece.turned("y", turn))


@category("pistol", "barrel", "grip", "trigger")
def pistol(shape: Assembly, draw: Draw) -> None:
    """A pistol, revolver or long-barrelled handgun, its muzzle to the right."""
    long, tall = draw.between(0.14, 0.28), draw.between(0.022, 0.04)
    thick = draw.between(0.018, 0.03)
    if draw.chance(0.55):
        shape.add(
            "barrel", box((long, thick, tall), (long / 2, 0, 0), edge=draw.pick((0.0, 0.005)))
        )
        shape.add(
            "barrel",
            box(
                (long * draw.between(0.6, 0.95), thick * 0.9, tall * 0.5),
                (long * 0.42, 0, -tall * 0.45),
            ),
        )
    else:
        shape.add(
            "barrel",
            rod((long * 0.3, 0, tall * 0.6), (long, 0, tall * 0.6), tall * draw.between(0.22, 0.4)),
        )
        shape.add(
            "barrel",
            rod((long * 0.14, 0, tall * 0.3), (long * 0.42, 0, tall * 0.3), tall * 0.6, around=14),
        )
        shape.add(
            "barrel",
            box((long * 0.22, thick, tall * 1.4), (long * 0.08, 0, -tall * 0.5), edge=0.005),
        )
    if draw.chance(0.7):
        shape.add("barrel", box((0.008, 0.004, 0.01), (long * 0.96, 0, tall)))
        shape.add("barrel", box((0.01, thick * 0.8, 0.012), (0.01, 0, tall)))
    grip, wide, lean = draw.between(0.08, 0.13), draw.between(0.032, 0.048), draw.between(2, 28)
    swell = draw.between(0.9, 1.3)
    sections = np.linspace(0, -grip, 5)
    widths = wide / 2 * np.array([1, 0.92, 0.95, 1.0, swell])
    body = plate(np.column_stack((sections, -widths, widths))[::-1], thick * 1.1)
    shape.add("grip", body.turned("y", lean).moved(wide * 0.6, 0, 0.002))
    hook = wide * 1.2
    guard = np.array(
        [
            (hook, -0.002),
            (hook, -0.03),
            (hook + 0.02, -0.036),
            (hook + 0.04, -0.026),
            (hook + 0.045, -0.002),
        ]
    )
    path = np.column_stack((guard[:, 0], np.zeros(5), guard[:, 1]))
    shape.add("trigger", tube(path, 0.0035, flatten=1.6))
    shape.add("trigger", rod((hook + 0.02, 0, 0), (hook + 0.014, 0, -0.022), 0.003, around=6))


def _limb(joints: Floats, radii: list[float]) -> list[Mesh]:
    """Tapering bars from joint to joint, with a ball at each joint in between."""
    pieces = []
    for i in range(len(joints) - 1):
        start, end = joints[i], joints[i + 1]
        pieces.append(
            tube(np.linspace(start, end, 4), np.linspace(radii[i], radii[i + 1], 4), around=10)
        )
    for joint, radius in zip(joints[1:], radii[1:], strict=True):
        size = 2.1 * radius
        pieces.append(
            ellipsoid(
                (size, size, size), (joint[0], joint[1], joint[2] - size / 2), around=10, rows=6
            )
        )
    return pieces


def _bent(
    start: Floats, lengths: tuple[float, float], swing: float, bend: float, out: float
) -> Floats:
    """Three joints of a limb hanging from ``start``; degrees forward, at the middle joint, and sideways."""
    first, second = np.deg2rad(swing), np.deg2rad(swing + bend)
    middle = start + lengths[0] * np.array((np.sin(out), -np.sin(first), -np.cos(first)))
    end = middle + lengths[1] * np.array((np.sin(out), -np.sin(second), -np.cos(second)))
    return np.stack((start, middle, end))


@category("person", "head", "torso", "arm", "leg")
def person(shape: Assembly, draw: Draw) -> None:
    """Someone standing, walking, sitting or with raised arms."""
    tall = draw.between(1.4, 1.95)
    wide = tall * draw.between(0.1, 0.14)
    hip, girth = tall * 0.5, draw.between(0.8, 1.4)
    shoulder = tall * 0.81
    pose = draw.pick(("stand", "walk", "sit", "reach"))
    sections = np.array(
        [hip - 0.05, hip + 0.1, (hip + shoulder) / 2, shoulder - 0.06, shoulder + 0.03]
    )
    widths = wide * np.array([0.75, 0.85 * girth, 0.72 * girth, 1.0, 0.5])
    depths = tall * 0.065 * np.array([0.9, 1.1 * girth, 1.0 * girth, 1.1, 0.6])
    angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    torso = np.stack([
        np.column_stack((w * np.cos(angle), d * np.sin(angle), np.full(16, z)))
        for z, w, d in zip(sections, widths, depths, strict=True)
    ])  # fmt: skip
    shape.add("torso", skin(torso))
    size = tall * draw.between(0.1, 0.125)
    shape.add("head", ellipsoid((size, size * 1.1, size * 1.4), (0, 0, tall * 0.87), around=14))
    shape.add("head", rod((0, 0, shoulder - 0.02), (0, 0, tall * 0.9), size * 0.32))
    if draw.chance(0.3):
        shape.add(
            "head",
            cylinder(size * 0.9, 0.015, (0, 0, tall * 0.96)),
            cylinder(size * 0.5, 0.1, (0, 0, tall * 0.96)),
        )
    stride = draw.between(10, 40) if pose == "walk" else 0.0
    skirt = draw.chance(0.2) and pose != "sit"
    if skirt:
        low = np.column_stack(
            (
                wide * 1.4 * np.cos(angle),
                wide * 1.3 * np.sin(angle),
                np.full(16, hip * draw.between(0.4, 0.7)),
            )
        )
        shape.add("torso", skin(np.stack((low, torso[1]))))
    for side in (-1, 1):
        start = np.array((side * wide * 0.45, 0.0, hip))
        swing, knee = (
            (85.0, -85.0) if pose == "sit" else (side * stride, -abs(stride) * draw.between(0, 1))
        )
        leg = _bent(start, (hip * 0.5, hip * 0.46), swing, knee, side * draw.between(0, 0.15))
        shape.add("leg", *_limb(leg, [0.075 * girth**0.5, 0.055, 0.04]))
        foot = box(
            (0.085, 0.24, 0.07), (leg[-1, 0], leg[-1, 1] - 0.06, leg[-1, 2] - 0.05), edge=0.025
        )
        shape.add("leg", foot)
        hand = np.array((side * wide * 1.05, 0.0, shoulder - 0.03))
        lift = (
            draw.between(60, 175)
            if pose == "reach" and draw.chance(0.7)
            else -side * stride + draw.between(-8, 12)
        )
        out = side * draw.between(0.05, 0.7 if pose == "reach" else 0.3)
        arm = _bent(hand, (tall * 0.17, tall * 0.16), lift, draw.between(0, 80), out)
        shape.add("arm", *_limb(arm, [0.05, 0.04, 0.03]))
