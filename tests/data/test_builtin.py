"""The built-in shapes: what every category promises, and the variety that no single number shows."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier

from pointdistill.data.synthetic_shapes import (
    CATEGORIES,
    PART_NAMES,
    BuiltinShape,
    category_rng,
    face_areas,
    make_shape,
    sample_shape,
)
from pointdistill.data.synthetic_shapes.shape import REGISTRY, Assembly, Draw
from pointdistill.errors import ConfigError

SCANOBJECTNN = (
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow",
    "sink", "sofa", "toilet",
)  # fmt: skip
SHAPENETPART_PARTS = {
    "airplane": 4, "bag": 2, "cap": 2, "car": 4, "chair": 4, "earphone": 3, "guitar": 3, "knife": 2,
    "lamp": 4, "laptop": 2, "motorbike": 6, "mug": 2, "pistol": 3, "rocket": 3, "skateboard": 3, "table": 3,
}  # fmt: skip


def shape_of(category: str, index: int, seed: int = 0) -> BuiltinShape:
    return make_shape(category, rng=category_rng(seed=seed, category=category, index=index))


def test_the_benchmarks_own_names_are_there() -> None:
    assert len(CATEGORIES) >= 36
    assert list(CATEGORIES) == sorted(CATEGORIES)
    assert set(SCANOBJECTNN) <= set(CATEGORIES)


def test_part_vocabularies_have_the_sizes_of_the_segmentation_benchmark() -> None:
    """Sixteen categories, fifty parts in all."""
    assert {name: len(PART_NAMES[name]) for name in SHAPENETPART_PARTS} == SHAPENETPART_PARTS
    assert sum(SHAPENETPART_PARTS.values()) == 50


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_shape_is_sound(category: str) -> None:
    """Finite, on the floor, centred, thick in every direction, and labelled within its vocabulary."""
    for index in range(12):
        shape = shape_of(category, index)
        low, high = shape.vertices.min(axis=0), shape.vertices.max(axis=0)
        assert np.isfinite(shape.vertices).all()
        assert low[2] == pytest.approx(0.0, abs=1e-9)
        assert low[:2] == pytest.approx(-high[:2])
        assert ((high - low) > 0.01 * (high - low).max()).all()
        assert 100 <= len(shape.faces) <= 6000
        assert shape.faces.min() >= 0
        assert shape.faces.max() < len(shape.vertices)
        assert face_areas(shape.vertices, shape.faces).min() > 0.0
        assert shape.face_part.shape == (len(shape.faces),)
        assert shape.part_names == PART_NAMES[category]
        assert shape.face_part.max() < len(shape.part_names)


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_piece_is_closed_and_faces_outwards(category: str) -> None:
    """Each edge is walked once in each direction, and the signed volume is positive."""
    kind = REGISTRY[category]
    for index in range(6):
        assembly = Assembly(kind.part_names)
        kind.maker(assembly, Draw(category_rng(seed=1, category=category, index=index)))
        for part, piece in assembly.pieces:
            edges = piece.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
            assert sorted(edges.tolist()) == sorted(edges[:, ::-1].tolist()), part
            corner = (piece.vertices - piece.vertices.mean(axis=0))[piece.faces]
            assert np.linalg.det(corner).sum() > 0.0, part


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_part_name_is_used_and_no_two_shapes_are_alike(category: str) -> None:
    shapes = [shape_of(category, index) for index in range(80)]
    used = np.unique(np.concatenate([np.unique(shape.face_part) for shape in shapes]))
    assert used.tolist() == list(range(len(PART_NAMES[category])))
    extents = {tuple(np.ptp(shape.vertices, axis=0).round(6)) for shape in shapes}
    assert len(extents) == len(shapes)
    structures = {len(shape.faces) for shape in shapes}
    assert len(structures) >= (
        4 if category in SCANOBJECTNN else 2
    )  # it is not size alone that varies


def test_a_shape_depends_on_seed_category_and_index_alone() -> None:
    first = shape_of("chair", 5)
    shape_of("table", 0)
    again = shape_of("chair", 5)
    assert first.vertices.tobytes() == again.vertices.tobytes()
    assert first.faces.tobytes() == again.faces.tobytes()
    others = [shape_of("chair", 6), shape_of("chair", 5, seed=1), shape_of("stool", 5)]
    assert all(first.vertices.tobytes() != other.vertices.tobytes() for other in others)


def test_sampling_repeats_with_the_same_generator() -> None:
    shape = shape_of("lamp", 3)
    points, part = sample_shape(shape, 500, rng=np.random.default_rng(1))
    again, part_again = sample_shape(shape, 500, rng=np.random.default_rng(1))
    assert points.dtype == np.float32
    assert points.shape == (500, 3)
    assert part.dtype == np.uint8
    assert np.array_equal(points, again)
    assert np.array_equal(part, part_again)


def two_squares() -> BuiltinShape:
    """A unit square at z = 0 (part 0) and one of three times its area at z = 1 (part 1)."""
    wide = np.sqrt(3.0)
    vertices = np.array(
        [
            (0, 0, 0),
            (1, 0, 0),
            (1, 1, 0),
            (0, 1, 0),
            (0, 0, 1),
            (wide, 0, 1),
            (wide, wide, 1),
            (0, wide, 1),
        ],
        dtype=np.float64,
    )
    faces = np.array([(0, 1, 2), (0, 2, 3), (4, 5, 6), (4, 6, 7)], dtype=np.int32)
    return BuiltinShape(
        "table", vertices, faces, np.array([0, 0, 1, 1], dtype=np.uint8), ("a", "b", "c")
    )


def test_points_are_uniform_by_area() -> None:
    """A quarter of the points on the small square, and on either an even spread."""
    points, part = sample_shape(two_squares(), 40_000, rng=np.random.default_rng(0))
    assert np.array_equal(points[:, 2] > 0.5, part == 1)
    assert (part == 0).mean() == pytest.approx(0.25, abs=0.01)
    small = points[part == 0]
    cells, _, _ = np.histogram2d(small[:, 0], small[:, 1], bins=4, range=[[0, 1], [0, 1]])
    assert cells.min() > 0.85 * len(small) / 16
    assert cells.max() < 1.15 * len(small) / 16


@pytest.mark.parametrize("category", ["chair", "car", "lamp", "bookshelf"])
def test_part_shares_of_points_follow_part_areas(category: str) -> None:
    shape = shape_of(category, 2)
    area = np.bincount(
        shape.face_part, weights=face_areas(shape.vertices, shape.faces), minlength=8
    )
    _, part = sample_shape(shape, 20_000, rng=np.random.default_rng(2))
    assert np.bincount(part, minlength=8) / len(part) == pytest.approx(area / area.sum(), abs=0.015)


def test_points_lie_on_the_surface() -> None:
    """Every point is in the plane and inside the edges of some triangle."""
    shape = shape_of("stool", 1)
    points, _ = sample_shape(shape, 50, rng=np.random.default_rng(3))
    corner = shape.vertices[shape.faces]
    edges = corner[:, 1:] - corner[:, :1]  # (F, 2, 3)
    inverse = np.linalg.pinv(edges.transpose(0, 2, 1))  # (F, 2, 3)
    for point in points.astype(np.float64):
        offset = point - corner[:, 0]
        weight = np.einsum("fij,fj->fi", inverse, offset)
        gap = np.linalg.norm(offset - np.einsum("fi,fij->fj", weight, edges), axis=1)
        inside = (weight > -1e-3).all(axis=1) & (weight.sum(axis=1) < 1.0 + 1e-3)
        assert gap[inside].min() < 1e-5


def simple_numbers(shape: BuiltinShape) -> dict[str, float]:
    """What a classifier could read off without looking: proportions, size, area, volume, balance."""
    width, depth, height = np.ptp(shape.vertices, axis=0)
    area = face_areas(shape.vertices, shape.faces)
    corner = shape.vertices[shape.faces]
    centre = (corner.mean(axis=1) * area[:, None]).sum(axis=0) / area.sum()
    volume = np.linalg.det(corner).sum() / 6.0
    block = width * depth * height
    return {
        "width / height": width / height,
        "depth / height": depth / height,
        "width / depth": width / depth,
        "thinnest / longest": min(width, depth, height) / max(width, depth, height),
        "diagonal": float(np.linalg.norm((width, depth, height))),
        "height": height,
        "area / diagonal": area.sum() / (width**2 + depth**2 + height**2),
        "area / block": area.sum() / block ** (2 / 3),
        "volume / block": volume / block,
        "area": area.sum(),
        "centre of area, z": centre[2] / height,
        "centre of area, y": centre[1] / depth,
        "faces": len(shape.faces),
    }


def test_no_simple_number_gives_the_category_away() -> None:
    """A tree of depth 3 on any one of them names at most a quarter of unseen shapes; chance is 1 in 15."""
    rows, labels = [], []
    for label, category in enumerate(SCANOBJECTNN):
        for index in range(50):
            rows.append(simple_numbers(shape_of(category, index, seed=2)))
            labels.append(label)
    truth: NDArray[np.int64] = np.array(labels)
    seen = np.arange(len(truth)) % 2 == 0
    for name in rows[0]:
        column = np.array([[row[name]] for row in rows])
        tree = DecisionTreeClassifier(max_depth=3, random_state=0).fit(column[seen], truth[seen])
        assert tree.score(column[~seen], truth[~seen]) <= 0.25, name


def test_an_unknown_category_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"no built-in category 'spaceship'; choose one of: airplane, "
    ):
        make_shape("spaceship", rng=np.random.default_rng(0))


def test_an_empty_sample_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 point, got 0"):
        sample_shape(two_squares(), 0, rng=np.random.default_rng(0))


def test_the_library_needs_neither_torch_nor_trimesh() -> None:
    """Only numpy is imported beyond the standard library."""
    module = "pointdistill.data.synthetic_shapes"
    code = f"import sys, {module}; print({{'torch', 'trimesh', 'scipy'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
