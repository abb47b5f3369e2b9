"""A shape that proves the axes, and archives made of it, shared by the tests of sources."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import trimesh

from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.sources import SourceRequest, open_source

# Extents 1, 2, 3, all from 0 on: every wrong turn and every mirror image changes a range.
WEDGE = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], float)
WEDGE_FACES = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])

AS_IT_IS = [[0, 1], [0, 2], [0, 3]]
"""Ranges of x, y and z of the wedge where z is up in its file."""

FROM_Y_UP = [[0, 3], [0, 1], [0, 2]]
"""Those where y is up: new (x, y, z) = old (z, x, y)."""


def wedge_off(vertices: np.ndarray = WEDGE, *, glued: bool = False) -> str:
    """The wedge as OFF text; ``glued`` puts the counts on the header's line, as ModelNet40 does."""
    lines = ["OFF4 4 0" if glued else "OFF\n4 4 0"]
    lines += [" ".join(map(str, vertex)) for vertex in vertices]
    lines += ["3 " + " ".join(map(str, face)) for face in WEDGE_FACES]
    return "\n".join(lines) + "\n"


def wedge_obj(vertices: np.ndarray = WEDGE) -> str:
    """The wedge as OBJ text, with an empty group and a material that is missing beside it."""
    lines = ["mtllib missing.mtl", "g nothing"]
    lines += ["v " + " ".join(map(str, vertex)) for vertex in vertices]
    lines += ["g wedge", "usemtl missing"]
    lines += ["f " + " ".join(map(str, face + 1)) for face in WEDGE_FACES]
    return "\n".join(lines) + "\n"


def wedge_glb() -> bytes:
    return bytes(trimesh.Trimesh(WEDGE, WEDGE_FACES).export(file_type="glb"))


def box_cloud(count: int, *, seed: int = 0) -> np.ndarray:
    """(count, 3) points of the box with the wedge's extents."""
    return np.random.default_rng(seed).uniform(size=(count, 3)) * [1, 2, 3]


def h5_bytes(points: np.ndarray, labels: np.ndarray | None = None) -> bytes:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file["data"] = points.astype(np.float32)
        if labels is not None:
            file["label"] = labels
    return memory.getvalue()


def write_zip(path: Path, members: dict[str, str | bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def build(name: str, output: Path, *, points: int = 256, **request: Any) -> Corpus:
    source = open_source(name, SourceRequest(**request))
    return open_corpus(build_corpus(source, output, points=points, workers=0).path)


def refused(corpus: Corpus) -> dict[str, str]:
    """Id and cause of every shape that a build left out; no cause names a path of this machine."""
    path = corpus.path / "refused.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    causes = {row["id"]: row["cause"] for row in map(json.loads, lines)}
    assert not any(str(corpus.path.parent) in cause for cause in causes.values())
    return causes


def labels_of(corpus: Corpus) -> list[str | None]:
    """Label of every shape by name."""
    return [corpus.label_names[k] if k >= 0 else None for k in corpus.labels()]


def ranges(points: np.ndarray) -> list[list[float]]:
    """Smallest and largest of x, y and z, to a whole: a sample of a surface misses its corners."""
    return [
        [round(v, 0) + 0.0 for v in pair] for pair in zip(points.min(0), points.max(0), strict=True)
    ]
