"""A pretrained encoder knows an object again: in another format, with other points drawn from its surface."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.corpus import open_corpus
from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.config.recipes import recipe
from pointdistill.engine.embedding.embed import EmbedRequest, embed
from pointdistill.engine.embedding.index import Index, open_index
from pointdistill.engine.embedding.search import search
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.trainer import RunOptions

STEPS = 60


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe, cut to some twenty seconds."""
    folder = tmp_path_factory.mktemp("pretrained")
    source = open_source("builtin", SourceRequest(shapes=400))
    build_corpus(source, folder / "corpus", points=1024, workers=0)
    config = replace(recipe("tiny"), steps=STEPS)
    pretrain(
        config,
        corpus=open_corpus(folder / "corpus"),
        run=folder / "run",
        options=RunOptions(device="cpu"),
    )
    return folder / "run"


@pytest.mark.slow
def test_suzanne_is_the_monkey(run: Path, tmp_path: Path, shared_dir: Path) -> None:
    """Every file of two folders in one call; one object in two of them, drawn with two seeds."""
    meshes = [shared_dir / "meshes" / name for name in ("good", "draco")]
    indexes: list[Index] = []
    for seed in (0, 1):
        output = tmp_path / f"seed-{seed}.npz"
        report = embed(EmbedRequest(paths=meshes, output=output, encoder=run, up="y", seed=seed))
        assert report.failed == ()
        assert report.shapes == sum(1 for folder in meshes for _ in folder.iterdir())
        indexes.append(open_index(output))
    monkeys = {"suzanne.obj", "monkey.glb"}
    for name in sorted(monkeys):
        for index in indexes:
            found = search(meshes[0] / name, index, count=2, up="y").neighbours
            assert {Path(neighbour.id).name for neighbour in found} == monkeys
    first, second = (np.concatenate(list(index.blocks("features"))) for index in indexes)
    ids = [Path(name).name for name in np.concatenate(list(indexes[0].blocks("ids")))]
    cosine = _unit(first) @ _unit(second).T
    pair = [ids.index(name) for name in sorted(monkeys)]
    others = [row for row in range(len(ids)) if row not in pair]
    for here, there in (pair, pair[::-1]):
        assert cosine[here, there] > cosine[here, others].max()
    known = np.mean(cosine.argmax(axis=1) == np.arange(len(ids)))
    assert known > 0.5


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths: np.ndarray = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / lengths
