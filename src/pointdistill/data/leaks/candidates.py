"""The few shapes of a corpus whose fingerprints are near enough to a test shape's to be looked at.

Sizes: n test shapes, c corpus shapes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.leaks.fingerprint import POINTS, fingerprint, tangents
from pointdistill.data.leaks.store import Prints

_COARSE_CUTOFF = 300.0
"""Largest squared distance of two fingerprints, in units of 1/points + 1/points; two samples of one surface are at
20 to 70, one in a thousand beyond 140: its few thin parts move the centre."""

_CUTOFF = 130.0
"""The same without what a moved centre or another scale explains; two samples are at 20 to 55, one in a thousand
beyond 80. Generous, since the phases rule out most of what is let through for a millisecond each."""

MOST = 128
"""Candidates a test shape, the nearest ones."""

_ROWS = 4096  # corpus fingerprints at once: 40 MB for 2,500 test shapes


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for."""

    prints: NDArray[np.float32]
    """(n, 168) fingerprints of the test shapes."""

    tangents: NDArray[np.float32]
    """(n, 168, 4), see `pointdistill.data.leaks.fingerprint.tangents`."""

    points: NDArray[np.int64]
    """(n,) points that each was computed from."""

    @classmethod
    def of(cls, clouds: Iterable[NDArray[np.floating]]) -> Wanted:
        """Of n clouds (N, 3), n at least 1; 6 ms each."""
        rows = [(fingerprint(cloud), tangents(cloud), min(len(cloud), POINTS)) for cloud in clouds]
        prints, slopes, points = zip(*rows, strict=True)
        return cls(np.stack(prints), np.stack(slopes), np.array(points))


def nearest_prints(prints: Prints, wanted: Wanted) -> list[NDArray[np.int64]]:
    """For each of n test shapes, numbers of the corpus shapes to look at, nearest first; at most `MOST`.

    Works through the corpus in chunks: beside the fingerprints themselves it holds 128 candidates a test shape
    and one chunk's distances, whatever the size of the corpus.
    """
    rows, columns = np.empty(0, np.int64), np.empty(0, np.int64)
    distances = np.empty(0, np.float32)
    for start in range(0, len(prints), _ROWS):
        chunk = Prints(prints.values[start : start + _ROWS], prints.points[start : start + _ROWS])
        near, at, squared = _near(chunk, wanted)
        rows = np.concatenate((rows, near))
        columns = np.concatenate((columns, at + start))
        distances = np.concatenate((distances, squared))
        kept = _nearest(rows, columns, distances)
        rows, columns, distances = rows[kept], columns[kept], distances[kept]
    return np.split(columns, np.searchsorted(rows, np.arange(1, len(wanted.points))))


def _near(
    chunk: Prints, wanted: Wanted
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Test and corpus numbers of all pairs within the cut-offs, and their distances."""
    there = chunk.values.astype(np.float32)
    near, at = np.nonzero(_beyond(there, chunk.points, wanted) <= 0.0)
    found = np.empty(len(near), np.float32)
    for first in range(0, len(near), _ROWS):
        part = slice(first, first + _ROWS)
        apart = there[at[part]] - wanted.prints[near[part]]
        explained = np.einsum("ij,ijk->ik", apart, wanted.tangents[near[part]])
        found[part] = np.einsum("ij,ij->i", apart, apart)
        found[part] -= np.einsum("ik,ik->i", explained, explained)
    found /= 1.0 / wanted.points[near] + 1.0 / chunk.points[at]
    kept = found <= _CUTOFF
    return near[kept], at[kept], found[kept]


def _beyond(
    there: NDArray[np.float32], points: NDArray[np.uint16], wanted: Wanted
) -> NDArray[np.float32]:
    """(n, c) squared distances less the coarse cut-off's, as one product of matrices: nothing is as fast."""
    here = wanted.prints
    mine = np.einsum("ij,ij->i", here, here) - _COARSE_CUTOFF / wanted.points
    theirs = np.einsum("ij,ij->i", there, there) - _COARSE_CUTOFF / points
    left = np.column_stack((-2.0 * here, mine, np.ones(len(here)))).astype(np.float32)
    right = np.column_stack((there, np.ones(len(there)), theirs)).astype(np.float32)
    beyond: NDArray[np.float32] = left @ right.T
    return beyond


def _nearest(
    rows: NDArray[np.int64], columns: NDArray[np.int64], distances: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Places of the `MOST` nearest of each row, in the order of rows and distances; ties by column."""
    order = np.lexsort((columns, distances, rows))
    sorted_rows = rows[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_rows, sorted_rows)
    return order[rank < MOST]
