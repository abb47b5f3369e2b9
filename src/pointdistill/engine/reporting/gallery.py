"""Pictures of a run: shapes it saw, views and masks it was trained on, neighbours it finds."""

from __future__ import annotations

import numpy as np
import torch

from pointdistill.data.benchmarks.records import Benchmark
from pointdistill.data.corpus import Corpus
from pointdistill.engine.config import PretrainConfig
from pointdistill.engine.features import extract_features
from pointdistill.engine.inputs import protocol_input
from pointdistill.engine.reporting.pictures import clouds, masked_patches, neighbour_rows
from pointdistill.engine.reporting.report import Picture, Section
from pointdistill.engine.training.loader import read_batch
from pointdistill.model.encoder import Encoder
from pointdistill.model.masking import draw_masks
from pointdistill.model.random import KeyedRandom, sample_keys
from pointdistill.model.views import draw_views

SHAPES = 6
"""Clouds in a picture; of neighbours one less, beside the query."""

POOL = 1500
"""Number of test clouds that are searched for neighbours."""


def learning_pictures(
    encoder: Encoder, corpus: Corpus, benchmark: Benchmark, config: PretrainConfig
) -> list[Section]:
    """Sections for a report: what the encoder was trained on, and what it finds alike."""
    return [
        Section(
            "What it was trained on",
            "Crops of random shape and size, turned about the vertical and stretched. The student sees the "
            "blue patches and predicts the orange ones.",
            pictures=_views(corpus, config),
        ),
        Section(
            "What it finds alike",
            "Test scans of the benchmark, and the scans whose features are nearest by cosine. "
            "No label was used to find them.",
            pictures=(_neighbours(encoder, benchmark),),
        ),
    ]


def _views(corpus: Corpus, config: PretrainConfig) -> tuple[Picture, ...]:
    """Shapes of the corpus, with one global view and mask, and one local view, of each."""
    index = np.linspace(0, len(corpus) - 1, SHAPES).astype(np.int64)
    shapes = [corpus[int(number)] for number in index]
    names = [corpus.label_names[shape.label] if shape.label >= 0 else shape.id for shape in shapes]
    batch = read_batch(corpus, index, epoch=0)
    random = KeyedRandom(sample_keys(seed=config.seed, epoch=0, index=batch.index))
    patches, points = draw_views(
        batch.points, batch.counts, config.global_crop, random.child("global"), config.augment
    )
    mask = draw_masks(patches.centers, config.masking, random)
    views = [
        (points[row, 0].numpy(), patches.centers[row, 0].numpy(), mask[row, 0, 0].numpy())
        for row in range(SHAPES)
    ]
    pictures = [
        Picture(
            "Shapes of the corpus", clouds([shape.points[:2048] for shape in shapes], titles=names)
        ),
        Picture("A global view of each, with a mask", masked_patches(views, titles=names)),
    ]
    if config.mode.has_cls and config.local_crop is not None:
        _, local = draw_views(
            batch.points, batch.counts, config.local_crop, random.child("local"), config.augment
        )
        clouds_shown = [local[row, 0].numpy() for row in range(SHAPES)]
        pictures.append(Picture("A local view of each", clouds(clouds_shown, titles=names)))
    return tuple(pictures)


def _neighbours(encoder: Encoder, benchmark: Benchmark) -> Picture:
    """Queries spread over the test set, each with its nearest others."""
    points = benchmark.test.points[:POOL]
    labels = benchmark.test.labels[:POOL]
    inputs = protocol_input(benchmark.name, encoder.config)
    features = extract_features(encoder, points, inputs=inputs, seed=0).unit
    queries = torch.linspace(0, len(points) - 1, 5).long()
    cosine = features[queries] @ features.T
    order = cosine.argsort(dim=1, descending=True)[:, :SHAPES]
    names = [[benchmark.classes[int(labels[i])] for i in row] for row in order.tolist()]
    rows = [[points[i] for i in row] for row in order.tolist()]
    return Picture("Left: a scan. Beside it: its nearest scans", neighbour_rows(rows, titles=names))
