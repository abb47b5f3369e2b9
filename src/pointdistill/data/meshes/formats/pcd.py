"""Point Cloud Library's PCD: text, binary, and binary packed by LZF; NaN marks a missing return."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.content import (
    check_rest,
    check_text_size,
    excerpt,
    line_blocks,
    open_content,
    parse_points,
)
from pointdistill.data.meshes.records import Floats, MeshLimits, RawMesh
from pointdistill.errors import DataError

_LONGEST_HEADER = 1 << 16
_KINDS = {"F": "f", "I": "i", "U": "u"}
_FORMS = ("ascii", "binary", "binary_compressed")
_NEEDED = ("FIELDS", "SIZE", "TYPE", "POINTS", "DATA")


_LITERAL = 32
_LONG = 7


def read(path: Path, limits: MeshLimits) -> RawMesh:
    """Read x, y, z of every point.

    Raises:
        DataError: if there is no valid header, or it lacks coordinates or promises more points than follow.
    """
    header, start = _header(path)
    names = header["FIELDS"] = _axes_in_lower_case(header["FIELDS"])
    if missing := [axis for axis in "xyz" if axis not in names]:
        msg = f"the points have no {', '.join(missing)}, found {', '.join(names)}"
        raise DataError(msg)
    if twice := [axis for axis in "xyz" if names.count(axis) > 1]:
        msg = f"the points have several {', '.join(twice)} among {', '.join(names)}; leave one of each"
        raise DataError(msg)
    stated = int(header["POINTS"][0])
    check_size("points", stated, limits.vertices)
    form = header["DATA"][0]
    if form not in _FORMS:
        msg = f"DATA {form}, accepted are {', '.join(_FORMS)}; save the cloud as binary or as .ply"
        raise DataError(msg)
    counts = [int(count) for count in header.get("COUNT", ["1"] * len(names))]
    if form == "ascii":
        columns = [sum(counts[: names.index(axis)]) for axis in "xyz"]
        points = _text_points(path, start, (columns[0], columns[1], columns[2]), limits)
    elif form == "binary":
        points = _binary_points(path, start, header, counts, limits)
    else:
        points = _packed_points(path, start, header, counts, limits)
    if len(points) < stated:
        msg = (
            f"the header promises {stated:,} points, the file has {len(points):,}; it is cut short"
        )
        raise DataError(msg)
    check_rest(points[stated:].tobytes(), 1, f"{stated:,} points")
    return RawMesh(points=[points[:stated]], nan_is_missing=True)


def _axes_in_lower_case(names: list[str]) -> list[str]:
    """X, Y and Z count as x, y and z, unless those are there too."""
    return [
        name.lower() if name in ("X", "Y", "Z") and name.lower() not in names else name
        for name in names
    ]


def _header(path: Path) -> tuple[dict[str, list[str]], int]:
    with path.open("rb") as file:
        text = file.read(_LONGEST_HEADER)
    header: dict[str, list[str]] = {}
    at = 0
    while "DATA" not in header and (end := text.find(b"\n", at)) >= 0:
        words = text[at:end].decode("ascii", "replace").split()
        at = end + 1
        if words and not words[0].startswith("#"):
            header[words[0].upper()] = words[1:]
    if any(not header.get(key) for key in _NEEDED):
        msg = f"expected a PCD header with {', '.join(_NEEDED)}, got {excerpt(text[:60])}"
        raise DataError(msg)
    return header, at


def _text_points(
    path: Path, start: int, columns: tuple[int, int, int], limits: MeshLimits
) -> Floats:
    check_text_size(path, limits.text_bytes)
    points = [parse_points(rows, columns=columns) for rows in line_blocks(path, start=start)]
    return np.concatenate([np.empty((0, 3)), *points])


def _binary_points(
    path: Path, start: int, header: dict[str, list[str]], counts: list[int], limits: MeshLimits
) -> Floats:
    row = _row(header, counts)
    content = open_content(path, limits)
    count = (len(content) - start) // row.itemsize
    check_size("points", count, limits.vertices)
    points = np.empty((count, 3))
    at = 0
    with np.errstate(invalid="ignore"):  # of a NaN that signals
        for rows in content.blocks(row, count, start):
            for column, axis in enumerate("xyz"):
                points[at : at + len(rows), column] = rows[axis][:, 0]
            at += len(rows)
    return points


def _packed_points(
    path: Path, start: int, header: dict[str, list[str]], counts: list[int], limits: MeshLimits
) -> Floats:
    """Two sizes, then the fields one after another, each for all points, compressed together."""
    row = _row(header, counts)
    points = int(header["POINTS"][0])
    content = open_content(path, limits)
    packed, size = struct.unpack("<II", content.read(start, start + 8))
    if size != points * row.itemsize or start + 8 + packed > len(content):
        msg = (
            f"{points:,} points of {row.itemsize} bytes are promised, {size:,} bytes packed as {packed:,} follow "
            f"with {len(content) - start - 8:,} in the file; it is damaged or cut short"
        )
        raise DataError(msg)
    check_size("bytes once unpacked", size, limits.file_bytes)
    check_size("compressed bytes", packed, limits.document_bytes)  # 25 seconds' worth
    columns = unpack_lzf(bytes(content.read(start + 8, start + 8 + packed)), size)
    assert row.fields is not None  # it has x, y and z
    coordinates = []
    for axis in "xyz":
        kind, offset = row.fields[axis][:2]
        column = np.frombuffer(columns, kind.base, points * kind.shape[0], offset * points)
        coordinates.append(column[:: kind.shape[0]].astype(np.float64))
    return np.stack(coordinates, axis=1)


def _row(header: dict[str, list[str]], counts: list[int]) -> np.dtype[np.void]:
    """The layout of one point in a binary file."""
    fields: list[tuple[str, str, tuple[int]]] = []
    columns = zip(header["FIELDS"], header["TYPE"], header["SIZE"], counts, strict=True)
    for place, (name, kind, size, count) in enumerate(columns):
        # Padding fields share the name "_".
        unique = name if name in ("x", "y", "z") else f"{place}"
        fields.append((unique, f"<{_KINDS[kind]}{size}", (count,)))
    return np.dtype(fields)


def unpack_lzf(packed: bytes, size: int) -> bytes:
    """Unpack LZF, Marc Lehmann's compression, to ``size`` bytes; a packed MB costs at most a quarter of a second.

    A control byte below 32 is followed by that many literal bytes and one more. Any other holds a length minus 2
    in its upper three bits (7: the next byte is added) and, in the lower five and the byte that follows, how far
    back the repeated bytes begin, minus 1.

    Raises:
        DataError: if there are more or fewer, or the stream is damaged.
    """
    out = bytearray()
    at = 0
    try:
        while at < len(packed) and len(out) <= size:
            control = packed[at]
            at += 1
            if control < _LITERAL:
                out += packed[at : at + control + 1]
                at += control + 1
                continue
            length = control >> 5
            if length == _LONG:
                length += packed[at]
                at += 1
            start = len(out) - ((control & 31) << 8 | packed[at]) - 1
            at += 1
            if start < 0:
                break
            repeated = out[start : start + length + 2]
            # A repetition may reach into its own output, as run-length encoding does.
            out += (repeated * ((length + 2) // len(repeated) + 1))[: length + 2]
    except IndexError:
        at = -1
    if at != len(packed) or len(out) != size:
        msg = f"compressed data do not unpack to the {size:,} bytes that are stated; the file is damaged"
        raise DataError(msg)
    return bytes(out)
