"""The content of a file, within the limits: bytes where they are asked for, or text in blocks of lines.

Of a binary file only the bytes that are used are ever read; a text file costs the memory of its
numbers, not of its text. Nothing is mapped into memory: where a mapped file becomes shorter while it
is read, as one that is still being copied may, the system ends the whole process.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.meshes.formats.fast_numbers import (
    Tokens,
    read_decimals,
    read_integers,
    spelled,
    split_tokens,
)
from pointdistill.data.meshes.records import Floats, Indices, MeshLimits
from pointdistill.errors import DataError

_BLOCK = 1 << 18
"""Bytes read at a time, so that what is parsed from them stays in a processor's cache."""

_LONGEST_LINE = 1 << 24
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_COMMENT = re.compile(rb"#(?<!\.#)[^\n]*|#(?![A-Z])[^\n]*")
"""A comment, but not the rest of a number that C programs on Windows spell 1.#INF."""

_WINDOWS_NUMBERS = re.compile(rb"([+-]?)1\.#(?:(INF|J)|IND|QNAN|SNAN|R)[0-9]*")
_BEGIN_A_NUMBER = [bytes([code]) for code in b"+-.0123456789"]
_SIGN_ALONE = re.compile(rb"[+-](?![0-9])")


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes of an open file; they are read when they are asked for.

    Its methods raise a DataError if the file has become shorter than its range.
    """

    file: io.FileIO | io.BytesIO
    start: int
    size: int

    def __len__(self) -> int:
        return self.size

    def part(self, start: int, stop: int) -> Span:
        """The bytes from ``start`` to before ``stop``, which must lie within the range."""
        assert 0 <= start <= stop <= self.size
        return Span(self.file, self.start + start, stop - start)

    def read(self, start: int = 0, stop: int | None = None) -> memoryview:
        """The bytes from ``start`` to before ``stop``, or the end; at most as many as there are."""
        stop = self.size if stop is None else min(stop, self.size)
        data = np.empty(max(0, stop - start), np.uint8).data
        self._fill(data, start)
        return data

    def blocks(self, row: np.dtype[Any], count: int, start: int) -> Iterator[NDArray[Any]]:
        """Yield ``count`` successive rows from byte ``start`` on, some thousands at a time.

        Args:
            row: their type; not of 0 bytes.
            count: number of rows, which must lie within the range.
            start: first byte.

        Yields:
            (N,) of type ``row``; the next block takes its place in memory.
        """
        most = min(count, max(1, _BLOCK // row.itemsize))
        kept = np.empty(most, row)
        codes = kept.view(np.uint8).data
        for first in range(0, count, max(1, most)):
            rows = min(most, count - first)
            self._fill(codes[: rows * row.itemsize], start + first * row.itemsize)
            yield kept[:rows]

    def _fill(self, data: memoryview, start: int) -> None:
        self.file.seek(self.start + start)
        filled = 0
        while filled < len(data):
            if not (got := self.file.readinto(data[filled:])):
                raise _shortened(self.file.seek(0, os.SEEK_END))
            filled += got


def _shortened(size: int) -> DataError:
    """The error for a file that has fewer bytes than when it was opened."""
    msg = f"has become shorter while it was read ({size:,} bytes now); try again once it is completely written"
    return DataError(msg)


def open_content(path: Path, limits: MeshLimits) -> Span:
    """The file's bytes. It is closed once nothing refers to them.

    Raises:
        DataError: if the file is empty or larger than ``limits.file_bytes``.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    file = os.fdopen(descriptor, "rb", buffering=0, closefd=False)
    weakref.finalize(file, os.close, descriptor)
    size = os.fstat(descriptor).st_size
    if size > limits.file_bytes:
        msg = f"{size:,} bytes, at most {limits.file_bytes:,} are accepted; simplify or split the file"
        raise DataError(msg)
    if not size:
        msg = "the file is empty; copy or export it again"
        raise DataError(msg)
    return Span(file, 0, size)


def text_blocks(path: Path) -> Iterator[bytes]:
    """Yield the file's text in blocks of whole lines, which all end in LF, as they stand.

    Raises:
        DataError: if the file holds NUL bytes or a line longer than 16 MiB.
    """
    yield from _blocks(path, 0, None)


def line_blocks(path: Path, *, start: int = 0) -> Iterator[list[bytes]]:
    """Yield the file's non-empty lines, stripped, a block at a time; compare `token_blocks`."""
    for block in _blocks(path, start, None):
        if lines := [line for line in map(bytes.strip, block.split(b"\n")) if line]:
            yield lines


