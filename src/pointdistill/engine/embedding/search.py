"""Finds the shapes of an embedding that are nearest to a file, and draws them.

Sizes: n shapes, F the length of a vector, b rows of a block.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.files.files import write_aside
from pointdistill.data.files.workspace import last_embedding
from pointdistill.data.meshes import check_axis
from pointdistill.data.sources.paths import PathKind, ReadSettings, ShapeLocation, read_shape
from pointdistill.engine.embedding.compute import FeatureMaker, check_kind, inference_threads
from pointdistill.engine.embedding.embed import check_paths_exist, find_and_load
from pointdistill.engine.embedding.file import Index
from pointdistill.engine.reports.pictures import clouds
from pointdistill.engine.runtime.devices import pick_device
from pointdistill.engine.weights.encoders import encoder_checksum, looks_like_repository
from pointdistill.errors import CheckpointError, ConfigError, DataError, one_line
from pointdistill.model.encoder import Encoder
from pointdistill.reporter import SILENT, Reporter

DRAWN_POINTS = 2048
"""Largest number of points of one shape in the picture."""

Points = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One shape of an embedding."""

    id: str
    similarity: float
    """Cosine similarity of its features and the query's, in [-1, 1]."""

    place: ShapeLocation
    """Where the shape was when it was embedded."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A query and the shapes nearest to it, the nearest first."""

    neighbours: tuple[Neighbour, ...]
    query: Points
    """(N, 3) the query's points, z up."""

    settings: ReadSettings
    """How the query was read: in the same way as the embedding's shapes."""

    assumed_up: bool
    """Whether the query's up axis was assumed."""


def find_index(path: Path | None) -> Path:
    """The file of an embedding.

    Args:
        path: the file, or a folder or corpus that was embedded here; None for the last embedding made here.

    Raises:
        DataError: if there is none.
    """
    if path is not None and path.is_file() and path.suffix.lower() in (".npz", ".parquet"):
        return path
    index = last_embedding() if path is None else last_embedding(path)
    if index is None:
        what = "no embedding was made in this folder" if path is None else f"{path}: not embedded"
        msg = f"{what} yet; run `pointdistill embed` first, or name the file that it wrote"
        raise DataError(msg)
    return index


def search(
    query: Path,
    index: Index,
    *,
    count: int = 10,
    encoder: Path | str | None = None,
    up: str | None = None,
    device: str = "auto",
    may_fetch: Callable[[str], bool] = lambda _: False,
    reporter: Reporter = SILENT,
) -> SearchResult:
    """Find the ``count`` shapes of an embedding whose features have the highest cosine similarity to a file's.

    The query is read like the embedding's shapes, with the same number of points and the same seed. Memory does
    not grow with n.

    Args:
        query: a mesh or cloud file.
        index: an embedding with one vector per shape (cls or pooled).
        count: number of shapes to find, at least 1.
        encoder: the encoder that made the embedding, if it has moved since; None if it has not.
        up: up axis of a query that does not state its own; None for that of the embedding's files.
        device: where to compute the query's features.
        may_fetch: asked whether the repository on the Hub that the embedding itself names as its encoder may be
            downloaded: the embedding may be a stranger's.
        reporter: receives a line with the encoder.

    Raises:
        CheckpointError: if the encoder is gone, or is not the one that made the embedding.
        ConfigError: for a setting that is not accepted.
        DataError: if the query cannot be read, or the embedding has several vectors per shape.
    """
    check_paths_exist([query])
    if count < 1:
        msg = f"the count must be at least 1, got {count}"
        raise ConfigError(msg, settings=("count",))
    if index.info["features"] not in ("cls", "pooled"):
        msg = (
            f"{index.path}: holds {index.info['features']} features, several vectors per shape; "
            "search needs one: embed the shapes with pooled features"
        )
        raise DataError(msg)
    network = _load_same_encoder(index, encoder, may_fetch, reporter)
    settings = ReadSettings(
        points=index.info["points"] * index.info["draws"],
        seed=index.info["seed"],
        up=check_axis(up or index.info["up"]),
        minimum=network.config.patch_points,
        shuffled=index.info["draws"] > 1,
    )
    shape = read_shape(ShapeLocation("file", str(query.absolute()), query.name, 0), settings)
    if shape.points is None:
        msg = f"{query}: {shape.reason}"
        raise DataError(msg)
    kind = check_kind(index.info["features"], network)
    maker = FeatureMaker(network, kind, pick_device(device), points=index.info["points"])
    with inference_threads(maker) as threads:
        features = threads.submit([shape.points]).result()[0].features
    neighbours = _neighbours(index, nearest(index, features, count))
    return SearchResult(neighbours, shape.points, settings, shape.assumed_up)


