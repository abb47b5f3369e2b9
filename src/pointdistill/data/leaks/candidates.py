"""The few shapes of a corpus whose fingerprints are close enough to a test shape's to deserve a comparison.

A fingerprint is 168 numbers that hardly change when a shape is resampled, scaled, moved, or turned about z. The
points are centred on their mean and scaled to unit root mean square distance from it. Then the averages of
cos(k pi rho / 3) cos(l pi (z + 3) / 6) e^(i m theta) are taken over the points (rho, theta, z cylindrical), for m
below 7, k below 4, l below 6. A turn about z changes only the phase of such an average, so its magnitude is used.
An average over n points is off by at most 1/sqrt(n), whatever the shape: fingerprints of samples of one surface
differ by a known amount, and the bias that this error adds to the squared magnitudes is subtracted.

The corpus's fingerprints are computed once and stored in its folder. Sizes: n test shapes, c corpus shapes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus import Corpus
from pointdistill.data.files.files import write_aside
from pointdistill.data.files.hdf5 import open_hdf5
from pointdistill.data.files.processes import ordered_map
from pointdistill.errors import DataError

Real = TypeVar("Real", bound=np.floating[Any])

ANGULAR, RADIAL, VERTICAL = 7, 4, 6
SIZE = ANGULAR * RADIAL * VERTICAL
POINTS = 4096
"""Most points used: more would hardly sharpen a comparison with a test cloud of one or two thousand."""

VERSION = 1
"""Increased whenever the same points would give other numbers."""

_REACH = 3.0
"""In units of the root mean square radius; the few points beyond it are treated as if they lay on it."""

SLOPE_STEP = 0.05
"""As a share of the radius: an error of the centre that a sample of 1,000 points may have."""

_SMALLEST = 1e-12

FILE_NAME = "fingerprints.h5"
_BLOCK = 256  # shapes a task
_SAVE_EVERY = 1 << 16  # shapes; half a minute of work for two cores

_COARSE_CUTOFF = 300.0
"""Largest squared distance between two fingerprints, in units of 1/points + 1/points. Two samples of one surface
are at 20 to 70, one in a thousand beyond 140: where thin parts hold few points, the centre moves."""

_CUTOFF = 130.0
"""The same once a shift of the centre and a change of scale are discounted; two samples are at 20 to 55, one in a
thousand beyond 80. Generous, since comparing phases rules out most of the rest in a millisecond each."""

MOST = 128
"""Most candidates for one test shape; the nearest ones are kept."""

_ROWS = 4096  # corpus fingerprints compared at once: 40 MB for 2,500 test shapes


def subsample(points: NDArray[Real], count: int) -> NDArray[Real]:
    """At most ``count`` of (n, 3) points, evenly spaced in their order; the array itself if it has no more."""
    if len(points) <= count:
        return points
    return points[np.arange(count) * len(points) // count]


def centred(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Points (n, 3) about their mean, scaled to unit root mean square distance from it; all 0 if they coincide."""
    # One row per axis: means along the columns of (n, 3) take ten times as long.
    exact = np.ascontiguousarray(points.T, np.float64)
    exact -= exact.mean(axis=1, keepdims=True)
    radius = float(np.sqrt(np.square(exact).sum() / len(points)))
    exact /= max(radius, _SMALLEST)
    return exact.T


