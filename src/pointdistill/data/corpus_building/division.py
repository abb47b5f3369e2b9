"""How the shapes of a source are divided into shards and pieces, before any of them is read.

A shard holds consecutive shapes in id order. It is divided into pieces, the units of work and of resuming. The
division depends only on the number of shapes and points, so every build of a source divides it the same way. A
span is any range of shapes: a finished piece, or a gap that is still to be filled.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

SHARD_BYTES = 256 * 2**20
"""Most bytes of points in a shard: one damaged file costs no more."""

SHARD_SHAPES = 4096
"""Most shapes in a shard."""

PIECE_BYTES = 16 * 2**20
"""Most bytes of points in a piece: a worker holds no more in memory, and a kill costs no more."""

PIECE_SHAPES = 512
"""Most shapes in a piece."""

FEWEST_PIECE_SHAPES = 16
_TARGET_PIECES = 64  # in a small build, so that every core gets work
_POINT_BYTES = 7  # 3 int16 and a part label


class Span(NamedTuple):
    """The shapes from ``start`` up to, but not including, ``stop``."""

    start: int
    stop: int

    @property
    def shapes(self) -> int:
        """Number of shapes."""
        return self.stop - self.start


def tile(whole: Span, finished: Iterable[Span]) -> tuple[list[Span], list[Span]]:
    """Cover ``whole`` with finished spans that do not overlap.

    A killed build may leave spans that overlap: one that a worker finished after the build had ended, and parts of
    the same span that the next build made again.

    Returns:
        The finished spans that are used, and the gaps that remain, both in order.
    """
    used: list[Span] = []
    gaps: list[Span] = []
    reached = whole.start
    for span in sorted(finished, key=lambda span: (span.start, -span.stop)):
        if span.start < reached or span.stop > whole.stop or not span.shapes:
            continue
        if span.start > reached:
            gaps.append(Span(reached, span.start))
        used.append(span)
        reached = span.stop
    if reached < whole.stop:
        gaps.append(Span(reached, whole.stop))
    return used, gaps


def cut(span: Span, pieces: Iterable[Span]) -> Iterator[Span]:
    """The part of a span that lies in each of the pieces."""
    for piece in pieces:
        part = Span(max(span.start, piece.start), min(span.stop, piece.stop))
        if part.shapes > 0:
            yield part


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
