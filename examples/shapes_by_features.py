"""Draws shapes coloured by an encoder's features, and what it finds nearest to one of them: README's picture.

Run: python examples/shapes_by_features.py [FOLDER]

Builtin shapes and the encoder that comes with the program are used, so that nothing has to be downloaded. Writes
shapes-light.png and shapes-dark.png.
"""

import io
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import pointdistill
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.data.sources.base import source_shape_rng
from pointdistill.engine.features.extract import extract_features, feature_colors, unit_features
from pointdistill.engine.features.inputs import embedding_input
from pointdistill.engine.reports.pictures import DARK, LIGHT, SheetRow, SheetShape, search_sheet
from pointdistill.errors import PointDistillError

QUERIES = ("chair", "mug")
EACH, POINTS, SEED = 8, 2048, 3


def main(folder: Path) -> None:
    """Read shapes, encode them, colour their points, draw."""
    encoder = pointdistill.load_encoder("procedural-mini")
    source = open_source("builtin", SourceRequest(shapes=EACH * 54))
    clouds, names, kinds = [], [], []
    for entry in source.entries():
        rng = source_shape_rng(seed=SEED, source="builtin", shape_id=entry.id)
        clouds.append(source.read(entry, POINTS, rng=rng).points.astype(np.float32))
        names.append(entry.id)
        kinds.append(source.facts.labels[entry.label])
    points = np.stack(clouds)

    pooled = extract_features(encoder, points, inputs=embedding_input(encoder.config), seed=SEED)
    features = unit_features(pooled - pooled.mean(dim=0), encoder)
    queries = [kinds.index(kind) for kind in QUERIES]
    shown = [
        [int(row) for row in (features @ features[query]).argsort(descending=True)[:6]]
        for query in queries
    ]
    flat = [row for rows in shown for row in rows]
    colors = dict(zip(flat, feature_colors(encoder, torch.from_numpy(points[flat])), strict=True))

    def sheet_shape(row: int, query: int | None) -> SheetShape:
        similarity = None if query is None else float(features[row] @ features[query])
        return SheetShape(
            points=points[row], name=names[row], similarity=similarity, colors=colors[row]
        )

    rows = [
        SheetRow(sheet_shape(first, None), tuple(sheet_shape(row, first) for row in others))
        for first, *others in shown
    ]
    note = (
        "Made shapes and the encoder that comes with pointdistill; no labels were used. Colours: the first three "
        "principal components of the patch features. Bars: cosine of features minus their mean."
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, theme in (("light", LIGHT), ("dark", DARK)):
        drawn = Image.open(io.BytesIO(search_sheet(rows, note=note, theme=theme))).convert("RGB")
        # 128 colours look the same and take a quarter of the bytes.
        drawn.quantize(128, dither=Image.Dither.NONE).save(
            folder / f"shapes-{name}.png", optimize=True
        )


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures"))
    except PointDistillError as error:
        sys.exit(f"error: {error}")
