"""Finds the shapes of an embedding that are nearest to a file, and draws them.

Similarity is the cosine of two vectors in the space that `comparison` chooses.

Sizes: n shapes, N points of a query.
"""

from __future__ import annotations

import filecmp
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.files.archive import open_archive
from pointdistill.data.files.files import short_name, write_aside
from pointdistill.data.files.member import hold_archive
from pointdistill.data.files.packed_tars import PACKED_TARS
from pointdistill.data.files.workspace import check_not_lost, embedded_inputs, last_embedding
from pointdistill.data.meshes import Axis
from pointdistill.data.meshes.formats.points import is_prose
from pointdistill.data.meshes.read import files_in_folders, is_shape_name
from pointdistill.data.sources.paths import (
    MemoryShape,
    ReadSettings,
    ReadShape,
    ShapeLocation,
    read_in_memory,
    read_shape,
    shown_id,
)
from pointdistill.engine.embedding.comparison import choose_comparison, nearest
from pointdistill.engine.embedding.compute import (
    DEFAULT_KIND,
    PER_SHAPE,
    FeatureMaker,
    check_kind,
    inference_threads,
    read_settings,
)
from pointdistill.engine.embedding.embed import LoadedEncoder, check_paths_exist, find_and_load
from pointdistill.engine.embedding.file import SUFFIXES
from pointdistill.engine.embedding.index import Index, MemoryIndex, is_embedding
from pointdistill.engine.features.statistics import RAW
from pointdistill.engine.reports.pictures import (
    MOST_NEIGHBOURS,
    SheetRow,
    SheetShape,
    search_sheet,
)
from pointdistill.engine.runtime.devices import pick_device
from pointdistill.engine.weights import PUBLISHED, is_name
from pointdistill.engine.weights.encoders import encoder_checksum, looks_like_repository
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.reporter import SILENT, Reporter

DRAWN_POINTS = 2048
"""Largest number of points of one shape in the picture."""

DRAWN_QUERIES, DRAWN_NEIGHBOURS = 16, 10
"""Most rows, and neighbours in a row, of the picture of several queries."""

Points = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One shape of an embedding."""

    id: str
    similarity: float
    """Cosine of its features and the query's in the space that they are compared in, from -1 to 1."""

    location: ShapeLocation | None
    """Where the shape was when it was embedded; None for an array in memory."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A query and the shapes nearest to it, the nearest first."""

    path: Path
    """The query's file; the name of an array."""

    neighbours: tuple[Neighbour, ...]
    query: Points = field(repr=False)
    """(N, 3) the query's points, z up."""

    settings: ReadSettings
    """How the query was read: as the embedding's shapes, but for an up axis of its own."""

    index_up: Axis
    """The up axis by which the embedding's shapes are read."""

    assumed_up: bool
    """Whether the query's up axis was assumed."""

    own: Neighbour | None = None
    """The query's own file in the embedding, where it is not to be among the neighbours."""


@dataclass(frozen=True, slots=True)
class SearchReport:
    """The outcome of `search_all`."""

    results: tuple[SearchResult, ...]
    """In the order of the queries; those that could not be read are left out."""

    failed: tuple[tuple[Path, str], ...]
    """Queries that could not be read, and why."""

    compared: str
    """How features were compared, in a line."""


def find_index(path: Path | None) -> Path:
    """The file of an embedding.

    Args:
        path: the file, or a folder or corpus that was embedded here; None for the last embedding made here.

    Raises:
        DataError: if there is none.
    """
    if path is not None and path.is_file() and path.suffix.lower() in SUFFIXES:
        return path
    index = last_embedding(path)
    if index is None:
        check_not_lost(path)
        what = "no embedding was made in this folder" if path is None else f"{path}: not embedded"
        msg = f"{what} yet; run `pointdistill embed` first, or name the file that it wrote"
        raise DataError(msg)
    return index


