"""Embeds shapes into memory: those of files by the loop of ``embed``, and clouds and meshes that a program holds.

The statistics of an encoder are measured on shapes that are embedded so.

Sizes: n shapes, F the length of a feature vector, m vectors of all shapes, D the encoder's width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pointdistill.data.files.packed_tars import temporary_folder
from pointdistill.data.meshes.records import LeftOut
from pointdistill.data.meshes.sample import named_rng
from pointdistill.data.sources.paths import (
    MemoryShape,
    ReadSettings,
    ShapeList,
    list_shapes,
    read_in_memory,
    read_shape,
)
from pointdistill.engine.embedding.compute import (
    CPU_BATCH,
    DEFAULT_KIND,
    Draws,
    FeatureKind,
    FeatureMaker,
    ShapeFeatures,
    check_kind,
    choose_draws,
    inference_threads,
    read_settings,
)
from pointdistill.engine.embedding.embed import (
    CHUNK_SHAPES,
    LoadedEncoder,
    check_paths_exist,
    embedding_info,
)
from pointdistill.engine.embedding.file import WorkFolder
from pointdistill.engine.embedding.index import MemoryIndex
from pointdistill.engine.embedding.loop import EmbeddingLoop
from pointdistill.engine.features.statistics import measure, write_statistics
from pointdistill.engine.runtime.devices import pick_device
from pointdistill.engine.weights.encoders import encoder_checksum, load_encoder, locate_encoder
from pointdistill.errors import CheckpointError, DataError
from pointdistill.model.encoder import Encoder
from pointdistill.reporter import SILENT, Reporter

MEASURED_SHAPES = 2048
"""Most shapes that an encoder's own statistics are measured on; 900 do as well as the shapes of an index."""

MEASURED_AT_ONCE = 16

_COLUMNS = ("ids", "sources", "rows", "features", "counts", "positions")


@dataclass(frozen=True, slots=True)
class MadeWith:
    """How an embedding was made; decides how queries are read that are compared with it."""

    kind: FeatureKind
    settings: ReadSettings
    draws: Draws
    files: ShapeList
    encoder: Encoder
    origin: Path | str | None
    """Where the encoder is stored; None if it is only in memory."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """Features of shapes, in memory."""

    names: tuple[str, ...]
    """n names: a file's path within its folder, as in the command's output; ``array 3`` for an unnamed array."""

    features: NDArray[np.float32]
    """(n, F), a row for each name; for ``patches`` and ``points`` (m, D), see ``offsets``."""

    failed: tuple[tuple[str, str], ...]
    """Name and reason of every shape that could not be used."""

    left_out: LeftOut
    """What was left out of shapes that were used, such as hidden parts; ``left_out.line()`` says it in a line."""

    assumed_up: int
    """Number of files that state no up axis, so that ``up`` was assumed."""

    offsets: NDArray[np.int64] | None
    """(n + 1,), for ``patches`` and ``points``: shape k has the rows ``offsets[k]`` to ``offsets[k + 1]``."""

    positions: NDArray[np.float32] | None
    """(m, 3), for the same: patch centres or points, in the shape's own unit."""

    sources: NDArray[np.int32]
    """(n,), for each shape the index of its path in ``made_with.files.sources``; -1 for an array."""

    rows: NDArray[np.int64]
    """(n,), the shape's number there."""

    made_with: MadeWith

    def __len__(self) -> int:
        return len(self.names)

    def as_index(self) -> MemoryIndex:
        """The same behind the interface of an embedding in a file."""
        made = self.made_with
        info = embedding_info(made.encoder, made.kind, made.settings, made.files, Path())
        counts = {
            "encoder": str(made.origin or "memory"),
            "shapes": len(self),
            "failed": self.failed,
            "assumed_up": self.assumed_up,
        }
        columns = {
            "ids": np.array(self.names, np.str_),
            "sources": self.sources,
            "rows": self.rows,
            "features": self.features,
        }
        return MemoryIndex(info | made.draws.plain() | counts, columns)


