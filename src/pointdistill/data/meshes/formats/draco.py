"""Draco-compressed primitives: the bitstream's promises are checked, then DracoPy decodes it.

The decoder works for seconds on a damaged stream of a few hundred bytes that promises millions of faces, so
the counts at its head are held against those that the glTF file states. Promises deeper inside (texture
coordinates) still cost up to 20 s and 300 MB a stream: a deadline for all streams of a file bounds the sum.
Layout: Draco bitstream specification 2.2, sections "Header", "Metadata" and "Connectivity".
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from pointdistill.data.meshes.records import Floats, Indices
from pointdistill.errors import DataError

_MESH = 1
_SEQUENTIAL, _EDGEBREAKER = 0, 1
_METADATA_FLAG = 0x8000


@dataclass(frozen=True, slots=True)
class DracoMesh:
    """One decoded primitive. Sizes: V vertices, F triangles."""

    points: Floats  # (V, 3)
    corners: Indices  # (F * 3,)
    decoded: Any

    def attribute(self, unique_id: int) -> Floats:
        """Another attribute by the id that the glTF extension gives it; (V, components)."""
        found = self.decoded.get_attribute_by_unique_id(unique_id)
        if found is None:
            msg = f"the Draco stream has no attribute {unique_id}; export the file again"
            raise DataError(msg)
        values: Floats = np.asarray(found["data"], dtype=np.float64).reshape(len(self.points), -1)
        return values


@dataclass(slots=True)
class Decoder:
    """Decodes the streams of one file, within a time for all of them together."""

    seconds_left: float = 60.0
    """Several times what DracoPy needs for the largest scene that is accepted."""

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
        mesh = _decode(stream, vertices, faces)
        self.seconds_left -= time.monotonic() - start
        if self.seconds_left < 0:
            msg = "its Draco data take longer to decode than their size allows; they are damaged"
            raise DataError(msg)
        return mesh


def _decode(stream: bytes, vertices: int, faces: int) -> DracoMesh:
    import DracoPy

    found_vertices, found_faces = _promised(stream)
    if found_vertices > vertices or found_faces != faces:
        msg = (
            f"a Draco stream of {found_vertices:,} vertices and {found_faces:,} triangles where "
            f"{vertices:,} and {faces:,} are stated; the file is damaged, export it again"
        )
        raise DataError(msg)
    try:
        decoded = DracoPy.decode(stream)
    except Exception as error:
        # DracoPy raises classes of its own and bare exceptions; all mean the same to a user.
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


def _promised(stream: bytes) -> tuple[int, int]:
    """Vertices and faces that the head of the stream states."""
    try:
        head = _Head(stream)
        if stream[:5] != b"DRACO" or stream[5] != 2 or stream[7] != _MESH:
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


class _Head:
    """Reads the numbers at the head of a stream, which begins after 11 fixed bytes."""

    def __init__(self, stream: bytes) -> None:
        self._stream = stream
        self._at = 11

    def skip(self, count: int) -> None:
        """Pass over some bytes."""
        self._at += count
        if self._at > len(self._stream):
            raise IndexError(self._at)

    def varint(self) -> int:
        """An unsigned number, seven bits a byte, lowest first."""
        value = 0
        for shift in range(0, 64, 7):
            byte = self._stream[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        return value

    def skip_metadata(self) -> None:
        """Pass over the metadata of all attributes and of the file."""
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
