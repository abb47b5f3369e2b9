"""Point clouds as numpy arrays (.npy, .npz; never a pickle) and as columns of text (.xyz, .txt, .csv, .pts)."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.content import (
    check_text_size,
    excerpt,
    line_blocks,
    parse_numbers,
    parse_points,
)
from pointdistill.data.meshes.records import Floats, MeshLimits, RawMesh
from pointdistill.errors import DataError

_ARRAY_SUFFIXES = (".npy", ".npz")
_COMMENTS = (b"#", b"//", b"%")
_SEPARATORS = bytes.maketrans(b",;|", b"   ")
_NAMES = ("points", "xyz", "pos", "vertices", "arr_0")


def read(path: Path, limits: MeshLimits) -> RawMesh:
    """Read a cloud from a numpy file or from rows of numbers, as the ending says.

    Raises:
        DataError: if the file is damaged, cut short, or does not hold points.
    """
    is_array = path.suffix.lower() in _ARRAY_SUFFIXES
    return (_read_array if is_array else _read_columns)(path, limits)


def _read_array(path: Path, limits: MeshLimits) -> RawMesh:
    """A .npy file, or the array in a .npz file that holds the points."""
    check_size("bytes", path.stat().st_size, limits.file_bytes)
    try:
        if path.suffix.lower() == ".npz":
            return RawMesh(points=[_first_three_columns(_from_archive(path, limits), limits)])
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return RawMesh(points=[_first_three_columns(array, limits)])
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        msg = (
            f"expected a numpy array ({error}); the file is damaged, cut short or of another format"
        )
        raise DataError(msg) from error


def _from_archive(path: Path, limits: MeshLimits) -> NDArray[Any]:
    with zipfile.ZipFile(path) as file:
        members = {Path(item.filename).stem: item for item in file.infolist()}
        names = [name for name in _NAMES if name in members] or list(members)
        if len(names) != 1 and names[0] not in _NAMES:
            msg = f"has the arrays {', '.join(members)[:200]}; name the one of the points 'points'"
            raise DataError(msg)
        member = members[names[0]]
        check_size("bytes in the archive", member.file_size, limits.file_bytes)
        with file.open(member) as stream:
            _check_claim(stream, member.file_size)
        with file.open(member) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)


def _check_claim(stream: IO[bytes], size: int) -> None:
    """Refuse an array whose header claims more bytes than its member holds, before memory is allocated."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > size:
        msg = f"an array of shape {shape} claims {claimed:,} bytes, the member has {size:,}; it is cut short"
        raise DataError(msg)


def _first_three_columns(array: NDArray[Any], limits: MeshLimits) -> NDArray[np.float64]:
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        msg = f"expected numbers of shape (n, 3 or more), got {array.dtype} of shape {array.shape}"
        raise DataError(msg)
    check_size("points", len(array), limits.vertices)
    return np.array(array[:, :3], dtype=np.float64)


def _read_columns(path: Path, limits: MeshLimits) -> RawMesh:
    """Rows of numbers; comments, a header line and a first line with the count are understood.

    A header that names x, y and z determines their columns.

    Raises:
        DataError: if a row has no three numbers, or there are fewer rows than a first line states.
    """
    check_text_size(path, limits.text_bytes)
    points: list[Floats] = []
    columns, stated, seen = (0, 1, 2), None, 0
    for number, lines in enumerate(line_blocks(path)):
        rows = [line.translate(_SEPARATORS) for line in lines if not line.startswith(_COMMENTS)]
        if number == 0 and rows:
            columns, stated, header_rows = _first_row(rows[0])
            rows = rows[header_rows:]
        if rows:
            points.append(parse_points(rows, columns=columns))
            seen += len(rows)
            check_size("points", seen, limits.vertices)
    if stated is not None and seen < stated:
        msg = f"the first line states {stated:,} points, the file has {seen:,}; it is cut short"
        raise DataError(msg)
    if not seen:
        msg = "the file has no points; expected rows of x, y and z"
        raise DataError(msg)
    return RawMesh(points=points)


def _first_row(row: bytes) -> tuple[tuple[int, int, int], int | None, int]:
    """Columns of x, y, z; the number of points, if the row states it; how many rows the header takes."""
    words = row.split()
    numbers = parse_numbers(row, np.float64)
    if numbers is not None and len(numbers) == 1 and words[0].isdigit():
        return (0, 1, 2), int(words[0]), 1
    if parse_numbers(b" ".join(words[:3]), np.float64) is not None:
        return (0, 1, 2), None, 0
    names = [word.strip(b"\"'").lower() for word in words]
    if {b"x", b"y", b"z"} <= set(names):
        return (names.index(b"x"), names.index(b"y"), names.index(b"z")), None, 1
    if any(parse_numbers(word, np.float64) is not None for word in words):
        msg = f"expected rows of x, y and z, got {excerpt(row)}; the file is damaged or of another format"
        raise DataError(msg)
    return (0, 1, 2), None, 1
