"""Checks every byte of a corpus against the checksums that were written with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pointdistill.data.corpus.manifest import (
    MANIFEST_NAME,
    REFUSED_NAME,
    Manifest,
    ShardRecord,
    SourceRecord,
    read_manifest,
)
from pointdistill.data.corpus.reader import check_shard_size
from pointdistill.data.corpus.shard import (
    LARGEST_COORDINATE,
    LEVELS,
    Quantised,
    RowBlock,
    read_block,
    row_digest,
)
from pointdistill.data.files.files import sha256_of
from pointdistill.errors import CorpusError


def verify_corpus(
    path: Path | str, *, progress: Callable[[int, int], None] | None = None
) -> tuple[str, ...]:
    """Check every shard and every shape; reads the whole corpus once or twice.

    Args:
        path: the corpus folder.
        progress: called with the number of shards checked and their total.

    Returns:
        One line for each problem, naming the shard and, if it can be determined, the shape; empty if there is
        none.

    Raises:
        CorpusError: if ``corpus.json`` itself cannot be read.
    """
    return tuple(find_damage(path, progress=progress))


def find_damage(
    path: Path | str, *, progress: Callable[[int, int], None] | None = None
) -> Iterator[str]:
    """The lines of `verify_corpus` one by one, each as soon as it is known; one shard is in memory at a time."""
    folder = Path(path)
    manifest = read_manifest(folder)
    sources = {source.name: source for source in manifest.sources}
    wrong_counts = list(_count_problems(manifest))
    yield from wrong_counts
    damaged = bool(wrong_counts)
    content = hashlib.sha256()
    for number, shard in enumerate(manifest.shards, start=1):
        for line in _shard_problems(folder / shard.file, shard, sources.get(shard.source), content):
            damaged = True
            yield line
        if progress:
            progress(number, len(manifest.shards))
    if not damaged and content.hexdigest() != manifest.content:
        yield f"{folder}: the rows give content {content.hexdigest()}, not {manifest.content}"
    if manifest.refused_sha256 is not None:
        yield from _refused_problems(folder / REFUSED_NAME, manifest.refused_sha256)


def _count_problems(manifest: Manifest) -> Iterator[str]:
    """Sources for which the manifest counts more or fewer shapes than their shards hold."""
    for source in manifest.sources:
        shapes = sum(shard.shapes for shard in manifest.shards if shard.source == source.name)
        if shapes != source.kept:
            yield (
                f"{MANIFEST_NAME}: counts {source.kept:,} shapes of {source.name}, "
                f"its shards hold {shapes:,}"
            )


def _shard_problems(
    path: Path, record: ShardRecord, source: SourceRecord | None, content: hashlib._Hash
) -> Iterator[str]:
    """What is wrong with one shard; its rows' checksums are added to ``content``."""
    if source is None:
        yield f"{path.name}: comes from {record.source!r}, which corpus.json does not list"
        return
    try:
        check_shard_size(path, record)
    except CorpusError as error:
        yield str(error)
        return
    try:
        unchanged = sha256_of(path) == record.sha256
        block = read_block(path)
    except (CorpusError, OSError) as error:
        lost = f"none of its {record.shapes:,} shapes"
        yield f"{path.name}: damaged, {lost} can be read ({error})"
        return
    any_problem = False
    for problem in _row_problems(block, record, source):
        any_problem = True
        yield f"{path.name}: {problem}"
    content.update(block.sha256.tobytes())
    if not unchanged and not any_problem:
        yield f"{path.name}: changed since it was written, but no shape is affected"


def _row_problems(block: RowBlock, record: ShardRecord, source: SourceRecord) -> Iterator[str]:
    """One line for each damaged row of a shard."""
    layout_problem = _layout_problem(block, record)
    if layout_problem is not None:
        yield f"{layout_problem}, so no shape can be read"
        return
    ends_fit = block.offsets[0] == 0 and block.offsets[-1] == len(block.points)
    if not ends_fit or (np.diff(block.offsets) < 1).any():
        yield "offsets are damaged, so no shape can be told from the next"
        return
    for row in range(len(block)):
        start, stop = block.offsets[row], block.offsets[row + 1]
        shape = Quantised(block.points[start:stop], block.center[row], block.scale[row])
        name = bytes(block.id[row]).decode("utf-8", "replace")
        # A damaged or hostile id could clear a terminal or begin a line of its own.
        printable = "".join(letter if letter.isprintable() else "?" for letter in name)
        label = int(block.label[row])
        if not -1 <= label < len(source.labels):
            yield f"shape {row} ({printable}): label {label} of {len(source.labels)}"
            continue
        digest = row_digest(
            shape,
            source=source.name,
            shape_id=name,
            label=source.labels[label] if label >= 0 else "",
            part=None if block.part is None else block.part[start:stop],
        )
        if digest != block.sha256[row].tobytes():
            yield f"shape {row} ({printable}): does not match its checksum"
        else:
            problem = _values_problem(shape)
            if problem is not None:
                yield f"shape {row} ({printable}): {problem}"


def _layout_problem(block: RowBlock, record: ShardRecord) -> str | None:
    """The first dataset whose shape or type does not fit the manifest's counts; None if all fit."""
    shapes, points = record.shapes, record.points
    expected = {
        "points": ((points, 3), "i2"),
        "offsets": ((shapes + 1,), "i8"),
        "center": ((shapes, 3), "f4"),
        "scale": ((shapes,), "f4"),
        "label": ((shapes,), "i4"),
        "id": ((shapes,), None),
        "sha256": ((shapes, 32), "u1"),
        "part": ((points,), "u1"),
    }
    for name, (shape, kind) in expected.items():
        values = getattr(block, name)
        if values is None:
            continue
        if values.shape != shape or (kind is not None and values.dtype != np.dtype(kind)):
            return f"{name} is {values.dtype} {values.shape}, expected {kind or 'text'} {shape}"
    return None


def _values_problem(shape: Quantised) -> str | None:
    """Why a row that matches its checksum still gives no usable points; None if it does."""
    if not (np.isfinite(shape.center).all() and np.isfinite(shape.scale)):
        return "center or scale is not finite"
    if shape.scale < 0:
        return f"scale {shape.scale} is negative, which mirrors it"
    if float(np.abs(shape.center).max()) + float(shape.scale) > 2 * LARGEST_COORDINATE:
        return f"its points lie beyond {LARGEST_COORDINATE:.0e}"
    if int(shape.points.min()) < -LEVELS:
        return f"a point lies outside its cube (below -{LEVELS})"
    return None


def _refused_problems(path: Path, sha256: str) -> Iterator[str]:
    if not path.is_file():
        yield f"{path.name}: missing"
    elif sha256_of(path) != sha256:
        yield f"{path.name}: changed since it was written"