def token_blocks(
    path: Path, *, start: int = 0, comment: bytes | None = None, continued: bytes = b""
) -> Iterator[Tokens]:
    """Yield the tokens of the file's lines, a few thousand lines at a time, never none.

    Args:
        path: text file with lines that end in LF, CR LF or CR.
        start: byte to begin at; at 0, a UTF-8 byte order mark is skipped, and one of UTF-16 understood.
        comment: a mark after which the rest of a line is ignored.
        continued: letters. A line whose first token is one of them continues on the next line if it ends in a
            backslash; in other lines, such as paths, a backslash is a character like any other.

    Raises:
        DataError: if the file holds NUL bytes or a line longer than 16 MiB.
    """
    pattern = rb"(?mi)^[ \t]*[%b]o?(?:[ \t][^\n]*)?\\\n(?:[^\n]*\\\n)*" % continued
    unfinished = re.compile(pattern) if continued else None
    for block in _blocks(path, start, b"\\" if continued else None):
        text = block
        if comment is not None and comment in text:
            may_be_number = comment == b"#" and b".#" in text
            after_mark = re.escape(comment) + rb"[^\n]*"
            text = (_COMMENT.sub if may_be_number else re.compile(after_mark).sub)(b"", text)
        if unfinished is not None and b"\\\n" in text:
            text = unfinished.sub(lambda lines: lines[0].replace(b"\\\n", b" "), text)
        if len(tokens := split_tokens(text)):
            yield tokens


def _blocks(path: Path, start: int, join: bytes | None) -> Iterator[bytes]:
    """The file's text in blocks of whole lines, which all end in LF; no block ends right after a ``join``."""
    rest = b""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        mark = file.read(len(_BYTE_ORDER_MARK))
        if start or mark != _BYTE_ORDER_MARK:
            file.seek(start)
        wide = not start and mark[:2] in _UTF_16_MARKS
        decode = codecs.getincrementaldecoder("utf-16")().decode
        while block := file.read(_BLOCK):
            block = decode(block).encode() if wide else block
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
            yield _plain_lines(block[:complete])
        if file.tell() < size:
            raise _shortened(file.tell())
    yield _plain_lines(rest)


def _last_line_end(block: bytes, join: bytes | None) -> int:
    """Length of ``block`` up to the last line end that is certainly one."""
    end = block.rfind(b"\n")
    if end < 0:
        # Lines that end in CR alone: the last byte may be the first half of CR LF.
        end = block.rfind(b"\r", 0, -1)
    while join is not None and end > 0 and join in block[max(0, end - 2) : end]:
        end = block.rfind(b"\n", 0, end)
    return end + 1


def _plain_lines(block: bytes) -> bytes:
    return block.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in block else block


def plain_spelling(number: bytes) -> bytes:
    """``1.#INF`` and its like by their usual names; other text as it is."""
    return _WINDOWS_NUMBERS.sub(_plain_name, number) if b".#" in number else number


def parse_numbers(text: bytes, dtype: type[np.float64] | type[np.int64]) -> NDArray[Any] | None:
    """Numbers separated by white space, (n,); None if anything else is among them."""
    if not text or text.isspace():
        return np.empty(0, dtype)
    if dtype is np.int64 and _SIGN_ALONE.search(text):
        return None  # numpy reads a lone sign as 0, or as the sign of the next token
    with warnings.catch_warnings():
        # numpy only warns where the text stops being numbers; newer versions will raise.
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(text, dtype, sep=" ")
        except (DeprecationWarning, ValueError):
            return None


def _row_counts(text: bytes) -> Indices:
    """Tokens in each line of ``text``, whose lines are stripped and not empty; a fifth of what split costs."""
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
        msg = f"expected {kind}, got {excerpt(row)}; the file is damaged or of another format"
        raise DataError(msg)
    return values, counts


def parse_points(
    rows: list[bytes] | Tokens, *, columns: tuple[int, int, int] = (0, 1, 2), skip: int = 0
) -> Floats:
    """x, y, z of some rows, whatever follows them; (rows, 3).

    Args:
        rows: rows that are not blank.
        columns: the tokens of each row that are x, y and z.
        skip: leading tokens of a row that are not numbers; messages leave them out.

    Raises:
        DataError: naming the first row without three numbers in these columns.
    """
    tokens = rows if isinstance(rows, Tokens) else split_tokens(b"\n".join(rows))
    last = max(columns) + 1
    # A row of nothing but separators has no tokens, so it is missing among the lines.
    blank = len(tokens) < len(rows)
    if blank or (tokens.counts < last).any():
        row = b"" if blank else tokens.line(int(np.argmax(tokens.counts < last)), skip=skip)
        msg = (
            f"expected at least {last - skip} numbers a row, got {excerpt(row)}; "
            "the file is damaged or cut short"
        )
        raise DataError(msg)
    which = (tokens.first[:, None] + columns).reshape(-1)
    values, odd = read_decimals(tokens, which)
    if len(odd):
        values[odd] = _odd_numbers(tokens, which[odd], np.float64, skip=skip)
    return values.reshape(-1, 3)


def parse_indices(tokens: Tokens, which: Indices, *, skip: int = 0) -> Indices:
    """The integers at the start of some tokens, up to a slash; (N,).

    Args:
        tokens: the text.
        which: (N,) tokens, line after line.
        skip: leading tokens of a line that messages leave out.

    Raises:
        DataError: naming the first line with a token that is not an integer.
    """
    values, odd = read_integers(tokens, which)
    if len(odd):
        values[odd] = _odd_numbers(tokens, which[odd], np.int64, skip=skip)
    return values


