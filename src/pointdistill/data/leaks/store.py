"""The fingerprints of a corpus: computed once in parallel, kept in one file inside the corpus's folder.

The file holds the fingerprints of the first shapes of the corpus, all of them once it is finished; it is replaced
whole, so a build that is stopped goes on from what the file has. Half precision keeps a million shapes in 0.3 GB.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import h5py
import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus import Corpus
from pointdistill.data.files import write_aside
from pointdistill.data.leaks.fingerprint import POINTS, SIZE, VERSION, fingerprint
from pointdistill.data.workers import Progress, ordered_map

FILE_NAME = "fingerprints.h5"
_BLOCK = 256  # shapes a task
_SAVE_EVERY = 1 << 16  # shapes; half a minute of two cores' work


@dataclass(frozen=True, slots=True)
class Prints:
    """Fingerprints of the first n shapes of a corpus."""

    values: NDArray[np.float16]
    """(n, 168) float16."""

    points: NDArray[np.uint16]
    """(n,) uint16, points that each was computed from, at most 4,096."""

    def __len__(self) -> int:
        """Number of shapes."""
        return len(self.points)

    @classmethod
    def joined(cls, parts: list[Prints]) -> Prints:
        """One after the other."""
        return cls(
            np.concatenate([np.empty((0, SIZE), np.float16), *(part.values for part in parts)]),
            np.concatenate([np.empty(0, np.uint16), *(part.points for part in parts)]),
        )


@dataclass(frozen=True, slots=True)
class _Task:
    """Consecutive shapes of a corpus, which is opened anew where a task arrives in another process."""

    corpus: Corpus
    start: int
    stop: int


def corpus_prints(
    corpus: Corpus, *, workers: int | None = None, progress: Progress | None = None
) -> Prints:
    """Fingerprints of all shapes of a corpus, from its file or computed and written there.

    Where the folder cannot be written to, they are computed each time.

    Args:
        corpus: n shapes.
        workers: processes; 1 works in this one, None takes every usable core.
        progress: called with shapes (done, total).
    """
    parts = [kept_prints(corpus)]
    done = saved = len(parts[0])
    tasks = [
        _Task(corpus, start, min(start + _BLOCK, len(corpus)))
        for start in range(done, len(corpus), _BLOCK)
    ]
    try:
        for part in ordered_map(_print_block, tasks, workers=workers):
            parts.append(part)
            done += len(part)
            if progress:
                progress(done, len(corpus))
            if done - saved >= _SAVE_EVERY:
                parts, saved = [_save(corpus, parts)], done
    finally:
        # After Ctrl-C too: the next call goes on from here.
        whole = _save(corpus, parts) if done > saved else Prints.joined(parts)
    return whole


def kept_prints(corpus: Corpus) -> Prints:
    """What the corpus's file has; nothing if there is none, or it is of other shapes or damaged."""
    nothing = Prints.joined([])
    try:
        with h5py.File(corpus.path / FILE_NAME, "r") as file:
            if (file.attrs.get("version"), file.attrs.get("corpus")) != (VERSION, corpus.content):
                return nothing
            values, points = file["values"], file["points"]
            rows = len(points)
            fits = values.shape == (rows, SIZE) and values.dtype == np.float16
            if not fits or rows > len(corpus) or points.dtype != np.uint16:
                return nothing
            return Prints(values[()], points[()])
    except (OSError, KeyError, AttributeError, TypeError):
        return nothing


def has_all_prints(corpus: Corpus) -> bool:
    """Whether the corpus's file has every shape; costs no reading of fingerprints where it is absent."""
    return (corpus.path / FILE_NAME).is_file() and len(kept_prints(corpus)) == len(corpus)


def _save(corpus: Corpus, parts: list[Prints]) -> Prints:
    """Join, and write in place of the corpus's file if the folder can be written to."""
    whole = Prints.joined(parts)
    with (
        contextlib.suppress(OSError),
        write_aside(corpus.path / FILE_NAME) as aside,
        h5py.File(aside, "w") as file,
    ):
        file.attrs["version"] = VERSION
        file.attrs["corpus"] = corpus.content
        file["values"] = whole.values
        file["points"] = whole.points
    return whole


def _print_block(task: _Task) -> Prints:
    clouds = [task.corpus.points(index) for index in range(task.start, task.stop)]
    values = np.stack([fingerprint(cloud) for cloud in clouds]).astype(np.float16)
    return Prints(values, np.array([min(len(c), POINTS) for c in clouds], np.uint16))