def new_files(index: Index) -> int:
    """How many files lie in the folders that were embedded, as far as they are here, and are not in the embedding.

    Files are compared by their names alone, so that one whose content has changed does not count. Only folders
    that were embedded here are looked into: a stranger's embedding may name any, such as the whole disk.

    Raises:
        DataError: if the embedding is damaged.
    """
    inputs = index.facts.inputs
    place = index.path.parent.resolve()
    named = dict.fromkeys(
        (one.given, Path(os.path.normpath(place / one.path)))
        for one in inputs
        if one.kind == "folder"
    )
    here = embedded_inputs()
    folders = [(given, path) for given, path in named if path.is_dir() and path.resolve() in here]
    if not folders:
        return 0
    known = {str(name) for block in index.blocks("ids") for name in block}
    known |= {name for name, _ in index.facts.failed}
    count = 0
    for given, path in folders:
        with open_archive(path, absent=f"{path}: no such folder; check its name") as archive:
            names = [name for name in archive.names if is_shape_name(name)]
        before = f"{given}/" if len(inputs) > 1 else ""
        new = (path / name for name in names if shown_id(before + name) not in known)
        count += sum(not is_prose(file) and not is_embedding(file) for file in new)
    return count


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
    """`search_all` for one file.

    Raises:
        DataError: also if the query cannot be read.
    """
    report = search_all(
        [query],
        index,
        count=count,
        encoder=encoder,
        up=up,
        device=device,
        may_fetch=may_fetch,
        reporter=reporter,
    )
    for path, reason in report.failed:
        msg = f"{path}: {reason}"
        raise DataError(msg)
    return report.results[0]


def search_all(
    queries: Sequence[Path | MemoryShape],
    index: Index,
    *,
    count: int = 10,
    encoder: LoadedEncoder | Path | str | None = None,
    up: str | None = None,
    device: str = "auto",
    others_only: bool = False,
    may_fetch: Callable[[str], bool] = lambda _: False,
    reporter: Reporter = SILENT,
) -> SearchReport:
    """Find, for each file, the ``count`` shapes of an embedding that are most similar to it.

    Queries are read like the embedding's shapes, with the same draws and the same seed. The embedding is read once
    for all queries, and memory does not grow with n.

    Args:
        queries: mesh or cloud files, folders of them, and shapes in memory.
        index: an embedding with one vector per shape.
        count: number of shapes to find, at least 1.
        encoder: the encoder that made the embedding, if it has moved since; None if it has not.
        up: up axis of queries that do not state their own; None for that of the embedding's files.
        device: where to compute the queries' features; an encoder in memory stays where it is.
        others_only: whether a query's own file in the embedding is kept apart and does not count.
        may_fetch: asked whether the encoder that the embedding itself names may be downloaded from the Hub: the
            embedding may be a stranger's.
        reporter: receives a line with the encoder, what of folders is not read, and why statistics that lie
            beside the encoder are not used.

    Raises:
        CheckpointError: if the encoder is gone, or is not the one that made the embedding.
        ConfigError: for a setting that is not accepted.
        DataError: if a query is missing, or the embedding is damaged or has several vectors per shape.
    """
    check_paths_exist([query for query in queries if isinstance(query, Path)])
    if count < 1:
        msg = f"the count must be at least 1, got {count}"
        raise ConfigError(msg, settings=("count",))
    if index.facts.features not in PER_SHAPE:
        msg = (
            f"{index.path}: holds {index.facts.features} features, several vectors per shape; "
            f"search needs one: embed the shapes with {DEFAULT_KIND} features"
        )
        raise DataError(msg)
    network, origin = _load_same_encoder(index, encoder, may_fetch, reporter)
    draws = index.facts.chosen_draws
    settings = read_settings(network, draws, seed=index.facts.seed, up=up or index.facts.up)
    kind = check_kind(index.facts.features, network)
    in_memory = isinstance(encoder, LoadedEncoder)
    where = next(network.parameters()).device if in_memory else pick_device(device)
    maker = FeatureMaker(network, kind, where, points=draws.points, turns=draws.turns)
    shapes = [_read_query(query, settings) for query in files_in_folders(queries, say=reporter.say)]
    read = [(path, shape, shape.points) for path, shape in shapes if shape.points is not None]
    with inference_threads(maker) as threads:
        waiting = [threads.submit([points]) for _, _, points in read]
        features = [future.result()[0].features for future in waiting]
    comparison = choose_comparison(index, network, origin, reporter=reporter)
    most = count + 1 if others_only else count
    ranked = nearest(index, np.stack(features), most, comparison) if features else []
    results = [
        SearchResult(
            path, _neighbours(index, rows), points, settings, index.facts.up, shape.assumed_up
        )
        for (path, shape, points), rows in zip(read, ranked, strict=True)
    ]
    if others_only:
        results = [_without_own(result, count) for result in results]
    return SearchReport(
        results=tuple(results),
        failed=tuple((path, shape.reason) for path, shape in shapes if shape.points is None),
        compared=comparison.name,
    )