def embed_in_memory(
    given: Sequence[Path | MemoryShape],
    loaded: LoadedEncoder,
    *,
    features: str,
    points: int | None,
    draws: int | None,
    turns: int | None,
    seed: int,
    up: str,
    batch_size: int | None,
    device: torch.device,
    workers: int,
    reporter: Reporter,
) -> Embedding:
    """Features of shapes in files and in memory, in the order given; settings are those of `EmbedRequest`.

    Raises:
        DataError: if a path is missing or holds no shape, or no shape can be used at all.
        ConfigError: for a setting that is not accepted.
    """
    paths = [item for item in given if isinstance(item, Path)]
    check_paths_exist(paths)
    network, origin = loaded
    kind = check_kind(features, network)
    chosen = choose_draws(network, kind, points=points, draws=draws, turns=turns)
    named_rng(seed)  # a seed that is not accepted is refused before anything is read
    settings = read_settings(network, chosen, seed=seed, up=up)
    listed = list_shapes(paths) if paths else ShapeList([])
    for line in listed.not_shapes():
        reporter.say(line)
    maker = FeatureMaker(network, kind, device, points=chosen.points, turns=chosen.turns)
    found = _Found(listed)
    found.add_files(settings, maker, batch_size, workers, reporter)
    arrays = [item for item in given if not isinstance(item, Path)]
    found.add_arrays(arrays, settings, maker, batch_size)
    if not found.shapes:
        name, reason = found.failed[0]
        msg = f"{name}: {reason}"
        raise DataError(msg)
    return found.embedding(given, MadeWith(kind, settings, chosen, listed, network, origin))


