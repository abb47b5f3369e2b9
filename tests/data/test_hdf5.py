"""HDF5 from elsewhere: whatever leads out of the file or claims more than is there is refused in one line."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pointdistill.data.benchmarks.scanobjectnn import SPLITS
from pointdistill.data.corpus import open_corpus
from pointdistill.data.files.hdf5 import open_hdf5
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.errors import CorpusError, DataError
from tests.data.test_corpus import some_rows, write_corpus

POINTS = np.arange(24, dtype=np.float32).reshape(2, 4, 3)

Make = Callable[[h5py.File, Path], object]


def written(path: Path, make: Make) -> Path:
    """A file with what ``make`` puts into it; beside it lie a text and another HDF5 file that it may name."""
    path.with_name("secret").write_bytes(b"not for others\n" * 8)
    with h5py.File(path.with_name("other.h5"), "w") as other:
        other["data"] = POINTS
    with h5py.File(path, "w") as file:
        make(file, path.parent)
    return path


def virtual(file: h5py.File, folder: Path, *, unlimited: bool = False) -> None:
    layout = h5py.VirtualLayout((2, 4, 3), "f4", (None if unlimited else 2, 4, 3))
    layout[:] = h5py.VirtualSource(folder / "other.h5", "data", (2, 4, 3))
    file.create_virtual_dataset("data", layout)


def inflating(file: h5py.File, _: Path) -> None:
    """A chunk of 100 bytes that unpacks to 100,000: HDF5 itself would go on to the end."""
    stored = file.create_dataset("data", (100,), "u1", chunks=(100,), compression="gzip")
    stored.id.write_direct_chunk((0,), zlib.compress(bytes(100_000)))


def stored_chunk(file: h5py.File, content: bytes, mask: int = 0) -> None:
    """One chunk of 16 MiB, as any program may have written it."""
    stored = file.create_dataset("data", (2**24,), "u1", chunks=(2**24,), compression="gzip")
    stored.id.write_direct_chunk((0,), content, mask)


def shuffled_last(file: h5py.File, _: Path) -> None:
    """What is checked as gzip is then not what gzip gets."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_chunk((24,))
    layout.set_deflate(9)
    layout.set_shuffle()
    space = h5py.h5s.create_simple((24,))
    h5py.h5d.create(file.id, b"data", h5py.h5t.NATIVE_DOUBLE, space, layout)
    file["data"][:] = POINTS.ravel()


def linked(file: h5py.File, link: object) -> None:
    file["elsewhere"] = POINTS
    file["data"] = link


def named_type(file: h5py.File, _: Path) -> None:
    file["data"] = np.dtype("f4")


