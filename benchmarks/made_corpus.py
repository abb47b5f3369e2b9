"""A corpus of any number of random clouds for benchmarks, made with the package's own writer."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from pointdistill.data.corpus.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardRecord,
    SourceRecord,
    write_manifest,
)
from pointdistill.data.corpus.shard import LEVELS, Quantised, Row, encode, sizes_of, write_shard
from pointdistill.data.corpus_building.division import SHARD_BYTES, SHARD_SHAPES
from pointdistill.data.files.files import sha256_of

SOURCE = "made"
LABELS = tuple(f"label {number:02d}" for number in range(54))


def make_corpus(folder: Path, *, shapes: int, points: int, seed: int) -> None:
    """Write a corpus that `verify` accepts, with shards as in a build. 100,000 small clouds take about 2 s.

    Args:
        folder: created.
        shapes: number of clouds.
        points: per cloud, uniformly random in its own cube.
        seed: of all points.
    """
    folder.mkdir(parents=True)
    content = hashlib.sha256()
    shards = []
    most = max(1, min(SHARD_SHAPES, SHARD_BYTES // (6 * points)))
    for number, first in enumerate(range(0, shapes, most)):
        rng = np.random.default_rng(np.random.SeedSequence((seed, number)))
        rows = _rows(first, min(most, shapes - first), points, rng=rng)
        block = encode(rows, source=SOURCE, label_names=LABELS)
        path = folder / f"{SOURCE}-{number:05d}.h5"
        write_shard(path, [block], sizes_of(block), source=SOURCE, label_names=LABELS)
        content.update(block.sha256.tobytes())
        shards.append(
            ShardRecord(
                file=path.name,
                source=SOURCE,
                shapes=len(block),
                points=len(block.points),
                bytes=path.stat().st_size,
                sha256=sha256_of(path),
            )
        )
    source = SourceRecord(
        name=SOURCE,
        licence="free",
        origin="random points",
        turned="none",
        labels=LABELS,
        settings={},
        kept=shapes,
        refused=0,
    )
    manifest = Manifest(
        seed=seed,
        points=points,
        content=content.hexdigest(),
        refused_sha256=None,
        sources=(source,),
        shards=tuple(shards),
    )
    write_manifest(folder / MANIFEST_NAME, manifest)


def _rows(first: int, count: int, points: int, *, rng: np.random.Generator) -> list[Row]:
    steps = rng.integers(-LEVELS, LEVELS, (count, points, 3), np.int16, endpoint=True)
    center = rng.normal(size=(count, 3)).astype(np.float32)
    scale = rng.uniform(0.5, 2.0, size=count).astype(np.float32)
    return [
        Row(
            id=f"{first + k:08d}",
            shape=Quantised(points=steps[k], center=center[k], scale=scale[k]),
            label=(first + k) % len(LABELS),
            part=None,
        )
        for k in range(count)
    ]
