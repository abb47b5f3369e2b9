"""Batches: order, padding, shares of a batch, and beginning in the middle."""

from __future__ import annotations

import numpy as np

from pointdistill.engine.loader import batches, epoch_order, read_batch
from tests.engine.conftest import MemoryCorpus


def corpus(shapes: int) -> MemoryCorpus:
    """Shape i has i + 1 points, all equal to i."""
    return MemoryCorpus([np.full((i + 1, 3), i, np.float32) for i in range(shapes)])


def indices(shapes: int, first: int, last: int, part: int = 0, parts: int = 1) -> list[list[int]]:
    source = batches(
        corpus(shapes), batch_size=4, seed=3, first=first, last=last, part=part, parts=parts
    )
    return [batch.index.tolist() for batch in source]


def test_padding_and_counts() -> None:
    batch = read_batch(corpus(3), [2, 0], epoch=5)
    assert batch.counts.tolist() == [3, 1]
    assert batch.points[:, :, 0].tolist() == [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]
    assert (batch.index.tolist(), batch.epoch) == ([2, 0], 5)


def test_an_epoch_visits_every_shape_once_and_drops_the_last_partial_batch() -> None:
    first, second = indices(10, 0, 2)
    seen = first + second
    assert len(set(seen)) == 8
    assert seen == epoch_order(10, seed=3, epoch=0)[:8].tolist()


def test_epochs_differ() -> None:
    assert epoch_order(50, seed=3, epoch=0).tolist() != epoch_order(50, seed=3, epoch=1).tolist()


def test_beginning_in_the_middle_gives_the_same_batches() -> None:
    assert indices(10, 0, 7)[3:] == indices(10, 3, 7)


def test_processes_share_every_batch() -> None:
    whole, left, right = indices(10, 0, 5), indices(10, 0, 5, 0, 2), indices(10, 0, 5, 1, 2)
    assert [a + b for a, b in zip(left, right, strict=True)] == whole


def test_no_steps_no_batches() -> None:
    assert indices(10, 4, 4) == []
