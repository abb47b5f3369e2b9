"""LAS, the point format of surveyors, versions 1.0 to 1.4, and its compressed form LAZ (extra ``laz``).

Source: ASPRS, LAS Specification 1.4 - R15. Every point record of every format begins with x, y and z as int32, to
be scaled and shifted by numbers in the header; z is the height.
"""

from __future__ import annotations

import importlib.util
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.content import Span, check_rest, excerpt, open_content
from pointdistill.data.meshes.formats.e57 import read_apart
from pointdistill.data.meshes.formats.step_convert import limit_process
from pointdistill.data.meshes.records import Floats, MeshLimits, RawMesh
from pointdistill.errors import DataError

_SHORTEST_HEADER = 227
_SHORTEST_HEADER_1_4 = 375
_SHORTEST_RECORD = 20
_LARGEST_FORMAT = 10
_COMPRESSED = 0xC0
"""Bits of the format number that LAZ sets."""

_CHUNK_POINTS = 1_000_000
_RECORDS_LOOKED_AT = 1000
_RECORD_HEADER = 54
"""Bytes that a variable-length record takes at least."""


@dataclass(frozen=True, slots=True)
class _Header:
    first: int
    """Byte at which the points begin."""

    record: int
    """Bytes per point."""

    points: int
    compressed: bool
    scale: Floats  # (3,)
    offset: Floats  # (3,)


def read(path: Path, limits: MeshLimits) -> RawMesh:
    """Read x, y, z of every point, in the file's unit.

    Raises:
        DataError: if it is not a LAS file, promises more points than follow, or is compressed and laspy and lazrs
            are not installed.
    """
    content = open_content(path, limits)
    data = content.read(0, _SHORTEST_HEADER_1_4)
    header = _header(data, len(content))
    check_size("points", header.points, limits.vertices)
    if header.compressed:
        _check_records(data, len(content))
        counts = _unpack(path, header.points, limits)
        return RawMesh(points=[counts * header.scale + header.offset], declared_up="z")
    available = max(0, len(content) - header.first) // header.record
    if available < header.points:
        msg = f"the header promises {header.points:,} points, the file has {available:,}; it is cut short"
        raise DataError(msg)
    _check_rest(data, content, header)
    row = np.dtype(
        {"names": ["xyz"], "formats": ["3<i4"], "offsets": [0], "itemsize": header.record}
    )
    points = np.empty((header.points, 3))
    at = 0
    for rows in content.blocks(row, header.points, header.first):
        points[at : at + len(rows)] = rows["xyz"] * header.scale + header.offset
        at += len(rows)
    return RawMesh(points=[points], declared_up="z")


def _header(data: memoryview, file_bytes: int) -> _Header:
    if len(data) < _SHORTEST_HEADER or bytes(data[:4]) != b"LASF":
        msg = f"expected a LAS header, got {excerpt(bytes(data[:16]))}; the file is damaged or of another format"
        raise DataError(msg)
    minor, size = data[25], int.from_bytes(data[94:96], "little")
    first, _, form, record, points = struct.unpack_from("<IIBHI", data, 96)
    compressed, form = bool(form & _COMPRESSED), form & ~_COMPRESSED
    if form > _LARGEST_FORMAT or record < _SHORTEST_RECORD:
        accepted = f"accepted are 0 to {_LARGEST_FORMAT} with {_SHORTEST_RECORD} or more"
        msg = f"point format {form} with {record} bytes a point, {accepted}; export the cloud again"
        raise DataError(msg)
    if minor >= 4 and min(size, len(data)) >= _SHORTEST_HEADER_1_4:
        # The older field is 0 if the count does not fit into it, or the point format is a newer one. Some programs
        # write the older field alone.
        points = struct.unpack_from("<Q", data, 247)[0] or points
    if not points:
        stored = max(0, file_bytes - first) // record
        msg = f"the header states 0 points, {stored:,} records could follow it; export the cloud again"
        raise DataError(msg)
    if first < _SHORTEST_HEADER:
        msg = f"the points begin at byte {first}, inside the header; the file is damaged, export it again"
        raise DataError(msg)
    scale, offset = np.frombuffer(data, "<f8", 6, 131).reshape(2, 3)
    if not (np.isfinite([scale, offset]).all() and scale.all()):
        msg = (
            f"the header scales x, y and z by {', '.join(map(str, scale.tolist()))} and shifts them by "
            f"{', '.join(map(str, offset.tolist()))}; accepted are finite numbers, and no scale of 0"
        )
        raise DataError(msg)
    return _Header(first, record, points, compressed, scale, offset)


def _check_rest(data: memoryview, content: Span, header: _Header) -> None:
    """Refuse a file in which further points follow those that its header promises.

    Waveforms and records may follow the points, and say where they begin; other programs' own data are seldom as
    long as points are.

    Raises:
        DataError: if the bytes between are as many as points have.
    """
    end, others = header.first + header.points * header.record, [len(content)]
    for minor, at in ((3, 227), (4, 235)):
        if data[25] >= minor and len(data) >= at + 8 <= header.first:
            others.append(struct.unpack_from("<Q", data, at)[0])
    stop = min(other for other in others if other >= end)
    if not (stop - end) % header.record:
        rest = content.read(end, min(stop, end + header.record * _RECORDS_LOOKED_AT))
        check_rest(rest, header.record, f"{header.points:,} points")


def _check_records(data: memoryview, file_bytes: int) -> None:
    """Refuse more variable-length records than the file has room for: laspy would look for each of them.

    Raises:
        DataError: if the header promises more.
    """
    promised = struct.unpack_from("<I", data, 100)[0] * _RECORD_HEADER
    if data[25] >= 4 and len(data) >= _SHORTEST_HEADER_1_4:
        promised += struct.unpack_from("<I", data, 243)[0] * _RECORD_HEADER
    if promised > file_bytes:
        msg = "the header promises more records than the file has room for; copy or export it again"
        raise DataError(msg)


def _unpack(path: Path, points: int, limits: MeshLimits) -> NDArray[np.int32]:
    """The stored integers (P, 3) of a LAZ file, read in a process of its own: lazrs ends it over some damage.

    Raises:
        DataError: if laspy or lazrs is missing, or the compressed points are damaged.
    """
    if not (importlib.util.find_spec("laspy") and importlib.util.find_spec("lazrs")):
        msg = "is LAZ, which needs laspy and lazrs; pip install 'pointdistill[laz]', or save it as LAS"
        raise DataError(msg)
    counts = read_apart(path, limits, module=__name__, kind="LAZ", dtype="<i4")
    if len(counts) != points:
        msg = (
            f"the header promises {points:,} points, the file has {len(counts):,}; it is cut short"
        )
        raise DataError(msg)
    return counts


def main(path: str, target: str, most: int, seconds: int, memory_bytes: int) -> None:
    """Write the stored integers of a LAZ file, within limits that hold if the caller is gone."""
    limit_process(seconds, memory_bytes, 12 * most)
    import laspy

    with (
        laspy.open(path, laz_backend=laspy.LazBackend.Lazrs) as reader,
        Path(target).open("wb") as file,
    ):
        for chunk in reader.chunk_iterator(_CHUNK_POINTS):
            file.write(np.stack([chunk.X, chunk.Y, chunk.Z], axis=1).astype("<i4").tobytes())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
