"""Prints what a corpus holds, and reads one batch of it.

Run: python examples/read_corpus.py data/builtin
"""

import collections
import sys

import numpy as np

import pointdistill
from pointdistill.errors import PointDistillError


def main(folder: str = "data/builtin") -> None:
    """Print sources, count labels, read points."""
    corpus = pointdistill.open_corpus(folder)
    print(corpus.describe())

    counts = collections.Counter(corpus.labels().tolist())
    for label, count in counts.most_common(5):
        print(f"  {corpus.label_names[label] if label >= 0 else 'no label'}: {count}")

    shapes = [corpus.points(index)[:1024] for index in range(min(8, len(corpus)))]
    print(
        f"{len(shapes)} shapes, first extents {np.ptp(shapes[0], axis=0).round(2)} (x, y, z; z up)"
    )


try:
    main(*sys.argv[1:2])
except PointDistillError as error:
    sys.exit(f"error: {error}")
