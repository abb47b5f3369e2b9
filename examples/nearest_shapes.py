"""Which files are alike? Prints each file's nearest other one by the cosine of their features.

Run: python examples/nearest_shapes.py ENCODER FILE FILE FILE…
"""

import sys

import torch

import pointdistill

encoder_path, *files = sys.argv[1:]
if len(files) < 2:
    sys.exit("give an encoder folder and at least two mesh or point files")
encoder = pointdistill.load_encoder(encoder_path)

# As dense as the clouds of pretraining: 1,024 points for the paper's sizes.
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
