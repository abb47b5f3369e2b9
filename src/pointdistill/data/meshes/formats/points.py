"""Arrays of numpy (.npy, .npz; never a pickle) and tables of text (.xyz, .txt, .csv, .pts) that are surely clouds.

A table has one delimiter, and its columns are found by their names, in a first row or a comment above it. A table
without names is a cloud only if nothing in its first rows speaks for an id, a time or a colour in front.
"""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.files.archive import POINTER_START, Archive
from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.content import (
    check_rest,
    check_text_size,
    excerpt,
    parse_points,
    text_blocks,
)
from pointdistill.data.meshes.formats.fast_numbers import split_tokens
from pointdistill.data.meshes.formats.tables import (
    COMMENTS,
    MOST_COLUMNS,
    SAMPLE,
    Table,
    check_columns,
    fields,
    number,
    plan,
)
from pointdistill.data.meshes.records import Floats, MeshLimits, Part, RawMesh
from pointdistill.errors import DataError

_ARRAY_SUFFIXES = (".npy", ".npz")
_COMMENT_LINES = re.compile(rb"(?m)^[ \t]*(?:#|//|%)[^\n]*")
_PERHAPS_PROSE = (".txt", ".csv")
_HEAD_BYTES = 1 << 16
_NUMBER = re.compile(
    rb"(?<![^\s,;|\"'(\[{])[+-]?(?:\d+[.,]?\d*|[.,]\d+)(?:[eEdD][+-]?\d+)?(?![^\s,;|\"')\]}])"
)
_LONGEST_PREAMBLE = 1 << 24
_NAMES = ("points", "xyz", "pos", "coord", "coords", "vertices")
_VERTICES = ("vertices", "verts", "v", "points")
_FACES = ("faces", "triangles", "tris", "f", "cells")
_VOLUME = ("occupancies", "occupancy", "occ", "sdf", "sdfs", "udf", "distances")
_NO_POINTS = (
    "features",
    "feature",
    "embeddings",
    "embedding",
    "normals",
    "normal",
    "colors",
    "colours",
    "rgb",
    "depth",
)
_NO_CLOUD = frozenset((*_NO_POINTS, *_FACES[:3], "color", "colour", "label", "labels"))
"""Names of files that programs write beside the points of a shape, in the same form."""


def is_prose(path: Path) -> bool:
    """Whether a .txt or .csv file holds words and not the rows of a cloud, as a readme beside meshes does.

    It is prose if fewer than a fifth of its first lines have three numbers. What is neither is left to the reader,
    which says what is wrong with it.
    """
    # A pipe has no end; it is refused when it is read.
    if path.suffix.lower() not in _PERHAPS_PROSE or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return _is_of_words(file.read(_HEAD_BYTES))
    except OSError:
        return False


def is_prose_member(archive: Archive, name: str) -> bool:
    """`is_prose` of a member of an archive; only its beginning is unpacked."""
    if PurePosixPath(name).suffix.lower() not in _PERHAPS_PROSE:
        return False
    return _is_of_words(archive.head(name, _HEAD_BYTES))


def _is_of_words(head: bytes) -> bool:
    lines = [line for line in _COMMENT_LINES.sub(b"", head).split(b"\n") if line.strip()]
    if not lines or b"\0" in head or head.startswith(POINTER_START):
        return False
    rows = sum(len(_NUMBER.findall(line)) >= 3 for line in lines)
    return 5 * rows < len(lines)


def read(path: Path, limits: MeshLimits) -> RawMesh:
    """Read a cloud from a numpy file or from rows of numbers, as the ending says.

    Raises:
        DataError: if the file is damaged, cut short, or does not hold points.
    """
    is_array = path.suffix.lower() in _ARRAY_SUFFIXES
    return (_read_array if is_array else _read_columns)(path, limits)


