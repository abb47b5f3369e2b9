"""Every byte of a corpus against the checksums it was written with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pointdistill.data.corpus.codec import Quantised
from pointdistill.data.corpus.manifest import (
    REFUSED_NAME,
    ShardRecord,
    SourceRecord,
    read_manifest,
)
from pointdistill.data.corpus.reader import check_size
from pointdistill.data.corpus.shard import Block, read_block, row_digest
from pointdistill.data.files import sha256_of
from pointdistill.errors import CorpusError


def verify_corpus(
    path: Path | str, *, progress: Callable[[int, int], None] | None = None
) -> tuple[str, ...]:
    """Check every shard and every shape; reads the whole corpus once or twice.

    Args:
        path: the corpus folder.
        progress: called with the number of shards checked and the number there are.

    Returns:
        One line for each thing that is wrong, naming the shard and, where it can be told, the
        shape; empty when all is well.

    Raises:
        CorpusError: if ``corpus.json`` itself cannot be read.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    sources = {source.name: source for source in manifest.sources}
    wrong: list[str] = []
    content = hashlib.sha256()
    for number, shard in enumerate(manifest.shards, start=1):
        wrong += _shard_problems(folder / shard.file, shard, sources.get(shard.source), content)
        if progress:
            progress(number, len(manifest.shards))
    if not wrong and content.hexdigest() != manifest.content:
        wrong.append(
            f"{folder}: the rows give content {content.hexdigest()}, not {manifest.content}"
        )
    if manifest.refused_sha256 is not None:
        wrong += _refused_problems(folder / REFUSED_NAME, manifest.refused_sha256)
    return tuple(wrong)


def _shard_problems(
    path: Path, record: ShardRecord, source: SourceRecord | None, content: hashlib._Hash
) -> list[str]:
    """What is wrong with one shard; its rows' checksums are added to ``content``."""
    if source is None:
        return [f"{path.name}: comes from {record.source!r}, which corpus.json does not list"]
    try:
        check_size(path, record)
        whole = sha256_of(path) == record.sha256
        block = read_block(path)
    except CorpusError as error:
        return [str(error)]
    except (OSError, RuntimeError, KeyError) as error:
        return [f"{path.name}: damaged, cannot be read ({error})"]
    wrong = [f"{path.name}: {problem}" for problem in _row_problems(block, source)]
    content.update(block.sha256.tobytes())
    if not whole and not wrong:
        wrong.append(f"{path.name}: changed since it was written, but no shape is affected")
    return wrong


def _row_problems(block: Block, source: SourceRecord) -> Iterator[str]:
    """One line for each damaged row of a shard."""
    ends_fit = block.offsets[0] == 0 and block.offsets[-1] == len(block.points)
    if not ends_fit or (np.diff(block.offsets) < 1).any():
        yield "offsets are damaged, so no shape can be told from the next"
        return
    for row in range(len(block)):
        start, stop = block.offsets[row], block.offsets[row + 1]
        shape = Quantised(block.points[start:stop], block.center[row], block.scale[row])
        name = bytes(block.id[row]).decode("utf-8", "replace")
        label = int(block.label[row])
        if not -1 <= label < len(source.labels):
            yield f"shape {row} ({name}): label {label} of {len(source.labels)}"
            continue
        digest = row_digest(
            shape,
            source=source.name,
            shape_id=name,
            label=source.labels[label] if label >= 0 else "",
            part=None if block.part is None else block.part[start:stop],
        )
        if digest != block.sha256[row].tobytes():
            yield f"shape {row} ({name}): does not match its checksum"
        elif not (np.isfinite(shape.center).all() and np.isfinite(shape.scale)):
            yield f"shape {row} ({name}): center or scale is not finite"


def _refused_problems(path: Path, sha256: str) -> list[str]:
    if not path.is_file():
        return [f"{path.name}: missing"]
    return [] if sha256_of(path) == sha256 else [f"{path.name}: changed since it was written"]
