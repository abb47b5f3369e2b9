"""Scenes in zip archives (3MF, 3DXML) by trimesh's loaders, held to what their documents promise."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from graphlib import CycleError, TopologicalSorter
from io import BytesIO
from typing import Any, Final, TypeAlias
from zipfile import ZipFile

import numpy as np

from pointdistill.data.meshes.records import Part
from pointdistill.errors import DataError

_COUNTLESS: Final = 2**62

# trimesh logs what it leaves out, which without a handler goes to stderr; here the counts tell.
logging.getLogger("trimesh").addHandler(logging.NullHandler())

Loader: TypeAlias = Callable[[BytesIO], Mapping[str, Any]]
"""One of ``trimesh.exchange``: an archive to the geometries and placements of a scene."""


def load_parts(loader: Loader, members: Mapping[str, bytes], *, triangles: int) -> list[Part]:
    """The parts of a scene where its assembly puts them.

    Args:
        loader: trimesh's loader of the format.
        members: the documents that it needs, by their names in the archive.
        triangles: how many the documents promise once all is placed.

    Raises:
        DataError: if the loader gives another number of triangles.
    """
    archive = BytesIO()
    with ZipFile(archive, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    with strict_numbers():
        scene = loader(archive)
    parts = [
        _part(scene["geometry"][node["geometry"]], node["matrix"])
        for node in scene["graph"]
        if node.get("geometry") in scene["geometry"]
    ]
    found = sum(part.face_count for part in parts)
    if found != triangles:
        msg = f"{triangles:,} triangles are stored, {found:,} were read; export the model as GLB or OBJ"
        raise DataError(msg)
    return parts


def _part(geometry: Mapping[str, Any], matrix: Any) -> Part:
    return Part(
        np.asarray(geometry["vertices"], dtype=np.float64).reshape(-1, 3),
        np.asarray(geometry["faces"], dtype=np.int64).reshape(-1),
        matrix=np.asarray(matrix, dtype=np.float64),
    )


@contextmanager
def strict_numbers() -> Iterator[None]:
    """Silence the libraries, but for numpy where it reads the first numbers of a text and not the rest.

    Newer versions of numpy raise a ValueError of their own there.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="string or file could not be read")
        yield


def count_placed(
    children: Mapping[str, Sequence[str]], triangles: Mapping[str, int], roots: Sequence[str]
) -> tuple[int, int]:
    """Instances and triangles of a scene once every instance is placed, without placing any.

    Args:
        children: every object of the scene, with the objects that it holds, one entry an instance.
        triangles: of each object itself; 0 where it is not named.
        roots: the objects that the scene holds.

    Raises:
        DataError: if an object is missing, or contains itself.
    """
    if missing := {name for held in (*children.values(), roots) for name in held} - children.keys():
        msg = f"object {min(missing)!r} is not in the file; export the model again, all in one file"
        raise DataError(msg)
    counts: dict[str, tuple[int, int]] = {}
    for name in contents_first(children):
        held = [counts[child] for child in children[name]]
        instances = 1 + sum(count for count, _ in held)
        total = triangles.get(name, 0) + sum(count for _, count in held)
        # Nested doubling would make numbers of as many digits as there are objects.
        counts[name] = (min(instances, _COUNTLESS), min(total, _COUNTLESS))
    placed = [counts[name] for name in roots]
    return sum(count for count, _ in placed), sum(count for _, count in placed)


def contents_first(children: Mapping[str, Sequence[str]]) -> list[str]:
    """Every object after those that it holds.

    Raises:
        DataError: if an object contains itself.
    """
    try:
        return list(TopologicalSorter(children).static_order())
    except CycleError as error:
        msg = f"object {error.args[1][0]!r} contains itself; the file is damaged, export it again"
        raise DataError(msg) from error
