"""PCD compressed with LZF: streams that can be followed by hand, fields of every kind, and damage."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.meshes import PointSet, read_mesh
from pointdistill.data.meshes.formats.pcd import unpack_lzf
from pointdistill.errors import DataError

POINTS = np.arange(120, dtype="<f4").reshape(40, 3) / 8
HEADER = (
    b"VERSION .7\nFIELDS x normal y z rgb\nSIZE 4 4 8 4 1\nTYPE F F F F U\nCOUNT 1 3 1 1 1\n"
    b"WIDTH 40\nHEIGHT 1\nPOINTS 40\nDATA binary_compressed\n"
)


@pytest.mark.parametrize(
    ("packed", "whole"),
    [
        (b"\x02abc", b"abc"),
        (b"\x02abc" + bytes([1 << 5, 2]), b"abcabc"),  # 1 + 2 bytes from 2 + 1 back
        (b"\x00a" + bytes([7 << 5, 1, 0]), b"a" * 11),  # 7 + 1 + 2 bytes from 1 back
        (b"\x02abc" + bytes([2 << 5, 1]) + b"\x00d", b"abcbcbcd"),
        (b"", b""),
    ],
)
def test_streams_that_can_be_followed_by_hand(packed: bytes, whole: bytes) -> None:
    assert unpack_lzf(packed, len(whole)) == whole


@pytest.mark.parametrize(
    ("packed", "size"),
    [
        (b"\x02ab", 3),  # two of three literals
        (b"\x02abc", 4),
        (b"\x02abc", 2),
        (b"\x00a" + bytes([1 << 5, 1]), 4),  # from before the start
        (b"\x00a" + bytes([1 << 5]), 4),  # no second byte
    ],
)
def test_streams_that_are_damaged(packed: bytes, size: int) -> None:
    with pytest.raises(DataError, match="do not unpack to"):
        unpack_lzf(packed, size)


def test_a_stream_that_unpacks_to_much_more_is_left_early() -> None:
    bomb = b"\x00a" + bytes([7 << 5, 255, 0]) * 100_000  # 26 MB
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="do not unpack to the 100 bytes"):
            unpack_lzf(bomb, 100)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def literals(data: bytes) -> bytes:
    """The plainest stream: runs of up to 32 bytes as they are."""
    runs = [data[at : at + 32] for at in range(0, len(data), 32)]
    return b"".join(bytes([len(run) - 1]) + run for run in runs)


def packed_pcd() -> bytes:
    x, y, z = POINTS.T
    normals, colours = np.full((40, 3), 7, "<f4"), np.full(40, 200, "u1")
    columns = b"".join(part.tobytes() for part in (x, normals, y.astype("<f8"), z, colours))
    stream = literals(columns)
    return HEADER + struct.pack("<II", len(stream), len(columns)) + stream


def test_fields_lie_one_after_another(tmp_path: Path) -> None:
    (tmp_path / "a.pcd").write_bytes(packed_pcd())
    cloud = read_mesh(tmp_path / "a.pcd")
    assert isinstance(cloud, PointSet)
    assert cloud.points.tolist() == POINTS.tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed_pcd()[:-1], "is damaged or cut short"),
        (packed_pcd()[: len(HEADER) + 3], "not a readable PCD file"),
        (packed_pcd().replace(b"POINTS 40", b"POINTS 41"), "41 points of 29 bytes are promised"),
        (packed_pcd().replace(b"binary_compressed", b"zipped"), "accepted are ascii, binary, bin"),
    ],
)
def test_damage_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.pcd").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_mesh(tmp_path / "a.pcd")
    assert "\n" not in str(caught.value)
