"""How shapes are divided into shards and pieces."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from pointdistill.data.corpus_building.division import (
    PIECE_BYTES,
    PIECE_SHAPES,
    SHARD_BYTES,
    SHARD_SHAPES,
    Piece,
    Plan,
    Span,
    make_plan,
    tile,
)


@pytest.mark.parametrize("points", [32, 1024, 16_384, 10_000_000])
@pytest.mark.parametrize("shapes", [1, 2, 63, 64, 65, 1000, 10_000, 123_457])
def test_every_shape_is_in_one_piece_within_the_limits(shapes: int, points: int) -> None:
    if shapes * points > 10**10:
        shapes = 20
    plan = make_plan(shapes, points)
    ends = [(piece.start, piece.stop) for piece in plan.pieces]
    assert ends[0][0] == 0
    assert ends[-1][1] == shapes
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ends))
    assert [piece.number for piece in plan.pieces] == list(range(len(plan.pieces)))
    for piece in plan.pieces:
        assert 1 <= len(piece) <= PIECE_SHAPES
        assert len(piece) == 1 or len(piece) * points * 6 <= PIECE_BYTES
    sizes = [sum(map(len, plan.pieces_of(shard))) for shard in range(plan.shards)]
    assert sum(sizes) == shapes
    assert max(sizes) - min(sizes) <= 1, "shards are of one size, to within a shape"
    assert max(sizes) <= SHARD_SHAPES
    assert max(sizes) == 1 or max(sizes) * points * 6 <= SHARD_BYTES


def test_sizes_that_the_docs_state() -> None:
    """10,000 shapes of 16,384 points: five shards of 2,000; a million of 64: 245 shards."""
    assert make_plan(10_000, 16_384).shards == 5
    assert make_plan(1_000_000, 64).shards == 245


def test_a_small_build_has_work_for_many_cores() -> None:
    assert len(make_plan(1500, 1024).pieces) >= 60


def test_the_pieces_of_a_shard_are_found_without_a_look_at_all_others() -> None:
    """A million points a shape: two shapes a piece, a shard every 38; a look at all would be quadratic."""
    looks: list[object] = []

    class Counted(tuple[Piece, ...]):
        __slots__ = ()

        def __getitem__(self, place: Any) -> Any:
            looks.append(place)
            return super().__getitem__(place)

        def __iter__(self) -> Any:
            raise AssertionError("all of them")

    plan = make_plan(20_000, 1_000_000)
    counted = Plan(Counted(plan.pieces), plan.shards)
    by_shard = itertools.groupby(plan.pieces, key=lambda piece: piece.shard)
    for shard, pieces in by_shard:
        assert counted.pieces_of(shard) == tuple(pieces)
    assert len(looks) < 40 * plan.shards


def test_what_a_killed_build_left_covers_every_shape_once() -> None:
    """Finished spans may overlap, be empty, or reach beyond the shard; every shape is in one span or one gap."""
    whole = Span(10, 40)
    rng = np.random.default_rng(0)
    for _ in range(200):
        finished = [Span(start, start + int(rng.integers(9))) for start in rng.integers(5, 42, 8)]
        used, gaps = tile(whole, finished)
        covered = sorted(itertools.chain(used, gaps))
        assert [k for span in covered for k in range(*span)] == list(range(*whole))
        assert set(used) <= set(finished)
        for span in finished:
            inside = whole.start <= span.start and span.stop <= whole.stop
            lies_in_a_gap = any(gap.start <= span.start and span.stop <= gap.stop for gap in gaps)
            assert not (inside and span.shapes and lies_in_a_gap), "a usable span is made again"
    assert tile(whole, [Span(10, 15), Span(10, 40)])[0] == [Span(10, 40)], "the longer one"
