"""How the shapes of a source are divided into shards and pieces, before any of them is read.

A shard holds consecutive shapes in id order. It is divided into pieces, the units of work and of resuming. The
division depends only on the number of shapes and points, so every build of a source divides it the same way.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass

from pointdistill.data.build.spans import Span

SHARD_BYTES = 256 * 2**20
"""Most bytes of points in a shard: the most that one damaged file costs, or one copy takes."""

SHARD_SHAPES = 4096
"""Most shapes in a shard."""

PIECE_BYTES = 16 * 2**20
"""Most bytes of points in a piece: what a worker holds in memory, and what a kill can cost."""

PIECE_SHAPES = 512
"""Most shapes in a piece."""

FEWEST_PIECE_SHAPES = 16
_TARGET_PIECES = 64  # in a small build, so that every core gets some
_POINT_BYTES = 7  # 3 int16 and a part label


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive entries, ``start`` to ``stop`` of the whole list, that one worker builds."""

    number: int
    shard: int
    start: int
    stop: int

    def __len__(self) -> int:
        """Number of entries."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Plan:
    """Pieces in order; those of one shard follow each other."""

    pieces: tuple[Piece, ...]
    shards: int

    def span_of(self, shard: int) -> Span:
        """The shapes that belong to one shard."""
        pieces = self.pieces_of(shard)
        return Span(pieces[0].start, pieces[-1].stop)

    def pieces_of(self, shard: int) -> tuple[Piece, ...]:
        """The pieces that one shard is made of."""
        start, stop = (
            bisect.bisect_left(self.pieces, number, key=lambda piece: piece.shard)
            for number in (shard, shard + 1)
        )
        return self.pieces[start:stop]


def make_plan(shapes: int, points: int) -> Plan:
    """Divide ``shapes`` entries of at most ``points`` points each."""
    shape_bytes = points * _POINT_BYTES
    most_in_shard = max(1, min(SHARD_SHAPES, SHARD_BYTES // shape_bytes))
    most_in_piece = max(1, min(PIECE_SHAPES, PIECE_BYTES // shape_bytes))
    small = max(FEWEST_PIECE_SHAPES, _quotient_up(shapes, _TARGET_PIECES))
    shard_ends = _divide(0, shapes, most_in_shard)
    pieces: list[Piece] = []
    for shard, (start, stop) in enumerate(shard_ends):
        for begin, end in _divide(start, stop, min(most_in_piece, small)):
            pieces.append(Piece(number=len(pieces), shard=shard, start=begin, stop=end))
    return Plan(pieces=tuple(pieces), shards=len(shard_ends))


def _divide(start: int, stop: int, most: int) -> list[tuple[int, int]]:
    """Ranges of nearly equal length, none longer than ``most``."""
    count = _quotient_up(stop - start, most)
    ends = [start + (stop - start) * k // count for k in range(count + 1)]
    return list(itertools.pairwise(ends))


def _quotient_up(value: int, by: int) -> int:
    return -(-value // by)
