"""Prints, for each file, the most similar other file by the cosine of their features.

Run: python examples/nearest_shapes.py ENCODER FILE FILE FILE…
"""

import sys

import torch

import pointdistill
from pointdistill.errors import PointDistillError


def main(encoder_path: str, *files: str) -> None:
    """Sample points, encode them, compare features."""
    encoder = pointdistill.load_encoder(encoder_path)
    # As many points as the views of pretraining: 1,024 for the paper's sizes.
    count = encoder.config.points
    clouds = [pointdistill.sample_surface(file, count, seed=0) for file in files]
    with torch.inference_mode():
        out = encoder(torch.stack([torch.from_numpy(cloud) for cloud in clouds]))

    pooled = out.patches.mean(dim=1)
    features = pooled if out.cls is None else torch.cat([out.cls, pooled], dim=1)
    features = torch.nn.functional.normalize(features, dim=1)
    alike = features @ features.T
    alike.fill_diagonal_(-1)
    for file, row in zip(files, alike, strict=True):
        nearest = int(row.argmax())
        print(f"{file}: nearest is {files[nearest]} (cosine {row[nearest]:.3f})")


if len(sys.argv) < 4:
    sys.exit("give an encoder and at least two mesh or point files")
try:
    main(*sys.argv[1:])
except PointDistillError as error:
    sys.exit(f"error: {error}")