def _read_array(path: Path, limits: MeshLimits) -> RawMesh:
    """A .npy file, or the arrays in a .npz file that hold the points or the mesh."""
    check_size("bytes", path.stat().st_size, limits.file_bytes)
    try:
        if path.suffix.lower() == ".npz":
            return _from_archive(path, limits)
        with path.open("rb") as stream:
            shape, dtype = _check_claim(stream, path.stat().st_size)
            _check_form(shape, dtype)
            stream.seek(0)
            array = np.lib.format.read_array(stream, allow_pickle=False)
            if shape[1] == 3:
                _check_name(path)
            check_rest(stream.read(1), 1, f"an array of shape {shape}")
        return RawMesh(points=[_first_three_columns(array, limits)], nan_is_missing=True)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        msg = (
            f"expected a numpy array ({error}); the file is damaged, cut short or of another format"
        )
        raise DataError(msg) from error


def _check_name(path: Path) -> None:
    """Refuse a file of three columns without names that is called by something other than points.

    Raises:
        DataError: naming it.
    """
    if path.stem.lower() in _NO_CLOUD:
        msg = (
            f"holds {path.stem.lower()} as its name says, and not surely points; rename it, or name the columns "
            "of a table x, y and z"
        )
        raise DataError(msg)


def _from_archive(path: Path, limits: MeshLimits) -> RawMesh:
    """A mesh if there are vertices and faces, else the one array that is surely points."""
    with zipfile.ZipFile(path) as file:
        members = {item.filename.removesuffix(".npy"): item for item in file.infolist()}
        keys = {name.lower(): name for name in members}
        faces = [keys[name] for name in _FACES if name in keys]
        vertices = [keys[name] for name in _VERTICES if name in keys]
        named = [keys[name] for name in _NAMES if name in keys]
        volume = any(name in keys for name in _VOLUME)
        if len(faces) == 1 and vertices:
            corners = _member(file, members[faces[0]], limits)
            points = _first_three_columns(_member(file, members[vertices[0]], limits), limits)
            if corners.ndim == 2 and corners.shape[1] in (3, 4) and corners.dtype.kind in "iu":
                check_size("faces", len(corners), limits.faces)
                sizes = np.full(len(corners), corners.shape[1], np.int64)
                return RawMesh([Part(points, corners.astype(np.int64).reshape(-1), sizes)])
        elif not faces and not volume:
            single = [
                name for name in members if len(members) == 1 and name.lower() not in _NO_POINTS
            ]
            if len(names := named or single) == 1:
                array = _member(file, members[names[0]], limits)
                return RawMesh(points=[_first_three_columns(array, limits)], nan_is_missing=True)
    msg = (
        f"has the arrays {', '.join(members)[:200]}; accepted are one array of points, named 'points' "
        "beside others, or 'vertices' and 'faces' (n, 3)"
    )
    raise DataError(msg)


