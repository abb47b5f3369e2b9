"""Embeds any shapes into one file; an interrupted embedding can be continued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointdistill.data.files.files import path_from
from pointdistill.data.files.workspace import given_or_last_run, remember_embedding
from pointdistill.data.meshes import check_axis
from pointdistill.data.meshes.sample import named_rng
from pointdistill.data.sources.paths import ReadSettings, ShapeList, list_shapes
from pointdistill.engine.embedding.compute import (
    FeatureKind,
    FeatureMaker,
    check_kind,
    feature_width,
)
from pointdistill.engine.embedding.file import (
    FORMAT,
    VERSION,
    check_output,
    open_index,
    write_output,
)
from pointdistill.engine.embedding.loop import EmbeddingLoop, WorkFolder
from pointdistill.engine.pretraining.record import encoder_line
from pointdistill.engine.runtime.devices import interruptible, pick_device
from pointdistill.engine.weights.encoders import encoder_checksum, load_encoder, locate_encoder
from pointdistill.errors import ConfigError, DataError
from pointdistill.model.encoder import Encoder
from pointdistill.reporter import SILENT, Reporter

CHUNK_SHAPES = 256
"""Largest number of shapes in a chunk, which is the most that a kill can cost."""

CHUNK_BYTES = 64 * 2**20
"""Largest size of a chunk's features in bytes."""

AVERAGED_BELOW, AVERAGED_POINTS = 1024, 2048
"""If a draw has fewer points than the first number, several draws with the second number in total are averaged.

Two draws of 256 points from one surface differ as much as two surfaces do. With the tiny recipe (150 steps), half
of 29 files were nearer to another file than to their own second draw; averaged over eight draws, only 2 were.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedRequest:
    """What to embed, how, and where to write it."""

    paths: Sequence[Path]
    """Files, folders, zip archives and corpora."""

    output: Path
    """File to write, .npz or .parquet."""

    encoder: Path | str | None = None
    """As for ``load_encoder``; None for that of the last run in this folder."""

    features: str = "pooled"
    """cls, pooled, patches or points."""

    points: int | None = None
    """Points per draw; None for the number used in pretraining."""

    draws: int | None = None
    """Draws that cls and pooled features are averaged over; None for one, or more if a draw has few points."""

    seed: int = 0

    up: str = "z"
    """Up axis of files that do not state their own."""

    batch_size: int | None = None
    """Clouds per forward pass; affects only speed and memory. None chooses by the device."""

    device: str = "auto"

    workers: int | None = None
    """Processes that read files; 0 reads in this one, None chooses by the number of files."""


@dataclass(frozen=True, slots=True)
class EmbedReport:
    """The outcome of ``embed``."""

    output: Path

    shapes: int
    """Shapes in the output; after an interruption, those finished so far, refused ones included."""

    total: int
    """Shapes in the inputs."""

    failed: tuple[tuple[str, str], ...] = ()
    """Id and reason of every shape that was refused."""

    assumed_up: int = 0
    """Files whose up axis was assumed."""

    interrupted: bool = False
    """Whether it was stopped; the same call continues."""

    was_complete: bool = False
    """Whether the output existed already."""


def embed(request: EmbedRequest, *, reporter: Reporter = SILENT) -> EmbedReport:
    """Embed every shape of the request's paths into one file; after an interruption the same call continues.

    A shape's features depend only on the encoder, the points, the seed, the up axis and the shape.

    Args:
        request: what to embed; all of it is checked before anything is written.
        reporter: receives a line with the encoder, and progress.

    Raises:
        ConfigError: for a setting that is not accepted.
        CheckpointError: if there is no encoder.
        DataError: if a path is missing or holds no shape, or the output exists and holds something else.
    """
    check_output(request.output)
    check_paths_exist(request.paths)
    device = pick_device(request.device)
    if request.batch_size is not None and request.batch_size < 1:
        msg = f"the batch size must be at least 1, got {request.batch_size}"
        raise ConfigError(msg, settings=("batch_size",))
    encoder, origin = find_and_load(request.encoder, reporter=reporter)
    kind = check_kind(request.features, encoder)
    points, draws = points_and_draws(encoder, kind, points=request.points, draws=request.draws)
    named_rng(request.seed)  # a seed that is not accepted is refused before anything is read
    settings = ReadSettings(
        points=points * draws,
        seed=request.seed,
        up=check_axis(request.up),
        minimum=encoder.config.patch_points,
        shuffled=draws > 1,
    )
    shapes = list_shapes(request.paths, leave_out=request.output)
    folder = request.output.parent
    info = _info(encoder, kind, settings, shapes, folder) | {"points": points, "draws": draws}
    if request.output.exists():
        return _report_of_output(request.output, info, total=len(shapes))
    vectors = points if kind in ("patches", "points") else 1
    size = max(1, min(CHUNK_SHAPES, CHUNK_BYTES // (4 * info["width"] * vectors)))
    work = WorkFolder(request.output, info | {"chunk": size}, chunks=-(-len(shapes) // size))
    maker = FeatureMaker(encoder, kind, device, points=points)
    loop = EmbeddingLoop(shapes, settings, work, size, reporter)
    with interruptible() as stopped:
        loop.run(maker, batch_size=request.batch_size, workers=request.workers, stopped=stopped)
        if stopped() and (missing := loop.missing()):
            return EmbedReport(request.output, len(shapes) - missing, len(shapes), interrupted=True)
        made_by = path_from(folder, origin) if isinstance(origin, Path) else origin
        return _finish(loop, request.output, info | {"encoder": made_by})


def _info(
    encoder: Encoder, kind: FeatureKind, settings: ReadSettings, shapes: ShapeList, folder: Path
) -> dict[str, Any]:
    """Everything that decides the content of an embedding, as recorded in its file, which lies in ``folder``."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "features": kind,
        "width": feature_width(kind, encoder),
        "encoder_sha256": encoder_checksum(encoder),
        "seed": settings.seed,
        "up": settings.up,
        "inputs": [
            {"kind": s.kind, "path": path_from(folder, Path(s.path)), "given": s.named}
            for s in shapes.sources
        ],
        "files": shapes.stamp(),
    }


