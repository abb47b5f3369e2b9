"""The header of a PLY file: which elements follow, how many of each, and what each consists of."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pointdistill.data.meshes.formats.content import excerpt
from pointdistill.errors import DataError

_LONGEST_HEADER = 1 << 20

_TYPES = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}
_FIRST_LINE = re.compile(rb"(?:\xef\xbb\xbf)?ply[ \t]*(\r\n|\n\r(?=[^\n])|\n|\r)")
_LAST_LINE = re.compile(rb"[\r\n][ \t]*end_header[ \t]*(?=[\r\n])")
_FORMS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_READ = ("x", "y", "z", "X", "Y", "Z", "vertex_indices", "vertex_index")


@dataclass(frozen=True, slots=True)
class Property:
    """One property of an element; a list if ``count_type`` is set."""

    name: str
    item_type: str  # numpy type code without byte order
    count_type: str | None = None

    @property
    def least_bytes(self) -> int:
        """The fewest bytes that it can take in a binary file."""
        return np.dtype(self.count_type or self.item_type).itemsize


@dataclass(slots=True)
class Element:
    """One element of the header: its name, how many rows follow, and each row's properties in order."""

    name: str
    count: int
    properties: list[Property] = field(default_factory=list)

    @property
    def usual_bytes(self) -> int:
        """Bytes of a row in a binary file whose lists are triangles; at least 1."""
        sizes = (
            3 * np.dtype(item.item_type).itemsize for item in self.properties if item.count_type
        )
        return sum(item.least_bytes for item in self.properties) + sum(sizes) or 1

    @property
    def property_names(self) -> str:
        """The names of all properties, for messages."""
        return ", ".join(item.name for item in self.properties) or "none"

    def lower_axes(self) -> None:
        """Call X, Y and Z by x, y and z, unless those are there too."""
        if {"X", "Y", "Z"} <= {*self.scalar_names} and not {"x", "y", "z"} & {*self.scalar_names}:
            self.properties = [
                replace(item, name=item.name.lower() if item.name in ("X", "Y", "Z") else item.name)
                for item in self.properties
            ]

    @property
    def scalar_names(self) -> list[str]:
        """Names of the properties that are single numbers."""
        return [item.name for item in self.properties if item.count_type is None]

    @property
    def list_names(self) -> list[str]:
        """Names of the properties that are lists."""
        return [item.name for item in self.properties if item.count_type is not None]


@dataclass(frozen=True, slots=True)
class Header:
    """Everything before the data."""

    form: str
    byte_order: str  # "<", ">", or "" for text
    elements: list[Element]
    data_start: int  # byte after the header

    @property
    def names(self) -> str:
        """The names of all elements, for messages."""
        return ", ".join(element.name for element in self.elements) or "none"

    def element(self, name: str) -> Element | None:
        """The element with that name, if there is one."""
        return next((element for element in self.elements if element.name == name), None)


def read_header(path: Path) -> Header:
    """Read the header and check its counts against the size of the file.

    Raises:
        DataError: if it is not a PLY header, or promises more than the file can hold.
    """
    with path.open("rb") as file:
        start = file.read(_LONGEST_HEADER)
    first = _FIRST_LINE.match(start)
    if first is None:
        msg = f"expected a PLY file that begins with 'ply', got {excerpt(start[:20])}"
        raise DataError(msg)
    last = _LAST_LINE.search(start)
    if last is None:
        msg = "the header has no end_header line; the file is damaged or cut short"
        raise DataError(msg)
    form, elements = _parse(start[: last.start()])
    # Data may begin with the byte of a line end, so the header's other lines tell how long this one is.
    line_end = start[last.end() : last.end() + 2]
    is_pair = (line_end == b"\r\n" and first[1] != b"\r") or line_end == first[1] == b"\n\r"
    header = Header(form, _FORMS[form], elements, last.end() + 1 + is_pair)
    _check_promise(header, path.stat().st_size - header.data_start)
    return header


def _parse(text: bytes) -> tuple[str, list[Element]]:
    form, elements = "", list[Element]()
    for line in re.split(r"[\r\n]+", text.decode("ascii", "replace"))[1:]:
        words = line.split()
        match words:
            case [] | ["comment", *_] | ["obj_info", *_]:
                continue
            case ["format", name, *_] if name in _FORMS:
                form = name
            case ["element", name, count] if count.isdecimal():
                elements.append(Element(name, int(count)))
            case ["property", "list", count_type, item_type, name] if elements:
                elements[-1].properties.append(
                    Property(name, _TYPES[item_type], _TYPES[count_type])
                    if count_type in _TYPES and item_type in _TYPES
                    else _unknown_type(line)
                )
            case ["property", item_type, name] if elements and item_type in _TYPES:
                elements[-1].properties.append(Property(name, _TYPES[item_type]))
            case _:
                _unknown_type(line)
    _refuse_twice("elements", [element.name for element in elements])
    for element in elements:
        names = [item.name for item in element.properties]
        _refuse_twice(f"properties of {element.name!r}", [name for name in names if name in _READ])
        # Of others, which are not read, only their sizes count, but binary rows need names that differ.
        element.properties = [
            replace(item, name=f"{item.name} ({place})") if item.name in names[:place] else item
            for place, item in enumerate(element.properties)
        ]
    if not form:
        msg = f"the header names no format, accepted are {', '.join(_FORMS)}; export the file again"
        raise DataError(msg)
    return form, elements


def _refuse_twice(kind: str, names: list[str]) -> None:
    name, times = next(iter(Counter(names).most_common(1)), ("", 0))
    if times > 1:
        msg = f"{times:,} {kind} have the name {excerpt(name.encode())}; the file is damaged, export it again"
        raise DataError(msg)


def _unknown_type(line: str) -> Property:
    msg = (
        f"the header line {excerpt(line.encode())} is not PLY; the file is damaged, export it again"
    )
    raise DataError(msg)


def _check_promise(header: Header, available: int) -> None:
    """Every row takes at least its scalars and its list counts; in text, two characters for each property."""
    for element in header.elements:
        row = sum(item.least_bytes for item in element.properties)
        if header.form == "ascii":
            row = 2 * len(element.properties)
        needed = element.count * row
        if needed > available + 1:
            msg = (
                f"the header promises {element.count:,} of {element.name!r} (at least {needed:,} bytes), "
                f"the file has {max(available, 0):,} bytes after it; it is damaged or cut short"
            )
            raise DataError(msg)
        available -= needed