def _load_same_encoder(
    index: Index,
    encoder: Path | str | None,
    may_fetch: Callable[[str], bool],
    reporter: Reporter,
) -> Encoder:
    """The encoder that made an embedding, verified by its checksum.

    Raises:
        CheckpointError: if it is missing, would have to be fetched without leave, or it is another encoder.
    """
    made_by = str(index.info["encoder"])
    own: Path | str = (
        index.path.parent / made_by
    )  # where earlier versions noted an absolute path, that path
    on_hub = looks_like_repository(made_by) and not made_by.startswith(".")
    if encoder is None and on_hub and not Path(own).exists():
        own = made_by
        if not may_fetch(made_by):
            msg = (
                f"{index.path}: names {made_by} on the Hugging Face Hub as the encoder that made it; it is "
                "fetched only if you name it yourself"
            )
            raise CheckpointError(msg, settings=("encoder",))
    try:
        network, origin = find_and_load(encoder or own, reporter=reporter)
    except CheckpointError as error:
        if encoder is not None:
            raise
        msg = f"{index.path}: made by the encoder in {made_by}, which is gone; name its new path, or embed again"
        raise CheckpointError(msg, settings=("encoder",)) from error
    checksum = encoder_checksum(network)
    expected = index.info["encoder_sha256"]
    if checksum != expected:
        msg = (
            f"{index.path}: made by another encoder ({expected[:12]}, then in {made_by}) than {origin} "
            f"({checksum[:12]}); name the encoder that made it, or embed again"
        )
        raise CheckpointError(msg, settings=("encoder",))
    return network


def nearest(index: Index, query: NDArray[np.float32], count: int) -> list[tuple[int, float]]:
    """The ``count`` rows of the embedding nearest to ``query`` (F,), each with its cosine, the nearest first.

    Of rows with the same cosine the lower one comes first.

    Raises:
        DataError: if the embedding's vectors have another length.
    """
    unit = query / max(float(np.linalg.norm(query)), 1e-12)
    rows, best = np.empty(0, np.int64), np.empty(0, np.float32)
    first = 0
    for block in index.blocks("features"):
        if block.ndim != 2 or block.shape[1] != len(query):
            msg = f"{index.path}: features of shape {block.shape}, expected (n, {len(query)}); embed again"
            raise DataError(msg)
        lengths = np.linalg.norm(block, axis=1)
        cosine = (block @ unit) / np.maximum(lengths, 1e-12)
        rows = np.concatenate([rows, np.arange(first, first + len(block))])
        best = np.concatenate([best, cosine])
        order = np.argsort(-best, kind="stable")[:count]
        rows, best = rows[order], best[order]
        first += len(block)
    return list(zip(rows.tolist(), best.tolist(), strict=True))


def _neighbours(index: Index, ranked: Sequence[tuple[int, float]]) -> tuple[Neighbour, ...]:
    """The shapes at these rows, with where they came from."""
    rows = [row for row, _ in ranked]
    ids = [str(name) for name in index.pick("ids", rows)]
    sources = [int(number) for number in index.pick("sources", rows)]
    source_rows = [int(row) for row in index.pick("rows", rows)]
    several = len(index.info["inputs"]) > 1
    folder = index.path.parent.resolve()
    neighbours = []
    for name, source, row, (_, similarity) in zip(ids, sources, source_rows, ranked, strict=True):
        origin = index.info["inputs"][source]
        inside = name.removeprefix(f"{origin['given']}/") if several else name
        if origin["kind"] == "file":
            inside = Path(origin["path"]).name
        place = os.path.normpath(folder / origin["path"])
        location = ShapeLocation(cast("PathKind", origin["kind"]), place, inside, row)
        neighbours.append(Neighbour(name, similarity, location))
    return tuple(neighbours)


def draw_sheet(path: Path, query: Path, result: SearchResult) -> list[str]:
    """Draw the query and its neighbours as a PNG; returns the ids of neighbours that no longer exist."""
    shapes, titles, gone = [result.query[:DRAWN_POINTS]], [f"query: {_short(query.name)}"], []
    for rank, neighbour in enumerate(result.neighbours, start=1):
        try:
            points = _read_neighbour(neighbour, result.settings)
        except (DataError, IndexError, OSError):
            points = None
        if points is None:
            gone.append(neighbour.id)
            continue
        shapes.append(points[:DRAWN_POINTS])
        titles.append(f"{rank}: {_short(neighbour.id)}\n{neighbour.similarity:.3f}")
    picture = clouds(shapes, titles=titles)
    with write_aside(path) as aside:
        aside.write_bytes(picture)
    return gone


def _read_neighbour(neighbour: Neighbour, settings: ReadSettings) -> Points | None:
    shape = read_shape(neighbour.place, settings)
    # If a corpus was rebuilt since, its row may hold another shape.
    same = neighbour.place.kind != "corpus" or neighbour.id.endswith(shape.name)
    return shape.points if same else None


def _short(name: str, most: int = 24) -> str:
    """The end of a long name, which usually tells shapes apart, as one line."""
    name = one_line(name)
    return name if len(name) <= most else f"…{name[1 - most :]}"
