"""Damages files of every format at random: each gives points or one line of refusal, soon and in little memory.

``python tests/fuzz_formats.py --count 50000 --seed 0`` (or ``nox -s fuzz``) tries that many files in all and exits
with code 1 if one of them was neither read nor refused; the tests try a few of each.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import itertools
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import numpy as np

from pointdistill.data.meshes import RepairWarning, sample_surface
from pointdistill.errors import DataError

FIXTURES = Path(__file__).parent / "data" / "meshes"
SECONDS = 20.0
"""Most processor time for one file (a busy machine changes nothing); a whole one takes a tenth of a second."""

MOST_BYTES = 2 << 30
"""Most memory that the process may have taken after all files."""

_BOX = [(x, y, z) for x in (0, 1) for y in (0, 2) for z in (0, 3)]
_QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
_CLOUD = np.random.default_rng(0).normal(size=(60, 3)).round(3)
_APART = (".e57", ".laz")
"""Endings of files that are read in a process of their own, which takes a hundred times as long to start."""

_WORDS = tuple(
    word.encode()
    for word in ("nan", "inf", "-1", "0", "4000000000", "1e308", "1e-320", "99999999999999999999", "", "\x00", "%")
)  # fmt: skip


class TooLongError(BaseException):
    """A file took longer than it may; not an Exception, which a reader would turn into a refusal."""


def originals() -> dict[str, bytes]:
    """Small whole files of every format that can be read here, by name."""
    files = {
        path.name: path.read_bytes()
        for path in sorted(FIXTURES.iterdir())
        if path.suffix not in ("", ".py", ".md") and path.stat().st_size < 60_000
    }
    files |= _texts() | _binaries() | _optional()
    return {
        name: content for name, content in files.items() if not name.endswith((".step", ".stp"))
    }


def _texts() -> dict[str, bytes]:
    corners = "".join(f"v {x} {y} {z}\n" for x, y, z in _BOX)
    quads = "".join("f " + " ".join(str(c + 1) for c in quad) + "\n" for quad in _QUADS)
    rows = "".join(f"{x} {y} {z}\n" for x, y, z in _BOX)
    faces = "".join("4 " + " ".join(map(str, quad)) + "\n" for quad in _QUADS)
    cloud = "".join(f"{x} {y} {z}\n" for x, y, z in _CLOUD)
    triangles = "".join(
        "facet normal 0 0 1\nouter loop\n"
        + "".join(f"vertex {x} {y} {z}\n" for x, y, z in (_BOX[quad[k]] for k in (0, 1, 2)))
        + "endloop\nendfacet\n"
        for quad in _QUADS
    )
    ply = (
        "ply\nformat ascii 1.0\ncomment a box\nelement vertex 8\nproperty float x\nproperty float y\n"
        "property float z\nelement face 6\nproperty list uchar int vertex_indices\nend_header\n"
    )
    texts = {
        "box.obj": corners + quads,
        "box.off": "OFF\n8 6 0\n" + rows + faces,
        "box.ply": ply + rows + faces,
        "box.stl": "solid box\n" + triangles + "endsolid box\n",
        "cloud.pcd": "VERSION .7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 60\nHEIGHT 1\n"
        "POINTS 60\nDATA ascii\n" + cloud,
        "cloud.csv": "x,y,z\n" + cloud.replace(" ", ","),
        "comma.csv": "X;Y;Z\n" + cloud.replace(" ", ";").replace(".", ","),
        "cloud.xyz": cloud,
        "cloud.txt": "//X Y Z\n" + cloud,
        "cloud.pts": "60\n" + cloud,
    }  # fmt: skip
    return {name: text.encode() for name, text in texts.items()}


def _binaries() -> dict[str, bytes]:
    corners = np.array(_BOX, "<f4")
    triangles = np.array(
        [[quad[i] for i in ijk] for quad in _QUADS for ijk in ((0, 1, 2), (0, 2, 3))]
    )
    stl = np.zeros(12, [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")])
    stl["corners"] = corners[triangles]
    ply = (
        b"ply\nformat binary_little_endian 1.0\nelement vertex 8\nproperty float x\nproperty float y\n"
        b"property float z\nelement face 12\nproperty list uchar int vertex_indices\nend_header\n"
    )
    faces = b"".join(struct.pack("<B3i", 3, *map(int, face)) for face in triangles)
    pcd = b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 60\nHEIGHT 1\nPOINTS 60\nDATA binary\n"
    las = bytearray(227)
    las[:4], las[24:26] = b"LASF", bytes((1, 2))
    struct.pack_into("<HIIBHI", las, 94, 227, 227, 0, 0, 20, 60)
    struct.pack_into("<6d", las, 131, 0.001, 0.001, 0.001, 431000.0, 5412345.0, 120.0)
    counts = (_CLOUD * 1000).astype("<i4")
    array, archive, mesh = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, _CLOUD)
    np.savez_compressed(archive, points=_CLOUD)
    np.savez(mesh, vertices=corners, faces=triangles)
    return {
        "binary.stl": b"box".ljust(80) + struct.pack("<I", 12) + stl.tobytes(),
        "binary.ply": ply + corners.tobytes() + faces,
        "binary.pcd": pcd + _CLOUD.astype("<f4").tobytes(),
        "cloud.las": bytes(las) + b"".join(row.tobytes() + bytes(8) for row in counts),
        "cloud.npy": array.getvalue(),
        "cloud.npz": archive.getvalue(),
        "mesh.npz": mesh.getvalue(),
    }


def _optional() -> dict[str, bytes]:
    """Files of the formats whose readers are extras, where these are installed."""
    files = {}
    if importlib.util.find_spec("laspy") and importlib.util.find_spec("lazrs"):
        import laspy

        packed = laspy.LasData(laspy.LasHeader(version="1.2", point_format=0))
        packed.x, packed.y, packed.z = _CLOUD.T
        stream = io.BytesIO()
        packed.write(stream, do_compress=True)
        files["cloud.laz"] = stream.getvalue()
    if importlib.util.find_spec("pye57"):
        import pye57

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "cloud.e57")
            with pye57.E57(str(path), mode="w") as scan:
                x, y, z = _CLOUD.T
                scan.write_scan_raw({"cartesianX": x, "cartesianY": y, "cartesianZ": z})
            files["cloud.e57"] = path.read_bytes()
    return files


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """A file with one to four changes, half of them near its head, where counts and offsets stand."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        if not changed:
            break
        end = min(len(changed), 300) if rng.random() < 0.5 else len(changed)
        at, length = int(rng.integers(end)), int(rng.integers(1, 64))
        match int(rng.integers(8)):
            case 0:
                changed[at] = int(rng.integers(256))
            case 1:
                changed[at] ^= 1 << int(rng.integers(8))
            case 2:  # cut short
                del changed[int(rng.integers(len(changed))) :]
            case 3:  # bytes lost
                del changed[at : at + length]
            case 4:  # bytes twice
                changed[at:at] = changed[at : at + length]
            case 5:
                changed[at : at + length] = bytes(length)
            case 6:  # a number that is none, too large or too small
                changed[at : at + int(rng.integers(1, 6))] = _WORDS[rng.integers(len(_WORDS))]
            case 7:  # the bits of a count or an offset
                value = (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000)[rng.integers(5)]
                changed[at : at + 4] = struct.pack("<I", value)
    if rng.random() < 0.3:
        _repair_checksums(changed)
    return bytes(changed)


