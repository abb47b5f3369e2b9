"""Primitives and deformations, compared with sizes from elementary geometry."""

from __future__ import annotations

import numpy as np
import pytest

from pointdistill.data.synthetic_shapes import face_areas
from pointdistill.data.synthetic_shapes.primitives import (
    arc,
    box,
    cushion,
    cylinder,
    ellipsoid,
    lathe,
    prism,
    ring,
    rod,
    sheet,
    torus,
    tube,
    vessel,
)
from pointdistill.data.synthetic_shapes.shape import (
    Mesh,
    bend,
    bulge,
    join,
    random_deformation,
    shear,
    taper,
    twist,
)


def volume(mesh: Mesh) -> float:
    """By the divergence theorem; positive where the faces look outwards."""
    return float(np.linalg.det(mesh.vertices[mesh.faces]).sum() / 6.0)


def area(mesh: Mesh) -> float:
    return float(face_areas(mesh.vertices, mesh.faces).sum())


def bounds(mesh: Mesh) -> list[float]:
    return [*mesh.vertices.min(axis=0), *mesh.vertices.max(axis=0)]


def test_a_box_stands_on_its_base_point() -> None:
    block = box((2.0, 3.0, 4.0), (10.0, 0.0, 1.0))
    assert bounds(block) == pytest.approx([9.0, -1.5, 1.0, 11.0, 1.5, 5.0])
    assert volume(block) == pytest.approx(24.0)
    assert area(block) == pytest.approx(52.0)


def test_rounding_keeps_a_boxs_extents_and_takes_its_corners() -> None:
    block = box((2.0, 3.0, 4.0), edge=0.3)
    assert bounds(block) == pytest.approx([-1.0, -1.5, 0.0, 1.0, 1.5, 4.0])
    assert 0.9 * 24.0 < volume(block) < 24.0


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        (cylinder(1.0, 2.0, around=90), 2 * np.pi),
        (cylinder(1.0, 3.0, top=0.0, around=90), np.pi),  # a cone: a third of its cylinder
        (ellipsoid((2.0, 2.0, 2.0), around=60, rows=40), 4 / 3 * np.pi),
        (torus(2.0, 0.5, around=90), 4 * np.pi * 2.0 * np.sqrt(2) * 0.25),  # its bar has eight sides
        (rod((0, 0, 0), (3, 4, 0), 1.0, around=90), 5 * np.pi),
        (prism([(0, 0), (2, 0), (2, 1), (0, 1)], 3.0), 6.0),
        (vessel([(2.0, 0.0), (2.0, 1.0)], 1.0, around=90), 4 * np.pi),  # floor as thick as it is tall
        (lathe([(2, 0), (2, 1), (1, 1), (1, 0)], closed=True, around=90), 3 * np.pi),  # a pipe
    ],
)  # fmt: skip
def test_volumes(mesh: Mesh, expected: float) -> None:
    assert volume(mesh) == pytest.approx(expected, rel=0.06)


def test_a_flat_sheet_is_a_plate() -> None:
    x, z = np.meshgrid(np.linspace(0, 2, 5), np.linspace(0, 3, 4))
    plate = sheet(np.stack((x, np.zeros_like(x), z), axis=-1), 0.1)
    assert volume(plate) == pytest.approx(0.6)
    assert bounds(plate) == pytest.approx([0, 0, 0, 2, 0.1, 3])  # the back lies behind, towards +y


def test_a_cushion_is_full_in_the_middle_and_thin_at_the_seam() -> None:
    pad = cushion((1.0, 1.0, 0.4), pinch=0.5)
    assert volume(pad) > 0.0
    centre = np.abs(pad.vertices[:, :2]).max(axis=1) < 1e-9
    corner = np.abs(pad.vertices[:, :2]).min(axis=1) > 0.49
    assert np.ptp(pad.vertices[centre, 2]) == pytest.approx(0.4)
    assert np.ptp(pad.vertices[corner, 2]) < 0.05


def test_a_tube_keeps_its_radius_around_a_bend() -> None:
    path = np.column_stack((arc(2.0, 0, 180, 40), np.zeros(40)))
    distance = np.hypot(
        np.hypot(*tube(path, 0.3).vertices[:-2, :2].T) - 2.0, tube(path, 0.3).vertices[:-2, 2]
    )
    assert distance == pytest.approx(0.3, abs=0.01)


def test_ring_powers() -> None:
    assert np.hypot(*ring(32).T) == pytest.approx(1.0)
    assert np.abs(ring(8, 1.0)).sum(axis=1) == pytest.approx(1.0)  # a diamond
    assert np.abs(ring(32, 20.0)).max(axis=1).min() > 0.96  # nearly a square


def test_moves_of_a_mesh() -> None:
    block = box((2.0, 1.0, 1.0), (3.0, 0.0, 0.0))
    assert bounds(block.moved(y=1.0)) == pytest.approx([2, 0.5, 0, 4, 1.5, 1])
    assert bounds(block.turned("z", 90)) == pytest.approx([-0.5, 2, 0, 0.5, 4, 1])
    assert bounds(block.turned("y", 90, about=(3, 0, 0))) == pytest.approx([3, -0.5, -1, 4, 0.5, 1])
    assert bounds(block.mirrored()) == pytest.approx([-4, -0.5, 0, -2, 0.5, 1])
    assert volume(block.mirrored()) == pytest.approx(2.0)
    assert volume(join(block, block.scaled(2, 2, 2))) == pytest.approx(18.0)


COLUMN = np.array([(x, y, z) for z in (0.0, 1.0, 2.0) for y in (-1.0, 1.0) for x in (-1.0, 1.0)])


@pytest.mark.parametrize(
    ("changed", "corner_at_floor", "corner_in_middle", "corner_at_top"),
    [
        (taper(COLUMN, 0.1), (0.9, 0.9), (1.0, 1.0), (1.1, 1.1)),
        (bulge(COLUMN, 0.1), (1.0, 1.0), (1.1, 1.1), (1.0, 1.0)),
        (shear(COLUMN, 0.1, 0.0), (1.0, 1.0), (1.1, 1.0), (1.2, 1.0)),
        (bend(COLUMN, 0.1, 2), (1.0, 1.2), (1.0, 1.0), (1.0, 1.2)),
        (twist(COLUMN, np.pi / 2), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)),
    ],
)
def test_deformations_of_a_column(
    changed: np.ndarray,
    corner_at_floor: tuple[float, float],
    corner_in_middle: tuple[float, float],
    corner_at_top: tuple[float, float],
) -> None:
    """Where the corner (1, 1) goes at each level; no level moves up or down."""
    for index, expected in zip(
        (3, 7, 11), (corner_at_floor, corner_in_middle, corner_at_top), strict=True
    ):
        assert changed[index, :2] == pytest.approx(expected)
    assert np.array_equal(changed[:, 2], COLUMN[:, 2])


def test_random_deformations_stay_mild() -> None:
    """Proportions change by less than a factor of two and a half in either direction."""
    before = np.ptp(COLUMN, axis=0)
    for seed in range(200):
        after = np.ptp(random_deformation(COLUMN, rng=np.random.default_rng(seed)), axis=0)
        ratio = after / before
        assert ratio.max() / ratio.min() < 2.5
