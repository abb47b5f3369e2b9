"""Views of 16,384-point shapes (2 global, 4 local) on one CPU thread, against NumPy and SciPy.

The baseline is what a competent user writes for a loader worker: ``argpartition`` for the crop, an unshuffled
``choice``, one float32 matrix product for the augmentation, farthest points with running minima, a k-d tree
for the neighbours. Both make the same kinds of views; figures are medians of alternating rounds.

Run: ``python benchmarks/views.py``
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from pointdistill.engine.recipes import recipe
from pointdistill.model.random import KeyedRandom, sample_keys
from pointdistill.model.views import CropConfig, crop_points, draw_views

SHAPES = 8
ROUNDS = 7
Points = NDArray[np.float32]


def baseline_view(points: Points, crop: CropConfig, rng: np.random.Generator) -> Points:
    """One view's patches, (P, K, 3), of one shape."""
    aspect = rng.uniform(0.33, 3.0)
    scales = rng.permutation([1.0, aspect**-0.5, aspect**0.5])
    box = (Rotation.random(random_state=rng).as_matrix() * scales).astype(np.float32)
    distance = np.abs((points - points[rng.integers(len(points))]) @ box).max(1)
    keep = max(crop.points, int(rng.uniform(crop.share_low, crop.share_high) * len(points)))
    nearest = np.argpartition(distance, keep - 1)[:keep]
    view = points[nearest[rng.choice(keep, crop.points, replace=False, shuffle=False)]]
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    view = view @ (turn.T * rng.uniform(0.8, 1.2, 3)).astype(np.float32)
    view -= view.mean(0)
    view /= np.sqrt(np.square(view).sum(1).max())
    centers = farthest(view, crop.patches, int(rng.integers(crop.points)))
    _, members = cKDTree(view).query(view[centers], k=crop.patch_points)
    return view[members] - view[centers][:, None]


def farthest(points: Points, count: int, start: int) -> NDArray[np.int64]:
    chosen = np.empty(count, np.int64)
    nearest = np.full(len(points), np.inf, np.float32)
    for step in range(count):
        chosen[step] = start
        gap = np.square(points - points[start]).sum(1)
        np.minimum(nearest, gap, out=nearest)
        start = int(nearest.argmax())
    return chosen


def median_seconds(run: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """Medians of two ways, taken in turn so that a drifting machine drifts for both."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for way, kept in ((run, times[0]), (other, times[1])):
            began = time.perf_counter()
            way()
            kept.append(time.perf_counter() - began)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    torch.set_num_threads(1)
    config = recipe("small")
    assert config.local_crop is not None
    kinds = {"global": config.global_crop, "local": config.local_crop}
    rng = np.random.default_rng(0)
    shapes = rng.normal(size=(SHAPES, 16_384, 3)).astype(np.float32)
    points, counts = torch.from_numpy(shapes), torch.full((SHAPES,), 16_384)
    random = KeyedRandom(sample_keys(seed=0, epoch=0, index=torch.arange(SHAPES)))

    def ours() -> None:
        for name, crop in kinds.items():
            draw_views(points, counts, crop, random.child(name))

    def theirs() -> None:
        for cloud in shapes:
            for crop in kinds.values():
                for _ in range(crop.count):
                    baseline_view(cloud, crop, rng)

    def crops() -> None:
        for name, crop in kinds.items():
            crop_points(points, counts, crop, random.child(name))

    our_seconds, their_seconds = median_seconds(ours, theirs)
    crop_seconds, _ = median_seconds(crops, lambda: None)
    print(f"{platform.machine()}, one thread, torch {torch.__version__}, median of {ROUNDS}")
    print("| way | shapes/s |\n| --- | --- |")
    print(f"| batched tensors (ours) | {SHAPES / our_seconds:.1f} |")
    print(f"| per sample, NumPy and SciPy | {SHAPES / their_seconds:.1f} |")
    print(
        f"\nratio {their_seconds / our_seconds:.2f}; crops are {crop_seconds / our_seconds:.0%} of ours"
    )


if __name__ == "__main__":
    main()
