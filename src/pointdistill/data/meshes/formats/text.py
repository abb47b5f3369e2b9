"""Text formats in blocks of lines: the memory that a file costs is its numbers, not its text."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.meshes.records import Floats, Indices
from pointdistill.errors import DataError

_BLOCK = 1 << 22
_LONGEST_LINE = 1 << 24


def line_blocks(
    path: Path, *, start: int = 0, join: bytes | None = None, comment: bytes | None = None
) -> Iterator[list[bytes]]:
    """Yield the file's non-empty lines, stripped, some megabytes at a time.

    Args:
        path: text file with lines that end in LF, CR LF or CR.
        start: byte to begin at.
        join: a mark that, right before a line's end, joins the line with the next.
        comment: a mark from which on a line is ignored.

    Raises:
        DataError: if the file holds NUL bytes or a line longer than 16 MiB.
    """
    rest = b""
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(_BLOCK):
            if b"\0" in block:
                at = file.tell() - len(block) + block.index(b"\0")
                msg = (
                    f"binary data where text is expected (a NUL at byte {at:,} of "
                    f"{path.stat().st_size:,}); the file is damaged or of another format"
                )
                raise DataError(msg)
            block = rest + block
            complete = _last_line_end(block, join) if len(block) >= _BLOCK else len(block)
            rest = block[complete:]
            if len(rest) > _LONGEST_LINE:
                msg = "has a line longer than 16 MiB; it is damaged or of another format"
                raise DataError(msg)
            if lines := _lines(block[:complete], join, comment):
                yield lines
    if lines := _lines(rest, join, comment):
        yield lines


def _last_line_end(block: bytes, join: bytes | None) -> int:
    """Bytes of ``block`` up to the last line end that is surely one."""
    end = block.rfind(b"\n")
    if end < 0:
        # Lines that end in CR alone: the last byte may be the first half of CR LF.
        end = block.rfind(b"\r", 0, -1)
    while join is not None and end > 0 and block[:end].rstrip(b"\r").endswith(join):
        end = block.rfind(b"\n", 0, end)
    return end + 1


def _lines(block: bytes, join: bytes | None, comment: bytes | None) -> list[bytes]:
    if join is not None and join in block:
        block = block.replace(join + b"\r\n", b" ").replace(join + b"\n", b" ")
    lines = block.splitlines()
    if comment is not None and comment in block:
        lines = [line.partition(comment)[0] for line in lines]
    return [line for line in map(bytes.strip, lines) if line]


def parse_numbers(
    text: bytes | str, dtype: type[np.float64] | type[np.int64]
) -> NDArray[Any] | None:
    """Numbers with white space between them, (n,); None where something else is among them."""
    if not text or text.isspace():
        return np.empty(0, dtype)
    with warnings.catch_warnings():
        # numpy warns where the text stops being numbers, and announces that it will raise there.
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(text, dtype, sep=" ")
        except (DeprecationWarning, ValueError):
            return None


def _row_counts(text: bytes) -> Indices:
    """Words in each line of ``text``, whose lines are stripped and not empty; a fifth of what split costs."""
    codes = np.frombuffer(text, np.uint8)
    space = codes <= ord(" ")
    starts = np.flatnonzero(space[:-1] & ~space[1:])
    inner = np.searchsorted(starts, np.flatnonzero(codes == ord("\n")))
    return np.diff(inner, prepend=-1, append=len(starts))


def parse_rows(
    rows: list[bytes], dtype: type[np.float64] | type[np.int64]
) -> tuple[NDArray[Any], Indices]:
    """All numbers of some rows, one after another, and how many each row has.

    Returns:
        values: (sum of counts,) of ``dtype``.
        counts: (rows,).

    Raises:
        DataError: naming the first row with something that is not such a number.
    """
    text = b"\n".join(rows)
    values, counts = parse_numbers(text, dtype), _row_counts(text)
    if values is None or len(values) != counts.sum():
        kind = "numbers" if dtype is np.float64 else "whole numbers"
        row = next((row for row in rows if parse_numbers(row, dtype) is None), rows[0])
        msg = f"expected {kind}, got {shown(row)}; the file is damaged or of another format"
        raise DataError(msg)
    return values, counts


def parse_points(rows: list[bytes], *, columns: tuple[int, int, int] = (0, 1, 2)) -> Floats:
    """x, y, z of some rows, whatever stands after them; (rows, 3).

    Raises:
        DataError: naming the first row without three numbers in these columns.
    """
    last = max(columns) + 1
    if not rows:
        return np.empty((0, 3))
    text = b"\n".join(rows)
    counts = _row_counts(text)
    if (counts < last).any():
        row = rows[int(np.argmax(counts < last))]
        msg = f"expected at least {last} numbers a row, got {shown(row)}; the file is damaged or cut short"
        raise DataError(msg)
    if (counts == counts[0]).all():
        values = parse_numbers(text, np.float64)
        if values is not None and len(values) == counts.sum():
            return values.reshape(len(rows), -1)[:, columns]
    trimmed = [b" ".join(row.split(None, last)[:last]) for row in rows]
    values, _ = parse_rows(trimmed, np.float64)
    return values.reshape(len(rows), last)[:, columns]


def parse_polygons(rows: list[bytes]) -> tuple[Indices, Indices]:
    """Rows of a count, as many vertex indices, and anything after them (colours).

    Returns:
        corners: (C,) indices, row after row.
        sizes: (rows,) the counts.

    Raises:
        DataError: naming the first row that has fewer indices than it promises.
    """
    try:
        values, counts = parse_rows(rows, np.int64)
    except DataError:
        rows = [_trim_polygon(row) for row in rows]
        values, counts = parse_rows(rows, np.int64)
    starts = np.cumsum(counts) - counts
    sizes: Indices = values[starts]
    short = (sizes < 0) | (sizes >= counts)
    if short.any():
        row = rows[int(np.argmax(short))]
        msg = f"a face promises more indices than it has: {shown(row)}; the file is damaged or cut short"
        raise DataError(msg)
    if (counts == 4).all() and (sizes == 3).all():
        return values.reshape(-1, 4)[:, 1:].reshape(-1), sizes
    inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return values[np.repeat(starts + 1, sizes) + inside], sizes


def _trim_polygon(row: bytes) -> bytes:
    """The count and its indices, without what follows; the row as it is where the count is none."""
    tokens = row.split()
    return b" ".join(tokens[: int(tokens[0]) + 1]) if tokens[0].isdigit() else row


def shown(row: bytes) -> str:
    """A row of a file as a message can show it: printable, at most 60 characters."""
    text = row[:60].decode("ascii", "backslashreplace")
    text = "".join(character if character.isprintable() else "?" for character in text)
    return f"'{text}…'" if len(row) > 60 else f"'{text}'"


def check_text_size(path: Path, accepted: int) -> int:
    """The file's bytes.

    Raises:
        DataError: if there are more than accepted.
    """
    size = path.stat().st_size
    if size > accepted:
        msg = (
            f"{size:,} bytes of text, at most {accepted:,} are accepted; convert it to a binary format "
            "(.glb, .ply) or simplify it"
        )
        raise DataError(msg)
    return size
