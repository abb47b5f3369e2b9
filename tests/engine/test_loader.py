"""Batches: order, padding, shares of a batch, and beginning in the middle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pointdistill.data.corpus import open_corpus, reader
from pointdistill.data.corpus.shard import LEVELS, make_row, restore
from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.pretraining.loader import (
    STAND_IN_POINTS,
    Batch,
    StoredBatch,
    _on_cpu,
    _restored,
    batches,
    epoch_order,
    made_ahead,
    on_device,
    read_batch,
)
from pointdistill.errors import DataError
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


def test_orders_of_all_epochs_and_seeds_differ() -> None:
    """Also epoch 1 of seed 0 and epoch 0 of seed 1: no run visits shapes as another one does, an epoch later."""
    orders = {
        tuple(epoch_order(50, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9


def test_beginning_in_the_middle_gives_the_same_batches() -> None:
    assert indices(10, 0, 7)[3:] == indices(10, 3, 7)


def test_processes_share_every_batch() -> None:
    whole, left, right = indices(10, 0, 5), indices(10, 0, 5, 0, 2), indices(10, 0, 5, 1, 2)
    assert [a + b for a, b in zip(left, right, strict=True)] == whole


def test_no_steps_no_batches() -> None:
    assert indices(10, 4, 4) == []


def test_a_shape_that_cannot_be_read_comes_in_its_turn_with_the_error() -> None:
    """Shape 7 has a coordinate that is not a number: its batch says so, and those before and after are whole."""
    poisoned = corpus(12)
    poisoned.clouds[7][0, 0] = np.nan
    found = list(batches(poisoned, batch_size=4, seed=3, first=0, last=3))
    bad = [7 in batch.index.tolist() for batch in found]
    assert [batch.read_error is not None for batch in found] == bad
    assert sum(bad) == 1
    (stand_in,) = (batch for batch in found if batch.read_error)
    assert isinstance(stand_in.read_error, DataError)
    assert stand_in.points.shape == (4, STAND_IN_POINTS, 3)
    assert torch.isfinite(stand_in.points).all()


def test_any_error_of_the_corpus_is_passed_on() -> None:
    """A disk that fails in the middle of a run, on one process of several."""

    class Failing(MemoryCorpus):
        def points(self, index: int) -> np.ndarray:
            raise OSError(5, "Input/output error")

    (found,) = batches(Failing(corpus(4).clouds), batch_size=4, seed=0, first=0, last=1)
    assert isinstance(found.read_error, OSError)


def test_nothing_is_read_by_rows_that_padding_left() -> None:
    """The memory is not cleared before it is filled, so every row's end must be."""
    for _ in range(3):
        assert read_batch(corpus(50), [0, 49], epoch=0).points[0, 1:].abs().sum() == 0.0


def test_on_a_cpu_batches_pass_as_they_are() -> None:
    source = list(batches(corpus(8), batch_size=4, seed=0, first=0, last=2))
    moved = list(on_device(iter(source), torch.device("cpu")))
    assert all(
        torch.equal(a.points, b.points) and a.epoch == b.epoch
        for a, b in zip(source, moved, strict=True)
    )


@dataclass
class InMemory:
    """A shape as a corpus on disk stores it."""

    levels: np.ndarray
    scale: float
    center: bytes

    @property
    def count(self) -> int:
        return len(self.levels)

    def read(self, levels: np.ndarray, /) -> None:
        levels[...] = self.levels


class StoredCorpus(MemoryCorpus):
    """Shapes in memory as a corpus on disk stores them."""

    def stored(self, index: int) -> InMemory:
        row = make_row(str(index), self.clouds[index]).shape
        return InMemory(row.points, float(row.scale), row.center.astype("<f4").tobytes())

    def points(self, index: int) -> np.ndarray:
        stored = self.stored(index)
        return restore(stored.levels, stored.center, stored.scale)


@pytest.mark.parametrize("equal", [True, False])
def test_points_restored_on_the_device_have_the_bits_of_the_corpus(equal: bool) -> None:
    """Centres and sizes of any kind, and shapes of different numbers of points."""
    rng = np.random.default_rng(0)
    clouds = [
        rng.normal(size=(200 if equal else 150 + k, 3)) * 10.0 ** rng.integers(-3, 4)
        + rng.normal(size=3) * 100
        for k in range(12)
    ]
    whole = StoredCorpus([cloud.astype(np.float32) for cloud in clouds])
    for batch in batches(whole, batch_size=4, seed=0, first=0, last=3):
        assert isinstance(batch, StoredBatch)
        assert batch.padded != equal
        expected = read_batch(whole, batch.index.tolist(), 0)
        moved = batch.to(torch.device("cpu"))
        assert torch.equal(moved.points, expected.points)
        assert torch.equal(moved.counts, expected.counts)
        for restored in (_restored, _on_cpu):
            found = restored(batch.levels, batch.steps, batch.centers)
            for row, count in enumerate(expected.counts):
                assert torch.equal(found[row, :count], expected.points[row, :count])


@pytest.mark.parametrize("direct", [True, False])
def test_a_corpus_on_disk_hands_over_what_it_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    """Also where the system cannot read into memory that is given; and a shard that is cut short is told."""
    if not direct:
        monkeypatch.setattr(reader, "_PREADV", None)
    build_corpus(open_source("builtin", SourceRequest(shapes=4)), tmp_path, points=64, workers=0)
    opened = open_corpus(tmp_path)
    (batch,) = batches(opened, batch_size=4, seed=0, first=0, last=1)
    assert isinstance(batch, StoredBatch)
    for row, number in enumerate(batch.index.tolist()):
        np.testing.assert_array_equal(
            batch.to(torch.device("cpu")).points[row], opened.points(number)
        )


def test_a_stored_scale_that_float32_cannot_hold_is_found() -> None:
    class Huge(MemoryCorpus):
        def stored(self, index: int) -> InMemory:
            return InMemory(
                np.full((3, 3), LEVELS, np.int16), 3e38, np.float32([3e38] * 3).tobytes()
            )

    huge = Huge([np.full((3, 3), np.inf, np.float32)] * 4)
    (found,) = batches(huge, batch_size=4, seed=0, first=0, last=1)
    assert isinstance(found, Batch)
    assert "coordinates that are not finite" in str(found.read_error)


def test_what_is_made_ahead_is_made_once_in_order_and_raises_in_its_turn() -> None:
    made: list[int] = []

    def make(item: int) -> int:
        made.append(item)
        if item == 2:
            raise ZeroDivisionError
        return 10 * item

    items = made_ahead(iter([0, 1, 2, 3]), make)
    assert [next(items), next(items)] == [0, 10]
    with pytest.raises(ZeroDivisionError):
        next(items)
    assert made[:3] == [0, 1, 2]
