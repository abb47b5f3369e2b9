"""A small, bounded XML tree: local names alone, no document types, numbers of leaves packed in arrays."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.text import parse_numbers, shown
from pointdistill.data.meshes.records import Floats, Indices, MeshLimits
from pointdistill.errors import DataError

_DEEPEST = 256


@dataclass(slots=True)
class Element:
    """One element. ``packed`` holds the numbers of its packed children, child after child."""

    name: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    packed: array[float] = field(default_factory=lambda: array("d"))

    @property
    def text(self) -> str:
        """The text directly inside."""
        return "".join(self.texts)

    def find(self, name: str) -> Element | None:
        """The first child of that name."""
        return next(self.all(name), None)

    def all(self, name: str) -> Iterator[Element]:
        """Children of that name."""
        return (child for child in self.children if child.name == name)

    def walk(self) -> Iterator[Element]:
        """This element and everything below it, in the order of the document."""
        waiting = [self]
        while waiting:
            element = waiting.pop()
            yield element
            waiting.extend(reversed(element.children))

    def attribute(self, name: str) -> str:
        """An attribute that must be there.

        Raises:
            DataError: if it is not.
        """
        if name not in self.attributes:
            msg = f"<{self.name}> has no {name}; the file is damaged, export it again"
            raise DataError(msg)
        return self.attributes[name]


def parse_xml(
    data: bytes, limits: MeshLimits, *, packed: Mapping[str, tuple[str, ...]] | None = None
) -> Element:
    """Parse a document.

    Args:
        data: the document.
        limits: bounds its size and its number of elements.
        packed: names of leaf elements with the attributes to keep of each as numbers, in the parent's
            ``packed``: a triangle then costs 24 bytes instead of a kilobyte.

    Raises:
        DataError: if it is not well-formed, too large, too deep, or declares a document type.
    """
    check_size("bytes of XML", len(data), limits.document_bytes)
    builder = _Builder(limits, packed or {})
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.buffer_size = 1 << 16
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.StartDoctypeDeclHandler = builder.refuse_doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        msg = f"expected XML ({error}); the file is damaged, cut short or of another format"
        raise DataError(msg) from error
    return builder.root


class _Builder:
    """Expat's handlers: hold the open elements, innermost last."""

    def __init__(self, limits: MeshLimits, packed: Mapping[str, tuple[str, ...]]) -> None:
        self._limits = limits
        self._packed = packed
        self._open = [Element("", {})]
        self._count = 0
        self._skipped = 0

    @property
    def root(self) -> Element:
        """The document's element, once it is parsed."""
        return self._open[0].children[0]

    def start(self, name: str, attributes: dict[str, str]) -> None:
        name = name.rpartition(" ")[2]
        if name in self._packed:
            wanted = self._packed[name]
            self._open[-1].packed.extend(_packed_numbers(name, attributes, wanted))
            self._skipped += 1
            return
        self._count += 1
        if self._count > self._limits.document_elements:
            check_size("XML elements", self._count, self._limits.document_elements)
        if len(self._open) > _DEEPEST:
            msg = f"XML elements lie deeper than {_DEEPEST}; the file is damaged, export it again"
            raise DataError(msg)
        local = {key.rpartition(" ")[2]: value for key, value in attributes.items()}
        element = Element(name, local)
        self._open[-1].children.append(element)
        self._open.append(element)

    def end(self, name: str) -> None:
        if name.rpartition(" ")[2] not in self._packed:
            self._open.pop()

    def text(self, text: str) -> None:
        self._open[-1].texts.append(text)

    def refuse_doctype(self, *_: object) -> None:
        msg = "declares a document type, which no model needs; export the file again"
        raise DataError(msg)


def _packed_numbers(
    name: str, attributes: dict[str, str], wanted: tuple[str, ...]
) -> tuple[float, ...]:
    try:
        return tuple(float(attributes[key]) for key in wanted)
    except (KeyError, ValueError) as error:
        msg = (
            f"<{name}> needs the numbers {', '.join(wanted)}, got {attributes}; the file is damaged"
        )
        raise DataError(msg) from error


def float_list(text: str) -> Floats:
    """Numbers with white space or commas between them; (n,).

    Raises:
        DataError: if something else is among them.
    """
    return _number_list(text, np.float64)


def index_list(text: str) -> Indices:
    """Whole numbers with white space or commas between them; (n,).

    Raises:
        DataError: if something else is among them.
    """
    return _number_list(text, np.int64)


def _number_list(text: str, dtype: type[np.float64] | type[np.int64]) -> NDArray[Any]:
    values = parse_numbers(text.replace(",", " ") if "," in text else text, dtype)
    if values is None:
        msg = f"expected numbers, got {shown(text[:200].strip().encode())}; the file is damaged"
        raise DataError(msg)
    return values
