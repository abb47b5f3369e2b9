"""The online probe: a k-nearest-neighbour classifier on the teacher's features while a run trains.

It works on a copy of the teacher and with its own seeds, so that a run's numbers are the same with and without it.
Sizes: n clouds, N points per cloud.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pointdistill.data.benchmarks.records import Benchmark, LabelledClouds
from pointdistill.data.benchmarks.registry import BENCHMARKS, BenchmarkPaths, benchmark_spec
from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.corpus.manifest import MANIFEST_NAME
from pointdistill.data.corpus.shard import UNKNOWN_LABEL
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.data.sources.base import source_shape_rng
from pointdistill.engine.features import Samples, nearest_neighbour_probe
from pointdistill.engine.features.extract import extract_features, unit_features
from pointdistill.engine.features.inputs import ProtocolInput
from pointdistill.errors import DataError
from pointdistill.model.config import AugmentConfig
from pointdistill.model.encoder import Encoder

BUILTIN = "builtin"
BUILTIN_SHAPES = 1080
"""20 in each of the 54 categories: half of them are neighbours, half are classified."""

VOTERS, TESTED = 2000, 1000
"""Largest numbers of clouds to vote and to test; larger sets are subsampled, so that a probe takes seconds."""

NEIGHBOURS = 5
SEED = 20_250_000
"""Seed of the choice of clouds and points; unlike any seed that a run would use, so that the shapes differ."""


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """The labelled clouds of a probe."""

    name: str
    voters: LabelledClouds
    tested: LabelledClouds
    classes: tuple[str, ...] = ()
    """Names of the labels; empty if they are not known."""


def open_labelled_set(where: str, *, points: int) -> LabelledSet:
    """Open a labelled set by its name or path.

    Args:
        where: ``builtin`` (shapes generated on the spot), a corpus with labels, or the archive of ScanObjectNN or
            ModelNet40.
        points: N; clouds of a corpus are subsampled to it.

    Raises:
        DataError: if it is none of these, or has too few labelled clouds.
    """
    check_labelled_set(where)
    if where == BUILTIN:
        labelled = _split_half(BUILTIN, *_builtin_clouds(points))
    elif (Path(where) / MANIFEST_NAME).is_file():
        corpus = open_corpus(where)
        labelled = _split_half(where, *_labelled_clouds(corpus, points), corpus.label_names)
    else:
        benchmark = _benchmark(Path(where))
        voters, tested = (
            _subsample(side, most)
            for side, most in ((benchmark.train, VOTERS), (benchmark.test, TESTED))
        )
        labelled = LabelledSet(benchmark.data_name, voters, tested, benchmark.classes)
    if len(np.unique(labelled.voters.labels)) < 2 or len(labelled.voters) < NEIGHBOURS:
        msg = (
            f"{where}: a probe needs at least {NEIGHBOURS} labelled clouds of 2 classes to vote, got "
            f"{len(labelled.voters)}; name another set, or builtin"
        )
        raise DataError(msg)
    return labelled


def check_labelled_set(where: str) -> None:
    """Check that a labelled set is there, without opening it.

    Raises:
        DataError: if it is not.
    """
    if where != BUILTIN and not Path(where).exists():
        msg = f"{where}: no such file; a probe takes builtin, a corpus with labels, or a benchmark's archive"
        raise DataError(msg)


class RunProbe:
    """Measures a teacher's encoder on one labelled set, always with the same points and votes."""

    def __init__(self, labelled: LabelledSet, device: torch.device) -> None:
        self.labelled = labelled
        self.device = device

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """Accuracies in percent, and the seconds they took; moves the encoder to the device, so pass a copy."""
        began = time.perf_counter()
        # No augmentation: what differs between two probes of a run must be the teacher alone.
        inputs = ProtocolInput(
            points=encoder.config.points,
            patches=encoder.config.patches,
            subsampling="uniform",
            augment=AugmentConfig(),
        )
        voters, tested = (
            Samples(
                unit_features(
                    extract_features(
                        encoder, side.points, inputs=inputs, seed=SEED, device=self.device
                    ),
                    encoder,
                ),
                torch.from_numpy(side.labels),
            )
            for side in (self.labelled.voters, self.labelled.tested)
        )
        score = nearest_neighbour_probe(voters, tested, neighbours=NEIGHBOURS)
        return {
            "probe_accuracy": round(score.accuracy, 3),
            "probe_class_accuracy": round(score.class_accuracy, 3),
            "probe_seconds": round(time.perf_counter() - began, 3),
        }


def _builtin_clouds(
    points: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64], tuple[str, ...]]:
    """Builtin shapes, (n, N, 3), their categories (n,), and the names of the categories."""
    source = open_source("builtin", SourceRequest(shapes=BUILTIN_SHAPES))
    entries = source.entries()
    clouds = [
        source.read(
            entry, points, rng=source_shape_rng(seed=SEED, source=BUILTIN, shape_id=entry.id)
        ).points.astype(np.float32)
        for entry in entries
    ]
    labels = np.array([entry.label for entry in entries], np.int64)
    return np.stack(clouds), labels, source.facts.labels


def _labelled_clouds(corpus: Corpus, points: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Shapes of a corpus with known labels, and their labels, subsampled: (n, N, 3) and (n,)."""
    labels = corpus.labels()
    known = np.flatnonzero(labels != UNKNOWN_LABEL)
    rng = np.random.default_rng(SEED)
    chosen = np.sort(rng.permutation(known)[: VOTERS + TESTED])
    clouds = np.empty((len(chosen), points, 3), np.float32)
    for row, number in zip(clouds, chosen, strict=True):
        cloud = corpus.points(int(number))
        row[:] = cloud[rng.choice(len(cloud), points, replace=len(cloud) < points)]
    return clouds, labels[chosen]


def _split_half(
    name: str, points: NDArray[np.float32], labels: NDArray[np.int64], classes: Sequence[str]
) -> LabelledSet:
    """Split each class in half, in a shuffled order: every second cloud votes, the others are tested."""
    order = np.random.default_rng(SEED).permutation(len(labels))
    # A stable sort by label keeps the shuffled order within each class, so taking every second one halves them
    # all.
    order = order[np.argsort(labels[order], kind="stable")]
    sides = [LabelledClouds(points[part], labels[part]) for part in (order[::2], order[1::2])]
    voters, tested = _subsample(sides[0], VOTERS), _subsample(sides[1], TESTED)
    return LabelledSet(name, voters, tested, tuple(classes))


def _subsample(side: LabelledClouds, most: int) -> LabelledClouds:
    """At most ``most`` clouds, drawn with a fixed seed."""
    if len(side) <= most:
        return side
    chosen = np.sort(np.random.default_rng(SEED).choice(len(side), most, replace=False))
    return LabelledClouds(side.points[chosen], side.labels[chosen])


def _benchmark(path: Path) -> Benchmark:
    """The first split of a classification benchmark that an archive contains.

    Raises:
        DataError: if it is no benchmark's archive.
    """
    specs = [
        benchmark_spec(name) for name, row in BENCHMARKS.items() if row.task == "classification"
    ]
    for spec in specs:
        for split in spec.splits:
            # An archive's name does not tell which benchmark or split it holds; reading it does.
            with suppress(DataError):
                benchmark = spec.read(BenchmarkPaths(path), split)
                assert isinstance(benchmark, Benchmark)
                return benchmark
    msg = (
        f"{path}: neither a corpus with labels nor the archive of {' or '.join(s.title for s in specs)}; "
        "give one of these, or builtin"
    )
    raise DataError(msg)
