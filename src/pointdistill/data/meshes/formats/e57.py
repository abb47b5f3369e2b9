"""E57 (ASTM E2807), the exchange format of laser scanners: all scans of a file, each moved by its pose.

pye57 does the work: libE57Format, an optional extra. It runs in a process of its own: its parser is C++, and
the file may come from anywhere; this module is also what that process runs. Coordinates are in metres, as the
standard says; it names no axis that is up.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.content import excerpt
from pointdistill.data.meshes.formats.step_convert import limit_process
from pointdistill.data.meshes.records import Floats, MeshLimits, RawMesh
from pointdistill.errors import DataError

_START: Final = b"ASTM-E57"
_MOST_SECONDS: Final = 600
_MOST_MEMORY_BYTES: Final = 4 * 2**30
_CARTESIAN: Final = ("cartesianX", "cartesianY", "cartesianZ")
_TOO_MANY: Final = "too many: "
"""Begins the last line of a process that found more points than are accepted."""


def read(path: Path, limits: MeshLimits) -> RawMesh:
    """Read the points of every scan, without those that the scanner marks as invalid.

    Raises:
        DataError: if pye57 is not installed, or the file is damaged, has no points, or costs too much to read.
    """
    check_size("bytes", path.stat().st_size, limits.file_bytes)
    with path.open("rb") as file:
        start = file.read(len(_START))
    if start != _START:
        msg = f"expected {_START.decode()}, got {excerpt(start)}; the file is damaged or of another format"
        raise DataError(msg)
    if importlib.util.find_spec("pye57") is None:
        msg = "E57 needs pye57; pip install 'pointdistill[e57]', or save the cloud as LAS or PLY"
        raise DataError(msg)
    with tempfile.TemporaryDirectory(prefix="pointdistill-") as folder:
        points = Path(folder, "points")
        _convert(path, points, limits)
        values = np.fromfile(points, "<f8") if points.exists() else np.empty(0)
    if not len(values) or len(values) % 3:
        msg = "not a readable E57 file (no points); it is damaged or cut short, export it again"
        raise DataError(msg)
    return RawMesh(points=[values.reshape(-1, 3)], nan_is_missing=True)


def _convert(path: Path, points: Path, limits: MeshLimits) -> None:
    """Write the points of a file as plain float64.

    Raises:
        DataError: if the process ends early; from a TimeoutError if it took too long.
        MemoryError: if it asks for more than it may have.
    """
    arguments = [path.absolute(), points, limits.vertices, _MOST_SECONDS, _MOST_MEMORY_BYTES]
    try:
        # -P, or modules beside this one would shadow others of the same name.
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_MOST_SECONDS + 5,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        msg = f"not read within {_MOST_SECONDS} seconds; thin the scan out, or save it as LAS"
        raise DataError(msg) from TimeoutError(str(error))
    if not done.returncode:
        return
    lines = done.stderr[-4000:].decode("utf-8", "replace").strip().splitlines()
    last = lines[-1] if lines else f"its reader ended with {done.returncode}"
    if "MemoryError" in last or "bad_alloc" in last:
        raise MemoryError
    if last.startswith(_TOO_MANY):
        raise DataError(last.removeprefix(_TOO_MANY))
    msg = f"not a readable E57 file ({last}); it is damaged or cut short, export it again"
    raise DataError(msg)


def main(path: str, target: str, most: int, seconds: int, memory_bytes: int) -> None:
    """Write the points of all scans of a file as plain float64, within limits that hold if the caller is gone.

    Raises:
        SystemExit: with a line, if there are more points than ``most``.
    """
    limit_process(seconds, memory_bytes, 24 * most)
    import pye57

    scans = pye57.E57(path)
    headers = [scans.get_header(number) for number in range(scans.scan_count)]
    try:
        check_size("points", sum(header.point_count for header in headers), most)
    except DataError as error:
        sys.exit(f"{_TOO_MANY}{error}")
    with Path(target).open("wb") as file:
        for number, header in enumerate(headers):
            if header.point_count:
                file.write(_points(scans, number).astype("<f8").tobytes())


def _points(scans: Any, number: int) -> Floats:
    """The valid points of one scan (P, 3), in the frame of the file."""
    scan = scans.read_scan(number, ignore_missing_fields=True)
    return np.stack([scan[name] for name in _CARTESIAN], axis=1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
