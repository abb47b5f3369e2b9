"""What the head of a text table says: its one delimiter, and the columns of x, y and z.

Columns are found by their names, in a first row or a comment above it. A table without names is a cloud only if
nothing in its first rows speaks for an id, a time or a colour in front.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from pointdistill.data.meshes.formats.content import excerpt, plain_spelling
from pointdistill.data.meshes.records import Floats
from pointdistill.errors import DataError

COMMENTS = (b"#", b"//", b"%")
_DELIMITER_LINE = re.compile(rb'(?i)"?sep=(.)"?')
# Two runs of digits that may be one would be divided in every way: a cell of 200,000 digits took hours.
_NUMBER = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+|[0-9]+,[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WHOLE = re.compile(rb"[+-]?[0-9]+")
_LEADING_ZERO = re.compile(rb"[+-]?0[0-9]+")
_THOUSANDS = re.compile(rb"[+-]?[1-9][0-9]{0,2}[.,][0-9]{3}")
_INFINITE = re.compile(rb"(?i)[+-]?inf(?:inity)?")
_MISSING = frozenset(
    (b"", b"nan", b"-nan", b"+nan", b"na", b"n/a", b"<na>", b"null", b"none", b"-")
)
"""Fields without a value."""

SAMPLE = 1000
"""Lines at the head of a table that decide how it is read."""

MOST_COLUMNS = 11
"""Columns of a cloud whose columns have no names; 12 are a pose, more are features."""

_MOST_SHOWN = 12
"""Names of columns in a message."""

_LONGEST_NAME = 200
"""Bytes of a name of x, y or z; a longer one is something else, and would take the patterns long."""

_LARGEST = 1e8
"""Coordinates on the Earth in metres are smaller, seconds since 1970 are larger."""

_UNIT_APART = re.compile(rb"(?<! ) +([\[(])")
_UNIT = re.compile(r"(.*?)\s*[\[(]\s*([^\d\W][^\])]*)[\])]")
_LENGTHS = frozenset(
    b"m mm cm dm km um nm ft us-ft in inch feet foot meter meters metre metres".decode().split()
) | {"\u00b5m", "\u03bcm"}
_PLACES = "points?|pts?|positions?|pos|coords?|coordinates?|vertex|vertices|loc|location|xyz|field"
_AXES = "(?:(?P<a0>x)|(?P<a1>y)|(?P<a2>z))"
_NAMES_OF_AXES = tuple(
    map(
        re.compile,
        (
            _AXES,
            rf"(?P<lead>(?:.*[:._/ -])?(?:{_PLACES}))[:._\- \[(]*(?:(?P<a0>x|0)|(?P<a1>y|1)|(?P<a2>z|2))[\])]?",
            rf"{_AXES}(?:[_\-.: ]?(?:{_PLACES})|"
            r"[_\-.: ](?:utm[a-z0-9]*|tvd[a-z]*|world|local|global|(?P<unit>mm?|cm|km|ft|in)))",
            "(?:(?P<a0>e|east|eastings?)|(?P<a1>n|north|northings?)|(?P<a2>h|height|up|elev|elevation|alt|altitude))"
            "(?:[_ ](?P<unit>m|ft))?",
        ),
    )
)
"""x, y, z as names of columns: plain, as a part of a place (Points:0, position_x), followed by what they are in
(x_utm, x_m), and as east, north and up. The first kind that is complete counts."""

_IDENTIFIER = re.compile(rb"[A-Za-z_][\w.:\[\]()/-]*")
_OTHER_COLUMNS = frozenset(
    b"x y z id index i j u v r g b a red green blue alpha nx ny nz normal intensity reflectance label class t "
    b"time timestamp gpstime range depth width height distance azimuth elevation lat lon theta phi radius rms "
    b"residual tx ty tz qx qy qz qw row col column count value weight score".split()
)
"""Words that make a comment above the rows a list of columns."""


@dataclass(frozen=True, slots=True)
class Table:
    """How the rows of one file are cut, and where x, y and z stand in them."""

    delimiter: bytes  # a space stands for any white space
    decimal_comma: bool
    columns: tuple[int, int, int]
    width: int
    ragged: bool  # the last named column is a list, so rows have this width or more
    stated: int | None  # rows that a first line promises
    named: bool  # a first row or a comment says which columns are x, y and z


def plan(head: bytes) -> tuple[Table, bytes] | None:
    """The table that the head of a file begins, and the rows in that head; None while there are no rows."""
    lines = [line for line in head.split(b"\n") if not line.isspace() and line]
    comments: list[bytes] = []
    delimiter, stated, at = None, None, 0
    for line in lines:
        if line.lstrip().startswith(COMMENTS):
            comments.append(line.strip())
        elif delimiter is None and (match := _DELIMITER_LINE.fullmatch(line.strip(b" "))):
            delimiter = match[1]
        elif stated is None and line.strip().isdigit():
            stated = int(line)
        else:
            break
        at += 1
    else:
        return None
    body = [line for line in lines[at : at + SAMPLE] if not line.lstrip().startswith(COMMENTS)]
    delimiter = delimiter or _delimiter(body[1:] or body)
    mark = _mark_of_names(body, delimiter)
    header = fields(body[0], mark)
    if all(map(_is_value, header[:3])) and not _numbered(header, body[1:]):
        rows, names = body, None
    else:
        rows, names = body[1:], fields(_UNIT_APART.sub(rb"\1", body[0]), mark)
        at += 1
        if rows and stated is None and rows[0].strip().isdigit():
            stated, at, rows = int(rows[0]), at + 1, rows[1:]
    cells = [fields(row, delimiter) for row in rows]
    width = len(cells[0]) if names is None else len(names)
    columns: tuple[int, int, int] | None
    comma = delimiter != b"," and any(
        b"," in cell and _is_value(cell) for row in cells for cell in row
    )
    if names is not None and _numbered(header, rows):
        before = int(header[0] == b"")
        columns = (before, before + 1, before + 2)
        _check_bare([row[before:] for row in cells], rows, delimiter)
    elif names is not None:
        columns = _named_columns(names)
        if columns is None:
            _refuse_names(names)
    else:
        names, columns = _commented_columns(comments, delimiter, width)
        if columns is None:
            columns = (0, 1, 2)
            _check_bare(cells, rows, delimiter)
    ragged = names is not None and any(name.endswith(b"[]") for name in names[-2:])
    if ragged and names is not None:
        width = 1 + max(columns)
    _check_marks(cells, columns, delimiter, comma=comma)
    table = Table(delimiter, comma, columns, width, ragged, stated, names is not None)
    return table, b"\n".join(lines[at:])


def _delimiter(rows: list[bytes]) -> bytes:
    """The one mark that cuts every row of a sample; a comma only where it is no decimal comma."""
    for mark in (b";", b"\t", b"|"):
        if all(len(fields(row, mark)) >= 3 for row in rows):
            return mark
    words = [row.split() for row in rows]
    if all(len(row) >= 3 and all(map(_is_value, row)) for row in words):
        return b" "
    return b"," if all(b"," in row for row in rows) else b" "


def _mark_of_names(body: list[bytes], delimiter: bytes) -> bytes:
    """What cuts a first row of names: some programs write ``x,y,z`` above rows with blanks or tabs between.

    Another mark than that of the rows counts only if it gives a name to each field of the rows, while theirs finds
    no x, y and z.
    """
    first = _UNIT_APART.sub(rb"\1", body[0])
    names = fields(first, delimiter)
    if all(map(_is_value, names[:3])) or _named_columns(names) is not None:
        return delimiter
    # A row that states the number of points may come before them.
    width = max((len(fields(row, delimiter)) for row in body[1:3]), default=0)
    for mark in (b",", b";", b"\t", b"|"):
        others = fields(first, mark) if mark in first else []
        if len(others) == width and _named_columns(others) is not None:
            return mark
    return delimiter


def fields(row: bytes, delimiter: bytes) -> list[bytes]:
    """The fields of one row, without quotes and the blanks around them; empty ones are kept."""
    if b'"' not in row:
        return row.split() if delimiter == b" " else [cell.strip() for cell in row.split(delimiter)]
    if row.count(b'"') % 2:
        msg = f"expected fields in quotes to end on their line, got {excerpt(row)}; the file is damaged"
        raise DataError(msg)
    text = row.decode("latin-1")
    text = " ".join(text.split()) if delimiter == b" " else text
    reader = csv.reader([text], delimiter=delimiter.decode(), skipinitialspace=delimiter != b"\t")
    try:
        return [cell.strip().encode("latin-1") for cell in next(reader)]
    except csv.Error as error:
        msg = f"a row cannot be read ({error}): {excerpt(row)}; the file is damaged or of another format"
        raise DataError(msg) from error


def _is_value(cell: bytes) -> bool:
    """Whether a field is a number, with a decimal point or comma, or says that a value is missing."""
    return (
        _NUMBER.fullmatch(cell) is not None
        or cell.lower() in _MISSING
        or _INFINITE.fullmatch(plain_spelling(cell)) is not None
        or plain_spelling(cell) != cell
    )


def number(cell: bytes, *, comma: bool) -> float | None:
    """The value of a field, NaN if it is missing; None if it is no number."""
    if cell.lower() in _MISSING:
        return math.nan
    if not _is_value(cell) or (b"." if comma else b",") in cell:
        return None
    return float(plain_spelling(cell.replace(b",", b".")))


def _numbered(header: list[bytes], rows: list[bytes]) -> bool:
    """Whether a first row numbers the columns from 0, maybe after an index without a name, as pandas does."""
    names = header[1:] if header[0] == b"" else header
    whole = all(name == b"%d" % k for k, name in enumerate(names)) and len(names) >= 3
    indexed = header[0] == b""
    return whole and bool(rows) and (indexed or all(b"." in row for row in rows))


def _named_columns(names: list[bytes]) -> tuple[int, int, int] | None:
    """Columns whose names say x, y and z; None if there are none.

    Raises:
        DataError: if several columns are as good, or their units are no lengths or differ.
    """
    groups: dict[tuple[int, str], list[tuple[int, int, str]]] = {}
    for column, raw in enumerate(names):
        if len(raw) > _LONGEST_NAME:
            continue
        name = raw.decode("utf-8", "replace").strip("\"' ").lstrip("#/%").strip().lower()
        match = _UNIT.fullmatch(name)
        name, unit = (match[1].strip(), match[2].strip()) if match else (name, "")
        for rank, pattern in enumerate(_NAMES_OF_AXES):
            if match := pattern.fullmatch(name):
                lead = match.groupdict().get("lead") or ""
                unit = unit or match.groupdict().get("unit") or ""
                axis = next(k for k in range(3) if match[f"a{k}"] is not None)
                groups.setdefault((rank, lead), []).append((axis, column, unit))
                break
    geographic = groups.get((3, ""), [])
    if geographic and all(axis != 2 for axis, _, _ in geographic):
        # East and north often stand beside a plain z.
        geographic.extend(entry for entry in groups.get((0, ""), []) if entry[0] == 2)
    complete = sorted(
        key for key, found in groups.items() if {axis for axis, _, _ in found} == {0, 1, 2}
    )
    if not complete:
        return None
    best = [key for key in complete if key[0] == complete[0][0]]
    # ParaView writes other triples of arrays beside the places, which it calls so.
    best = [key for key in best if key[1] == "points"] or best
    found = sorted(groups[best[0]])
    if len(best) > 1 or len(found) > 3:
        msg = f"several columns are x, y or z among {_listed(names)}; leave one of each"
        raise DataError(msg)
    units = {unit for _, _, unit in found if unit}
    if len(units) > 1 or not units <= _LENGTHS:
        msg = f"x, y and z are in {', '.join(sorted(units))}, accepted is one unit of length; convert the columns"
        raise DataError(msg)
    return found[0][1], found[1][1], found[2][1]


def _commented_columns(
    comments: list[bytes], delimiter: bytes, width: int
) -> tuple[list[bytes] | None, tuple[int, int, int] | None]:
    """Names and columns that a comment above the rows states; None and None if none does.

    Raises:
        DataError: if it names the columns, but not x, y and z, or not as many as there are.
    """
    for comment in reversed(comments):
        text = comment.lstrip(b"#/% \t")
        for part in (text, text.partition(b":")[2].strip()):
            marks = [mark for mark in (b",", b";", b"\t") if mark in part] or [b" "]
            mark = delimiter if delimiter != b" " and delimiter in part else marks[0]
            names = fields(_UNIT_APART.sub(rb"\1", part), mark)
            listed = any(name.partition(b" ")[0].endswith(b"[]") for name in names)
            if listed:
                last = next(k for k, name in enumerate(names) if b"[]" in name)
                names = [*names[:last], names[last].partition(b" ")[0]]
            columns = _named_columns(names) if len(names) >= 3 else None
            if columns is not None and (len(names) == width or (listed and max(columns) < width)):
                return names, columns
            if columns is not None and columns != (0, 1, 2):
                msg = (
                    f"a comment names the {len(names)} columns {_listed(names)}, the rows have {width}; "
                    "name every column, or remove the comment"
                )
                raise DataError(msg)
            words = {re.split(rb"[\W_]", name.lower())[0] for name in names}
            if (
                columns is None
                and len(names) == width
                and (
                    all(map(_IDENTIFIER.fullmatch, names))
                    if mark != b" "
                    else words <= _OTHER_COLUMNS
                )
            ):
                _refuse_names(names)
    return None, None


def _refuse_names(names: list[bytes]) -> NoReturn:
    msg = f"the columns are {_listed(names)}, none are surely x, y and z; name three of them x, y and z"
    raise DataError(msg)


def _listed(names: list[bytes]) -> str:
    shown = ", ".join(excerpt(name)[1:-1] or "(no name)" for name in names[:_MOST_SHOWN])
    return f"'{shown}…'" if len(names) > _MOST_SHOWN else f"'{shown}'"


def _check_bare(cells: list[list[bytes]], rows: list[bytes], delimiter: bytes) -> None:
    """Refuse rows without names of columns that are not surely points.

    Raises:
        DataError: naming what is against it.
    """
    width = len(cells[0]) if cells else 3
    if width < 3:
        msg = f"expected at least 3 numbers a row, got {excerpt(rows[0])}; the file is damaged or no cloud"
        raise DataError(msg)
    fit = [row for row in cells if len(row) == width and all(map(_is_value, row))]
    if 2 * len(fit) < len(cells) or width > MOST_COLUMNS:
        msg = (
            f"expected rows of x, y and z, got {width} columns, {excerpt(rows[0])}; this is not surely a cloud, "
            f"name the columns in a first row (x, y, z), accepted without are 3 to {MOST_COLUMNS} numbers"
        )
        raise DataError(msg)
    comma = delimiter != b","
    numbers = [
        [number(cell.replace(b",", b".") if comma else cell, comma=False) for cell in row]
        for row in fit
    ]
    values = np.array([[np.nan if v is None else v for v in row] for row in numbers], np.float64)
    spelled = [all(_WHOLE.fullmatch(row[k]) for row in fit) for k in range(width)]
    check_columns(values, first_is_whole=spelled[0] and not any(spelled[1:4]))


def _check_marks(
    cells: list[list[bytes]], columns: tuple[int, int, int], delimiter: bytes, *, comma: bool
) -> None:
    """Refuse x, y and z in which a comma or a point is not surely a decimal mark.

    Raises:
        DataError: with the first row that is against it.
    """
    rows = [[row[k] for k in columns] for row in cells if len(row) > max(columns)]
    # Three numbers of which one has a decimal comma are four fields at least.
    is_divided = delimiter == b"," and max(map(len, cells), default=0) > 3
    if is_divided and not any(b"." in cell for row in rows for cell in row):
        for row in rows:
            if any(map(_LEADING_ZERO.fullmatch, row)):
                msg = f"commas seem to be decimal marks and separators in {excerpt(b','.join(row))}; use points"
                raise DataError(msg)
    mark = b"," if comma else b"."
    if rows and _perhaps_thousands(rows, mark):
        first = next(row for row in rows if any(mark in cell for cell in row))
        msg = (
            f"{excerpt(b' '.join(first))} may be thousands or fractions: every mark has three digits behind it, "
            "and other numbers of a column have none; write the numbers without marks of thousands"
        )
        raise DataError(msg)


def _perhaps_thousands(rows: list[list[bytes]], mark: bytes) -> bool:
    """Whether marks may divide thousands: in a column with them, smaller numbers have none.

    A column with three digits behind a mark in every row is one of fractions, such as the heights of a grid; so
    are all of a file in which a number above 999 has no mark.
    """
    marked = [cell for row in rows for cell in row if mark in cell]
    whole = [[bool(cell.strip(b"+-0") and _WHOLE.fullmatch(cell)) for cell in row] for row in rows]
    if not all(map(_THOUSANDS.fullmatch, marked)):
        return False
    if any(
        found and len(cell.lstrip(b"+-")) > 3
        for row, of_row in zip(rows, whole, strict=True)
        for cell, found in zip(row, of_row, strict=True)
    ):
        return False
    columns = zip(zip(*rows, strict=True), zip(*whole, strict=True), strict=True)
    return any(any(found) and any(mark in cell for cell in column) for column, found in columns)


def check_columns(values: Floats, *, first_is_whole: bool = False) -> None:
    """Refuse columns without names where others than x, y and z come first.

    Args:
        values: (N, C) the first rows; those with a missing x, y or z do not count.
        first_is_whole: the first column alone is written without fractions.

    Raises:
        DataError: naming what comes first.
    """
    values = values[np.isfinite(values[:, :3]).all(axis=1)]
    width = values.shape[1]
    if len(values) < 8:
        return
    whole = [bool((column == np.round(column)).all()) for column in values.T]
    kinds = len(np.unique(values[:, 0]))
    # Lines of a scanner and slices of a volume come one after another, up, down, or to and fro.
    steps = np.diff(values[:, 0])
    in_lines = bool(
        (steps >= 0).all() or (steps <= 0).all() or 2 * (steps == 0).sum() >= len(values)
    )
    what = ""
    in_steps = all(_is_even(column) for column in values.T[1:3])
    if _counts(values[:, 0]) and not in_steps and not (width == 3 and all(whole)):
        what = "a number of the row"
    elif width > 3 and _is_even(values[:, 0]) and not any(map(_is_even, values.T[1:3])):
        what = "a time or a number of the row"
    elif (np.abs(values[:, 0]) > _LARGEST).all():
        what = "a time"
    elif (
        whole[0]
        and values[:, 0].min() >= -1  # which is noise, or no label
        and not any(whole[1:4])
        and (kinds > 1 or first_is_whole)
        and (width > 3 or not in_lines)
    ):
        what = "a number or a label"
    elif width > 5 and all(whole[:3]) and not any(whole[3:6]):
        colours = bool(((values[:, :3] >= 0) & (values[:, :3] <= 255)).all())
        if colours and not np.allclose(np.square(values[:, 3:6]).sum(1), 1, atol=0.02):
            what = "a colour"
    if what:
        msg = (
            f"the first column seems to be {what}, not x; name the columns in a first row (x, y, z), or leave "
            "the others out"
        )
        raise DataError(msg)


def _counts(column: Floats) -> bool:
    """Whether a column is 0, 1, 2, … or begins at another whole number."""
    return bool((np.diff(column) == 1).all() and column[0] == round(column[0]))


def _is_even(column: Floats) -> bool:
    """Whether a column rises by the same step from row to row."""
    steps = np.diff(column)
    return bool((steps > 0).all() and np.ptp(steps) <= 0.01 * steps.mean())
