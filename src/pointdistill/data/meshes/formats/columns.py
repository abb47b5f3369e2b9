"""Point clouds as text columns: xyz, txt, csv, pts. The first three columns are x, y, z."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.text import (
    check_text_size,
    line_blocks,
    parse_numbers,
    parse_points,
    shown,
)
from pointdistill.data.meshes.records import Draft, Floats, MeshLimits
from pointdistill.errors import DataError

_COMMENTS = (b"#", b"//", b"%")
_SEPARATORS = bytes.maketrans(b",;|", b"   ")


def read(path: Path, limits: MeshLimits) -> Draft:
    """Read rows of numbers; comments, a header line and a first line with the count are understood.

    A header that names x, y and z says which columns they are.

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
    return Draft(points=points)


def _first_row(row: bytes) -> tuple[tuple[int, int, int], int | None, int]:
    """Columns of x, y, z; the count of points if the row states one; how many rows the header takes."""
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
        msg = f"expected rows of x, y and z, got {shown(row)}; the file is damaged or of another format"
        raise DataError(msg)
    return (0, 1, 2), None, 1
