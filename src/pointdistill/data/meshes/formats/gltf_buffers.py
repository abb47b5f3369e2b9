"""The bytes and arrays of a glTF file: container, buffers, views, accessors, Draco streams.

Every index, offset and count is compared with what it points into before an array is made.
Layout: glTF 2.0 specification, "GLB File Format" and "Accessors"; Draco bitstream specification 2.2, sections
"Header", "Metadata" and "Connectivity".

DracoPy works for seconds on a damaged stream of a few hundred bytes that promises millions of faces, so the counts
in the stream's header are first compared with those that the glTF file states. Promises deeper inside (texture
coordinates) still cost up to 20 s and 300 MB a stream: a deadline for all streams of a file bounds their sum.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.content import Span, excerpt, open_content
from pointdistill.data.meshes.records import Floats, Indices, MeshLimits
from pointdistill.errors import DataError

Json = Mapping[str, Any]

_JSON_CHUNK, _BINARY_CHUNK = 0x4E4F534A, 0x004E4942
_MOST_CHUNKS = 1000
"""Chunks of a GLB looked at. The two that are used come first."""

_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_FLOAT = 5126
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}


_MOST_READINGS = 8
"""How often the bytes of the largest file may be read: meshes share buffers, and their attributes views."""

_DRACO_MESH = 1
_SEQUENTIAL, _EDGEBREAKER = 0, 1
_METADATA_FLAG = 0x8000


@dataclass(slots=True)
class Document:
    """A glTF file: its JSON, and its arrays as they are needed."""

    path: Path
    json: Json
    limits: MeshLimits
    embedded: Span | None  # the binary chunk of a GLB
    _loaded: dict[int, Span] = field(default_factory=dict)
    _bytes_left: int = 0

    def item(self, kind: str, index: Any) -> Json:
        """Entry ``index`` of the top-level array ``kind``.

        Raises:
            DataError: if there is none.
        """
        entries = self.json.get(kind, ())
        if not isinstance(index, int) or not 0 <= index < len(entries):
            msg = f"refers to entry {index!r} of {len(entries)} {kind}; the file is damaged, export it again"
            raise DataError(msg)
        entry: Json = entries[index]
        return entry

    def __post_init__(self) -> None:
        self._bytes_left = _MOST_READINGS * self.limits.file_bytes

    def read(self, content: Span, start: int, stop: int) -> memoryview:
        """Bytes of a view.

        Raises:
            DataError: if all readings of the document together are of far more bytes than the largest file has.
        """
        self._charge(stop - start)
        return content.read(start, stop)

    def _charge(self, size: int) -> None:
        """Count what is read, since many entries may share a view, or have none and be all zero."""
        self._bytes_left -= size
        if self._bytes_left < 0:
            msg = "its meshes read the same bytes over and over; export the model again"
            raise DataError(msg)

    def view(self, index: Any) -> Span:
        """The bytes of a buffer view.

        Raises:
            DataError: if it reaches past its buffer.
        """
        view = self.item("bufferViews", index)
        data = self._buffer(view["buffer"])
        start, length = view.get("byteOffset", 0), view["byteLength"]
        if not 0 <= start <= start + length <= len(data):
            msg = (
                f"buffer view {index} wants bytes {start:,} to {start + length:,} of {len(data):,}; "
                "the file is damaged or cut short"
            )
            raise DataError(msg)
        return data.part(start, start + length)

    def array(self, index: Any, dtype: type[Any] | None = None) -> NDArray[Any]:
        """An accessor's values, (count, width), sparse ones applied; as stored, or converted to ``dtype``.

        Raises:
            DataError: if it reaches past its view or has more entries than the limits accept.
        """
        accessor = self.item("accessors", index)
        count, width = accessor["count"], _WIDTHS[accessor["type"]]
        check_size("accessor values", count * width, 3 * self.limits.vertices)
        stored = np.dtype(_COMPONENTS[accessor["componentType"]])
        kind = stored if dtype is None else np.dtype(dtype)
        if "bufferView" in accessor:
            stride = self.item("bufferViews", accessor["bufferView"]).get("byteStride")
            data = self.view(accessor["bufferView"])
            values = self._strided(
                data, accessor.get("byteOffset", 0), stride, (count, width), stored, kind
            )
        else:
            self._charge(count * width * stored.itemsize)
            values = np.zeros((count, width), kind)
        if "sparse" in accessor:
            values = self._sparse(values, accessor["sparse"], stored)
        return values

    def floats(self, index: Any) -> Floats:
        """An accessor's values as numbers, (count, width); normalised integers in [-1, 1] or [0, 1]."""
        accessor = self.item("accessors", index)
        if not accessor.get("normalized") or accessor["componentType"] == _FLOAT:
            return self.array(index, np.float64)
        values = self.array(index)
        scaled: Floats = np.maximum(values / np.iinfo(values.dtype).max, -1.0)
        return scaled

    def _sparse(self, values: NDArray[Any], sparse: Json, stored: np.dtype[Any]) -> NDArray[Any]:
        count, where, what = sparse["count"], sparse["indices"], sparse["values"]
        index_type = np.dtype(_COMPONENTS[where["componentType"]])
        data = self.view(where["bufferView"])
        rows = self._strided(data, where.get("byteOffset", 0), None, (count, 1), index_type)[:, 0]
        if count and int(rows.max()) >= len(values):
            msg = f"a sparse accessor sets entry {int(rows.max())} of {len(values)}; the file is damaged"
            raise DataError(msg)
        data = self.view(what["bufferView"])
        shape = (count, values.shape[1])
        changed = values.copy()
        changed[rows] = self._strided(data, what.get("byteOffset", 0), None, shape, stored)
        return changed

    def _strided(
        self,
        data: Span,
        offset: int,
        stride: int | None,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        kind: np.dtype[Any] | None = None,
    ) -> NDArray[Any]:
        """A table whose rows start ``stride`` bytes apart; as it is stored, or of another ``kind``."""
        count, width = shape
        row = width * dtype.itemsize
        stride = stride or row
        end = offset + (count - 1) * stride + row if count else offset
        if min(count, offset) < 0 or stride < row or end > len(data):
            msg = (
                f"an accessor of {count:,} entries wants bytes {offset:,} to {end:,} of {len(data):,}; "
                "the file is damaged or cut short"
            )
            raise DataError(msg)
        self._charge(end - offset)
        table: NDArray[Any]
        if kind is None or kind == dtype or stride != row or not count:
            stored = data.read(offset, end)
            table = np.ndarray(shape, dtype, stored, strides=(stride, dtype.itemsize))
            return table if kind is None else table.astype(kind, copy=False)
        # Converted block by block, which takes no second place in memory.
        flat, at = np.empty(count * width, kind), 0
        for values in data.blocks(dtype, count * width, offset):
            flat[at : at + len(values)] = values
            at += len(values)
        return flat.reshape(shape)

    def _buffer(self, index: Any) -> Span:
        if index not in self._loaded:
            buffer = self.item("buffers", index)
            data = self._load(index, buffer.get("uri"))
            if len(data) < buffer["byteLength"]:
                msg = (
                    f"buffer {index} has {len(data):,} bytes, {buffer['byteLength']:,} are stated; "
                    "the file is damaged or cut short"
                )
                raise DataError(msg)
            self._loaded[index] = data
        return self._loaded[index]

    def _load(self, index: int, uri: str | None) -> Span:
        if uri is None:
            if self.embedded is None or index != 0:
                msg = f"buffer {index} is neither embedded nor in a file; export the model again"
                raise DataError(msg)
            return self.embedded
        if uri.startswith("data:"):
            return _decode_uri(uri)
        path = self.path.parent / unquote(uri)
        inside = path.resolve().is_relative_to(self.path.parent.resolve())
        if "://" in uri or not inside or not path.is_file():
            msg = (
                f"its buffer {excerpt(uri.encode())} is not a file in its folder; keep the .bin file beside "
                "the .gltf, or export a .glb"
            )
            raise DataError(msg)
        return open_content(path, self.limits)