def _member(file: zipfile.ZipFile, member: zipfile.ZipInfo, limits: MeshLimits) -> NDArray[Any]:
    check_size("bytes in the archive", member.file_size, limits.file_bytes)
    with file.open(member) as stream:
        _check_claim(stream, member.file_size)
    with file.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _check_claim(stream: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and type of an array, whose header may not claim more bytes than its file or member holds."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    if dtype.hasobject:
        msg = "its values are pickled objects, which are never opened"
        raise ValueError(msg)
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > size:
        msg = f"an array of shape {shape} claims {claimed:,} bytes, {size:,} are there; it is cut short"
        raise DataError(msg)
    return shape, dtype


def _first_three_columns(array: NDArray[Any], limits: MeshLimits) -> NDArray[np.float64]:
    """The points of an array that is surely a cloud.

    Raises:
        DataError: if it has another shape or type, or columns before x, y and z.
    """
    _check_form(array.shape, array.dtype)
    check_size("points", len(array), limits.vertices)
    check_columns(np.array(array[:SAMPLE], np.float64))
    return np.ascontiguousarray(array[:, :3], dtype=np.float64)


def _check_form(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse an array that is not (n, 3 and more) numbers."""
    if len(shape) == 2 and shape[0] == 3 and shape[1] > 3:
        msg = f"an array of shape {shape} has a column for each point, accepted are rows (n, 3); save array.T"
        raise DataError(msg)
    fits = len(shape) == 2 and 3 <= shape[1] <= MOST_COLUMNS
    if not fits or dtype.kind not in "fiu" or dtype.itemsize == 1:
        msg = (
            f"expected numbers of shape (n, 3 to {MOST_COLUMNS}), got {dtype} of shape {shape}; "
            "this is not surely a cloud, save x, y and z alone as (n, 3)"
        )
        raise DataError(msg)


def _read_columns(path: Path, limits: MeshLimits) -> RawMesh:
    """A table of text: its first lines decide how it is read, and every row is then held to that.

    Raises:
        DataError: if the table is not surely a cloud, a row does not fit it, or there are fewer rows than a first
            line states.
    """
    check_text_size(path, limits.text_bytes)
    points: list[Floats] = []
    table, seen, head = None, 0, b""
    for block in text_blocks(path):
        text = block
        if table is None:
            head += block
            if len(head) > _LONGEST_PREAMBLE:
                msg = "more than 16 MiB of comments come before any row; the file is of another format"
                raise DataError(msg)
            if (planned := plan(head)) is None:
                continue
            table, text = planned
            if not table.named and table.width == 3:
                _check_name(path)
        if any(mark in text for mark in COMMENTS):
            text = _COMMENT_LINES.sub(b"", text)
        if len(rows := _rows(text, table)):
            points.append(rows)
            seen += len(rows)
            check_size("points", seen, limits.vertices)
    if table is not None and table.stated is not None and seen < table.stated:
        msg = (
            f"the first line states {table.stated:,} points, the file has {seen:,}; it is cut short"
        )
        raise DataError(msg)
    if not seen:
        msg = "the file has no points; expected rows of x, y and z"
        raise DataError(msg)
    return RawMesh(points=points, nan_is_missing=True)


def _rows(text: bytes, table: Table) -> Floats:
    """x, y and z of a block of rows; NaN where a value is missing; (N, 3)."""
    fast = _plain_rows(text, table)
    return _careful_rows(text, table) if fast is None else fast


def _plain_rows(text: bytes, table: Table) -> Floats | None:
    """Rows without quotes, blanks in fields and missing values, all at once; None for any other."""
    mark = table.delimiter
    if b'"' in text or (mark != b"," and (b"," in text) != table.decimal_comma):
        return None
    if table.decimal_comma and b"." in text:
        return None
    if mark == b" ":
        tokens = split_tokens(text.replace(b",", b".") if table.decimal_comma else text)
    else:
        text = text.replace(mark + b" ", mark) if b" " in text else text
        if b" " in text or (mark != b"\t" and b"\t" in text):
            return None
        marks = text.count(mark)
        spaced = text.translate(
            bytes.maketrans(mark + b",", b" .")
            if table.decimal_comma
            else bytes.maketrans(mark, b" ")
        )
        tokens = split_tokens(spaced)
        if marks != (table.width - 1) * len(tokens):
            return None
    wrong = tokens.counts < table.width if table.ragged else tokens.counts != table.width
    if wrong.any():
        return None
    try:
        return parse_points(tokens, columns=table.columns)
    except DataError:
        return None


def _careful_rows(text: bytes, table: Table) -> Floats:
    """Rows one by one.

    Raises:
        DataError: naming the first row that does not fit the table.
    """
    found: list[list[float]] = []
    for row in text.split(b"\n"):
        if not row or row.isspace():
            continue
        cells = fields(row, table.delimiter)
        if len(cells) < table.width or (not table.ragged and any(cells[table.width :])):
            msg = (
                f"expected at least 3 numbers a row, got {len(cells)} fields where the table has {table.width}: "
                f"{excerpt(row)}; the file is damaged, cut short, or a field is missing"
            )
            raise DataError(msg)
        values = [number(cells[column], comma=table.decimal_comma) for column in table.columns]
        point = [value for value in values if value is not None]
        if len(point) < 3:
            mark = "commas" if table.decimal_comma else "points"
            msg = f"expected numbers with decimal {mark} as x, y and z, got {excerpt(row)}; it is damaged or mixed"
            raise DataError(msg)
        found.append(point)
    return np.array(found, np.float64).reshape(-1, 3)
