"""What an encoder is worth on real shapes: a half of the Princeton Shape Benchmark, by the program's protocols.

Beside the encoder: the same network before its first step (three seeds, or as many as given), and hand-made
geometry. All are read from the same draws as `embed` makes. Each is compared in two spaces: with every feature
standardised over the half, and by the axes that came with the encoder, as `search` does. ``--corpus`` names the
shapes on which the axes of initial weights are measured; the program's own encoder has those of ``prepare-data
builtin --procedural 1 --points 2048 --shapes 1000 --seed 8``. Each row is on all models of the half and on its
reporting half: the models whose id has an odd hash. ``--features`` names the kinds of features to measure;
``--checkpoints RUN`` measures the teachers of a run's checkpoints instead, and draws their figures over the steps.

Run: ``python benchmarks/real_shapes.py psb_v1_train.zip --corpus CORPUS [--encoder procedural-mini …]``.
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
from pointdistill.engine.embedding.comparison import default_statistics
from pointdistill.engine.embedding.compute import (
    DEFAULT_KIND,
    PER_SHAPE,
    FeatureKind,
    default_draws,
    read_settings,
)
from pointdistill.engine.embedding.memory import measure_encoder
from pointdistill.engine.evaluation.retrieval import embed_labelled, shape_score
from pointdistill.engine.features.feature_extractors import geometric_features
from pointdistill.engine.features.statistics import FeatureStatistics
from pointdistill.engine.pretraining.checkpoints import list_checkpoints, load_state, new_state
from pointdistill.engine.pretraining.run_folder import CHECKPOINTS
from pointdistill.engine.weights.encoders import (
    load_encoder,
    locate_encoder,
    save_encoder,
)
from pointdistill.model.encoder import Encoder
from pointdistill.reporter import SILENT

PROTOCOLS = ("retrieval", "knn", "svm", "logistic")
COLUMNS = ("NN", "tier 1", "tier 2", "E", "DCG", "kNN", "SVM", "logistic")
MOST_CHECKPOINTS = 8


def reporting(shapes: LabelledShapes) -> NDArray[np.bool_]:
    """Which models belong to the half that figures are reported on."""
    names = [PurePosixPath(member).stem.removeprefix("m") for member in shapes.members]
    return np.array([hashlib.sha256(name.encode()).digest()[-1] % 2 == 1 for name in names])


def encoder_features(
    shapes: LabelledShapes, encoder: Encoder, seed: int, kind: FeatureKind = DEFAULT_KIND
) -> Tensor:
    """As `embed` gives them."""
    with tempfile.TemporaryDirectory() as folder:
        embedded = embed_labelled(
            shapes,
            encoder,
            seed=seed,
            device=torch.device("cpu"),
            output=Path(folder, "features.npz"),
            reporter=SILENT,
            kind=kind,
        )
    assert len(embedded.rows) == len(shapes), embedded.refused
    return embedded.features


def geometry(shapes: LabelledShapes, like: Encoder, seed: int) -> Tensor:
    """Hand-made features of the points that an encoder's draws have together."""
    draws = default_draws(like)
    settings = read_settings(like, draws, seed=seed, up=shapes.up)
    rows = []
    for number, member in enumerate(shapes.members):
        shape = read_shape(
            ShapeLocation(shapes.kind, str(shapes.path.resolve()), member, number), settings
        )
        assert shape.points is not None, shape.reason
        rows.append(geometric_features(torch.from_numpy(shape.points)[None], seed=0))
    return torch.cat(rows)


def measured_axes(encoder: Encoder, corpus: Path | None) -> FeatureStatistics | None:
    """The statistics of an encoder that has none, measured on a corpus."""
    if corpus is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder, "encoder")
        save_encoder(encoder, stored)
        measure_encoder(stored, corpus, device="cpu")
        return default_statistics(stored, encoder)[0]


def deviations(features: Tensor) -> FeatureStatistics:
    """Statistics by which every feature is divided by its own deviation, and by nothing else."""
    rows = features.numpy()
    return FeatureStatistics(
        mean=rows.mean(axis=0),
        axes=np.eye(rows.shape[1], dtype=np.float32),
        variances=rows.var(axis=0),
        mean_variance=1e-9 * float(rows.var(axis=0).mean()),
        shapes=len(rows),
    )


