"""E57 (ASTM E2807), the exchange format of laser scanners: all scans of a file, each moved by its pose.

pye57 does the work: libE57Format, an optional extra. It runs in a process of its own: its parser is C++, and
the file may come from anywhere; this module is also what that process runs. Coordinates are in metres, as the
standard says; it names no axis that is up.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.files.packed_tars import temporary_folder
from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.content import excerpt
from pointdistill.data.meshes.formats.step_convert import limit_process
from pointdistill.data.meshes.records import Floats, MeshLimits, RawMesh
from pointdistill.errors import DataError

_START: Final = b"ASTM-E57"
_MOST_SECONDS: Final = 600
_MOST_MEMORY_BYTES: Final = 4 * 2**30
_CARTESIAN: Final = ("cartesianX", "cartesianY", "cartesianZ")
TOO_MANY: Final = "too many: "
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
    values = read_apart(path, limits, module=__name__, kind="E57", dtype="<f8")
    return RawMesh(points=[values], nan_is_missing=True)


def read_apart(
    path: Path, limits: MeshLimits, *, module: str, kind: str, dtype: str
) -> NDArray[Any]:
    """The points (P, 3) that a module's ``main`` writes, in a process of its own: a crash costs one file alone.

    Args:
        path: the file.
        limits: largest number of points.
        module: its ``main`` takes the file, the file to write, and the most points, seconds and bytes.
        kind: the format's name, for messages.
        dtype: of the values that it writes.

    Raises:
        DataError: if the process ends early, or writes no points; from a TimeoutError if it took too long.
        MemoryError: if it asks for more than it may have.
    """
    with temporary_folder() as folder:
        target = Path(folder, "points")
        arguments = [path.absolute(), target, limits.vertices, _MOST_SECONDS, _MOST_MEMORY_BYTES]
        try:
            # -P, or modules in the working folder would shadow others of the same name.
            done = subprocess.run(
                [sys.executable, "-P", "-m", module, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=_MOST_SECONDS + 5,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            msg = f"not read within {_MOST_SECONDS} seconds; thin the scan out, or save it as LAS"
            raise DataError(msg) from TimeoutError(str(error))
        if done.returncode:
            _refuse(kind, done.returncode, done.stderr.decode("utf-8", "replace"))
        values: NDArray[Any] = np.fromfile(target, dtype)
    if not len(values) or len(values) % 3:
        msg = f"not a readable {kind} file (no points); it is damaged or cut short, export it again"
        raise DataError(msg)
    return values.reshape(-1, 3)


def _refuse(kind: str, code: int, said: str) -> NoReturn:
    """Raise the error for a process that ended with a code, and what it wrote."""
    lines = said.strip().splitlines()
    if any(word in said for word in ("MemoryError", "bad_alloc", "memory allocation of")):
        raise MemoryError
    if lines and lines[-1].startswith(TOO_MANY):
        raise DataError(lines[-1].removeprefix(TOO_MANY))
    cause = lines[-1][:300] if lines and code > 0 else f"its reader ended with {code}"
    msg = f"not a readable {kind} file ({cause}); it is damaged or cut short, export it again"
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
        sys.exit(f"{TOO_MANY}{error}")
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