def _odd_numbers(
    tokens: Tokens, which: Indices, dtype: type[np.float64] | type[np.int64], *, skip: int
) -> NDArray[Any]:
    """Numbers spelled with exponents, many digits, or names such as nan."""
    whole = dtype is np.int64
    texts = spelled(tokens, which, until=b"/" if whole else None)
    joined = b" ".join(texts)
    if b"#" in joined:
        joined = _WINDOWS_NUMBERS.sub(_plain_name, joined)
    values = parse_numbers(joined, dtype)
    if values is not None and len(values) == len(texts):
        return values
    wrong = next((k for k, text in enumerate(texts) if _is_no_number(text, dtype)), 0)
    line = int(np.searchsorted(tokens.first, which[wrong], side="right")) - 1
    kind = "whole numbers" if whole else "numbers"
    row = excerpt(tokens.line(line, skip=skip))
    msg = f"expected {kind}, got {row}; the file is damaged or of another format"
    raise DataError(msg)


def _plain_name(number: re.Match[bytes]) -> bytes:
    """The usual name of 1.#INF, 1.#QNAN and their like."""
    return number[1] + b"inf" if number[2] else b"nan"


def _is_no_number(text: bytes, dtype: type[np.float64] | type[np.int64]) -> bool:
    values = parse_numbers(text, dtype)
    return values is None or len(values) != 1


def parse_polygons(tokens: Tokens, *, lead: int = 0) -> tuple[Indices, Indices]:
    """Rows of a count, that many vertex indices, and anything after them (colours).

    Args:
        tokens: the rows.
        lead: tokens of each row before its count.

    Returns:
        corners: (C,) indices, row after row.
        sizes: (rows,) the counts.

    Raises:
        DataError: naming the first row that has fewer indices than it promises.
    """
    if (tokens.counts <= lead).any():
        row = tokens.line(int(np.argmax(tokens.counts <= lead)))
        msg = f"a face has too few numbers: {excerpt(row)}; the file is damaged or cut short"
        raise DataError(msg)
    first = tokens.first + lead
    sizes = parse_indices(tokens, first, skip=lead)
    short = (sizes < 0) | (sizes >= tokens.counts - lead)
    if short.any():
        row = tokens.line(int(np.argmax(short)), skip=lead)
        msg = f"a face promises more indices than it has: {excerpt(row)}; the file is damaged or cut short"
        raise DataError(msg)
    return parse_indices(tokens, ragged_ranges(first + 1, sizes), skip=lead), sizes


def ragged_ranges(first: Indices, counts: Indices) -> Indices:
    """For each row the ``counts`` successive integers from ``first`` on; row after row."""
    if len(counts) and (counts == counts[0]).all():
        return (first[:, None] + np.arange(counts[0])).reshape(-1)
    before = np.cumsum(counts) - counts
    return np.repeat(first - before, counts) + np.arange(counts.sum())


def excerpt(row: bytes) -> str:
    """A row of a file, quoted for a message: printable, at most 60 characters."""
    text = row[:60].decode("ascii", "backslashreplace")
    text = "".join(character if character.isprintable() else "?" for character in text)
    return f"'{text}…'" if len(row) > 60 else f"'{text}'"


def check_rest(rest: bytes | memoryview, row: int, promised: str) -> None:
    """Refuse a file that goes on after what its header promises: counts that are too small lose the other rows.

    Args:
        rest: what follows, or its beginning; zeros are padding, and ends of lines no row.
        row: bytes of a row at least; fewer are a remark.
        promised: what the header promises, for the message.

    Raises:
        DataError: if another row may follow.
    """
    if len(rest) >= row and bytes(rest).strip(b"\0\r\n"):
        msg = (
            f"the header promises {promised}, but more follows the last; the count is wrong or the file is "
            "damaged, export it again"
        )
        raise DataError(msg)


def check_more_rows(rows: Tokens | None, promised: str, *, again: bytes) -> None:
    """The same for text: another row of numbers is more, or a second file, but not a remark.

    Args:
        rows: the lines that follow.
        promised: what the header promises, for the message.
        again: how the first word of such a file ends, in capitals.

    Raises:
        DataError: if they begin so.
    """
    if rows is None or not len(rows):
        return
    word = rows.line(0).split()[0]
    if word[:1] in _BEGIN_A_NUMBER or word.upper().endswith(again):
        check_rest(word, 1, promised)


def check_text_size(path: Path, accepted: int) -> int:
    """The file's size in bytes.

    Raises:
        DataError: if it exceeds ``accepted``.
    """
    size = path.stat().st_size
    if size > accepted:
        msg = (
            f"{size:,} bytes of text, at most {accepted:,} are accepted; convert it to a binary format "
            "(.glb, .ply) or simplify it"
        )
        raise DataError(msg)
    return size
