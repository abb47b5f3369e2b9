"""Labelled shapes small enough to train on in a test: needles, discs and balls, and sticks with a head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pointdistill.data.benchmarks.records import LabelledClouds, PartBenchmark, PartClouds
from pointdistill.engine.features.inputs import ProtocolInput
from pointdistill.engine.weights.encoders import save_encoder
from pointdistill.model.config import AugmentConfig, EncoderConfig
from pointdistill.model.encoder import Encoder
from pointdistill.model.initialize import initialize

CONFIG = EncoderConfig(
    width=16,
    depth=2,
    heads=2,
    stage_one=(8, 16),
    stage_two=(16,),
    points=48,
    patches=6,
    patch_points=8,
)
INPUTS = ProtocolInput(
    points=48,
    patches=6,
    subsampling="uniform",
    augment=AugmentConfig(rotate_z=True, scale_low=0.9, scale_high=1.1),
)
CATEGORY_PARTS = ((0, 1), (2, 3, 4))
"""Sticks have a shaft and a head; of the other category's parts the last never occurs."""


def make_encoder() -> Encoder:
    encoder = Encoder(CONFIG)
    initialize(encoder, generator=torch.Generator().manual_seed(7))
    return encoder.requires_grad_(requires_grad=False)


def saved_encoder(folder: Path) -> Path:
    """An encoder folder, with a ledger of one source."""
    ledger = [{"name": "made up", "licence": "CC0", "shapes": 3}]
    save_encoder(make_encoder(), folder, sources=ledger, training={"name": "tiny"})
    return folder


def make_clouds(count: int = 30, *, seed: int = 0) -> LabelledClouds:
    """Upright needles, lying discs and round balls in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    stretch = np.array([[0.1, 0.1, 1.0], [1.0, 1.0, 0.1], [1.0, 1.0, 1.0]])[labels]
    points = rng.normal(size=(count, 60, 3)) * stretch[:, None]
    return LabelledClouds(points.astype(np.float32), labels)


def make_parts(count: int = 24, *, seed: int = 0) -> PartClouds:
    """Sticks of two categories: below the middle one part, above it the other; 40 to 79 points."""
    rng = np.random.default_rng(seed)
    categories = np.arange(count) % 2
    points, parts = [], []
    for category in categories:
        size = int(rng.integers(40, 80))
        cloud = rng.normal(size=(size, 3)) * [0.1, 0.1, 0.0]
        cloud[:, 2] = rng.uniform(-1.0, 1.0, size)
        points.append(cloud.astype(np.float32))
        first = CATEGORY_PARTS[category][0]
        parts.append(np.where(cloud[:, 2] > 0, first + 1, first).astype(np.uint8))
    ids = tuple(f"{seed}/{number}" for number in range(count))
    return PartClouds(tuple(points), tuple(parts), categories, ids)


def part_benchmark() -> PartBenchmark:
    return PartBenchmark(
        name="ShapeNetPart",
        categories=("stick", "chair"),
        category_parts=CATEGORY_PARTS,
        train=make_parts(),
        test=make_parts(10, seed=1),
        data_name="ShapeNetPart stand-in",
        form="made here",
        checksum="0" * 64,
        stand_in=True,
    )
