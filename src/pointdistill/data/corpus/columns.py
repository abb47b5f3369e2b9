"""Single datasets of a shard, read in chunks: what can be said of a corpus without reading its points."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus.manifest import ShardRecord
from pointdistill.data.corpus.reader import check_size
from pointdistill.errors import CorpusError

CHUNK = 65_536
"""Rows read at a time; shards of this program's own are smaller, others' need not be."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The datasets of one open shard, by name and rows."""

    path: Path
    record: ShardRecord
    file: Any
    """An open ``h5py.File``."""

    def read(self, name: str, first: int, stop: int) -> NDArray[Any]:
        """Rows ``first`` to ``stop`` of a dataset, as it lies on disk.

        Raises:
            CorpusError: if the dataset is missing, shorter than that, or cannot be read.
        """
        try:
            found = np.asarray(self.file[name][first:stop])
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise damaged(self.path, f"{name} cannot be read: {error}") from error
        if len(found) != stop - first:
            raise damaged(self.path, f"{name} ends at row {first + len(found):,}, before {stop:,}")
        return found

    def chunks(self) -> Iterator[tuple[int, int]]:
        """First row, and the row after the last, of one chunk of shapes after another."""
        for first in range(0, self.record.shapes, CHUNK):
            yield first, min(first + CHUNK, self.record.shapes)


@contextmanager
def open_columns(folder: Path, record: ShardRecord) -> Iterator[Columns]:
    """Open a shard for single datasets.

    Raises:
        CorpusError: if the shard is missing, not of the size it was written with, or no HDF5 file.
    """
    path = folder / record.file
    check_size(path, record)
    try:
        file = h5py.File(path, "r")
    except (OSError, RuntimeError) as error:
        raise damaged(path, str(error)) from error
    with file:
        yield Columns(path, record, file)


def damaged(path: Path, what: str) -> CorpusError:
    """The error of a shard or list that is not as it was written."""
    return CorpusError(f"{path}: damaged, {what}; `pointdistill verify` names every damaged shape")
