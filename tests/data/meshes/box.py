"""One box of 1 x 2 x 3, and what every reader must give for it: area 22, nothing turned or lost."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from pointdistill.data.meshes import Surface, read_mesh, surface_area

BOX = np.array([[x, y, z] for x in (0, 1) for y in (0, 2) for z in (0, 3)], float)
QUADS = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
TRIANGLES = [corner for a, b, c, d in QUADS for corner in ([a, b, c], [a, c, d])]


def rows(values: Iterable[Iterable[object]], separator: str = " ") -> str:
    """Text with a line for each row."""
    return "".join(separator.join(map(str, row)) + "\n" for row in values)


def read_surface(path: Path) -> Surface:
    """A file that must hold a surface."""
    surface = read_mesh(path)
    assert isinstance(surface, Surface)
    return surface


def check_box(path: Path, *, within: float = 1e-12) -> None:
    """The file's surface is the box; ``within`` is how far a corner may lie from its place."""
    surface = read_surface(path)
    corners = surface.vertices[surface.faces.ravel()]
    assert len(surface.faces) == 12
    assert surface_area(surface) == pytest.approx(22)
    assert corners.min(0).tolist() == pytest.approx([0, 0, 0], abs=within)
    assert corners.max(0).tolist() == pytest.approx([1, 2, 3], abs=within)


def bounds(path: Path) -> list[list[float]]:
    """The lowest and the highest coordinates of the file's surface."""
    vertices = read_surface(path).vertices
    return [vertices.min(0).tolist(), vertices.max(0).tolist()]


def write_zip(path: Path, members: dict[str, str]) -> None:
    """An archive of text files."""
    with ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
