"""The sources that a corpus can be made of: one row here and one module each.

To add one: write a module with ``open_source(request) -> Source`` beside the others, and a row
below.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import cast

from pointdistill.data.sources.base import (
    Cloud,
    Entry,
    Source,
    SourceInfo,
    SourceRequest,
    check_request,
    shape_rng,
)
from pointdistill.errors import ConfigError

__all__ = [
    "SOURCES",
    "Cloud",
    "Entry",
    "Source",
    "SourceInfo",
    "SourceRequest",
    "open_source",
    "shape_rng",
    "source_info",
]

_HERE = "pointdistill.data.sources"

SOURCES: tuple[SourceInfo, ...] = (
    SourceInfo(
        name="builtin",
        module=f"{_HERE}.builtin",
        title="everyday objects made on the spot, with part labels",
        licence="CC0-1.0 (made on the spot)",
        up="z",
        origin="this program",
        archive=None,
        options=frozenset({"shapes", "categories"}),
    ),
    SourceInfo(
        name="folder",
        module=f"{_HERE}.folder",
        title="your own meshes and point clouds; sub-folders are the labels",
        licence="your own files",
        up="y in glTF and GLB, what the file states, else as given",
        origin="your own disk",
        archive="a folder of mesh or point files",
        options=frozenset({"up"}),
    ),
    SourceInfo(
        name="modelnet40",
        module=f"{_HERE}.modelnet40",
        title="ModelNet40, 40 classes of CAD models",
        licence="academic use; models belong to their owners",
        up="z",
        origin="https://modelnet.cs.princeton.edu",
        archive="ModelNet40.zip",
        options=frozenset({"include_test"}),
    ),
    SourceInfo(
        name="scanobjectnn",
        module=f"{_HERE}.scanobjectnn",
        title="ScanObjectNN, 15 classes of objects cut from indoor scans",
        licence="research use, on its authors' form",
        up="y",
        origin="https://hkust-vgd.github.io/scanobjectnn/",
        archive="h5_files.zip",
        options=frozenset({"include_test"}),
    ),
)


def source_info(name: str) -> SourceInfo:
    """The row of a source.

    Raises:
        ConfigError: if there is none of that name; suggests the nearest.
    """
    rows = {info.name: info for info in SOURCES}
    if name in rows:
        return rows[name]
    near = difflib.get_close_matches(name, rows, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(rows)}"
    if Path(name).is_dir():
        hint = f"for your own files: folder --input {name}"
    msg = f"no source {name!r}; {hint}"
    raise ConfigError(msg)


def open_source(name: str, request: SourceRequest) -> Source:
    """Open a source; its archive is looked at, its shapes are not read.

    Raises:
        ConfigError: if there is no such source, or it does not have an option that was asked for.
        DataError: if its archive is missing or is not what its name says.
    """
    info = source_info(name)
    check_request(request, info)
    module = importlib.import_module(info.module)
    return cast("Source", module.open_source(request, info))