def fingerprint(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """The fingerprint of (n, 3) points, z up, n at least 2: (168,) float32, each within -1 to 1.

    Costs some 0.6 ms of one core.
    """
    return _magnitudes(centred(subsample(points, POINTS)))


def tangents(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """How a shift or a scaling moves the fingerprint of (n, 3) points: (168, 4), orthonormal columns.

    The mean and the radius of a sample are off from those of its surface by some 1/sqrt(n); a difference between
    two fingerprints along these directions is therefore no difference of shape. Costs 2 ms of one core for 1,024
    points, 5 ms for 4,096.
    """
    directions, _ = np.linalg.qr(slopes(centred(subsample(points, POINTS)), _magnitudes).T)
    return directions.astype(np.float32)


def slopes(
    placed: NDArray[np.float64], numbers: Callable[[NDArray[np.float64]], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Changes of ``numbers`` of (n, 3) placed points with a shift along x, y and z and with the scale: (4, ...).

    Differences between a step of `SLOPE_STEP` forwards and one backwards.
    """
    changes = []
    for shift in (*(SLOPE_STEP * np.eye(3)), np.zeros(3)):
        scale = 1.0 if shift.any() else 1.0 + SLOPE_STEP
        changes.append(numbers(placed * scale + shift) - numbers(placed / scale - shift))
    return np.array(changes)


def waves(placed: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The functions whose averages describe a shape, at each of (n, 3) points that are centred and scaled already.

    Returns:
        profiles: (24, n), functions of height and distance from the axis.
        turns: (13, n), functions of the angle about it: 1, then the cosine and sine of each m from 1 to 6.
    """
    x, y, z = np.ascontiguousarray(placed.T, np.float32)
    rho = np.hypot(x, y)
    rings = _cosines(np.minimum(rho, _REACH) * (np.pi / _REACH), RADIAL)
    levels = _cosines((np.clip(z, -_REACH, _REACH) + _REACH) * (np.pi / (2 * _REACH)), VERTICAL)
    profiles = (rings[:, None] * levels[None]).reshape(RADIAL * VERTICAL, -1)
    return profiles, _turns(x, y, rho)


def averages(profiles: NDArray[np.float32], turns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Averages of the products of (24, n) profiles and (13, n) turns: (24, 13)."""
    # Not through BLAS: its threads get in the way of the other processes that do the same.
    return np.einsum("in,jn->ij", profiles, turns) / profiles.shape[1]


def _magnitudes(placed: NDArray[np.float64]) -> NDArray[np.float32]:
    profiles, turns = waves(placed)
    count = len(placed)
    sums = averages(profiles, turns)
    power = sums[:, 1::2] ** 2 + sums[:, 2::2] ** 2
    # The square of a noisy average is too large by its variance, estimated here and subtracted.
    spread = np.einsum("ij,ij->i", profiles, profiles)[:, None] / count - power
    power -= np.maximum(spread, 0.0) / max(count - 1, 1)
    return np.hstack((sums[:, :1], np.sqrt(np.maximum(power, 0.0)))).ravel()


def _cosines(angle: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """cos(k angle) for k from 0 to count - 1, (count, n), by Chebyshev's recurrence."""
    rows = np.empty((count, len(angle)), np.float32)
    rows[0], rows[1] = 1.0, np.cos(angle)
    for k in range(2, count):
        rows[k] = 2.0 * rows[1] * rows[k - 1] - rows[k - 2]
    return rows


def _turns(
    x: NDArray[np.float32], y: NDArray[np.float32], rho: NDArray[np.float32]
) -> NDArray[np.float32]:
    """1, then cos(m theta) and sin(m theta) for m from 1 on: (2 * ANGULAR - 1, n)."""
    inverse = 1.0 / np.maximum(rho, np.float32(_SMALLEST))
    cosine, sine = x * inverse, y * inverse
    rows = np.empty((2 * ANGULAR - 1, len(x)), np.float32)
    rows[0], rows[1], rows[2] = 1.0, cosine, sine
    for m in range(2, ANGULAR):
        before_cosine, before_sine = rows[2 * m - 3], rows[2 * m - 2]
        rows[2 * m - 1] = before_cosine * cosine - before_sine * sine
        rows[2 * m] = before_cosine * sine + before_sine * cosine
    return rows


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Fingerprints of the first n shapes of a corpus."""

    values: NDArray[np.float16]
    """(n, 168) float16."""

    points: NDArray[np.uint16]
    """(n,) uint16: how many points each was computed from, at most 4,096."""

    def __len__(self) -> int:
        """Number of shapes."""
        return len(self.points)

    @classmethod
    def concatenate(cls, parts: list[Fingerprints]) -> Fingerprints:
        """Those of several runs of shapes, in order."""
        return cls(
            np.concatenate([np.empty((0, SIZE), np.float16), *(part.values for part in parts)]),
            np.concatenate([np.empty(0, np.uint16), *(part.points for part in parts)]),
        )


@dataclass(frozen=True, slots=True)
class _Task:
    """Consecutive shapes of a corpus; another process that receives the task opens the corpus anew."""

    corpus: Corpus
    start: int
    stop: int


def corpus_fingerprints(
    corpus: Corpus,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Fingerprints:
    """Fingerprints of all shapes of a corpus: read from its file, or computed and written there.

    In a folder that cannot be written to, they are computed each time.

    Args:
        corpus: n shapes.
        workers: processes; 1 means this one, None every usable core.
        progress: called with shapes (done, total).
    """
    parts = [saved_fingerprints(corpus)]
    done = saved = len(parts[0])
    tasks = [
        _Task(corpus, start, min(start + _BLOCK, len(corpus)))
        for start in range(done, len(corpus), _BLOCK)
    ]
    try:
        for part in ordered_map(_fingerprint_block, tasks, workers=workers):
            parts.append(part)
            done += len(part)
            if progress:
                progress(done, len(corpus))
            if done - saved >= _SAVE_EVERY:
                parts, saved = [_save(corpus, parts)], done
    finally:
        # After Ctrl-C too, so that the next call continues from here.
        whole = _save(corpus, parts) if done > saved else Fingerprints.concatenate(parts)
    return whole


def saved_fingerprints(corpus: Corpus) -> Fingerprints:
    """The fingerprints in the corpus's file; none if it is missing, damaged, or belongs to other shapes."""
    empty = Fingerprints.concatenate([])
    try:
        path = corpus.path / FILE_NAME
        with open_hdf5(path, path) as file:
            if (file.attribute("version"), file.attribute("corpus")) != (VERSION, corpus.content):
                return empty
            values, points = file.dataset("values", "f"), file.dataset("points", "u")
            rows = values.shape[0]
            fits = values.shape == (rows, SIZE) and values.dtype == np.float16
            fits = fits and points.shape == (rows,) and points.dtype == np.uint16
            if not fits or rows > len(corpus):
                return empty
            found = Fingerprints(values.read(), points.read())
            return found if np.isfinite(found.values).all() else empty
    except DataError:
        return empty


def has_all_fingerprints(corpus: Corpus) -> bool:
    """Whether the corpus's file covers every shape."""
    return (corpus.path / FILE_NAME).is_file() and len(saved_fingerprints(corpus)) == len(corpus)


def _save(corpus: Corpus, parts: list[Fingerprints]) -> Fingerprints:
    """Concatenate, and replace the corpus's file if the folder can be written to."""
    whole = Fingerprints.concatenate(parts)
    with (
        contextlib.suppress(OSError),
        write_aside(corpus.path / FILE_NAME) as aside,
        h5py.File(aside, "w", locking=False) as file,
    ):
        file.attrs["version"] = VERSION
        file.attrs["corpus"] = np.bytes_(corpus.content)
        file["values"] = whole.values
        file["points"] = whole.points
    return whole


def _fingerprint_block(task: _Task) -> Fingerprints:
    clouds = [task.corpus.points(index) for index in range(task.start, task.stop)]
    values = np.stack([fingerprint(cloud) for cloud in clouds]).astype(np.float16)
    return Fingerprints(values, np.array([min(len(c), POINTS) for c in clouds], np.uint16))


@dataclass(frozen=True, slots=True)
class Queries:
    """The fingerprints of n test shapes, and what a nearest-neighbour search needs to know of them."""

    fingerprints: NDArray[np.float32]
    """(n, 168) fingerprints of the test shapes."""

    tangents: NDArray[np.float32]
    """(n, 168, 4), see `pointdistill.data.leaks.candidates.tangents`."""

    points: NDArray[np.int64]
    """(n,) how many points each was computed from."""

    @classmethod
    def of(cls, clouds: Iterable[NDArray[np.floating]]) -> Queries:
        """Computed from n clouds (N, 3), n at least 1; 6 ms each."""
        rows = [(fingerprint(cloud), tangents(cloud), min(len(cloud), POINTS)) for cloud in clouds]
        values, slopes, points = zip(*rows, strict=True)
        return cls(np.stack(values), np.stack(slopes), np.array(points))


def nearest_candidates(corpus_side: Fingerprints, queries: Queries) -> list[NDArray[np.int64]]:
    """For each of n test shapes, numbers of the corpus shapes to compare it with, nearest first; at most `MOST`.

    Works through the corpus in chunks: besides the fingerprints themselves it holds 128 candidates a test shape
    and the distances of one chunk, whatever the size of the corpus.
    """
    rows, columns = np.empty(0, np.int64), np.empty(0, np.int64)
    distances = np.empty(0, np.float32)
    for start in range(0, len(corpus_side), _ROWS):
        chunk = Fingerprints(
            corpus_side.values[start : start + _ROWS], corpus_side.points[start : start + _ROWS]
        )
        number, index, squared = _near(chunk, queries)
        rows = np.concatenate((rows, number))
        columns = np.concatenate((columns, index + start))
        distances = np.concatenate((distances, squared))
        nearest = _nearest(rows, columns, distances)
        rows, columns, distances = rows[nearest], columns[nearest], distances[nearest]
    return np.split(columns, np.searchsorted(rows, np.arange(1, len(queries.points))))


def _near(
    chunk: Fingerprints, queries: Queries
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Test number, corpus number and distance of every pair within the cut-offs."""
    corpus_values = chunk.values.astype(np.float32)
    number, index = np.nonzero(_beyond(corpus_values, chunk.points, queries) <= 0.0)
    squared = np.empty(len(number), np.float32)
    for first in range(0, len(number), _ROWS):
        part = slice(first, first + _ROWS)
        difference = corpus_values[index[part]] - queries.fingerprints[number[part]]
        explained = np.einsum("ij,ijk->ik", difference, queries.tangents[number[part]])
        squared[part] = np.einsum("ij,ij->i", difference, difference)
        squared[part] -= np.einsum("ik,ik->i", explained, explained)
    squared /= 1.0 / queries.points[number] + 1.0 / chunk.points[index]
    close = squared <= _CUTOFF
    return number[close], index[close], squared[close]


def _beyond(
    corpus_values: NDArray[np.float32], points: NDArray[np.uint16], queries: Queries
) -> NDArray[np.float32]:
    """(n, c) squared distances minus the coarse cut-off, as a single matrix product: nothing else is as fast."""
    test_values = queries.fingerprints
    test_norms = np.einsum("ij,ij->i", test_values, test_values) - _COARSE_CUTOFF / queries.points
    corpus_norms = np.einsum("ij,ij->i", corpus_values, corpus_values) - _COARSE_CUTOFF / points
    # |a - b|^2 - cutoff = a.a - 2 a.b + b.b - cutoff: the last columns carry what is not a product.
    left = np.column_stack((-2.0 * test_values, test_norms, np.ones(len(test_values)))).astype(
        np.float32
    )
    right = np.column_stack((corpus_values, np.ones(len(corpus_values)), corpus_norms)).astype(
        np.float32
    )
    beyond: NDArray[np.float32] = left @ right.T
    return beyond


def _nearest(
    rows: NDArray[np.int64], columns: NDArray[np.int64], distances: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Indices of the `MOST` nearest of each row, ordered by row and distance; ties by column."""
    order = np.lexsort((columns, distances, rows))
    sorted_rows = rows[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_rows, sorted_rows)
    return order[rank < MOST]