def _without_own(result: SearchResult, count: int) -> SearchResult:
    """The result with the ``count`` nearest of other files; the same path, or else the same bytes, is its own."""
    files = {
        number: at
        for number, neighbour in enumerate(result.neighbours)
        if (at := neighbour.location) is not None and at.kind in ("file", "folder", "archive")
    }
    place = os.path.realpath(result.path)
    same = [n for n, at in files.items() if (p := _path_of(at)) and os.path.realpath(p) == place]
    if not same and result.path.is_file():
        same = [n for n, at in files.items() if _same_bytes(at, result.path)]
    others = tuple(one for n, one in enumerate(result.neighbours) if n not in same[:1])
    own = result.neighbours[same[0]] if same else None
    return replace(result, neighbours=others[:count], own=own)


def _path_of(at: ShapeLocation) -> Path | None:
    """The file of a shape; None if it is inside an archive."""
    if at.kind == "archive":
        return None
    return Path(at.path) if at.kind == "file" else Path(at.path, at.name)


def _same_bytes(at: ShapeLocation, query: Path) -> bool:
    try:
        if (path := _path_of(at)) is not None:
            return path.is_file() and filecmp.cmp(path, query, shallow=False)
        if Path(at.name).suffix.lower() != query.suffix.lower():
            return False
        # A stranger's embedding may name anything: only a member of the query's size is read, and no tar unpacked.
        place = Path(at.path)
        if not place.is_file() or place.name.lower().endswith(PACKED_TARS):
            return False
        held = hold_archive(place)
        if at.name not in held.names:
            return False
        size = held.archive.locate(at.name).size
        return size == query.stat().st_size and held.archive.read(at.name) == query.read_bytes()
    except (OSError, DataError):
        return False


def _read_query(query: Path | MemoryShape, settings: ReadSettings) -> tuple[Path, ReadShape]:
    if isinstance(query, MemoryShape):
        return Path(query.name), read_in_memory(query, settings)
    location = ShapeLocation("file", str(query.absolute()), query.name, 0)
    return query, read_shape(location, settings)


def _load_same_encoder(
    index: Index,
    encoder: LoadedEncoder | Path | str | None,
    may_fetch: Callable[[str], bool],
    reporter: Reporter,
) -> LoadedEncoder:
    """The encoder that made an embedding, verified by its checksum, and where it is.

    Raises:
        CheckpointError: if it is missing, would have to be fetched without leave, or it is another encoder.
    """
    made_by = index.facts.encoder
    # Where earlier versions noted an absolute path, this is that path.
    own: Path | str = made_by if is_name(made_by) else index.path.parent / made_by
    if encoder is None and _would_be_fetched(made_by, own):
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
        if encoder is not None or is_name(made_by):
            raise
        msg = f"{index.path}: made by the encoder in {made_by}, which is gone; name its new path, or embed again"
        raise CheckpointError(msg, settings=("encoder",)) from error
    checksum = encoder_checksum(network)
    expected = index.facts.encoder_sha256
    if checksum != expected:
        msg = (
            f"{index.path}: made by another encoder ({expected[:12]}, then in {made_by}) than "
            f"{origin or 'the given one'} "
            f"({checksum[:12]}); name the encoder that made it, or embed again"
        )
        raise CheckpointError(msg, settings=("encoder",))
    return LoadedEncoder(network, origin)


def _would_be_fetched(made_by: str, own: Path | str) -> bool:
    """Whether the encoder that an embedding names would have to be downloaded."""
    if is_name(made_by):
        return made_by in PUBLISHED and not PUBLISHED[made_by].is_here
    return looks_like_repository(made_by) and not made_by.startswith(".") and not Path(own).exists()