def _decode_uri(uri: str) -> Span:
    head, comma, body = uri.partition(",")
    if not comma or not head.endswith(";base64"):
        msg = f"a buffer is given as {excerpt(head.encode())}; accepted are base64 data"
        raise DataError(msg)
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        msg = f"an embedded buffer is not base64 ({error}); the file is damaged, export it again"
        raise DataError(msg) from error
    return Span(io.BytesIO(data), 0, len(data))


def open_document(path: Path, limits: MeshLimits) -> Document:
    """Open a .gltf or .glb file; the first bytes decide which of the two it is.

    Raises:
        DataError: if it is neither, is cut short, or is not glTF 2.
    """
    content = open_content(path, limits)
    text, embedded = content, None
    if bytes(content.read(0, 4)) == b"glTF":
        text, embedded = _chunks(content)
    try:
        document = json.loads(_bounded_json(text, limits))
    except (ValueError, RecursionError) as error:
        msg = (
            f"expected {len(text):,} bytes of glTF JSON ({error}); the file is damaged, cut short or of "
            "another format"
        )
        raise DataError(msg) from error
    version = document["asset"]["version"] if isinstance(document, dict) else None
    if not str(version).startswith("2."):
        msg = f"glTF version {version!r}, accepted is 2.x; export the model again"
        raise DataError(msg)
    return Document(path, document, limits, embedded)


