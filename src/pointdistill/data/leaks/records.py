"""What is looked for, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

How = Literal["id", "geometry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The test shapes of one benchmark. Sizes: n shapes, N points a shape, each its own number."""

    benchmark: str
    """The published name, such as ``ModelNet40``."""

    clouds: Sequence[NDArray[np.float32]]
    """n arrays (N, 3), z up, in any unit and place."""

    ids: tuple[str, ...] | None
    """n ids as a corpus of the same data has them; None where the data has none."""

    checksum: str
    """Of the archive, or of the corpus that the shapes lie in."""

    stand_in: bool
    """Whether the data was made on the spot; its ids then mean something in that archive alone."""

    def __len__(self) -> int:
        """Number of shapes."""
        return len(self.clouds)

    def some(self, count: int) -> HeldOut:
        """At most ``count`` of them, evenly spread; itself where it has no more."""
        if len(self) <= count:
            return self
        chosen = [k * len(self) // count for k in range(count)]
        ids = tuple(self.ids[k] for k in chosen) if self.ids else None
        return replace(self, clouds=[self.clouds[k] for k in chosen], ids=ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """One test shape that is in the corpus."""

    test: int
    """Its number in the test split, from 0."""

    test_id: str | None
    corpus_index: int
    """Number of the shape in the corpus."""

    corpus_id: str
    source: str
    """The corpus's source that has it."""

    how: How
    gap: float | None
    """How far the two surfaces are apart, see `pointdistill.data.leaks.surface`; None for a leak by id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakReport:
    """All test shapes of one benchmark that a corpus has."""

    benchmark: str
    test_shapes: int
    corpus_shapes: int
    corpus: str
    """Its content checksum."""

    leaks: tuple[Leak, ...]
    """In the order of the test split; one a test shape."""

    ids_met: tuple[str, ...]
    """Sources whose ids could be compared with the benchmark's."""

    geometry: bool
    """Whether the shapes themselves were compared too."""

    def count(self, how: How) -> int:
        """Leaks found by ``how``."""
        return sum(leak.how == how for leak in self.leaks)
