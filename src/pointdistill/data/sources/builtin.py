"""Built-in objects as a source: any number, spread evenly over the categories; a share may be procedural."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.corpus.shard import UNKNOWN_LABEL
from pointdistill.data.sources.base import Entry, SourceCloud, SourceInfo, SourceRequest
from pointdistill.data.synthetic_shapes import (
    CATEGORIES,
    PART_NAMES,
    make_shape,
    sample_faces,
    sample_shape,
)
from pointdistill.data.synthetic_shapes.procedural import PROCEDURAL, make_procedural
from pointdistill.errors import ConfigError

DEFAULT_SHAPES = 10_000


@dataclass(frozen=True, slots=True)
class BuiltinSource:
    """Shape k of a category, and procedural shape k, are the same whatever the number of shapes of each."""

    facts: SourceFacts
    shapes: int
    procedural: float = 0.0
    """Share of the shapes that are procedural, which have no label."""

    def entries(self) -> Sequence[Entry]:
        """Categories take turns, so their counts differ by at most one; procedural shapes are spread evenly."""
        labels = self.facts.labels
        entries = []
        for k in range(self.shapes):
            # Entry k is procedural if the share rounded down grows there; ``before`` of them precede it.
            before = math.floor(k * self.procedural)
            if math.floor((k + 1) * self.procedural) > before:
                entries.append(Entry(id=f"{PROCEDURAL}/{before:06d}", label=UNKNOWN_LABEL))
            else:
                turn, label = divmod(k - before, len(labels))
                entries.append(Entry(id=f"{labels[label]}/{turn:06d}", label=label))
        return entries

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:
        """Make the shape and draw its points; see `pointdistill.data.sources.base.Source`."""
        if entry.label == UNKNOWN_LABEL:
            points, _ = sample_faces(make_procedural(rng=rng), count, rng=rng)
            return SourceCloud(points)
        shape = make_shape(self.facts.labels[entry.label], rng=rng)
        points, part = sample_shape(shape, count, rng=rng)
        return SourceCloud(points, part)


def open_source(request: SourceRequest, info: SourceInfo) -> BuiltinSource:
    """The source for a request: ``shapes`` (10,000 unless given) of ``categories`` (all).

    The share ``procedural`` (0) of them has no category.

    Raises:
        ConfigError: if there is no such category, no shape is requested, or the share is not in [0, 1].
    """
    shapes = DEFAULT_SHAPES if request.shapes is None else request.shapes
    if shapes < 1:
        msg = f"shapes must be at least 1, got {shapes}"
        raise ConfigError(msg)
    share = 0.0 if request.procedural is None else request.procedural
    if not 0.0 <= share <= 1.0:
        msg = f"procedural must be a share from 0 to 1, got {share}"
        raise ConfigError(msg, settings=("procedural",))
    if share == 1.0 and request.categories:
        msg = "procedural 1 leaves no shapes for categories; give a smaller share, or no categories"
        raise ConfigError(msg, settings=("procedural",))
    requested = () if share == 1.0 else request.categories or CATEGORIES
    categories = tuple(sorted(set(requested)))
    for category in categories:
        if category not in CATEGORIES:
            near = difflib.get_close_matches(category, CATEGORIES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(CATEGORIES)}"
            msg = f"no built-in category {category!r}; {hint}"
            raise ConfigError(msg)
    facts = SourceFacts(
        name=info.name,
        licence=info.licence,
        origin=info.origin,
        turned="none",
        labels=categories,
        part_names={category: PART_NAMES[category] for category in categories},
        # A corpus without procedural shapes keeps the record that it had before there were any.
        settings={"shapes": shapes} | ({"procedural": share} if share else {}),
    )
    return BuiltinSource(facts, shapes, share)
