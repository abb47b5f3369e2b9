"""Shapes to an embedding on disk: read ahead, computed in batches, finished in chunks, resumable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointdistill.data.meshes import check_axis, shape_rng
from pointdistill.data.shape_lists import ReadSettings, ShapeList, list_shapes
from pointdistill.data.workspace import given_or_last_run, remember_embedding
from pointdistill.engine.devices import pick_device
from pointdistill.engine.embedding.compute import (
    FeatureKind,
    FeatureMaker,
    check_kind,
    encoder_checksum,
    feature_width,
)
from pointdistill.engine.embedding.index import FORMAT, VERSION, open_index
from pointdistill.engine.embedding.loop import EmbeddingLoop, Tell
from pointdistill.engine.embedding.output import check_output, write_output
from pointdistill.engine.embedding.work import WorkFolder
from pointdistill.engine.exchange.unfinished import encoder_line
from pointdistill.engine.exchange.weights import load_encoder, locate_encoder
from pointdistill.engine.interrupt import interruptible
from pointdistill.errors import ConfigError, DataError
from pointdistill.model.encoder import Encoder

CHUNK_SHAPES = 256
"""Most shapes of a chunk: what a kill can cost."""

CHUNK_BYTES = 64 * 2**20
"""Most features of a chunk."""


ENOUGH_POINTS, WANTED_POINTS = 1024, 2048
"""An encoder of fewer points than the first averages over draws that together have as many as the second.

Two draws of 256 points of one surface differ as two surfaces do: with the tiny recipe (150 steps) half of 29 files
were nearer to another file than to their own second draw; with the averages of eight draws, 2 were.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedRequest:
    """What to embed, how, and where to."""

    paths: Sequence[Path]
    """Files, folders, zips and corpora."""

    output: Path
    """Ends in .npz or .parquet."""

    encoder: Path | str | None = None
    """As `load_encoder` takes it; None for the last run in this folder."""

    features: str = "pooled"
    """cls, pooled, patches or points."""

    points: int | None = None
    """Points of a draw; None for as many as in pretraining."""

    draws: int | None = None
    """Draws that cls and pooled features are averaged over; None for one, or more of an encoder of few points."""

    seed: int = 0

    up: str = "z"
    """Up axis of files that do not state their own."""

    batch_size: int | None = None
    """Clouds a forward pass; changes speed and memory alone."""

    device: str = "auto"

    workers: int | None = None
    """Processes that read files; 0 reads in this one, None decides by the number of files."""


@dataclass(frozen=True, slots=True)
class EmbedReport:
    """What came of it."""

    output: Path

    shapes: int
    """In the output; after an interruption, those finished so far, refused ones too."""

    total: int

    failed: tuple[tuple[str, str], ...] = ()
    """Id and cause of every shape that was refused."""

    assumed_up: int = 0
    """Files whose up axis was assumed."""

    interrupted: bool = False
    was_complete: bool = False


