"""Which categories there are, what their parts are called, and what a maker works with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.builtin.mesh import Faces, Floats, Mesh

Choice = TypeVar("Choice")


class Draw:
    """Short names for the random choices that makers take."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def between(self, low: float, high: float) -> float:
        """A number, uniform in [low, high)."""
        return low + (high - low) * float(self.rng.random())

    def count(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return float(self.rng.random()) < probability

    def pick(self, options: Sequence[Choice]) -> Choice:
        """One of ``options``, each as likely."""
        return options[int(self.rng.integers(len(options)))]


class Assembly:
    """The pieces of one shape, each under the name of its part.

    Attributes:
        pieces: the label of each piece, an index into the category's part names, and the piece.
    """

    def __init__(self, part_names: tuple[str, ...]) -> None:
        self._index = {name: index for index, name in enumerate(part_names)}
        self.pieces: list[tuple[int, Mesh]] = []

    def add(self, part: str, *pieces: Mesh) -> None:
        """Put pieces in; ``part`` is one of the category's part names."""
        index = self._index[part]
        self.pieces.extend((index, piece) for piece in pieces)

    def merged(self) -> tuple[Floats, Faces, NDArray[np.uint8]]:
        """All pieces as vertices (V, 3), faces (F, 3) and the part of each face (F,)."""
        starts = np.cumsum([0, *(len(piece.vertices) for _, piece in self.pieces)])
        vertices = np.concatenate([piece.vertices for _, piece in self.pieces])
        faces = np.concatenate(
            [piece.faces + start for (_, piece), start in zip(self.pieces, starts, strict=False)]
        ).astype(np.int32)
        part = np.repeat(
            np.array([index for index, _ in self.pieces], dtype=np.uint8),
            [len(piece.faces) for _, piece in self.pieces],
        )
        return vertices, faces, part


Maker = Callable[[Assembly, Draw], None]


@dataclass(frozen=True, slots=True)
class Category:
    """A named kind of object: its maker and the vocabulary of its parts."""

    name: str
    part_names: tuple[str, ...]
    maker: Maker


REGISTRY: dict[str, Category] = {}


def category(name: str, *parts: str) -> Callable[[Maker], Maker]:
    """Register the decorated maker under ``name``; ``parts`` is the vocabulary of its part labels."""

    def register(maker: Maker) -> Maker:
        REGISTRY[name] = Category(name, parts, maker)
        return maker

    return register