def check_paths_exist(paths: Sequence[Path]) -> None:
    """Check that every path exists.

    Raises:
        DataError: naming the first path that does not exist.
    """
    # A misspelled name is an error, unlike a file that cannot be read, which is only left out.
    for path in paths:
        if not path.exists():
            msg = f"{path}: no such file or folder; check its name"
            raise DataError(msg)


def find_and_load(
    encoder: Path | str | None, *, reporter: Reporter = SILENT
) -> tuple[Encoder, Path | str]:
    """Load an encoder; returns it with its path, or its name on the Hub, for the embedding's record.

    Args:
        encoder: as for ``load_encoder``; None for that of the last run in this folder.
        reporter: receives a line with its path, and whether its training is unfinished.

    Raises:
        CheckpointError: if there is none.
    """
    source = given_or_last_run(encoder)
    path, stored = Path(source), locate_encoder(source)
    reporter.say(encoder_line(stored))
    return load_encoder(stored), path if path.exists() else str(source)


def points_and_draws(
    encoder: Encoder, kind: FeatureKind, *, points: int | None, draws: int | None
) -> tuple[int, int]:
    """The number of points per draw, and the number of draws.

    Raises:
        ConfigError: if either is not accepted.
    """
    own, fewest = encoder.config.points, encoder.config.patch_points
    if points is not None and points < fewest:
        msg = f"points must be at least {fewest} for this encoder (one patch), got {points}"
        raise ConfigError(msg, settings=("points",))
    if draws is not None and draws < 1:
        msg = f"draws must be at least 1, got {draws}"
        raise ConfigError(msg, settings=("draws",))
    if kind in ("patches", "points"):
        if draws not in (None, 1):
            msg = f"{kind} features are of one draw, got {draws}; only cls and pooled features are averaged"
            raise ConfigError(msg, settings=("draws",))
        return points or own, 1
    each = points or own
    enough = 1 if each >= AVERAGED_BELOW else max(1, AVERAGED_POINTS // each)
    return each, draws or enough


def _report_of_output(output: Path, info: Mapping[str, Any], *, total: int) -> EmbedReport:
    """The report of an output that exists already.

    Raises:
        DataError: if it is not what the request would write.
    """
    stored = open_index(output).info
    # Earlier versions noted absolute paths, and "files" says whether the inputs are the same.
    different = [key for key in info if key != "inputs" and stored.get(key) != info[key]]
    if different:
        msg = f"{output}: exists, made of other {', '.join(different)}; remove it, or choose another output file"
        raise DataError(msg, settings=("output",))
    failed = tuple((name, reason) for name, reason in stored["failed"])
    return EmbedReport(
        output, stored["shapes"], total, failed, stored["assumed_up"], was_complete=True
    )


def _finish(loop: EmbeddingLoop, output: Path, info: Mapping[str, Any]) -> EmbedReport:
    """Write the output, unless every shape was refused, and remove the work folder."""
    failed: list[tuple[str, str]] = []
    shapes = assumed = 0
    for chunk in loop.work.columns("ids", "failed", "assumed_up"):
        shapes += len(chunk["ids"])
        failed += loop.work.refusals(chunk["failed"])
        assumed += int(chunk["assumed_up"])
    if shapes:
        counts = {"shapes": shapes, "failed": failed, "assumed_up": assumed}
        write_output(loop.work, output, {**info, **counts}, width=info["width"])
        remember_embedding(output, [Path(source.path) for source in loop.shapes.sources])
    loop.work.remove()
    return EmbedReport(output, shapes, len(loop.shapes), tuple(failed), assumed)
