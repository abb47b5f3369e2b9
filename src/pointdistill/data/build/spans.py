"""Ranges of a source's shapes in id order: which are done, and which are missing between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


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

    A killed build may leave spans that overlap: one that a worker finished after the build was gone, and parts of
    it that the next build made again.

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
    """The part of a span in each of the pieces."""
    for piece in pieces:
        part = Span(max(span.start, piece.start), min(span.stop, piece.stop))
        if part.shapes > 0:
            yield part