def _bounded_json(text: Span, limits: MeshLimits) -> bytes:
    """The JSON text, once its size and the number of its values are known to be within the limits."""
    check_size("bytes of JSON", len(text), limits.document_bytes)
    data = bytes(text.read())
    values = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    check_size("values in JSON", values, limits.document_values)
    return data


def _chunks(data: Span) -> tuple[Span, Span | None]:
    """The JSON chunk and the binary chunk of a GLB."""
    if len(data) < 20:
        msg = f"a GLB file of {len(data)} bytes; it is cut short"
        raise DataError(msg)
    _, version, stated = struct.unpack("<4sII", data.read(0, 12))
    if version != 2:
        msg = f"GLB version {version}, accepted is 2; export the model again"
        raise DataError(msg)
    if stated > len(data):
        msg = f"the header promises {stated:,} bytes, the file has {len(data):,}; it is cut short"
        raise DataError(msg)
    chunks: dict[int, Span] = {}
    at = 12
    for _ in range(_MOST_CHUNKS):
        if at + 8 > stated:
            break
        length, kind = struct.unpack("<II", data.read(at, at + 8))
        if at + 8 + length > len(data):
            msg = (
                f"a chunk of {length:,} bytes at byte {at:,} of {len(data):,}; the file is damaged"
            )
            raise DataError(msg)
        chunks.setdefault(kind, data.part(at + 8, at + 8 + length))
        at += 8 + length + _padding(data, at + 8 + length, -length % 4)
    if _JSON_CHUNK not in chunks:
        msg = "a GLB file without JSON; the file is damaged, export it again"
        raise DataError(msg)
    return chunks[_JSON_CHUNK], chunks.get(_BINARY_CHUNK)


def _padding(data: Span, end: int, expected: int) -> int:
    """The bytes between a chunk that ends at ``end`` and the next: those that the standard asks for, or none.

    Some programs leave them out. Then a chunk that is known begins at once.
    """
    for padding in (expected, 0):
        if end + padding + 8 <= len(data):
            length, kind = struct.unpack("<II", data.read(end + padding, end + padding + 8))
            fits = end + padding + 8 + length <= len(data)
            if kind in (_JSON_CHUNK, _BINARY_CHUNK) and fits:
                return padding
    return expected


@dataclass(frozen=True, slots=True)
class DracoMesh:
    """One decoded primitive. Sizes: V vertices, F triangles."""

    points: Floats  # (V, 3)
    corners: Indices  # (F * 3,)
    decoded: Any

    def attribute(self, unique_id: int) -> Floats:
        """Another attribute by the id that the glTF extension gives it; (V, components)."""
        stored = self.decoded.get_attribute_by_unique_id(unique_id)
        if stored is None:
            msg = f"the Draco stream has no attribute {unique_id}; export the file again"
            raise DataError(msg)
        values: Floats = np.asarray(stored["data"], dtype=np.float64).reshape(len(self.points), -1)
        return values


