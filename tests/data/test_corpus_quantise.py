"""Quantised points: the error bound, the edges of the cube, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from pointdistill.data.corpus.shard import LEVELS, Quantised, quantise, restore
from pointdistill.errors import DataError


def restored(stored: Quantised) -> np.ndarray:
    return restore(stored.points, stored.center.tobytes(), float(stored.scale))


def test_corners_of_a_cube_are_exact() -> None:
    """The cube from (0, 0, 0) to (2, 2, 2) has its centre at 1 and half a side of 1."""
    corners = np.array([[x, y, z] for x in (0, 2) for y in (0, 2) for z in (0, 2)], np.float32)
    stored = quantise(corners)
    assert stored.center.tolist() == [1.0, 1.0, 1.0]
    assert stored.scale == 1.0
    assert set(np.abs(stored.points).ravel().tolist()) == {LEVELS}
    assert np.array_equal(restored(stored), corners)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_error_is_at_most_half_a_step(seed: int, unit: float) -> None:
    """1.6e-5 of the half side on each axis, whatever the unit and however flat the shape is."""
    rng = np.random.default_rng(seed)
    points = (rng.normal(size=(1000, 3)) * [1.0, 0.3, 0.01] * unit).astype(np.float32)
    stored = quantise(points)
    error = np.abs(restored(stored) - points)
    assert error.max() <= 1.6e-5 * stored.scale
    assert np.abs(stored.points).max() == LEVELS, "the longest axis uses the whole range"


def test_a_shape_far_from_the_origin_keeps_its_place() -> None:
    """At 1000, float32 has steps of 6e-5; the error is that and no more."""
    points = np.random.default_rng(0).uniform(1000, 1001, size=(500, 3)).astype(np.float32)
    stored = quantise(points)
    error = np.abs(restored(stored).astype(np.float64) - points)
    assert error.max() <= 1.6e-5 * stored.scale + np.spacing(np.float32(1001))


@pytest.mark.parametrize(
    "points",
    [
        [[1.0, 2.0, 3.0]],  # a single point
        [[1.0, 2.0, 3.0]] * 4,  # several at one place
        [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]],  # a line
        [[0.0, 0.0, 5.0], [1.0, 0.0, 5.0], [0.0, 1.0, 5.0]],  # a plane
    ],
)
def test_degenerate_shapes_are_stored_exactly(points: list[list[float]]) -> None:
    original = np.array(points, np.float32)
    stored = quantise(original)
    assert np.array_equal(restored(stored), original)


@pytest.mark.parametrize("count", [0, 1, 64, 2047, 2048, 2049, 4096, 5000])
def test_restore_is_the_formula_of_the_docs(count: int) -> None:
    """xyz = center + scale * points / 32767, for counts around the runs that the code works in."""
    rng = np.random.default_rng(count)
    points = rng.integers(-LEVELS, LEVELS, size=(count, 3), endpoint=True).astype(np.int16)
    center = np.array([1.0, -2.0, 3.0], np.float32)
    slow = center + 5.0 * points.astype(np.float64) / LEVELS
    restored = restore(points, center.tobytes(), 5.0)
    assert restored.dtype == np.float32
    assert restored.shape == (count, 3)
    assert np.allclose(restored, slow, rtol=0, atol=2e-6)
    # To the bit: each operation rounded once, in the order written.
    plain = points.astype(np.float32) * (np.float32(5.0) / np.float32(LEVELS)) + center
    assert np.array_equal(restored, plain)


def test_a_view_of_every_second_point_is_quantised_as_its_copy() -> None:
    points = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    assert np.array_equal(quantise(points[::2]).points, quantise(points[::2].copy()).points)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((0, 3), np.float32), r"shape \(n, 3\) with n at least 1, got \(0, 3\)"),
        (np.zeros((4, 2), np.float32), r"got \(4, 2\)"),
        (np.array([[0, 0, np.nan], [0, np.inf, 0], [0, 0, 0]], np.float32), "2 of 3 points"),
        (np.array([[0, 0, -2e30], [0, 0, 0]], np.float32), r"coordinates reach 2e\+30"),
    ],
)
def test_what_cannot_be_stored_is_refused(points: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        quantise(points)
