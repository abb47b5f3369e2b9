"""Built-in objects as a source: any number of them, spread evenly over the categories."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.sources.base import Entry, SourceCloud, SourceInfo, SourceRequest
from pointdistill.data.synthetic_shapes import CATEGORIES, PART_NAMES, make_shape, sample_shape
from pointdistill.errors import ConfigError

DEFAULT_SHAPES = 10_000


@dataclass(frozen=True, slots=True)
class BuiltinSource:
    """Shape k of a category is the same whatever the total number of shapes."""

    facts: SourceFacts
    shapes: int

    def entries(self) -> Sequence[Entry]:
        """Categories take turns, so that their counts differ by at most one."""
        labels = self.facts.labels
        return [
            Entry(
                id=f"{labels[k % len(labels)]}/{k // len(labels):06d}",
                label=k % len(labels),
            )
            for k in range(self.shapes)
        ]

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:
        """Make the shape and draw its points; see `pointdistill.data.sources.base.Source`."""
        shape = make_shape(self.facts.labels[entry.label], rng=rng)
        points, part = sample_shape(shape, count, rng=rng)
        return SourceCloud(points, part)


def open_source(request: SourceRequest, info: SourceInfo) -> BuiltinSource:
    """The source for a request: ``shapes`` (10,000 unless given) of ``categories`` (all).

    Raises:
        ConfigError: if there is no such category, or no shape is requested.
    """
    shapes = DEFAULT_SHAPES if request.shapes is None else request.shapes
    if shapes < 1:
        msg = f"shapes must be at least 1, got {shapes}"
        raise ConfigError(msg)
    categories = tuple(sorted(set(request.categories or CATEGORIES)))
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
        settings={"shapes": shapes},
    )
    return BuiltinSource(facts, shapes)