def _neighbours(index: Index, ranked: Sequence[tuple[int, float]]) -> tuple[Neighbour, ...]:
    """The shapes at these rows, with where they came from."""
    rows = [row for row, _ in ranked]
    ids = [str(name) for name in index.pick("ids", rows)]
    sources = [int(number) for number in index.pick("sources", rows)]
    source_rows = [int(row) for row in index.pick("rows", rows)]
    inputs = index.facts.inputs
    several = len(inputs) > 1
    folder = index.path.parent.resolve()
    neighbours = []
    for name, source, row, (_, similarity) in zip(ids, sources, source_rows, ranked, strict=True):
        if source == -1 and isinstance(index, MemoryIndex):
            neighbours.append(Neighbour(name, similarity, None))
            continue
        if not 0 <= source < len(inputs) or row < 0:
            msg = f"{index.path}: row {row} of input {source} of {len(inputs)}; embed again"
            raise DataError(msg)
        origin = inputs[source]
        inside = name.removeprefix(f"{origin.given}/") if several else name
        if origin.kind == "file":
            inside = Path(origin.path).name
        location = ShapeLocation(origin.kind, os.path.normpath(folder / origin.path), inside, row)
        neighbours.append(Neighbour(name, similarity, location))
    return tuple(neighbours)


def draw_sheet(
    path: Path, results: Sequence[SearchResult], *, compared: str = RAW.name
) -> dict[str, str]:
    """Draw queries and their neighbours as a PNG; returns by id why each other neighbour is not drawn.

    A single query's first 100 neighbours fill as many rows as they need. Of several queries each has a row, the
    first 16 of them and 10 neighbours each.

    Args:
        path: the picture.
        results: at least one.
        compared: how features were compared, as in the report.

    Raises:
        DataError: if the picture cannot be written.
    """
    most = DRAWN_NEIGHBOURS if len(results) > 1 else MOST_NEIGHBOURS
    not_drawn: dict[str, str] = {}
    rows, left_out = [], 0
    names = Counter(result.path.name for result in results[:DRAWN_QUERIES])
    for result in results[:DRAWN_QUERIES]:
        drawn = []
        left_out += len(result.neighbours[most:])
        for rank, neighbour in enumerate(result.neighbours[:most], start=1):
            shape = _read_neighbour(neighbour, replace(result.settings, up=result.index_up))
            if shape.points is None:
                not_drawn[neighbour.id] = shape.reason
                continue
            drawn.append(
                SheetShape(
                    points=shape.points[:DRAWN_POINTS],
                    name=neighbour.id,
                    title=str(rank),
                    similarity=neighbour.similarity,
                )
            )
        path_or_name = short_name(result.path) if names[result.path.name] > 1 else result.path.name
        query = SheetShape(points=result.query[:DRAWN_POINTS], name=str(path_or_name))
        rows.append(SheetRow(query, tuple(drawn)))
    note = (
        f"Similarity: cosine of {compared}. Each shape fills its cell; the line below it is that long in the unit "
        "of its file. The arrow is z, up."
    )
    if left_out or len(results) > DRAWN_QUERIES:
        note += f" Drawn: {len(rows):,} of {len(results):,} queries, at most {most} shapes each."
    picture = search_sheet(rows, note=note)
    with _written(path), write_aside(path) as aside:
        aside.write_bytes(picture)
    return not_drawn


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Name the sheet as the setting where its path cannot be written to."""
    try:
        yield
    except OSError as error:
        msg = f"{path}: cannot be written ({error.strerror or error}); name another sheet"
        raise DataError(msg, settings=("sheet",)) from error
    except DataError as error:
        raise DataError(str(error), settings=("sheet",)) from error


def _read_neighbour(neighbour: Neighbour, settings: ReadSettings) -> ReadShape:
    """The points of a neighbour, or the reason why it has none."""
    reason = "is no longer where it was embedded from"
    location = neighbour.location
    if location is None:
        return ReadShape(neighbour.id, reason=reason)
    try:
        shape = read_shape(location, settings)
        # If a corpus was rebuilt since, its row may hold another shape.
        if location.kind != "corpus" or neighbour.id.endswith(shape.name):
            return shape
    except IndexError:  # a corpus of fewer shapes
        pass
    except DataError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.filename or location.path}: cannot be read ({error.strerror or error})"
    return ReadShape(neighbour.id, reason=reason)
