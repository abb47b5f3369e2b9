"""Polygons, strips and fans: their triangles cover them exactly once."""

from __future__ import annotations

import numpy as np
import pytest

from pointdistill.data.meshes.checks import cut_ears, fan_triangles, strip_triangles, triangulate
from pointdistill.errors import DataError

# Outlines in the plane, with their areas by counting squares.
SQUARE = [(0, 0), (2, 0), (2, 2), (0, 2)]  # 4
ARROW = [(0, 0), (2, 2), (0, 4), (1, 2)]  # concave at its last corner: 4 - 2
CORNER = [(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)]  # an L of three unit squares
COMB = [
    (0, 0),
    (5, 0),
    (5, 3),
    (4, 3),
    (4, 1),
    (3, 1),
    (3, 3),
    (2, 3),
    (2, 1),
    (1, 1),
    (1, 3),
    (0, 3),
]  # 5 + 6
OUTLINES = {"square": (SQUARE, 4), "arrow": (ARROW, 2), "corner": (CORNER, 3), "comb": (COMB, 11)}


def in_space(outline: list[tuple[int, int]], *, turns: int = 0) -> np.ndarray:
    """The outline on a slanted plane that keeps areas: (x, y) -> 0.6 x, y, 0.8 x; begun at another corner."""
    flat = np.roll(np.array(outline, float), turns, axis=0)
    return np.stack([0.6 * flat[:, 0], flat[:, 1], 0.8 * flat[:, 0]], axis=1)


def areas(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = vertices[faces.T]
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


def cut(vertices: np.ndarray, **limits: int) -> np.ndarray:
    count = len(vertices)
    work = {"concave_work": 10_000, **limits}
    return triangulate(vertices, np.arange(count), np.array([count]), **work)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("name", OUTLINES)
def test_triangles_cover_the_polygon_once(name: str, turns: int, reverse: bool) -> None:
    """Whatever corner the outline begins at, and whichever way round it goes."""
    outline, area = OUTLINES[name]
    vertices = in_space(outline, turns=turns)[:: -1 if reverse else 1]
    faces = cut(vertices)
    assert len(faces) == len(vertices) - 2
    assert areas(vertices, faces).sum() == pytest.approx(area)
    normals = np.cross(*(vertices[faces[:, k]] - vertices[faces[:, 0]] for k in (1, 2)))
    assert (normals @ normals[0] > 0).all()  # none is turned over


def test_polygons_of_many_sizes_keep_their_order() -> None:
    """A triangle, the arrow, a triangle, the corner: 1 + 2 + 1 + 4 triangles."""
    pieces = [in_space(SQUARE[:3]), in_space(ARROW), in_space(SQUARE[1:]), in_space(CORNER)]
    sizes = np.array([len(piece) for piece in pieces])
    vertices = np.concatenate(pieces)
    faces = triangulate(vertices, np.arange(len(vertices)), sizes, concave_work=100)
    owner = np.repeat(np.arange(4), sizes)
    assert owner[faces[:, 0]].tolist() == [0, 1, 1, 2, 3, 3, 3, 3]
    per_polygon = np.bincount(owner[faces[:, 0]], areas(vertices, faces))
    assert per_polygon == pytest.approx([2, 2, 2, 3])


def test_the_work_on_concave_polygons_is_bounded() -> None:
    with pytest.raises(DataError, match="1 concave polygons with up to 12 corners") as caught:
        cut(in_space(COMB), concave_work=143)
    assert "corners squared 144, accepted 143" in str(caught.value)
    assert len(cut(in_space(COMB), concave_work=144)) == 10


def test_an_outline_without_an_ear_ends_and_keeps_its_fan() -> None:
    line = in_space([(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)])
    assert cut_ears(line) is None
    assert cut(line).tolist() == [[0, 1, 2], [0, 2, 3], [0, 3, 4]]


def test_an_outline_that_crosses_itself_ends() -> None:
    star = in_space([(0, 3), (2, -3), (-3, 1), (3, 1), (-2, -3)])
    assert cut(star).shape == (3, 3)


def test_a_flat_sliver_does_not_make_a_polygon_concave() -> None:
    """Corners on a line, as exporters leave them along an edge."""
    line = [(0, 0), (1, 0), (2, 0), (2, 2), (0, 2)]
    assert areas(in_space(line), cut(in_space(line))).sum() == pytest.approx(4)


def test_strips_turn_every_second_triangle() -> None:
    strip = np.array([5, 6, 7, 8, 9])
    assert strip_triangles([strip]).reshape(-1, 3).tolist() == [[5, 6, 7], [8, 7, 6], [7, 8, 9]]


def test_fans_share_their_first_corner() -> None:
    fans = [np.array([5, 6, 7, 8]), np.array([1, 2, 3])]
    assert fan_triangles(fans).reshape(-1, 3).tolist() == [[5, 6, 7], [5, 7, 8], [1, 2, 3]]