@dataclass(slots=True)
class DracoDecoder:
    """Decodes the streams of one file, within one deadline for all of them."""

    seconds_left: float = 60.0
    """Several times what DracoPy needs for the largest accepted scene."""

    def decode(self, stream: bytes, *, vertices: int, faces: int) -> DracoMesh:
        """Decode one primitive.

        Args:
            stream: the compressed bytes.
            vertices: count of the primitive's position accessor; the stream may not promise more.
            faces: triangles of the primitive's index accessor; the stream must promise as many.

        Raises:
            DataError: if the stream is damaged, promises other counts, or the time is used up.
        """
        start = time.monotonic()
        mesh = _decode_draco(stream, vertices, faces)
        self.seconds_left -= time.monotonic() - start
        if self.seconds_left < 0:
            msg = "its Draco data take longer to decode than their size allows; they are damaged"
            raise DataError(msg)
        return mesh


def _decode_draco(stream: bytes, vertices: int, faces: int) -> DracoMesh:
    import DracoPy

    stated_vertices, stated_faces = _stated_counts(stream)
    if stated_vertices > vertices or stated_faces != faces:
        msg = (
            f"a Draco stream of {stated_vertices:,} vertices and {stated_faces:,} triangles where "
            f"{vertices:,} and {faces:,} are stated; the file is damaged, export it again"
        )
        raise DataError(msg)
    try:
        decoded = DracoPy.decode(stream)
    except Exception as error:
        # DracoPy raises its own classes and bare exceptions; all mean the same to a user.
        msg = f"its Draco data cannot be decoded ({error}); the file is damaged, export it again"
        raise DataError(msg) from error
    points = np.asarray(decoded.points, dtype=np.float64).reshape(-1, 3)
    corners = np.asarray(decoded.faces, dtype=np.int64).reshape(-1)
    if len(points) != vertices or len(corners) != 3 * faces:
        msg = (
            f"its Draco data gave {len(points):,} vertices and {len(corners) // 3:,} triangles where "
            f"{vertices:,} and {faces:,} are stated; the file is damaged, export it again"
        )
        raise DataError(msg)
    return DracoMesh(points, corners, decoded)


def _stated_counts(stream: bytes) -> tuple[int, int]:
    """The numbers of vertices and faces that the stream's header states."""
    try:
        head = _DracoHeader(stream)
        if stream[:5] != b"DRACO" or stream[5] != 2 or stream[7] != _DRACO_MESH:
            msg = f"expected a Draco mesh of version 2, got the bytes {stream[:9].hex()}; export it again"
            raise DataError(msg)
        method = stream[8]
        if int.from_bytes(stream[9:11], "little") & _METADATA_FLAG:
            head.skip_metadata()
        if method == _EDGEBREAKER:
            head.skip(1)  # how the mesh was traversed
            return head.varint(), head.varint()
        if method == _SEQUENTIAL:
            faces = head.varint()
            return head.varint(), faces
    except IndexError as error:
        msg = "its Draco data end inside their head; the file is cut short"
        raise DataError(msg) from error
    msg = f"its Draco data use method {method}, 0 and 1 are known; export the file again"
    raise DataError(msg)


class _DracoHeader:
    """Reads the numbers in the header of a stream, after its 11 fixed bytes."""

    def __init__(self, stream: bytes) -> None:
        self._stream = stream
        self._at = 11

    def skip(self, count: int) -> None:
        """Skip some bytes."""
        self._at += count
        if self._at > len(self._stream):
            raise IndexError(self._at)

    def varint(self) -> int:
        """An unsigned integer, seven bits per byte, lowest first."""
        value = 0
        for shift in range(0, 64, 7):
            byte = self._stream[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        return value

    def skip_metadata(self) -> None:
        """Skip the metadata of all attributes and of the file."""
        attributes = self.varint()
        for _ in range(attributes):
            self.varint()
            self._skip_tree()
        self._skip_tree()

    def _skip_tree(self) -> None:
        """Entries of a name and a value, then named trees of the same form."""
        for _ in range(self.varint()):
            self.skip(self._stream[self._at] + 1)
            self.skip(self.varint())
        for _ in range(self.varint()):
            self.skip(self._stream[self._at] + 1)
            self._skip_tree()
