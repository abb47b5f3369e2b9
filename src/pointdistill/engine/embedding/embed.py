"""Embeds any shapes into one file; an interrupted embedding can be continued."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pointdistill.data.files.files import check_replaceable, hold_file, path_from
from pointdistill.data.files.workspace import remember_embedding
from pointdistill.data.meshes.records import LeftOut
from pointdistill.data.meshes.sample import named_rng
from pointdistill.data.sources.paths import (
    ReadSettings,
    ShapeList,
    list_shapes,
    shown_id,
)
from pointdistill.engine.embedding.compute import (
    CPU_BATCH,
    DEFAULT_KIND,
    Draws,
    FeatureKind,
    FeatureMaker,
    check_kind,
    choose_draws,
    feature_width,
    read_settings,
)
from pointdistill.engine.embedding.file import (
    DIFFERENCES,
    FORMAT,
    STORED_TYPES,
    VERSION,
    WorkFolder,
    check_output,
    write_output,
)
from pointdistill.engine.embedding.index import Index, open_index
from pointdistill.engine.embedding.loop import ENCODER, EmbeddingLoop, EmbedJob, Share
from pointdistill.engine.pretraining.run_folder import locate_and_say
from pointdistill.engine.runtime.devices import (
    check_launch_variables,
    interruptible,
    local_process_count,
    process_count,
    process_device,
    process_rank,
)
from pointdistill.engine.weights import given_or_default, is_name
from pointdistill.engine.weights.encoders import (
    encoder_checksum,
    load_encoder,
    save_encoder,
)
from pointdistill.errors import ConfigError, DataError
from pointdistill.model.encoder import Encoder
from pointdistill.reporter import SILENT, Reporter, plural

CHUNK_SHAPES = 256
"""Largest number of shapes in a chunk, which is the most that a kill or Ctrl-C can cost."""

CHUNK_CLOUDS = 1024
"""Largest number of draws in a chunk of more than a batch, of shapes with several each: seconds on a CPU."""

CHUNK_BYTES = 64 * 2**20
"""Largest size of a chunk's features in bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedRequest:
    """What to embed, how, and where to write it."""

    paths: Sequence[Path]
    """Files, folders, zip archives and corpora."""

    output: Path
    """File to write, .npz or .parquet."""

    encoder: Path | str | None = None
    """As for ``load_encoder``; None for the last run's in this folder, or else the program's own encoder."""

    features: str = DEFAULT_KIND
    """moments, pooled, cls, patches or points."""

    points: int | None = None
    """Points per draw; None for the number used in pretraining."""

    draws: int | None = None
    """Draws at each angle that features of a whole shape are averaged over; None chooses by the points of each."""

    turns: int | None = None
    """Angles about z that the draws are turned to, equally spaced; None: at most 8, fewer for dense draws."""

    seed: int = 0

    dtype: str = "float32"
    """Type that the features are stored in: float32, or float16 in half the space, to 3 digits."""

    up: str = "z"
    """Up axis of files that do not state their own."""

    batch_size: int | None = None
    """Clouds per forward pass; affects only speed and memory. None chooses by the device."""

    device: str = "auto"

    overwrite: bool = False
    """Whether to replace an output, or an unfinished one, that was made of other files or settings."""

    workers: int | None = None
    """Processes that read files; 0 reads in this one, None chooses by the number of files."""

    cluster: str | None = None
    """Address of a dask scheduler whose workers do the work; inputs and output must lie on a file system that all
    hosts share. None for this process alone, or for those that torchrun or accelerate launch started with it."""


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

    left_out: LeftOut = field(default_factory=LeftOut)
    """What the files hold besides their shapes; not known of an output that existed already."""

    interrupted: bool = False
    """Whether it was stopped; the same call continues."""

    was_complete: bool = False
    """Whether the output existed already."""

    is_helper: bool = False
    """Whether this process only computed a part of what another one, which a launcher started too, reports on."""


