"""Finished chunks of an embedding on disk, each whole or absent, until the last one is there.

Sizes: n shapes of a chunk, m vectors of all of them together, F the length of a vector.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.files import read_json, write_aside, write_json
from pointdistill.engine.embedding.compute import ShapeFeatures
from pointdistill.errors import DataError

_REQUEST = "request.json"


@dataclass(slots=True)
class Chunk:
    """Neighbouring shapes of a list, as they are finished; those refused are named with their cause."""

    first: int
    size: int
    shapes: dict[int, tuple[str, int, int, ShapeFeatures]] = field(default_factory=dict)
    """By number: id, source, row within the source, features."""

    failed: dict[int, tuple[str, str]] = field(default_factory=dict)
    """By number: id and cause."""

    assumed_up: int = 0
    """Files whose up axis was assumed."""

    @property
    def complete(self) -> bool:
        """Whether every shape is there or refused."""
        return len(self.shapes) + len(self.failed) == self.size

    def columns(self) -> dict[str, NDArray[Any]]:
        """What is stored, in the order of the list."""
        kept = [self.shapes[number] for number in sorted(self.shapes)]
        found = [features for _, _, _, features in kept]
        failed = [self.failed[number] for number in sorted(self.failed)]
        columns: dict[str, NDArray[Any]] = {
            "ids": np.array([name for name, _, _, _ in kept], np.str_),
            "sources": np.array([source for _, source, _, _ in kept], np.int32),
            "rows": np.array([row for _, _, row, _ in kept], np.int64),
            "failed": np.array(json.dumps(failed)),
            "assumed_up": np.array(self.assumed_up),
        }
        if found:
            rows = [np.atleast_2d(features.features) for features in found]
            columns["features"] = np.concatenate(rows)
            columns["counts"] = np.array([len(row) for row in rows], np.int64)
            if found[0].positions is not None:
                columns["positions"] = np.concatenate(
                    [f.positions for f in found if f.positions is not None]
                )
        return columns


class WorkFolder:
    """Chunks of one embedding beside its output."""

    def __init__(self, output: Path, request: Mapping[str, Any], *, chunks: int) -> None:
        """Make the folder, or go on with the one that is there.

        Args:
            output: the file that the chunks will become.
            request: everything that decides what they hold.
            chunks: how many there will be.

        Raises:
            DataError: if the folder holds finished chunks of another request.
        """
        self.path = output.with_name(f".{output.name}.work")
        self._chunks = chunks
        try:
            found = read_json(self.path / _REQUEST)
        except DataError:
            found = None
        if found is None or not any(self.path.glob("chunk-*.npz")):
            shutil.rmtree(self.path, ignore_errors=True)
            write_json(self.path / _REQUEST, request)
            return
        if found != json.loads(json.dumps(request)):
            keys = sorted({*found, *request} if isinstance(found, dict) else request)
            other = [key for key in keys if found.get(key) != request.get(key)]
            msg = (
                f"{self.path}: an unfinished embedding with other {', '.join(other)}; finish it as it was "
                "begun, remove the folder, or choose another --output"
            )
            raise DataError(msg)

    def missing(self) -> list[int]:
        """Numbers of the chunks still to be made."""
        return [number for number in range(self._chunks) if not self._file(number).exists()]

    def save(self, number: int, chunk: Chunk) -> None:
        """Write a complete chunk."""
        with write_aside(self._file(number)) as aside:
            np.savez(aside, allow_pickle=False, **chunk.columns())

    def columns(self, *names: str) -> Iterator[dict[str, NDArray[Any]]]:
        """The named columns of every chunk, one chunk in memory at a time; absent ones are left out."""
        for number in range(self._chunks):
            with np.load(self._file(number), allow_pickle=False) as stored:
                yield {name: stored[name] for name in names if name in stored}

    def remove(self) -> None:
        """Delete the folder, its output being written."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.path / f"chunk-{number:06d}.npz"

    @staticmethod
    def refusals(stored: NDArray[Any]) -> list[tuple[str, str]]:
        """Id and cause of each refused shape, from the column ``failed``."""
        return [(name, reason) for name, reason in json.loads(str(stored))]
