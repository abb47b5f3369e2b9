"""STL, binary and text; every facet has its own corners, and several solids make one surface."""

from __future__ import annotations

import codecs
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.content import (
    Span,
    check_text_size,
    excerpt,
    open_content,
    parse_points,
    token_blocks,
)
from pointdistill.data.meshes.formats.fast_numbers import Tokens
from pointdistill.data.meshes.records import Floats, Indices, MeshLimits, Part, RawMesh
from pointdistill.errors import DataError

_HEADER = 84
_FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_COUNT = struct.Struct("<I")
_PAYLOAD_SIZE = struct.Struct("<H")
_CHUNK = 1 << 16
"""Facets copied at a time."""

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read(path: Path, limits: MeshLimits) -> RawMesh:
    """Read an STL file; each solid of a binary file is one part, a text file is one.

    Raises:
        DataError: if the file is cut short, is neither form of STL, or goes on after the triangles that its header
            promises in a way that is not understood.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_HEADER)
    facets = _COUNT.unpack_from(start, 80)[0] if len(start) == _HEADER else 0
    expected = _HEADER + facets * _FACET.itemsize
    # Binary files may begin with "solid" too, so the length decides before the first word.
    if size == expected and facets:
        return _read_binary(path, facets, limits)
    if _is_text(start):
        return _read_text(path, limits)
    if not start.strip(b"\t\n\r" + bytes(range(32, 127))):
        msg = f"expected text that begins with 'solid', or binary STL, got {excerpt(start)}; it is not STL"
        raise DataError(msg)
    if len(start) < _HEADER or size == expected:
        msg = f"expected an STL file, got {size:,} bytes and 0 facets; export the file again"
        raise DataError(msg)
    if size < expected:
        msg = (
            f"the header promises {facets:,} triangles ({expected:,} bytes), the file has {size:,} bytes; "
            "it is cut short or not an STL file"
        )
        raise DataError(msg)
    return _read_longer(path, facets, limits)


def _is_text(start: bytes) -> bool:
    if start.startswith(_UTF_16):
        start = start[: len(start) // 2 * 2].decode("utf-16", "replace").encode()
    start = start.removeprefix(codecs.BOM_UTF8)
    return start.lstrip()[:5].lower() == b"solid" and b"\0" not in start


def _read_binary(path: Path, facets: int, limits: MeshLimits) -> RawMesh:
    check_size("triangles", facets, limits.faces)
    return RawMesh([_solid(open_content(path, limits), facets, _HEADER)])


def _solid(content: Span, facets: int, start: int) -> Part:
    corners = np.empty((facets, 3, 3))
    at = 0
    for rows in content.blocks(_FACET, facets, start):
        corners[at : at + len(rows)] = rows["corners"]
        at += len(rows)
    return Part(corners.reshape(-1, 3), np.arange(3 * facets))


def _part(facets: NDArray[np.void]) -> Part:
    vertices = facets["corners"].reshape(-1, 3).astype(np.float64)
    return Part(vertices, np.arange(len(vertices)))


def _read_longer(path: Path, facets: int, limits: MeshLimits) -> RawMesh:
    """A binary file that goes on after its triangles: with the attributes that they announce, with further solids,
    or with what cannot be a triangle (padding, or a remark shorter than one)."""
    check_size("triangles", facets, limits.faces)
    content = open_content(path, limits)
    data = content.read()
    starts = _starts_between_payloads(data, facets)
    if starts is not None:
        codes = np.frombuffer(data, np.uint8)
        parts = []
        for begin in range(0, facets, _CHUNK):
            places = starts[begin : begin + _CHUNK, None] + np.arange(_FACET.itemsize)
            parts.append(_part(codes[places.reshape(-1)].view(_FACET)))
        return RawMesh(parts)
    solids = _solids(data, limits)
    end = solids[-1][0] + solids[-1][1] * _FACET.itemsize if solids else _HEADER
    rest = len(data) - end
    if not sum(count for _, count in solids):
        msg = (
            f"the header promises 0 triangles, but {rest:,} bytes follow it; the count is wrong, "
            "export the file again"
        )
        raise DataError(msg)
    if rest >= _FACET.itemsize and np.frombuffer(data, np.uint8, rest, end).any():
        msg = (
            f"the header promises {facets:,} triangles, but {rest:,} bytes follow the last, which may hold more; "
            "the count is wrong or the file is damaged, export it again"
        )
        raise DataError(msg)
    return RawMesh([_part(np.frombuffer(data, _FACET, count, at)) for at, count in solids])


def _starts_between_payloads(data: memoryview, facets: int) -> Indices | None:
    """Where each facet starts if its last number, the size of its attributes, says how many bytes follow it; (F,).

    None unless the facets then end with the file: most programs keep a colour in that number.
    """
    starts = np.empty(facets, np.int64)
    at = _HEADER
    for facet in range(facets):
        starts[facet] = at
        at += _FACET.itemsize
        if at > len(data):
            return None
        at += _PAYLOAD_SIZE.unpack_from(data, at - 2)[0]
    return starts if at == len(data) else None


def _solids(data: memoryview, limits: MeshLimits) -> list[tuple[int, int]]:
    """First byte and number of the triangles of each solid: whole binary files, one after another.

    Only the first if what follows it are not such files up to the last byte.
    """
    solids, at, total = list[tuple[int, int]](), 0, 0
    while at + _HEADER <= len(data):
        (count,) = _COUNT.unpack_from(data, at + 80)
        end = at + _HEADER + count * _FACET.itemsize
        if end > len(data):
            break
        total += count
        check_size("triangles", total, limits.faces)
        if count:
            solids.append((at + _HEADER, count))
        at = end
        if len(solids) > limits.instances:
            break
    return solids if at == len(data) else solids[:1]


def _read_text(path: Path, limits: MeshLimits) -> RawMesh:
    """Facets are counted by their `endloop`, so that one without exactly three corners is noticed."""
    check_text_size(path, limits.text_bytes)
    vertices: list[Floats] = []
    ends: list[Indices] = []
    seen = 0
    complete = False
    for tokens in token_blocks(path):
        is_vertex = tokens.lines_that_begin(b"vertex")
        facet_ends = np.flatnonzero(_lines_that_end(tokens, b"loop"))
        ends.append(seen + np.cumsum(is_vertex)[facet_ends])
        vertices.append(parse_points(tokens.lines(is_vertex), columns=(1, 2, 3), skip=1))
        seen += len(vertices[-1])
        check_size("vertices", seen, 3 * limits.faces)
        after = int(facet_ends[-1]) + 1 if len(facet_ends) else 0
        complete = _is_complete(tokens.lines(slice(after, None)), complete and not after)
    all_ends = np.concatenate(ends) if ends else np.empty(0, np.int64)
    if not complete or (seen and seen != all_ends[-1:].sum()):
        msg = (
            f"the file ends inside a solid, after {len(all_ends):,} facets; it is cut short, or has several "
            "statements on one line"
        )
        raise DataError(msg)
    if not seen:
        msg = "0 facets in the file; export it again"
        raise DataError(msg)
    sizes = np.diff(all_ends, prepend=0)
    return RawMesh([Part(np.concatenate(vertices), np.arange(seen), sizes)])


def _is_complete(lines: Tokens, before: bool) -> bool:
    """Whether the last solid has ended; whatever else follows, such as a remark, does not begin another."""
    ends = np.flatnonzero(_lines_that_end(lines, b"solid"))
    begins = np.flatnonzero(lines.lines_that_begin(b"solid") | lines.lines_that_begin(b"facet"))
    if len(begins) and (not len(ends) or begins[-1] > ends[-1]):
        return False
    return before or len(ends) > 0


def _lines_that_end(lines: Tokens, what: bytes) -> NDArray[np.bool_]:
    """Lines that begin with `endsolid` or `end solid`, and so on for other words; (L,)."""
    found = lines.lines_that_begin(b"end" + what)
    if found.any():
        return found
    for number in np.flatnonzero(lines.lines_that_begin(b"end") & (lines.counts > 1)):
        found[number] = lines.line(int(number), skip=1)[: len(what)].lower() == what
    return found