def embed(request: EmbedRequest, *, reporter: Reporter = SILENT) -> EmbedReport:
    """Embed every shape of the request's paths into one file; after an interruption the same call continues.

    A shape's features depend only on the encoder, the points, the seed, the up axis and the shape. Several
    processes that a launcher started divide the shapes; the first of them writes the file and reports.

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
    share = _share(request)
    if share is not None and share.rank > 0:
        reporter = SILENT
    device = process_device(request.device)
    if request.batch_size is not None and request.batch_size < 1:
        msg = f"the batch size must be at least 1, got {request.batch_size}"
        raise ConfigError(msg, settings=("batch_size",))
    encoder, origin = find_and_load(request.encoder, reporter=reporter)
    kind = check_kind(request.features, encoder)
    if request.dtype not in STORED_TYPES:
        msg = f"dtype must be one of {', '.join(STORED_TYPES)}, got {request.dtype!r}"
        raise ConfigError(msg, settings=("dtype",))
    draws = choose_draws(
        encoder, kind, points=request.points, draws=request.draws, turns=request.turns
    )
    named_rng(request.seed)  # a seed that is not accepted is refused before anything is read
    settings = read_settings(encoder, draws, seed=request.seed, up=request.up)
    shapes = list_shapes(request.paths, leave_out=request.output)
    for line in shapes.not_shapes():
        reporter.say(line)
    folder = request.output.parent
    info = embedding_info(encoder, kind, settings, shapes, folder) | draws.plain()
    vectors = draws.points if kind in ("patches", "points") else 1
    size = shapes_in_chunk(draws, info["width"] * vectors)
    wanted, chunks = info | {"chunk": size}, -(-len(shapes) // size)
    maker = FeatureMaker(encoder, kind, device, points=draws.points, turns=draws.turns)
    if share is not None and share.rank > 0:
        done = partial(_is_written, request, shapes, info | {"dtype": request.dtype})
        helped = WorkFolder.join(
            request.output, wanted, chunks=chunks, is_written=done if request.overwrite else None
        )
        if helped is None:  # all is done; the first process reports
            return EmbedReport(request.output, 0, len(shapes), is_helper=True)
        return _help(EmbeddingLoop(shapes, settings, helped, size), maker, request, share)
    stored = {"dtype": request.dtype}  # of the output alone: chunks are float32 always
    if _is_written(request, shapes, info | stored):
        return _report_of_output(request.output, shapes)
    msg = f"{request.output}: another process is writing it; wait for that one, or choose another output file"
    with hold_file(request.output, DataError(msg, settings=("output",))):
        if _is_written(request, shapes, info | stored):  # another process has just written it
            return _report_of_output(request.output, shapes)
        work = WorkFolder(request.output, wanted, chunks=chunks, overwrite=request.overwrite)
        loop = EmbeddingLoop(shapes, settings, work, size, reporter)
        if request.cluster is not None:
            stopped = _run_on_cluster(loop, maker, request)
        else:
            stopped = _run(loop, maker, request, share)
        if stopped and (missing := loop.missing()):
            return EmbedReport(request.output, len(shapes) - missing, len(shapes), interrupted=True)
        made_by = path_from(folder, origin) if isinstance(origin, Path) else origin
        return _finish(loop, request.output, info | stored | {"encoder": made_by})


def shapes_in_chunk(draws: Draws, features: int) -> int:
    """Number of shapes in a chunk.

    Args:
        draws: of each shape.
        features: numbers that are kept of each shape.
    """
    most = min(CHUNK_SHAPES, CHUNK_BYTES // (4 * features))
    return max(1, min(most, max(CHUNK_CLOUDS // draws.count, CPU_BATCH)))


def _share(request: EmbedRequest) -> Share | None:
    """Which of the processes that a launcher started this one is; None if it is alone.

    Raises:
        ConfigError: if there are several and a cluster too, or the launcher's variables are incomplete.
    """
    check_launch_variables()
    processes = process_count()
    if processes == 1:
        return None
    if request.cluster is not None:
        msg = f"a cluster does the work, but {processes} processes were started; start one, without a launcher"
        raise ConfigError(msg, settings=("cluster",))
    here = local_process_count()
    return Share(rank=process_rank(), processes=processes, local_processes=here)


def _run(
    loop: EmbeddingLoop, maker: FeatureMaker, request: EmbedRequest, share: Share | None
) -> bool:
    """Compute what is missing; returns whether a signal stopped it."""
    with interruptible() as stopped:
        loop.run(
            maker,
            batch_size=request.batch_size,
            workers=request.workers,
            stopped=stopped,
            share=share,
        )
        return stopped()


def _help(
    loop: EmbeddingLoop, maker: FeatureMaker, request: EmbedRequest, share: Share
) -> EmbedReport:
    """Compute chunks as long as there are some to claim; the first process reports on all."""
    stopped = _run(loop, maker, request, share)
    total = len(loop.shapes)
    return EmbedReport(request.output, 0, total, interrupted=stopped, is_helper=True)


def _run_on_cluster(loop: EmbeddingLoop, maker: FeatureMaker, request: EmbedRequest) -> bool:
    """Have a cluster compute what is missing; returns whether a signal stopped it."""
    from pointdistill.data.corpus_building.dask_driver import open_cluster

    assert request.cluster is not None

    def stop() -> None:
        raise KeyboardInterrupt

    # Workers need not have the encoder where this host has it; the folder of the work is one that they all see.
    save_encoder(maker.original, loop.work.path / ENCODER)
    job = EmbedJob(
        shapes=loop.shapes,
        settings=loop.settings,
        work=loop.work,
        chunk_size=loop.chunk_size,
        kind=maker.kind,
        points=maker.points,
        turns=maker.turns,
        device=request.device,
        batch_size=request.batch_size,
        inputs=tuple(Path(source.path) for source in loop.shapes.sources),
    )
    with interruptible(stop):
        try:
            loop.run_on_cluster(open_cluster(job, request.cluster, None))
        except KeyboardInterrupt:
            return True
    return False


def embedding_info(
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


class LoadedEncoder(NamedTuple):
    """An encoder in memory, and where it comes from."""

    network: Encoder
    origin: Path | str | None
    """Its path, or its name on the Hub, for an embedding's record; None if it is only in memory."""


