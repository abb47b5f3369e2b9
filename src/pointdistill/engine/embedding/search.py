"""The shapes of an embedding that are nearest to a file, and a picture of them.

Sizes: n shapes, F the length of a vector, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.files import write_aside
from pointdistill.data.meshes import check_axis
from pointdistill.data.shape_lists import Kind, Place, ReadSettings, read_shape
from pointdistill.data.workspace import last_embedding
from pointdistill.engine.devices import pick_device
from pointdistill.engine.embedding.compute import (
    FeatureMaker,
    check_kind,
    computing,
    encoder_checksum,
)
from pointdistill.engine.embedding.embed import check_exist, find_and_load
from pointdistill.engine.embedding.file import Index
from pointdistill.engine.reporting.pictures import clouds
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.model.encoder import Encoder

DRAWN_POINTS = 2048
"""Most points of a shape in the picture."""

Points = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One shape of an embedding."""

    id: str
    similarity: float
    """Cosine of its features and the query's, in [-1, 1]."""

    place: Place
    """Where the shape itself lay when it was embedded."""


@dataclass(frozen=True, slots=True)
class Found:
    """A query and what is nearest to it, the nearest first."""

    neighbours: tuple[Neighbour, ...]
    query: Points
    """(N, 3) the query's points, z up."""

    settings: ReadSettings
    """How the query was read, as the embedding's shapes were."""

    assumed_up: bool
    """Whether the query's up axis was assumed."""


def find_index(named: Path | None) -> Path:
    """The embedding that is meant: the file itself, that of a folder or corpus, or the last one made here.

    Raises:
        DataError: if there is none.
    """
    if named is None:
        found = last_embedding()
    elif named.is_file() and named.suffix.lower() in (".npz", ".parquet"):
        return named
    else:
        found = last_embedding(named)
    if found is None:
        what = "no embedding was made in this folder" if named is None else f"{named}: not embedded"
        msg = f"{what} yet; run `pointdistill embed` first, or name the file that it wrote"
        raise DataError(msg)
    return found


def search(
    query: Path,
    index: Index,
    *,
    count: int = 10,
    encoder: Path | str | None = None,
    up: str | None = None,
    device: str = "auto",
    say: Callable[[str], None] | None = None,
) -> Found:
    """The ``count`` shapes of an embedding whose features are nearest to those of a file, by cosine.

    The query is read as the embedding's shapes were (points, seed). Memory does not grow with n.

    Args:
        query: a mesh or cloud of any kind that is read.
        index: of one vector a shape (cls or pooled).
        count: how many, at least 1.
        encoder: the one that made the embedding; None for where it was then.
        up: up axis of a query that does not state its own; None for the one of the embedding's files.
        device: where to compute the query's features.
        say: told which encoder was taken.

    Raises:
        CheckpointError: if the encoder is gone, or is another one than made the embedding.
        ConfigError: for a setting that is not accepted.
        DataError: if the query cannot be read, or the embedding has several vectors a shape.
    """
    check_exist([query])
    if count < 1:
        msg = f"the count must be at least 1, got {count}"
        raise ConfigError(msg)
    if index.info["features"] not in ("cls", "pooled"):
        msg = (
            f"{index.path}: holds {index.info['features']} features, several vectors a shape; "
            "search needs one: embed with --features pooled"
        )
        raise DataError(msg)
    network = _same_encoder(index, encoder, say)
    settings = ReadSettings(
        points=index.info["points"] * index.info["draws"],
        seed=index.info["seed"],
        up=check_axis(up or index.info["up"]),
        minimum=network.config.patch_points,
        shuffled=index.info["draws"] > 1,
    )
    shape = read_shape(Place("file", str(query.absolute()), query.name, 0), settings)
    if shape.points is None:
        msg = f"{query}: {shape.reason}"
        raise DataError(msg)
    kind = check_kind(index.info["features"], network)
    maker = FeatureMaker(network, kind, pick_device(device), points=index.info["points"])
    with computing(maker) as threads:
        features = threads.submit([shape.points]).result()[0].features
    neighbours = _described(index, nearest(index, features, count))
    return Found(neighbours, shape.points, settings, shape.assumed_up)


def _same_encoder(
    index: Index, encoder: Path | str | None, say: Callable[[str], None] | None
) -> Encoder:
    """The encoder that made an embedding, and no other.

    Raises:
        CheckpointError: if it is gone or changed.
    """
    made_by = index.info["encoder"]
    try:
        network, origin = find_and_load(encoder or made_by, say=say)
    except CheckpointError as error:
        if encoder is not None:
            raise
        msg = (
            f"{index.path}: made by the encoder in {made_by}, which is gone; say with --encoder where it is, "
            "or embed again"
        )
        raise CheckpointError(msg) from error
    checksum = encoder_checksum(network)
    expected = index.info["encoder_sha256"]
    if checksum != expected:
        msg = (
            f"{index.path}: made by another encoder ({expected[:12]}, then in {made_by}) than {origin} "
            f"({checksum[:12]}); name that one with --encoder, or embed again"
        )
        raise CheckpointError(msg)
    return network


def nearest(index: Index, query: NDArray[np.float32], count: int) -> list[tuple[int, float]]:
    """Rows of the embedding and their cosine with (F,) ``query``, the nearest first; ties by row.

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


def _described(index: Index, found: Sequence[tuple[int, float]]) -> tuple[Neighbour, ...]:
    """Ids and places of rows."""
    rows = [row for row, _ in found]
    ids = [str(name) for name in index.pick("ids", rows)]
    sources = [int(number) for number in index.pick("sources", rows)]
    places = [int(row) for row in index.pick("rows", rows)]
    several = len(index.info["inputs"]) > 1
    neighbours = []
    for name, source, row, (_, similarity) in zip(ids, sources, places, found, strict=True):
        origin = index.info["inputs"][source]
        inside = name.removeprefix(f"{origin['given']}/") if several else name
        if origin["kind"] == "file":
            inside = Path(origin["path"]).name
        place = Place(cast("Kind", origin["kind"]), origin["path"], inside, row)
        neighbours.append(Neighbour(name, similarity, place))
    return tuple(neighbours)


def draw_sheet(path: Path, query: Path, found: Found) -> list[str]:
    """Write a PNG of the query and its neighbours; ids of those whose shapes are no longer where they were.

    A corpus that was built anew at its place counts as gone where the row holds another id.
    """
    shapes, titles, gone = [found.query[:DRAWN_POINTS]], [f"query: {query.name}"], []
    for rank, neighbour in enumerate(found.neighbours, start=1):
        try:
            points = _points(neighbour, found.settings)
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


def _points(neighbour: Neighbour, settings: ReadSettings) -> Points | None:
    shape = read_shape(neighbour.place, settings)
    same = neighbour.place.kind != "corpus" or neighbour.id.endswith(shape.name)
    return shape.points if same else None


def _short(name: str, most: int = 24) -> str:
    """The end of a name, which tells shapes apart."""
    return name if len(name) <= most else f"…{name[1 - most :]}"
