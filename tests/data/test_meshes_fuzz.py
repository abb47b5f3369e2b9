"""Files cut or changed anywhere are read, or refused in one line, quickly and with little memory."""

from __future__ import annotations

import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.meshes import MeshLimits, RepairWarning, read_mesh, sample_surface
from pointdistill.errors import DataError
from tests import fuzz_formats
from tests.data.meshes.box import BOX, QUADS, rows

resource = pytest.importorskip("resource", reason="memory is measured on Unix alone")

FIXTURES = Path(__file__).parent / "meshes"
REAL = [path.name for path in sorted(FIXTURES.iterdir()) if path.suffix not in (".py", ".md", "")]

WRITTEN = {
    "box.obj": "".join(f"v {x} {y} {z}\n" for x, y, z in BOX)
    + "".join("f " + " ".join(f"{corner + 1}/1/1" for corner in quad) + "\n" for quad in QUADS),
    "box.off": "OFF8 6 0\n" + rows(BOX) + rows([4, *quad] for quad in QUADS),
    "box.ply": "ply\nformat ascii 1.0\nelement vertex 8\nproperty float x\nproperty float y\nproperty float z\n"
    "element face 6\nproperty list uchar int vertex_indices\nend_header\n"
    + rows(BOX) + rows([4, *quad] for quad in QUADS),
    "cloud.pcd": "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS 40\nDATA ascii\n" + rows(np.eye(40)[:, :3]),
    "cloud.csv": "x,y,z\n" + rows(np.eye(40)[:, :3], ","),
}  # fmt: skip


def read_or_refuse(path: Path) -> bool:
    """Whether the file gave points; anything but a point set or one line of refusal fails the test."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RepairWarning)
            points = sample_surface(path, 32, seed=0)
    except DataError as error:
        message = str(error)
        assert "\n" not in message
        assert message.startswith(f"{path}: ")
        return False
    assert points.shape == (32, 3)
    assert np.isfinite(points).all()
    return True


def original(name: str) -> bytes:
    return WRITTEN[name].encode() if name in WRITTEN else (FIXTURES / name).read_bytes()


@pytest.mark.parametrize("name", [*REAL, *WRITTEN])
def test_a_file_that_is_cut_short(name: str, tmp_path: Path) -> None:
    content = original(name)
    path = tmp_path / name
    for share in (0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        read_or_refuse(path)


CUT_IS_SEEN = {".ply", ".stl", ".glb", ".gltf", ".dae", ".3mf", ".3dxml", ".off", ".pcd"}


@pytest.mark.parametrize(
    "name", [name for name in [*REAL, *WRITTEN] if Path(name).suffix.lower() in CUT_IS_SEEN]
)
def test_a_format_that_states_its_length_never_gives_a_part(name: str, tmp_path: Path) -> None:
    """OBJ and plain columns do not say how much there is, so a clean cut between lines cannot be seen there."""
    content = original(name).rstrip()
    path = tmp_path / name
    for share in (0.2, 0.5, 0.8):
        path.write_bytes(content[: int(share * len(content))])
        assert not read_or_refuse(path)


@pytest.mark.parametrize("name", [*REAL, *WRITTEN])
def test_a_file_with_changed_bytes(name: str, tmp_path: Path) -> None:
    """Twelve times some bytes change, the first half of the times near the head, where counts stand."""
    content = original(name)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    path = tmp_path / name
    start = time.monotonic()
    for attempt in range(12):
        changed = bytearray(content)
        end = min(len(changed), 400) if attempt < 6 else len(changed)
        for place in rng.integers(0, end, size=3):
            changed[place] = rng.integers(256)
        path.write_bytes(changed)
        read_or_refuse(path)
    assert time.monotonic() - start < 100
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak_kib < 2 * 2**20  # 2 GiB, of everything that this process has run


FEW = 12
"""Damaged files of each original; ``nox -s fuzz`` tries thousands."""


@pytest.mark.parametrize("name", sorted(fuzz_formats.originals()))
def test_files_damaged_at_random(name: str, tmp_path: Path) -> None:
    if name.endswith((".e57", ".laz")):
        pytest.skip("each takes a process of its own; tried by nox -s fuzz")
    content = fuzz_formats.originals()[name]
    path = tmp_path / name
    path.write_bytes(content)
    assert fuzz_formats.outcome(path) == "read" or name in REAL, "the original itself is whole"
    for number in range(FEW):
        rng = np.random.default_rng([7, number, zlib.crc32(name.encode())])
        path.write_bytes(fuzz_formats.damaged(content, rng))
        fuzz_formats.outcome(path)


NPY_HEAD = (
    b"\x93NUMPY\x01\x00\x46\x00"
    + b"{'descr': '<f8', 'fortran_order': False, 'shape': (4000000000, 3)}".ljust(69)
    + b"\n"
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("deep.dae", b"<a>" * 100_000),
        ("values.gltf", b'{"asset":[' + b"[]," * 3_000_000),
        ("deep.gltf", b"[" * 200_000),
        ("line.obj", b"v " + b"1" * (20 << 20)),
        ("many.off", b"OFF 4000000000 4000000000 0\n"),
        ("many.ply", b"ply\nformat ascii 1.0\nelement vertex 4000000000\nproperty float x\nproperty float y\n"
         b"property float z\nend_header\n"),
        ("many.stl", b"x" * 80 + b"\xff\xff\xff\xff"),
        ("many.pcd", b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS 4000000000\nDATA binary\n"),
        ("many.npy", NPY_HEAD),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_small_file_that_promises_much_costs_little(
    name: str, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not read_or_refuse(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 800 * 2**10


def test_the_tags_of_a_document_are_counted_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "wide.dae"
    path.write_text("<COLLADA>" + "<a/>" * 2000 + "not even closed")
    with pytest.raises(DataError, match="2,001 tags and attributes, at most 1,000 are accepted"):
        read_mesh(path, limits=MeshLimits(document_values=1000))
