"""How features are best compared, from which draws, and what that depends on the number of shapes.

On a half of the Princeton Shape Benchmark, leave-one-out with the base classification. Explore on the training
half only, as the benchmark's rules say.

Run: ``python benchmarks/retrieval.py psb_v1_train.zip ENCODER SHAPES``. ENCODER is a run or an encoder folder,
and SHAPES a corpus of other shapes, on which the encoder's statistics are measured (and written into its folder).
``--default-draws`` leaves out all other draws.
"""

from __future__ import annotations

import argparse
import posixpath
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pointdistill.data.benchmarks.psb import read_psb
from pointdistill.engine.embedding.compute import DEFAULT_KIND
from pointdistill.engine.embedding.embed import EmbedRequest, embed
from pointdistill.engine.embedding.memory import measure_encoder
from pointdistill.engine.evaluation.retrieval import retrieval_figures
from pointdistill.engine.features.statistics import (
    RAW,
    FeatureStatistics,
    measure,
    read_statistics,
    standardiser,
)
from pointdistill.engine.weights.encoders import encoder_checksum, load_encoder, locate_encoder

Features = NDArray[np.float32]
Place = Callable[[Features], Features]

DRAWS = ((1, 8, None), (8, 1, None), (4, 2, None), (8, 2, None), (1, 32, None), (8, 4, None))
DEFAULT_DRAWS = (8, 2, None)
DENSE_DRAWS = ((1, 1, 1024), (2, 1, 1024), (4, 1, 1024), (8, 1, 1024))
"""Angles, draws at each, points of a draw; None for the encoder's own."""

INDEX_SIZES = (4, 8, 20, 60, 120, 200, 400)
REPEATS = 20
SHAPES_A_CLASS = 10


def figures(features: Features, labels: NDArray[np.int64]) -> str:
    """Nearest neighbour, discounted cumulative gain, vote of five among classes of ten and more: in percent."""
    found = retrieval_figures(torch.from_numpy(features), labels)
    similarities = cosines(features, features)
    np.fill_diagonal(similarities, -np.inf)
    names, counts = np.unique(labels, return_counts=True)
    large = np.flatnonzero(np.isin(labels, names[counts >= 10]))
    right = []
    for row in large:
        votes = labels[large[np.argsort(-similarities[row, large], kind="stable")[:5]]]
        # Of classes with as many votes, the one of the nearest neighbour.
        winner = max(votes, key=lambda label: int((votes == label).sum()))
        right.append(winner == labels[row])
    rates = found.nearest, found.gain, 100 * np.mean(right)
    return " / ".join(f"{rate:.1f}" for rate in rates)


def cosines(rows: Features, others: Features) -> NDArray[np.float32]:
    """Of (n, F) and (m, F): (n, m)."""
    one, other = (
        values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        for values in (rows, others)
    )
    product: NDArray[np.float32] = one @ other.T
    return product


def places(features: Features, encoders: FeatureStatistics | None) -> dict[str, Place]:
    """The spaces to compare features in, by name; the statistics are those of ``features``."""
    own = measure([features], len(features))
    assert own is not None, "the features are not all equal"
    mean, scaled = own.mean, standardiser(features)
    return {
        "raw": RAW.transform,
        "mean subtracted": lambda rows: rows - mean,
        "standardised": lambda rows: scaled(rows).astype(np.float32),
        "own axes": own.whitened,
    } | (
        {
            "the encoder's axes and mean": encoders.whitened,
            "the encoder's axes": encoders.about(mean).whitened,
        }
        if encoders
        else {}
    )


def small_indexes(
    features: Features, labels: NDArray[np.int64], encoders: FeatureStatistics | None
) -> None:
    """For indexes of several sizes, how often the nearest shape is of a query's class, for each space.

    First for shapes drawn at random, and the others as queries. Then leave-one-out among ten shapes each of some
    classes, with the first tier.
    """
    rng = np.random.default_rng(0)
    large = np.flatnonzero(np.bincount(labels) >= SHAPES_A_CLASS)
    for size in INDEX_SIZES:
        rates: dict[str, list[float]] = {}
        for _ in range(REPEATS):
            inside = rng.choice(len(features), size, replace=False)
            queries = np.setdiff1d(np.arange(len(features)), inside)
            queries = queries[np.isin(labels[queries], labels[inside])]
            for name, place in places(features[inside], encoders).items():
                nearest = cosines(place(features[queries]), place(features[inside])).argmax(axis=1)
                right = labels[inside[nearest]] == labels[queries]
                rates.setdefault(name, []).append(100 * float(right.mean()))
        row = ", ".join(f"{name} {np.mean(values):.1f}" for name, values in rates.items())
        print(f"index of {size}, other queries: {row}", flush=True)
        if not 2 <= size // SHAPES_A_CLASS <= len(large):
            continue
        tiers: dict[str, list[tuple[float, float]]] = {}
        for _ in range(REPEATS):
            chosen = rng.choice(large, size // SHAPES_A_CLASS, replace=False)
            members = [np.flatnonzero(labels == one) for one in chosen]
            inside = np.concatenate([rng.choice(m, SHAPES_A_CLASS, replace=False) for m in members])
            for name, place in places(features[inside], encoders).items():
                found = retrieval_figures(torch.from_numpy(place(features[inside])), labels[inside])
                tiers.setdefault(name, []).append((found.nearest, found.first_tier))
        means = {name: np.mean(values, axis=0) for name, values in tiers.items()}
        row = ", ".join(f"{name} {nn:.1f} / {tier:.1f}" for name, (nn, tier) in means.items())
        print(f"index of {size}, leave-one-out, NN / first tier: {row}", flush=True)


def main() -> None:
    """Embed the set with every kind of draws, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("encoder")
    parser.add_argument("shapes", type=Path)
    parser.add_argument("--default-draws", action="store_true")
    arguments = parser.parse_args()
    shapes = read_psb(arguments.archive, "train")
    labels_of = dict(zip(map(posixpath.basename, shapes.members), shapes.labels, strict=True))
    stored, checksum = (
        locate_encoder(arguments.encoder),
        encoder_checksum(load_encoder(arguments.encoder)),
    )
    measure_encoder(arguments.encoder, arguments.shapes)
    for turns, draws, points in [DEFAULT_DRAWS] if arguments.default_draws else DRAWS + DENSE_DRAWS:
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, "features.npz")
            report = embed(
                EmbedRequest(
                    paths=[arguments.archive],
                    output=output,
                    encoder=arguments.encoder,
                    points=points,
                    draws=draws,
                    turns=turns,
                    up="y",
                    workers=0,
                )
            )
            if report.interrupted:
                raise KeyboardInterrupt
            with np.load(output) as arrays:
                features, ids = arrays["features"], arrays["ids"]
        seconds = time.process_time() - began
        labels = np.array([labels_of[posixpath.basename(name)] for name in ids])
        encoders, _ = read_statistics(
            stored,
            encoder_sha256=checksum,
            features=DEFAULT_KIND,
            points=points or load_encoder(stored).config.points,
            width=features.shape[1],
        )
        row = ", ".join(
            f"{name} {figures(place(features), labels)}"
            for name, place in places(features, encoders).items()
        )
        size = f" of {points} points" if points else ""
        print(f"{turns} angles, {draws} draws{size}, {seconds:.0f} s: {row}", flush=True)
        if (turns, draws, points) == DEFAULT_DRAWS:
            small_indexes(features, labels, encoders)


if __name__ == "__main__":
    main()