def find_and_load(
    encoder: LoadedEncoder | Path | str | None, *, reporter: Reporter = SILENT
) -> LoadedEncoder:
    """Load an encoder, unless it is loaded already.

    Args:
        encoder: as for ``load_encoder``; None for that of the last run in this folder, or else the one that comes
            with the program.
        reporter: receives a line with its path, and whether its training is unfinished.

    Raises:
        CheckpointError: if there is none.
    """
    if isinstance(encoder, LoadedEncoder):
        return encoder
    source = given_or_default(encoder, reporter=reporter)
    stored = locate_and_say(source, by_default=encoder is None, reporter=reporter)
    is_path = not is_name(source) and Path(source).exists()
    return LoadedEncoder(load_encoder(stored), Path(source) if is_path else str(source))


def _is_written(request: EmbedRequest, shapes: ShapeList, info: Mapping[str, Any]) -> bool:
    """Whether the output exists, and is what the request would write.

    Raises:
        DataError: if it is something else that is not to be replaced; says what differs.
    """
    output = request.output
    if not check_replaceable(output).exists():
        return False
    try:
        index = open_index(output)
    except DataError as error:
        msg = f"{error}; or choose another output file, or remove this one"
        raise DataError(msg, settings=("output",)) from error
    # Earlier versions stored float32 and did not say so.
    stored = {"dtype": "float32", **index.info}
    # Earlier versions noted absolute paths, and "files" says whether the inputs are the same.
    apart = ("inputs", "width")  # the width follows from encoder and features
    different = [key for key in info if key not in apart and stored.get(key) != info[key]]
    if different and not request.overwrite:
        named = DIFFERENCES | (
            {"files": _changed_inputs(index, shapes)} if "files" in different else {}
        )
        words = dict.fromkeys(named.get(key, key) for key in different)
        msg = (
            f"{output}: exists, and differs from what was asked for: {', '.join(words)}; have it replaced, or "
            "choose another output file"
        )
        raise DataError(msg, settings=("overwrite", "output", *(k for k in different if k in _SET)))
    return not different


_SET = ("features", "seed", "up", "points", "draws", "turns", "dtype")
"""Entries of an embedding's record that are settings of the same name."""


def _changed_inputs(index: Index, shapes: ShapeList) -> str:
    """How the shapes that were embedded differ from ``shapes`` of now, in words."""
    folder = index.path.parent.resolve()
    embedded = {os.path.normpath(folder / one.path) for one in index.facts.inputs}
    if embedded != {source.path for source in shapes.sources}:
        return "other inputs"
    if any(source.names is None for source in shapes.sources):
        return "a corpus that has changed"
    before = {name for block in index.blocks("ids") for name in block.tolist()}
    before |= {name for name, _ in index.facts.failed}
    now = {
        shown_id(shapes.shape_id(number, name))
        for number, source in enumerate(shapes.sources)
        for name in source.names or ()
    }
    new, gone = len(now - before), len(before - now)
    where = f"the {shapes.sources[0].kind} has" if len(shapes.sources) == 1 else "the inputs have"
    parts = [plural(new, "new file")] * bool(new) + [f"{plural(gone, 'file')} less"] * bool(gone)
    return f"{where} {' and '.join(parts) or 'changed'}"


def _report_of_output(output: Path, shapes: ShapeList) -> EmbedReport:
    """The report of an output that exists already, which becomes the last one."""
    stored = open_index(output).info
    remember_embedding(output, [Path(source.path) for source in shapes.sources])
    failed = tuple((name, reason) for name, reason in stored["failed"])
    return EmbedReport(
        output, stored["shapes"], len(shapes), failed, stored["assumed_up"], was_complete=True
    )


def _finish(loop: EmbeddingLoop, output: Path, info: Mapping[str, Any]) -> EmbedReport:
    """Write the output, unless every shape was refused, and remove the work folder."""
    failed: list[tuple[str, str]] = []
    shapes = assumed = 0
    left_out = LeftOut()
    for chunk in loop.work.columns("ids", "failed", "assumed_up", "left_out"):
        shapes += len(chunk["ids"])
        failed += loop.work.refusals(chunk["failed"])
        assumed += int(chunk["assumed_up"])
        left_out += loop.work.left_out(chunk.get("left_out"))
    if shapes:
        counts = {"shapes": shapes, "failed": failed, "assumed_up": assumed}
        write_output(loop.work, output, {**info, **counts}, width=info["width"])
        remember_embedding(output, [Path(source.path) for source in loop.shapes.sources])
    loop.work.remove()
    return EmbedReport(output, shapes, len(loop.shapes), tuple(failed), assumed, left_out)
