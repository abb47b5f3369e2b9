"""Procedural shapes: sound, the same for the same generator, and of every kind that meshes from the Web are of."""

from __future__ import annotations

import numpy as np
import pytest

from pointdistill.data.synthetic_shapes import BuiltinShape, face_areas, sample_shape
from pointdistill.data.synthetic_shapes.procedural import ARRANGEMENTS, PROCEDURAL, make_procedural
from pointdistill.data.synthetic_shapes.procedural_parts import (
    MAKERS,
    choose,
    fitted,
    log_between,
    random_limb,
    random_part,
    towards,
)
from pointdistill.data.synthetic_shapes.shape import Draw, Floats

COUNT = 200


def shape_of(index: int) -> BuiltinShape:
    return make_procedural(rng=np.random.default_rng((5, index)))


@pytest.fixture(scope="module")
def shapes() -> list[BuiltinShape]:
    return [shape_of(index) for index in range(COUNT)]


def test_a_shape_depends_on_its_generator_alone(shapes: list[BuiltinShape]) -> None:
    again = shape_of(17)
    assert np.array_equal(again.vertices, shapes[17].vertices)
    assert np.array_equal(again.faces, shapes[17].faces)
    assert not np.array_equal(again.vertices[:1], shapes[18].vertices[:1])


def test_every_shape_is_sound(shapes: list[BuiltinShape]) -> None:
    """Finite, on the floor, centred, more than a line, without empty faces."""
    for shape in shapes:
        corners = shape.vertices[np.unique(shape.faces)]
        low, high = corners.min(axis=0), corners.max(axis=0)
        assert np.isfinite(shape.vertices).all()
        assert low[2] == pytest.approx(0.0, abs=1e-9)
        assert low[:2] == pytest.approx(-high[:2])
        sides = np.sort(high - low)
        assert sides[1] > 0.03 * sides[2]
        assert 0.25 < sides[2] < 3.1
        assert face_areas(shape.vertices, shape.faces).min() > 0.0
        assert shape.category == PROCEDURAL
        points, _ = sample_shape(shape, 64, rng=np.random.default_rng(0))
        assert np.isfinite(points).all()


def test_they_vary_as_meshes_from_the_web_do(shapes: list[BuiltinShape]) -> None:
    """Few and many faces; thin, flat, round; open and closed; symmetric and not; of one and of many bodies."""
    faces = np.array([len(shape.faces) for shape in shapes])
    assert faces.min() < 300
    assert faces.max() > 5000
    clouds = [sample_shape(shape, 512, rng=np.random.default_rng(1))[0] for shape in shapes]
    spread = np.array([np.linalg.eigvalsh(np.cov(cloud.T))[::-1] for cloud in clouds])
    share = spread / spread.sum(axis=1, keepdims=True)
    assert (share[:, 0] > 0.9).mean() > 0.1  # long
    assert ((share[:, 0] < 0.7) & (share[:, 2] < 0.05)).mean() > 0.03  # flat
    assert (share[:, 2] > 0.15).mean() > 0.08  # round
    is_open = np.array([open_edges(shape) for shape in shapes])
    assert 0.2 < is_open.mean() < 0.9
    height = np.array([np.ptp(cloud, axis=0) for cloud in clouds])
    upright = height[:, 2] / height[:, :2].max(axis=1)
    assert np.quantile(upright, 0.1) < 0.4
    assert np.quantile(upright, 0.9) > 1.8


def open_edges(shape: BuiltinShape) -> bool:
    """Whether more than a hundredth of the edges belong to one face alone."""
    corner = np.unique(shape.vertices.round(6), axis=0, return_inverse=True)[1].reshape(-1)
    edges = np.sort(corner[shape.faces][:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    count = np.unique(edges, axis=0, return_counts=True)[1]
    return bool((count == 1).mean() > 0.01)


@pytest.mark.parametrize("maker", [maker for maker, _ in MAKERS])
def test_every_maker_gives_a_surface(maker: object) -> None:
    """A part has an area, and few draws are not finite."""
    assert callable(maker)
    for index in range(25):
        mesh = maker(Draw(np.random.default_rng((1, index))))
        assert np.isfinite(mesh.vertices).all()
        assert face_areas(mesh.vertices, mesh.faces).sum() > 0.0


@pytest.mark.parametrize("arrangement", [arrangement for arrangement, _ in ARRANGEMENTS])
def test_every_arrangement_gives_a_surface(arrangement: object) -> None:
    assert callable(arrangement)
    for index in range(6):
        mesh = arrangement(Draw(np.random.default_rng((2, index))), 0)
        assert np.isfinite(mesh.vertices).all()
        assert face_areas(mesh.vertices, mesh.faces).sum() > 0.0


def test_parts_fill_the_unit_box_and_limbs_begin_at_the_origin() -> None:
    for index in range(30):
        draw = Draw(np.random.default_rng((3, index)))
        part = random_part(draw)
        low, high = part.vertices.min(axis=0), part.vertices.max(axis=0)
        assert (high - low).max() == pytest.approx(1.0)
        assert (low + high) / 2.0 == pytest.approx(np.zeros(3), abs=1e-9)
        assert random_limb(draw).vertices[:, 2].min() == pytest.approx(0.0, abs=1e-9)
        assert fitted(part.moved(1.0, 2.0, 3.0)).vertices == pytest.approx(part.vertices)


@pytest.mark.parametrize("direction", [(0.0, 0.0, 2.0), (0.0, 0.0, -1.0), (1.0, -2.0, 0.5)])
def test_z_is_turned_towards_a_direction(direction: tuple[float, float, float]) -> None:
    matrix: Floats = towards(direction, 0.7)
    assert matrix @ matrix.T == pytest.approx(np.eye(3))
    assert np.linalg.det(matrix) == pytest.approx(1.0)
    assert matrix[:, 2] == pytest.approx(np.array(direction) / np.linalg.norm(direction))


def test_choices_follow_their_weights_and_sizes_their_logarithm() -> None:
    draw = Draw(np.random.default_rng(0))
    drawn = [choose(draw, (("a", 3.0), ("b", 1.0))) for _ in range(2000)]
    assert drawn.count("a") / 2000 == pytest.approx(0.75, abs=0.04)
    sizes = [log_between(draw, 0.01, 1.0) for _ in range(2000)]
    assert np.median(sizes) == pytest.approx(0.1, rel=0.2)