def _repair_checksums(content: bytearray) -> None:
    """Give the members of a zip their right CRC again, so that what is damaged in them reaches the reader."""
    try:
        with zipfile.ZipFile(io.BytesIO(bytes(content))) as archive:
            for info in archive.infolist():
                if info.compress_type == zipfile.ZIP_STORED:
                    start = content.find(info.filename.encode()) + len(info.filename)
                    value = zlib.crc32(content[start : start + info.file_size])
                    content[info.header_offset + 14 : info.header_offset + 18] = struct.pack(
                        "<I", value
                    )
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError):
        return


def outcome(path: Path) -> str:
    """What became of a file: ``read`` or ``refused``.

    Raises:
        AssertionError: if it is neither points nor one line that names the file.
        TooLongError: if it takes too long (on Unix).
    """

    def late(_: int, __: FrameType | None) -> None:
        raise TooLongError(path.name)

    before = signal.signal(signal.SIGPROF, late) if hasattr(signal, "SIGPROF") else None
    if before is not None:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", RepairWarning)
            points = sample_surface(path, 32, seed=0)
        assert not warned, f"warns: {warned[0].message}"
    except DataError as error:
        line = str(error)
        assert line.isprintable(), line
        assert line.startswith(f"{path}: "), line
        return "refused"
    finally:
        if before is not None:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
    assert points.shape == (32, 3), points.shape
    assert np.isfinite(points).all()
    return "read"


def inputs(seed: int) -> Iterator[tuple[str, int, bytes]]:
    """Damaged files without end: name, number and content.

    One of each original in turn; of those that take a process each, one in every tenth turn.
    """
    files = originals()
    for number in itertools.count():
        for name, content in files.items():
            if number % 10 and name.endswith(_APART):
                continue
            rng = np.random.default_rng([seed, number, zlib.crc32(name.encode())])
            yield name, number, damaged(content, rng)


def main() -> int:
    """Try as many files as were asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000, help="files in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-failures"), help="folder for files that fail"
    )
    arguments = parser.parse_args()
    counts = {"read": 0, "refused": 0, "failed": 0}
    slowest = (0.0, "")
    with tempfile.TemporaryDirectory() as folder:
        for name, number, content in itertools.islice(inputs(arguments.seed), arguments.count):
            path = Path(folder, name)
            path.write_bytes(content)
            begun = time.process_time()
            try:
                counts[outcome(path)] += 1
            except (Exception, TooLongError) as error:
                counts["failed"] += 1
                arguments.keep.mkdir(exist_ok=True)
                (arguments.keep / f"{number}-{name}").write_bytes(content)
                print(f"{number}-{name}: {type(error).__name__}: {error}", flush=True)  # noqa: T201
            if sum(counts.values()) % 1000 == 0:
                print(f"{counts}, peak {_peak_bytes() / 2**20:,.0f} MiB", flush=True)  # noqa: T201
            slowest = max(slowest, (time.process_time() - begun, f"{number}-{name}"))
    peak = _peak_bytes()
    print(f"{counts}, slowest {slowest[0]:.1f} s ({slowest[1]}), peak {peak / 2**20:,.0f} MiB")  # noqa: T201
    return 1 if counts["failed"] or peak > MOST_BYTES else 0


def _peak_bytes() -> int:
    if importlib.util.find_spec("resource") is None:
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    sys.exit(main())
