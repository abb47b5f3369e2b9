"""Previews of a corpus: a contact sheet, and a web page to rotate shapes.

The page contains points, style and script itself; its content security policy forbids every other script and the
network. Names of shapes come from other people's archives, so they are inserted as text only.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus import Corpus
from pointdistill.data.corpus.shard import Points, quantise
from pointdistill.data.files.files import write_aside
from pointdistill.engine.reports import pictures
from pointdistill.reporter import plural

POINTS_ON_SHEET = 2048
"""Largest number of points of a shape on the contact sheet."""

POINTS_ON_PAGE = 4096
"""Largest number of points of a shape on the page: 32 KiB each, few enough to redraw within a frame."""

_UNIT = "its source's own unit"


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewShape:
    """One shape to show. Sizes: n points shown."""

    id: str
    source: str
    label: str
    """Empty if it is not known."""

    points: Points
    """(n, 3) float32, z up; some of the shape's points in random order."""

    whole: int
    """Points that the shape has in the corpus."""

    sides: tuple[float, float, float]
    """Width, depth and height (x, y, z) of its bounding box, in the source's unit."""


@dataclass(frozen=True, slots=True)
class Preview:
    """The files that were written."""

    picture: Path
    page: Path
    shapes: int


def write_preview(
    corpus: Corpus, chosen: Sequence[int] | NDArray[np.int64], *, stem: Path, seed: int
) -> Preview:
    """Write ``stem``.png and ``stem``.html, each completely or not at all.

    Args:
        corpus: the corpus with the shapes.
        chosen: their numbers, at least one.
        stem: path of both files without their suffixes.
        seed: seed of the points to show if a shape has too many.
    """
    shapes = list(read_preview(corpus, chosen, seed=seed))
    # Not with_suffix, which would replace the end of a name with a dot in it.
    picture, page = (stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "html"))
    with write_aside(picture) as aside:
        aside.write_bytes(contact_sheet(shapes))
    with write_aside(page) as aside:
        aside.write_text(turning_page(corpus.path.resolve().name, shapes), encoding="utf-8")
    return Preview(picture, page, len(shapes))


def read_preview(
    corpus: Corpus, chosen: Sequence[int] | NDArray[np.int64], *, seed: int
) -> Iterator[PreviewShape]:
    """The chosen shapes, each with the points to show; the same seed gives the same points."""
    for number in chosen:
        shape = corpus[int(number)]
        rng = np.random.default_rng(np.random.SeedSequence((seed, int(number))))
        count = len(shape.points)
        shown = rng.choice(count, min(count, POINTS_ON_PAGE), replace=False)
        x, y, z = (shape.points.max(axis=0) - shape.points.min(axis=0)).tolist()
        yield PreviewShape(
            id=shape.id,
            source=shape.source,
            label=corpus.label_names[shape.label] if shape.label >= 0 else "",
            points=shape.points[shown],
            whole=count,
            sides=(x, y, z),
        )


def contact_sheet(shapes: Sequence[PreviewShape]) -> bytes:
    """A PNG of all shapes in rows of six, with their labels, ids, an arrow along z and a bar of a round length."""
    return pictures.contact_sheet(
        [
            pictures.SheetShape(
                points=shape.points[:POINTS_ON_SHEET], name=shape.id, title=shape.label
            )
            for shape in shapes
        ],
        note=f"Each shape fills its cell; the line below it is that long in {_UNIT}. The arrow is z, up.",
    )


def turning_page(name: str, shapes: Sequence[PreviewShape]) -> str:
    """A self-contained HTML page that shows the shapes and rotates the chosen one."""
    style, script = _asset("preview.css"), _asset("preview.js")
    policy = f"default-src 'none'; style-src {_allowed(style)}; script-src {_allowed(script)}"
    title = f"{name}: {plural(len(shapes), 'shape')}"
    # JSON allows < to be escaped, so that no name can close the script element it is in.
    data = json.dumps([_entry(shape) for shape in shapes]).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<p>Drag to turn, scroll to zoom, double-click to go back; the arrow keys, + and - do the same. \
Colours are heights; the thick axis is z, which is up in every corpus. Beside each axis is the shape's \
length along it, in {_UNIT}.</p>
<figure>
<canvas id="stage" tabindex="0" role="img" aria-label="the chosen shape"></canvas>
<figcaption><strong id="name"></strong><span id="facts"></span></figcaption>
</figure>
<div id="shelf"></div>
<noscript><p>Turning shapes needs JavaScript; the contact sheet beside this page shows them still.</p></noscript>
</main>
<script type="application/json" id="shapes">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def _entry(shape: PreviewShape) -> dict[str, str | list[str]]:
    """A shape as the page's script reads it; its points are scaled to fill a cube around its centre."""
    steps = np.ascontiguousarray(quantise(shape.points).points, "<i2")
    sides = [f"{side:.4g}" for side in shape.sides]
    shown = "" if len(steps) == shape.whole else f" ({len(steps):,} shown)"
    facts = [shape.source, shape.label, f"{shape.whole:,} points{shown}", " x ".join(sides)]
    return {
        "id": shape.id,
        "label": shape.label,
        "facts": " · ".join(filter(None, facts)),
        "sides": sides,
        "points": base64.b64encode(steps.tobytes()).decode("ascii"),
    }


def _asset(name: str) -> str:
    """The text of a file in this module's folder."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _allowed(text: str) -> str:
    """The source expression with which a content security policy allows exactly this text."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
