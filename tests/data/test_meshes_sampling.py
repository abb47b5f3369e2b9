"""Drawing points: uniform by area, the same for the same seed, turned but never mirrored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from pointdistill.data.meshes import (
    AXES,
    PointSet,
    RepairWarning,
    Surface,
    check_axis,
    read_mesh,
    sample_surface,
    surface_area,
    to_z_up,
)
from pointdistill.data.meshes.sampling import draw_on_surface, has_area, relative_areas
from pointdistill.errors import ConfigError, DataError

FIXTURES = Path(__file__).parent / "meshes"

# Right triangles in the plane z = 0 with areas 0.5 and 1.5, a degenerate one before, between and after.
CORNERS = np.array(
    [[0, 0, 0], [1, 0, 0], [0, 1, 0], [10, 0, 0], [13, 0, 0], [10, 1, 0], [5, 5, 5]], float
)
FACES = np.array([[6, 6, 6], [0, 1, 2], [6, 6, 0], [3, 4, 5], [6, 6, 6]])
TWO = Surface(CORNERS, FACES)


def test_areas_in_closed_form() -> None:
    areas, unit = relative_areas(CORNERS, FACES)
    assert unit == 1
    assert areas.tolist() == pytest.approx([0, 0.5, 0, 1.5, 0])
    assert surface_area(TWO) == pytest.approx(2)


@pytest.mark.parametrize("scale", [1e-200, 1e-12, 1e12, 1e150])
def test_areas_survive_tiny_and_huge_units(scale: float) -> None:
    """The area itself may leave the range of floating point, the shares of the triangles may not."""
    areas, unit = relative_areas(CORNERS * scale, FACES)
    # Where areas are scaled, by the longest edge component: from (5, 5, 5) to the origin.
    assert unit == pytest.approx(5 * scale if scale in (1e-200, 1e150) else 1)
    assert areas / areas.sum() == pytest.approx([0, 0.25, 0, 0.75, 0])


@pytest.mark.parametrize("scale", [1.0, 1e-200])
def test_the_one_triangle_with_an_area_is_found_behind_thousands_without(scale: float) -> None:
    faces = np.concatenate([np.full((5000, 3), 6), FACES[1:2], np.full((5000, 3), 6)])
    vertices = CORNERS * scale
    assert has_area(vertices, faces)
    assert not has_area(vertices, faces[:5000])
    areas, unit = relative_areas(vertices, faces)
    assert np.flatnonzero(areas).tolist() == [5000]
    assert areas[5000] * unit * unit == pytest.approx(0.5 * scale * scale)
    points = draw_on_surface(Surface(vertices, faces), 3000, rng=np.random.default_rng(0)) / scale
    assert (points[:, 2] == 0).all()
    assert points[:, :2].min() > 0
    assert (points[:, 0] + points[:, 1]).max() < 1 + 1e-12


def test_the_order_of_points_says_nothing_of_where_they_lie() -> None:
    """Points are drawn triangle by triangle, and given as they come: any part of them covers the surface."""
    points = draw_on_surface(TWO, 40_000, rng=np.random.default_rng(0))
    small = points[:, 0] <= 1
    for part in np.split(small, 8):
        assert part.mean() == pytest.approx(0.25, abs=0.03)  # sd 0.006


def test_points_fall_in_proportion_to_area_and_uniformly_within_a_triangle() -> None:
    """Of 40,000 points a quarter on the small one (sd 87); means of a triangle are its centroid."""
    points = draw_on_surface(TWO, 40_000, rng=np.random.default_rng(0))
    small = points[points[:, 0] <= 1]
    large = points[points[:, 0] >= 10]
    assert len(small) + len(large) == 40_000  # none on a degenerate triangle
    assert abs(len(small) - 10_000) < 4 * 87
    assert small.mean(0) == pytest.approx((1 / 3, 1 / 3, 0), abs=0.01)
    assert large.mean(0) == pytest.approx((11, 1 / 3, 0), abs=0.03)
    # The half of a right triangle's height next to its base holds three quarters of its area.
    assert (small[:, 1] < 0.5).mean() == pytest.approx(0.75, abs=0.02)
    assert (small[:, 0] + small[:, 1] <= 1 + 1e-12).all()


def test_the_last_triangle_is_reached_and_none_after_it() -> None:
    """The largest number below 1 times the total must still fall on the last triangle with an area."""

    class Largest(np.random.Generator):
        def random(self, *args: object, **kwargs: object) -> np.ndarray:  # type: ignore[override]
            return np.full(args[0], np.nextafter(1.0, 0.0))  # type: ignore[call-overload,no-any-return]

    points = draw_on_surface(TWO, 8, rng=Largest(np.random.PCG64()))
    assert (points[:, 0] >= 10).all()


def test_the_same_seed_gives_the_same_points_and_another_does_not() -> None:
    path = FIXTURES / "monkey.glb"
    first = sample_surface(path, 500, seed=7)
    assert first.dtype == np.float32
    assert (first == sample_surface(path, 500, 7)).all()
    assert not (first == sample_surface(path, 500, seed=8)).any()


def test_points_lie_on_the_surface() -> None:
    box = trimesh.creation.box((2, 4, 6))
    points = sample_surface(box, 2000, seed=0)
    on_side = np.isclose(np.abs(points), (1, 2, 3), atol=1e-6)
    assert on_side.any(axis=1).all()
    # Sides of 8, 12 and 24 in pairs: 44 of area, shared out by the axis they face.
    shares = on_side.sum(axis=0) / len(points)
    assert shares == pytest.approx((24 / 44, 12 / 44, 8 / 44), abs=0.04)


def test_a_trimesh_scene_applies_its_transforms() -> None:
    box = trimesh.creation.box((1, 1, 1))
    scene = trimesh.Scene()
    scene.add_geometry(box, transform=trimesh.transformations.translation_matrix((5, 0, 0)))
    scene.add_geometry(box, transform=trimesh.transformations.scale_matrix(3))
    points = sample_surface(scene, 20_000, seed=0)
    # Areas 6 and 54.
    assert (points[:, 0] > 4).mean() == pytest.approx(0.1, abs=0.01)
    assert points.max(0) == pytest.approx((5.5, 1.5, 1.5), abs=0.01)


def test_a_trimesh_cloud_and_what_is_no_mesh() -> None:
    vertices = np.random.default_rng(0).normal(size=(50, 3))
    points = sample_surface(trimesh.PointCloud(vertices), 50, seed=0)
    assert points == pytest.approx(vertices, abs=1e-6)
    with pytest.raises(
        TypeError,
        match=r"expected a path, an array \(N, 3\), a trimesh\.Trimesh or a trimesh\.Scene, got list",
    ):
        sample_surface([], 50, seed=0)
    with pytest.raises(DataError, match="the given Scene: nothing to sample"):
        sample_surface(trimesh.Scene(), 50, seed=0)


class TriangleMesh:
    """The attribute names of a mesh in Open3D: two triangles that make a unit square at z = 5."""

    vertices = np.array([[0, 0, 5], [1, 0, 5], [1, 1, 5], [0, 1, 5]], float)
    triangles = np.array([[0, 1, 2], [0, 2, 3]])


class TetraMesh:
    """Vertices, and corners under a name that is not known here."""

    vertices = np.zeros((40, 3))
    tetras = np.zeros((10, 4), int)


def test_an_open3d_mesh_is_a_surface_and_not_a_cloud_of_its_corners() -> None:
    points = sample_surface(TriangleMesh(), 4000, seed=0)
    assert (points[:, 2] == 5).all()
    assert len(np.unique(points, axis=0)) > 3990
    # Uniform in the square: the mean of 4,000 has a deviation of 0.29 / 63.
    assert points[:, :2].mean(0) == pytest.approx([0.5, 0.5], abs=0.025)


def test_vertices_alone_make_no_cloud_unless_the_class_is_one() -> None:
    with pytest.raises(TypeError, match=r"expected a path, .* got TetraMesh"):
        sample_surface(TetraMesh(), 40, seed=0)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("triangles", np.zeros((6, 4), int), r"its triangles have the shape \(6, 4\)"),
        ("vertices", np.zeros((3, 8)), r"its vertices have the shape \(3, 8\)"),
        ("vertices", np.zeros(24), r"its vertices have the shape \(24,\)"),
    ],
)
def test_arrays_of_another_shape_are_refused(name: str, values: np.ndarray, message: str) -> None:
    mesh = TriangleMesh()
    setattr(mesh, name, values)
    with pytest.raises(DataError, match=message):
        sample_surface(mesh, 40, seed=0)


def test_a_damaged_trimesh_is_refused_or_repaired_aloud() -> None:
    mesh = trimesh.Trimesh(
        [[0, 0, 0], [1, 0, 0], [0, 1, 0], [np.nan] * 3], [[0, 1, 2], [0, 1, 3]], process=False
    )
    with pytest.raises(DataError, match="the given Trimesh: 1 of 2 faces cannot be used"):
        sample_surface(mesh, 10, seed=0)
    with pytest.warns(RepairWarning, match="the given Trimesh: dropped 1 faces"):
        assert sample_surface(mesh, 10, seed=0, repair=True).shape == (10, 3)


def test_up_y_takes_zxy() -> None:
    assert to_z_up(np.array([[1.0, 2.0, 3.0]]), "y").tolist() == [[3, 1, 2]]


@pytest.mark.parametrize("up", AXES)
def test_every_turn_is_a_rotation_that_brings_up_to_z(up: str) -> None:
    axis = check_axis(up)
    turned = to_z_up(np.eye(3), axis)
    assert np.linalg.det(turned) == pytest.approx(1)
    direction = np.eye(3)["xyz".index(up[-1])] * (-1 if up.startswith("-") else 1)
    assert to_z_up(direction[None], axis).tolist() == [[0, 0, 1]]


def test_sampling_turns_only_when_asked() -> None:
    path = FIXTURES / "nested.glb"
    points = sample_surface(path, 64, seed=0)
    turned = sample_surface(path, 64, seed=0, up="y")
    assert (turned == points[:, [2, 0, 1]]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0, "seed": 0}, "at least 1, got 0"),
        ({"count": 8, "seed": -1}, "0 or more, got -1"),
        ({"count": 8, "seed": 0, "up": "Y"}, "up must be one of z, y, x, -z, -y, -x, got 'Y'"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sample_surface(FIXTURES / "nested.glb", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("vertices", "message"),
    [
        (CORNERS[:3] * 1e39, "do not fit float32"),
        (np.array([[-1.7e308, 0, 0], [1.7e308, 0, 0], [0, 1, 0]]), "too large for floating point"),
        (CORNERS[:3] + 1e15, "lies 1e\\+15 from the origin, where float64 has steps of 0.125"),
    ],
)
def test_coordinates_that_float32_cannot_hold_are_refused(
    vertices: np.ndarray, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        sample_surface(Surface(vertices, np.array([[0, 1, 2]])), 100, seed=0)


def test_a_subset_of_a_cloud_is_drawn_evenly() -> None:
    """Each of 100 points is in half of all subsets of 50: 200 of 400, sd 10."""
    cloud = PointSet(np.arange(300, dtype=float).reshape(100, 3))
    drawn = np.concatenate([sample_surface(cloud, 50, seed=seed)[:, 0] for seed in range(400)])
    counts = np.bincount((drawn / 3).astype(int), minlength=100)
    assert counts.sum() == 400 * 50
    assert abs(counts - 200).max() < 50


def test_what_was_read_once_can_be_sampled_again() -> None:
    shape = read_mesh(FIXTURES / "nested.glb")
    assert (sample_surface(shape, 99, seed=1) == sample_surface(shape, 99, seed=1)).all()
