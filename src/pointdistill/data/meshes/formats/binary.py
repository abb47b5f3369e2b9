"""Binary files mapped into memory: only the bytes that are used are ever read."""

from __future__ import annotations

import mmap
from pathlib import Path

from pointdistill.data.meshes.records import MeshLimits
from pointdistill.errors import DataError


def map_file(path: Path, limits: MeshLimits) -> memoryview:
    """The file's bytes, read-only.

    Raises:
        DataError: if the file is empty or larger than ``limits.file_bytes``.
    """
    size = path.stat().st_size
    if size > limits.file_bytes:
        msg = f"{size:,} bytes, at most {limits.file_bytes:,} are accepted; simplify or split the file"
        raise DataError(msg)
    if not size:
        msg = "the file is empty; copy or export it again"
        raise DataError(msg)
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