def figures(
    features: Tensor,
    shapes: LabelledShapes,
    chosen: NDArray[np.bool_],
    seed: int,
    statistics: FeatureStatistics,
) -> list[float]:
    """The values of ``COLUMNS``, in percent, of some of the shapes."""
    values = []
    for protocol in PROTOCOLS:
        rows = features[torch.from_numpy(chosen)]
        score = shape_score(rows, shapes.labels[chosen], protocol, seed=seed, statistics=statistics)
        values.append(score.accuracy)
        if protocol == "retrieval":
            values += [score.class_accuracy, *(value for _, value in score.further)]
    return values


def show(
    name: str,
    features: Tensor,
    shapes: LabelledShapes,
    seed: int,
    axes: FeatureStatistics | None = None,
) -> None:
    """Print the rows of one set of features."""
    odd = reporting(shapes)
    spaces = {"standardised": deviations(features)} | ({"axes": axes} if axes else {})
    for space, statistics in spaces.items():
        for part, chosen in (("all", np.ones_like(odd)), ("reporting half", odd)):
            found = figures(features, shapes, chosen, seed, statistics)
            cells = [f"{value:.1f}" for value in found]
            print("| " + " | ".join([name, space, part, *cells]) + " |", flush=True)


def learning_curve(run: Path, shapes: LabelledShapes, picture: Path, kind: FeatureKind) -> None:
    """Print the figures of a run's checkpoints and of its initial weights, and draw four of them."""
    from matplotlib.figure import Figure

    kept = list_checkpoints(run / CHECKPOINTS)
    places = np.unique(np.linspace(0, len(kept) - 1, min(len(kept), MOST_CHECKPOINTS)).round())
    states = [load_state(kept[int(place)])[0] for place in places]
    everything = np.ones(len(shapes), dtype=bool)
    steps, rows = [], []
    for state in (new_state(states[0].config), *states):
        features = encoder_features(shapes, state.teacher.encoder, 0, kind)
        found = figures(features, shapes, everything, 0, deviations(features))
        steps.append(state.step)
        rows.append(dict(zip(COLUMNS, found, strict=True)))
        cells = [f"{value:.1f}" for value in found]
        print(
            "| " + " | ".join([f"step {state.step:,}", "standardised", "all", *cells]) + " |",
            flush=True,
        )
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.add_subplot(xlabel="steps", ylabel="percent")
    for name in ("NN", "DCG", "kNN", "logistic"):
        axis.plot(steps, [row[name] for row in rows], marker="o", label=name)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(picture, dpi=120)
    print(f"written: {picture}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--encoder", nargs="+", default=["procedural-mini"])
    parser.add_argument("--recipe", default="procedural-mini")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--features", nargs="+", choices=PER_SHAPE, default=[DEFAULT_KIND])
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--checkpoints", type=Path, metavar="RUN")
    parser.add_argument("--picture", type=Path, default=Path("learning-curve.png"))
    given = parser.parse_args()
    shapes = read_psb(given.archive, "train")
    print("| " + " | ".join(["features", "space", "shapes", *COLUMNS]) + " |")
    print("| --- " * (3 + len(COLUMNS)) + "|")
    if given.checkpoints is not None:
        learning_curve(given.checkpoints, shapes, given.picture, given.features[0])
        return
    for name in given.encoder:
        encoder = load_encoder(name)
        axes, _ = default_statistics(locate_encoder(name), encoder)
        for seed in range(given.seeds):
            for kind in given.features:
                features = encoder_features(shapes, encoder, seed, kind)
                called = f"{name}, points and folds {seed}, {kind}"
                show(called, features, shapes, seed, axes if kind == DEFAULT_KIND else None)
    config = find_recipe(given.recipe).config
    for seed in range(given.seeds):
        initial = new_state(replace(config, seed=seed)).teacher.encoder
        axes = measured_axes(initial, given.corpus)
        for kind in given.features:
            features = encoder_features(shapes, initial, seed, kind)
            called = f"initial weights {seed}, {kind}"
            show(called, features, shapes, seed, axes if kind == DEFAULT_KIND else None)
    show("hand-made geometry", geometry(shapes, encoder, 0), shapes, 0)


if __name__ == "__main__":
    main()