class _Found:
    """The features of all shapes as they are computed: those of files by source, those of arrays by number."""

    def __init__(self, listed: ShapeList) -> None:
        self.listed = listed
        self.shapes: dict[int, list[tuple[str, int, ShapeFeatures]]] = {}
        """By source, or -1 less the array's number: name, row and features."""

        self.failed: list[tuple[str, str]] = []
        self.left_out = LeftOut()
        self.assumed_up = 0

    def add_files(
        self,
        settings: ReadSettings,
        maker: FeatureMaker,
        batch_size: int | None,
        workers: int,
        reporter: Reporter,
    ) -> None:
        """Features of all files, by the loop of the command, whose chunks go to a temporary folder."""

        if not len(self.listed):
            return
        with temporary_folder() as folder:
            chunks = -(-len(self.listed) // CHUNK_SHAPES)
            work = WorkFolder(Path(folder, "embedding.npz"), {}, chunks=chunks)
            loop = EmbeddingLoop(self.listed, settings, work, CHUNK_SHAPES, reporter)
            loop.run(maker, batch_size=batch_size, workers=workers, stopped=lambda: False)
            for chunk in work.columns(*_COLUMNS, "failed", "assumed_up", "left_out"):
                self.failed += work.refusals(chunk["failed"])
                self.left_out += work.left_out(chunk["left_out"])
                self.assumed_up += int(chunk["assumed_up"])
                counts = chunk["counts"].tolist() if "counts" in chunk else []
                for k, end in enumerate(itertools.accumulate(counts)):
                    part = slice(end - counts[k], end)
                    places = chunk["positions"][part] if "positions" in chunk else None
                    features = ShapeFeatures(chunk["features"][part], places)
                    row = (str(chunk["ids"][k]), int(chunk["rows"][k]), features)
                    self.shapes.setdefault(int(chunk["sources"][k]), []).append(row)

    def add_arrays(
        self,
        arrays: Sequence[MemoryShape],
        settings: ReadSettings,
        maker: FeatureMaker,
        batch_size: int | None,
    ) -> None:
        """Features of clouds and meshes in memory; clouds of the same number of points share a batch."""

        by_size: dict[int, list[tuple[int, str, NDArray[np.float32]]]] = {}
        for number, array in enumerate(arrays):
            read = read_in_memory(array, settings)
            if read.points is None:
                self.failed.append((read.name, read.reason))
                continue
            self.left_out += read.left_out
            group = by_size.setdefault(len(read.points), [])
            group.append((number, read.name, read.points))
        size = batch_size or CPU_BATCH
        batches = [g[k : k + size] for g in by_size.values() for k in range(0, len(g), size)]
        with inference_threads(maker) as threads:
            waiting = [threads.submit([points for *_, points in batch]) for batch in batches]
            for batch, future in zip(batches, waiting, strict=True):
                for (number, name, _), features in zip(batch, future.result(), strict=True):
                    self.shapes[-1 - number] = [(name, number, features)]

    def embedding(self, given: Sequence[Path | MemoryShape], made_with: MadeWith) -> Embedding:
        """Everything, in the order in which it was given; a path that was given twice is there twice."""
        source_of = {source.path: number for number, source in enumerate(self.listed.sources)}
        order: list[int] = []
        arrays = 0
        for item in given:
            if isinstance(item, Path):
                order.append(source_of[str(item.resolve())])
            else:
                arrays += 1
                order.append(-arrays)
        shapes = [(max(key, -1), *row) for key in order for row in self.shapes.get(key, ())]
        parts = [features for *_, features in shapes]
        several = made_with.kind in ("patches", "points")
        rows = [np.atleast_2d(part.features) for part in parts]
        ends = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
        places = [part.positions for part in parts if part.positions is not None]
        return Embedding(
            names=tuple(name for _, name, _, _ in shapes),
            features=np.concatenate(rows),
            failed=tuple(self.failed),
            left_out=self.left_out,
            assumed_up=self.assumed_up,
            offsets=ends if several else None,
            positions=np.concatenate(places) if several else None,
            sources=np.array([source for source, *_ in shapes], np.int32),
            rows=np.array([row for _, _, row, _ in shapes], np.int64),
            made_with=made_with,
        )


@dataclass(frozen=True, slots=True)
class MeasuredStatistics:
    """The outcome of `measure_encoder`."""

    path: Path
    shapes: int
    """Shapes that were measured."""

    failed: tuple[tuple[str, str], ...]
    """Id and reason of every shape that was refused."""


def measure_encoder(
    folder: Path | str,
    shapes: Path,
    *,
    points: int | None = None,
    draws: int | None = None,
    turns: int | None = None,
    up: str = "z",
    device: str = "auto",
    reporter: Reporter = SILENT,
) -> MeasuredStatistics:
    """Measure the mean and the principal axes of an encoder's default features, and keep them in its folder.

    `search` and ``evaluate`` compare by their axes.

    Args:
        folder: of the encoder, as for ``load_encoder``.
        shapes: a corpus, a folder, an archive or a file, of which at most 2,048 evenly spread shapes are measured.
        points: as for `EmbedRequest`, like ``draws``, ``turns``, ``up`` and ``device``.
        draws: at each angle.
        turns: angles about z.
        up: up axis of files that do not state their own.
        device: where to compute.
        reporter: receives progress.

    Raises:
        CheckpointError: if there is no encoder, or only its weights file without a folder.
        DataError: if the shapes are missing, or fewer than two different ones can be used.
    """
    check_paths_exist([shapes])
    stored = locate_encoder(folder)
    if not stored.is_dir():
        msg = f"{stored}: a weights file alone; export the encoder to a folder first, which keeps its statistics"
        raise CheckpointError(msg, settings=("encoder",))
    encoder = load_encoder(stored)
    kind = DEFAULT_KIND
    chosen = choose_draws(encoder, kind, points=points, draws=draws, turns=turns)
    settings = read_settings(encoder, chosen, seed=0, up=up)
    maker = FeatureMaker(
        encoder, kind, pick_device(device), points=chosen.points, turns=chosen.turns
    )
    listed = list_shapes([shapes])
    numbers = range(0, len(listed), -(-len(listed) // MEASURED_SHAPES))
    features: list[NDArray[np.float32]] = []
    failed: list[tuple[str, str]] = []
    with inference_threads(maker) as threads:
        for first in range(0, len(numbers), MEASURED_AT_ONCE):
            part = numbers[first : first + MEASURED_AT_ONCE]
            read = [read_shape(listed[number][1], settings) for number in part]
            failed += [(shape.name, shape.reason) for shape in read if shape.points is None]
            clouds = [shape.points for shape in read if shape.points is not None]
            waiting = [threads.submit([points]) for points in clouds]
            features += [future.result()[0].features for future in waiting]
            done = min(first + MEASURED_AT_ONCE, len(numbers))
            reporter.progress("measuring features", done, len(numbers))
    statistics = measure([np.stack(features)], len(features)) if len(features) > 1 else None
    if statistics is None:
        msg = f"{shapes}: {len(features)} usable shapes, all alike; statistics need many different ones"
        raise DataError(msg)
    made_with = {
        "encoder_sha256": encoder_checksum(encoder),
        "features": kind,
        **{name: str(value) for name, value in chosen.plain().items()},
    }
    path = write_statistics(stored, statistics, made_with=made_with)
    return MeasuredStatistics(path, statistics.shapes, tuple(failed))
