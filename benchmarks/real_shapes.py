"""What an encoder is worth on real shapes: a half of the Princeton Shape Benchmark, by the program's protocols.

Beside the encoder: the same network before its first step (three seeds, or as many as given), and hand-made
geometry. All are read from the same draws as `embed` makes, and compared in the same spaces. Each row is on all
models of the half and on its reporting half: the models whose id has an odd hash.

Run: ``python benchmarks/real_shapes.py psb_v1_train.zip [--encoder procedural-mini] [--recipe procedural-mini]``.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointdistill.data.benchmarks.psb import read_psb
from pointdistill.data.benchmarks.records import LabelledShapes
from pointdistill.data.sources.paths import ShapeLocation, read_shape
from pointdistill.engine.config.recipes import find_recipe
from pointdistill.engine.embedding.compute import choose_draws, read_settings
from pointdistill.engine.evaluation.retrieval import embed_labelled, shape_score
from pointdistill.engine.features.feature_extractors import geometric_features
from pointdistill.engine.pretraining.checkpoints import new_state
from pointdistill.engine.weights.encoders import load_encoder
from pointdistill.model.encoder import Encoder
from pointdistill.reporter import SILENT

PROTOCOLS = ("retrieval", "knn", "svm", "logistic")


def reporting(shapes: LabelledShapes) -> NDArray[np.bool_]:
    """Which models belong to the half that figures are reported on."""
    names = [PurePosixPath(member).stem.removeprefix("m") for member in shapes.members]
    return np.array([hashlib.sha256(name.encode()).digest()[-1] % 2 == 1 for name in names])


def encoder_features(shapes: LabelledShapes, encoder: Encoder, seed: int) -> Tensor:
    """As `embed` gives them."""
    with tempfile.TemporaryDirectory() as folder:
        embedded = embed_labelled(
            shapes,
            encoder,
            seed=seed,
            device=torch.device("cpu"),
            output=Path(folder, "features.npz"),
            reporter=SILENT,
        )
    assert len(embedded.rows) == len(shapes), embedded.refused
    return embedded.features


def geometry(shapes: LabelledShapes, like: Encoder, seed: int) -> Tensor:
    """Hand-made features of the points that an encoder's draws have together."""
    draws = choose_draws(like, "pooled", points=None, draws=None, turns=None)
    settings = read_settings(like, draws, seed=seed, up=shapes.up)
    rows = []
    for number, member in enumerate(shapes.members):
        shape = read_shape(
            ShapeLocation(shapes.kind, str(shapes.path.resolve()), member, number), settings
        )
        assert shape.points is not None, shape.reason
        rows.append(geometric_features(torch.from_numpy(shape.points)[None], seed=0))
    return torch.cat(rows)


def show(name: str, features: Tensor, shapes: LabelledShapes, seed: int) -> None:
    """Print the rows of one set of features."""
    odd = reporting(shapes)
    for part, chosen in (("all", np.ones_like(odd)), ("reporting half", odd)):
        cells = []
        for protocol in PROTOCOLS:
            score = shape_score(
                features[torch.from_numpy(chosen)], shapes.labels[chosen], protocol, seed=seed
            )
            values = [score.accuracy]
            if protocol == "retrieval":
                values += [score.class_accuracy, *(value for _, value in score.further)]
            cells += [f"{value:.1f}" for value in values]
        print("| " + " | ".join([name, part, *cells]) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--encoder", default="procedural-mini")
    parser.add_argument("--recipe", default="procedural-mini")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    shapes = read_psb(given.archive, "train")
    columns = ["features", "shapes", "NN", "tier 1", "tier 2", "E", "DCG", "kNN", "SVM", "logistic"]
    print("| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    encoder = load_encoder(given.encoder)
    for seed in range(given.seeds):
        name = f"{given.encoder}, points and folds {seed}"
        show(name, encoder_features(shapes, encoder, seed), shapes, seed)
    config = find_recipe(given.recipe).config
    for seed in range(given.seeds):
        initial = new_state(replace(config, seed=seed)).teacher.encoder
        show(f"initial weights {seed}", encoder_features(shapes, initial, seed), shapes, seed)
    show("hand-made geometry", geometry(shapes, encoder, 0), shapes, 0)


if __name__ == "__main__":
    main()