ATTACKS: dict[str, tuple[Make, str]] = {
    "external storage": (
        lambda f, d: f.create_dataset("data", (9,), "u1", external=[(str(d / "secret"), 0, 9)]),
        "lies in another file",
    ),
    "virtual": (virtual, "is a virtual dataset"),
    "unlimited virtual": (lambda f, d: virtual(f, d, unlimited=True), "is a virtual dataset"),
    "soft link": (lambda f, d: linked(f, h5py.SoftLink("/elsewhere")), "is a link"),
    "external link": (
        lambda f, d: linked(f, h5py.ExternalLink(d / "other.h5", "/data")),
        "is a link",
    ),
    "absent": (lambda f, d: None, "is missing"),
    "group": (lambda f, d: f.create_group("data"), "is no dataset"),
    "named type": (named_type, "is no dataset"),
    "empty": (lambda f, d: f.create_dataset("data", data=h5py.Empty("f4")), "is empty"),
    "varying text": (
        lambda f, d: f.create_dataset("data", data=["a", "b"]),
        "values of varying length",
    ),
    "varying lists": (
        lambda f, d: f.create_dataset("data", (2,), h5py.vlen_dtype("f4")),
        "values of varying length",
    ),
    "compound": (
        lambda f, d: f.create_dataset("data", data=np.zeros(3, [("x", "f4")])),
        "compound values",
    ),
    "references": (lambda f, d: f.create_dataset("data", (2,), h5py.ref_dtype), "references"),
    "text": (lambda f, d: f.create_dataset("data", data=np.array([b"ab"])), "values of type .S2"),
    "opaque": (lambda f, d: f.create_dataset("data", data=np.zeros(2, "V4")), "opaque bytes"),
    "array type": (lambda f, d: f.create_dataset("data", (2,), np.dtype(("f4", 3))), "arrays"),
    "never written": (
        lambda f, d: f.create_dataset("data", (10**9, 3), "f4"),
        "of which 0 are stored",
    ),
    "never written, in chunks": (
        lambda f, d: f.create_dataset("data", (10**9, 3), "f4", chunks=(10**6, 3)),
        "of which 0 are stored",
    ),
    "packed from nothing": (
        lambda f, d: f.create_dataset("data", (10**6, 3), "f4", compression="gzip"),
        "claims 12,000,000 bytes, packed into 0",
    ),
    "chunk of 2 GiB": (
        lambda f, d: f.create_dataset(
            "data", (2,), "f4", chunks=(2**29,), maxshape=(None,), compression="gzip"
        ),
        "has chunks of 2,147,483,648 bytes",
    ),
    "inflating": (inflating, "unpacks to more than its 100 bytes"),
    # HDF5 would go on reading behind the end of either, until the process ends with a signal.
    "cut short": (
        lambda f, _: stored_chunk(f, zlib.compress(bytes(64)) + bytes(20_000)),
        "unpacks to 64 of its 16,777,216 bytes",
    ),
    "cut short, not packed": (
        lambda f, _: stored_chunk(f, bytes(20_000), 1),
        "unpacks to 20,000 of its 16,777,216 bytes",
    ),
    "shuffled last": (shuffled_last, "is shuffled after it was packed"),
    # Its filter starts anew with a little more memory, again and again, up to 88 times the chunk.
    "lzf": (
        lambda f, _: f.create_dataset("data", data=POINTS, compression="lzf"),
        "packed with filter 32000",
    ),
    "scale-offset": (
        lambda f, d: f.create_dataset("data", data=np.arange(99), scaleoffset=0),
        "packed with filter 6",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "member"])
def test_an_attack_is_one_line_that_names_the_dataset(
    tmp_path: Path, attack: str, in_memory: bool
) -> None:
    make, message = ATTACKS[attack]
    path = written(tmp_path / "attack.h5", make)
    source = path.read_bytes() if in_memory else path
    with (
        pytest.raises(
            DataError, match=rf"^a\.zip: x\.h5: .*'data'.*{message}.*; fetch it again$"
        ) as caught,
        open_hdf5(source, "a.zip: x.h5") as file,
    ):
        file.dataset("data").read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (1, 4, 3)},
        {"chunks": (64, 4, 3), "maxshape": (None, 4, 3)},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": (1, 4, 3), "fletcher32": True},
    ],
)
def test_what_archives_use_is_read(tmp_path: Path, options: dict[str, object]) -> None:
    path = written(
        tmp_path / "plain.h5", lambda f, _: f.create_dataset("data", data=POINTS, **options)
    )
    for source in (path, path.read_bytes()):
        with open_hdf5(source, path) as file:
            dataset = file.dataset("data")
            assert (dataset.shape, dataset.dtype, dataset.nbytes) == ((2, 4, 3), np.float32, 96)
            assert np.array_equal(dataset.read(), POINTS)
            assert np.array_equal(dataset.read(1, 2), POINTS[1:])


def test_a_named_type_of_plain_numbers_is_read(tmp_path: Path) -> None:
    def make(file: h5py.File, _: Path) -> None:
        file["kind"] = np.dtype("f4")
        file.create_dataset("data", data=POINTS, dtype=file["kind"])

    with open_hdf5(written(tmp_path / "named.h5", make), "named.h5") as file:
        assert np.array_equal(file.dataset("data").read(), POINTS)


def test_an_attribute_is_a_number_or_a_text_or_nothing(tmp_path: Path) -> None:
    def make(file: h5py.File, _: Path) -> None:
        file["data"] = POINTS
        file.attrs["number"], file.attrs["varying"], file.attrs["list"] = 3, "é", [1, 2]
        file.attrs.create("text", "é".encode(), dtype=h5py.string_dtype("utf-8", 2))
        file.attrs["plain"] = np.bytes_("abc")
        file.attrs.create("reference", file["data"].ref, dtype=h5py.ref_dtype)
        file.attrs["empty"] = h5py.Empty("f4")

    with open_hdf5(written(tmp_path / "a.h5", make), "a.h5") as file:
        assert [file.attribute(name) for name in ("number", "text", "plain")] == [3, "é", "abc"]
        others = ("varying", "list", "reference", "empty", "absent")
        assert [file.attribute(name) for name in others] == [None] * 5


