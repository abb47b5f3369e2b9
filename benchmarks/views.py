"""Views of 16,384-point shapes (2 global, 4 local) on one CPU thread, compared with a per-sample pipeline.

The baseline is what a competent user writes for a loader worker: one float32 matrix product for the box,
``argpartition`` for the crop, an unshuffled ``choice``, ``fpsample``'s bucket sampling for the centres, SciPy's
k-d tree for the neighbours. Both make the same kinds of views. Figures are medians of alternating rounds. On a GPU
(``--device cuda``) there is no baseline.

Run: ``python benchmarks/views.py [--device cuda --batch 128]``
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from pointdistill.engine.config.recipes import recipe
from pointdistill.engine.runtime.devices import keep_freed_memory
from pointdistill.model.config import AugmentConfig, CropConfig
from pointdistill.model.patches import farthest_points, gather_points, nearest_points
from pointdistill.model.patches import to_unit_sphere as unit
from pointdistill.model.random import KeyedRandom, sample_keys
from pointdistill.model.views import augment_points, crop_points, draw_views

ROUNDS = 7
POINTS = 16_384
BUCKET_HEIGHT = 3  # of 3, 5 and 7, fpsample's fastest for a thousand points
Points = NDArray[np.float32]


def baseline_view(points: Points, crop: CropConfig, rng: np.random.Generator) -> Points:
    """Patches of one view, (P, K, 3), of one shape given as (3, N), because NumPy is fast on rows of N numbers."""
    from fpsample import bucket_fps_kdline_sampling  # not needed on a GPU, which has no baseline

    aspect = rng.uniform(0.33, 3.0)
    scales = rng.permutation([1.0, aspect**-0.5, aspect**0.5])
    box = (random_rotation(rng) * scales[:, None]).astype(np.float32)
    center = points[:, rng.integers(points.shape[1])]
    along = np.abs(box @ points - (box @ center)[:, None])
    distance = np.maximum(np.maximum(along[0], along[1]), along[2])
    keep = max(crop.points, int(rng.uniform(crop.share_low, crop.share_high) * points.shape[1]))
    nearest = np.argpartition(distance, keep - 1)[:keep]
    chosen = nearest[rng.choice(keep, crop.points, replace=False, shuffle=False)]
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) * rng.uniform(0.8, 1.2, 3)[:, None]
    view = points[:, chosen].T @ turn.T.astype(np.float32)
    view -= view.mean(0)
    view /= np.sqrt(np.einsum("ij,ij->i", view, view).max())
    start = int(rng.integers(crop.points))
    centers = view[bucket_fps_kdline_sampling(view, crop.patches, h=BUCKET_HEIGHT, start_idx=start)]
    tree = cKDTree(view, balanced_tree=False, compact_nodes=False)  # half the time of its defaults
    _, members = tree.query(centers, k=crop.patch_points)
    return view[members] - centers[:, None]


def random_rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """From a random unit quaternion; SciPy's ``Rotation`` costs ten times as much for a single one."""
    x, y, z, w = (q := rng.normal(size=4)) / np.sqrt(q @ q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def medians(ways: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Median seconds of each method, in turn, so that slow changes of the machine affect all of them."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(ROUNDS + 1):
        for way, kept in zip(ways, times, strict=True):
            began = time.perf_counter()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize()
            kept.append(time.perf_counter() - began)
    return [statistics.median(kept[1:]) for kept in times]


class Stages:
    """Our views of a batch, as a whole and by stage."""

    def __init__(self, points: torch.Tensor) -> None:
        config = recipe("small")
        assert config.local_crop is not None
        self.kinds = {"global": config.global_crop, "local": config.local_crop}
        shapes = len(points)
        self.points, self.counts = points, torch.full((shapes,), POINTS, device=points.device)
        index = torch.arange(shapes, device=points.device)
        self.random = KeyedRandom(sample_keys(seed=0, epoch=0, index=index))
        self.cropped = {n: crop_points(*self.input, c, self.of(n)) for n, c in self.kinds.items()}
        self.flat = {n: unit(v.flatten(0, 1)) for n, v in self.cropped.items()}
        self.start = {
            n: torch.zeros_like(f[:, 0, 0], dtype=torch.int64) for n, f in self.flat.items()
        }
        self.centers = {n: self.spread(n) for n in self.kinds}

    @property
    def input(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.points, self.counts

    def of(self, kind: str) -> KeyedRandom:
        return self.random.child(kind)

    def spread(self, kind: str) -> torch.Tensor:
        flat = self.flat[kind]
        chosen = farthest_points(flat, self.kinds[kind].patches, start=self.start[kind])
        return gather_points(flat, chosen)

    def whole(self) -> None:
        for kind, crop in self.kinds.items():
            draw_views(*self.input, crop, self.of(kind))

    def crops(self) -> None:
        for kind, crop in self.kinds.items():
            crop_points(*self.input, crop, self.of(kind))

    def augmentation(self) -> None:
        for kind, cropped in self.cropped.items():
            unit(augment_points(cropped, AugmentConfig(), self.of(kind)))

    def centres(self) -> None:
        for kind in self.kinds:
            self.spread(kind)

    def neighbours(self) -> None:
        for kind, crop in self.kinds.items():
            nearest_points(self.flat[kind], self.centers[kind], crop.patch_points)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.set_num_threads(1)
    keep_freed_memory()
    rng = np.random.default_rng(0)
    shapes = rng.normal(size=(given.batch, POINTS, 3)).astype(np.float32)
    ours = Stages(torch.from_numpy(shapes).to(device))

    def theirs() -> None:
        for stored in shapes:
            cloud = np.ascontiguousarray(stored.T)
            for crop in ours.kinds.values():
                for _ in range(crop.count):
                    baseline_view(cloud, crop, rng)

    stages = {
        "crops": ours.crops,
        "augmentation, unit sphere": ours.augmentation,
        "farthest points": ours.centres,
        "neighbours": ours.neighbours,
    }
    on_cpu = device.type == "cpu"
    ways = [ours.whole, *stages.values(), *([theirs] if on_cpu else [])]
    seconds, *found = medians(ways, device)
    where = platform.machine() + ", one thread" if on_cpu else torch.cuda.get_device_name()
    print(f"{where}, torch {torch.__version__}, batch {given.batch}, median of {ROUNDS}")
    print("| way | shapes/s |\n| --- | --- |")
    print(f"| batched tensors (ours) | {given.batch / seconds:.1f} |")
    if on_cpu:
        print(f"| per sample: NumPy, fpsample, SciPy | {given.batch / found[-1]:.1f} |")
        print(f"\nratio {found[-1] / seconds:.2f}")
    print("\n| stage | share of ours |\n| --- | --- |")
    for name, spent in zip(stages, found[: len(stages)], strict=True):
        print(f"| {name} | {spent / seconds:.0%} |")


if __name__ == "__main__":
    main()
