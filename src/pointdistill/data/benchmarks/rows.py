"""Members of an archive that are text: rows of a fixed number of columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.archive import Archive
from pointdistill.data.meshes.formats.content import parse_rows
from pointdistill.errors import DataError

_COMMA_TO_SPACE = bytes.maketrans(b",", b" ")


def read_rows(archive: Archive, member: str, columns: tuple[str, ...]) -> NDArray[np.float64]:
    """The table in a text member, (rows, columns) float64; white space or commas between numbers.

    Args:
        archive: where it lies.
        member: its name.
        columns: names of the columns, for messages; every row has exactly as many numbers.

    Raises:
        DataError: if it has no rows, one of another length, or something that is no number; or numbers
            that are not finite.
    """
    text = archive.read(member).translate(_COMMA_TO_SPACE)
    lines = [line for line in map(bytes.strip, text.splitlines()) if line]
    if not lines:
        archive.refuse(member, f"it has no rows of {' '.join(columns)}")
    try:
        values, counts = parse_rows(lines, np.float64)
    except DataError as error:
        archive.refuse(member, error)
    if (counts != len(columns)).any():
        row = int(np.argmax(counts != len(columns)))
        archive.refuse(member, f"row {row + 1} has {counts[row]} numbers, not {' '.join(columns)}")
    if not np.isfinite(values).all():
        archive.refuse(member, "it has numbers that are not finite")
    table: NDArray[np.float64] = values.reshape(-1, len(columns))
    return table