def embed(
    request: EmbedRequest, tell: Tell | None = None, *, say: Callable[[str], None] | None = None
) -> EmbedReport:
    """Embed every shape of the request's paths and write one file; called again after a kill, go on.

    A shape's features depend on the encoder, the points, the seed, the up axis and the shape alone.

    Args:
        request: what, how, and where to; all of it is checked before anything is written.
        tell: told how far the work is.
        say: told which encoder was taken.

    Raises:
        ConfigError: for a setting that is not accepted.
        CheckpointError: if there is no encoder.
        DataError: if a path is missing or holds no shape, or the output exists and holds something else.
    """
    check_output(request.output)
    check_exist(request.paths)
    device = pick_device(request.device)
    if request.batch_size is not None and request.batch_size < 1:
        msg = f"the batch size must be at least 1, got {request.batch_size}"
        raise ConfigError(msg)
    encoder, origin = find_and_load(request.encoder, say=say)
    kind = check_kind(request.features, encoder)
    points, draws = sampling(encoder, kind, points=request.points, draws=request.draws)
    shape_rng(request.seed)  # a seed that is not accepted is refused before anything is read
    settings = ReadSettings(
        points=points * draws,
        seed=request.seed,
        up=check_axis(request.up),
        minimum=encoder.config.patch_points,
        shuffled=draws > 1,
    )
    shapes = list_shapes(request.paths, leave_out=request.output)
    decides = _decides(encoder, kind, settings, shapes) | {"points": points, "draws": draws}
    if request.output.exists():
        return _complete(request.output, decides, total=len(shapes))
    vectors = points if kind in ("patches", "points") else 1
    size = max(1, min(CHUNK_SHAPES, CHUNK_BYTES // (4 * decides["width"] * vectors)))
    work = WorkFolder(request.output, decides | {"chunk": size}, chunks=-(-len(shapes) // size))
    maker = FeatureMaker(encoder, kind, device, points=points)
    loop = EmbeddingLoop(shapes, settings, work, size, tell)
    with interruptible() as stopped:
        loop.go(maker, batch_size=request.batch_size, workers=request.workers, stopped=stopped)
        if stopped() and (missing := loop.missing()):
            return EmbedReport(request.output, len(shapes) - missing, len(shapes), interrupted=True)
        return _finish(loop, request.output, decides | {"encoder": origin})


def _decides(
    encoder: Encoder, kind: FeatureKind, settings: ReadSettings, shapes: ShapeList
) -> dict[str, Any]:
    """Everything that decides what an embedding holds, as it is recorded in it."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "features": kind,
        "width": feature_width(kind, encoder),
        "encoder_sha256": encoder_checksum(encoder),
        "seed": settings.seed,
        "up": settings.up,
        "inputs": [{"kind": s.kind, "path": s.path, "given": s.given} for s in shapes.sources],
        "files": shapes.stamp(),
    }


def check_exist(paths: Sequence[Path]) -> None:
    """Raise unless there is something at every path: a typing error is no shape to leave out.

    Raises:
        DataError: naming the first that is missing.
    """
    for path in paths:
        if not path.exists():
            msg = f"{path}: no such file or folder; check its name"
            raise DataError(msg)


def find_and_load(
    encoder: Path | str | None, *, say: Callable[[str], None] | None = None
) -> tuple[Encoder, str]:
    """The encoder asked for, or that of the last run in this folder; and its name for the record.

    Args:
        encoder: as for ``load_encoder``; None for the last run's.
        say: told which it is, and whether its training is unfinished.

    Raises:
        CheckpointError: if there is none.
    """
    source = given_or_last_run(encoder)
    here, stored = Path(source), locate_encoder(source)
    if say is not None:
        say(encoder_line(stored))
    return load_encoder(stored), str(here.resolve()) if here.exists() else str(source)


def sampling(
    encoder: Encoder, kind: FeatureKind, *, points: int | None, draws: int | None
) -> tuple[int, int]:
    """Points of a draw, and the number of draws.

    Raises:
        ConfigError: if either is not accepted.
    """
    own, fewest = encoder.config.points, encoder.config.patch_points
    if points is not None and points < fewest:
        msg = f"points must be at least {fewest} for this encoder (one patch), got {points}"
        raise ConfigError(msg)
    if draws is not None and draws < 1:
        msg = f"draws must be at least 1, got {draws}"
        raise ConfigError(msg)
    if kind in ("patches", "points"):
        if draws not in (None, 1):
            msg = f"{kind} features are of one draw, got {draws} draws; average cls or pooled features"
            raise ConfigError(msg)
        return points or own, 1
    each = points or own
    enough = 1 if each >= ENOUGH_POINTS else max(1, WANTED_POINTS // each)
    return each, draws or enough


def _complete(output: Path, decides: Mapping[str, Any], *, total: int) -> EmbedReport:
    """The report of an output that is there already.

    Raises:
        DataError: if it is anything but what the request would write.
    """
    found = open_index(output).info
    other = [key for key in decides if found.get(key) != decides[key]]
    if other:
        msg = f"{output}: exists, made of other {', '.join(other)}; remove it, or choose another --output"
        raise DataError(msg)
    failed = tuple((name, reason) for name, reason in found["failed"])
    return EmbedReport(
        output, found["shapes"], total, failed, found["assumed_up"], was_complete=True
    )


def _finish(loop: EmbeddingLoop, output: Path, info: Mapping[str, Any]) -> EmbedReport:
    """Write the output, if any shape could be used, and remove the work folder."""
    failed: list[tuple[str, str]] = []
    kept = assumed = 0
    for chunk in loop.work.columns("ids", "failed", "assumed_up"):
        kept += len(chunk["ids"])
        failed += loop.work.refusals(chunk["failed"])
        assumed += int(chunk["assumed_up"])
    if kept:
        counts = {"shapes": kept, "failed": failed, "assumed_up": assumed}
        write_output(loop.work, output, {**info, **counts}, width=info["width"])
        remember_embedding(output, [Path(source.path) for source in loop.shapes.sources])
    loop.work.remove()
    return EmbedReport(output, kept, len(loop.shapes), tuple(failed), assumed)
