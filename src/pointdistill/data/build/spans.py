"""Ranges of a source's shapes, in id order: what is done, what is missing between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Span(NamedTuple):
    """The shapes from ``start`` to ``stop``, which is not among them."""

    start: int
    stop: int

    @property
    def shapes(self) -> int:
        """How many there are."""
        return self.stop - self.start


def tile(whole: Span, finished: Iterable[Span]) -> tuple[list[Span], list[Span]]:
    """Cover ``whole`` with finished spans, none over another.

    A build that was killed may leave spans that overlap: one that its last worker finished after it, and
    parts of it that the next build made again.

    Returns:
        The finished spans that are used, and the gaps that are left, both in order.
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
    """The parts of a span that lie in each of the pieces."""
    for piece in pieces:
        part = Span(max(span.start, piece.start), min(span.stop, piece.stop))
        if part.shapes > 0:
            yield part