def test_many_claimed_chunks_at_one_place(tmp_path: Path) -> None:
    """An index whose chunks all lie at the same bytes claims more storage than the file has."""
    path = written(
        tmp_path / "index.h5",
        lambda f, _: f.create_dataset("data", data=np.zeros((64, 2**14), "u1"), chunks=(1, 2**14)),
    )
    content = path.read_bytes()
    with h5py.File(path) as file:
        chunk = file["data"].id.get_chunk_info(0)
        tree = content.index(b"TREE", 512)
    first = content.index(struct.pack("<Q", chunk.byte_offset), tree)
    patched = bytearray(content[: chunk.byte_offset + 2**15])
    # Each entry of the index: bytes and filters (8), three offsets (24), address (8).
    for number in range(64):
        patched[first + 40 * number : first + 40 * number + 8] = struct.pack(
            "<Q", chunk.byte_offset
        )
    patched[40:48] = struct.pack(
        "<Q", len(patched)
    )  # the end of the file, as its first block states it
    with (
        pytest.raises(DataError, match=r"stored bytes in a file of"),
        open_hdf5(bytes(patched), "index.h5") as file,
    ):
        file.dataset("data").read()


def test_nothing_of_this_machine_gets_into_a_corpus(tmp_path: Path) -> None:
    """A stranger's ScanObjectNN whose points are a local file's bytes."""
    secret = tmp_path / "secret"
    secret.write_bytes(np.linspace(0, 1, 2 * 2048 * 3, dtype="<f4").tobytes())
    member = io.BytesIO()
    with h5py.File(member, "w") as file:
        file.create_dataset(
            "data", (2, 2048, 3), "<f4", external=[(str(secret), 0, secret.stat().st_size)]
        )
        file["label"] = np.zeros(2, "u1")
    path = tmp_path / "h5_files.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(SPLITS["OBJ-BG"].members[0], member.getvalue())
    with pytest.raises(DataError, match=r"h5_files\.zip: .*\.h5: .*external storage"):
        list(open_source("scanobjectnn", SourceRequest(path=path)).entries())


def test_a_shard_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    write_corpus(folder, [("a", some_rows("a", 3))])
    shard = next(folder.glob("*.h5"))
    size = shard.stat().st_size
    with h5py.File(shard, "r+") as file:
        shape = file["points"].shape
        del file["points"]
        file.create_dataset("points", shape, "<i2", external=[("/etc/hostname", 0, 10**6)])
    with shard.open("ab") as file:
        file.truncate(size)
    with pytest.raises(CorpusError, match=shard.name):
        open_corpus(folder)[0]


@pytest.mark.parametrize("userblock", [0, 512])
def test_an_index_of_chunks_that_leads_back_to_itself(tmp_path: Path, userblock: int) -> None:
    """HDF5 follows it until its stack is full, which ends the process; one of several levels is read."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="earliest", userblock_size=userblock) as file:
        file.create_dataset("data", data=np.arange(300), chunks=(1,))
        file.create_dataset("others", data=np.zeros((90, 2)), chunks=(1, 1))
    content = path.read_bytes()
    for source in (path, content):
        with open_hdf5(source, path) as file:
            assert file.dataset("data").read().tolist() == list(range(300))
            assert not file.dataset("others").read().any()
    places = [at for at in range(len(content)) if content.startswith(b"TREE\1", at)]
    (top, *_) = (place for place in places if content[place + 5])
    leaf = next(place for place in places if not content[place + 5])
    for place, target in ((top, top), (leaf, leaf), (leaf, top)):
        damaged = bytearray(content)
        damaged[place + 5] = 1
        child = place + 24 + 24  # after the addresses of the neighbours and the first key
        damaged[child : child + 8] = (target - userblock).to_bytes(8, "little")
        path.write_bytes(damaged)
        for source in (path, bytes(damaged)):
            with (
                pytest.raises(DataError, match="'data' has an index that leads back to itself"),
                open_hdf5(source, "a.h5") as file,
            ):
                file.dataset("data").read()
