"""Checkpoints that are damaged or hostile: refused in one line, within bounds, with nothing done."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pointdistill.engine.weights.published import read_published
from pointdistill.engine.weights.torch_checkpoint import open_checkpoint
from pointdistill.engine.weights.torch_zip import LIMITS
from pointdistill.errors import CheckpointError
from tests.engine.handmade import (
    MIB,
    bounded,
    call,
    number,
    program,
    refused,
    same,
    sequence,
    storage,
    table,
    tensor,
    text,
    write_archive,
)


@pytest.fixture
def tiny(golden_dir: Path) -> Path:
    return golden_dir / "official_tiny.ckpt"


GOOD = tensor(storage("0", 6), (2, 3), (3, 1))
SIX = {"data/0": struct.pack("<6f", *range(6))}


def weights_of(**items: bytes) -> bytes:
    return program(table(state_dict=table(**items)))


def read_weights(path: Path) -> dict[str, Tensor]:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.tensors(checkpoint.state_dict())


def test_the_handmade_file_is_a_checkpoint(tmp_path: Path) -> None:
    """So that what is refused below is refused for the one thing that is changed."""
    found = read_weights(write_archive(tmp_path / "good.ckpt", weights_of(a=GOOD), SIX))
    assert found["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


def attack(module: str, name: str, *arguments: bytes) -> bytes:
    return program(table(state_dict=table(a=GOOD), hyper_parameters=call(module, name, *arguments)))


@pytest.mark.skipif(sys.platform == "win32", reason="the attacks are written for POSIX")
def test_commands_and_files(tmp_path: Path) -> None:
    """torch itself, told to trust the files, does what they ask."""
    marker = tmp_path / "marker"
    attacks = {
        "os.system": attack("os", "system", text(f"echo > {marker}")),
        "subprocess.getoutput": attack("subprocess", "getoutput", text(f"echo > {marker}")),
        "__builtin__.exec": attack(
            "__builtin__", "exec", text(f"open({str(marker)!r}, 'w').close()")
        ),
        "io.FileIO": attack("io", "FileIO", text(str(marker)), text("w")),
    }
    for named, pickled in attacks.items():
        path = write_archive(tmp_path / "bad.ckpt", pickled, SIX)
        with refused(f"bad.ckpt: its pickle names '{named}', which weights do not need"):
            read_published(path)
        assert not marker.exists()
    torch.load(path, weights_only=False)["hyper_parameters"].close()
    assert marker.exists()


@pytest.mark.parametrize("depth", [1, 3])
def test_a_placeholder_among_the_weights(tmp_path: Path, depth: int) -> None:
    value = call("somewhere", "Tensor", number(3))
    for _ in range(depth - 1):
        value = b"ctorch._utils\n_rebuild_parameter\n" + sequence(value, b"\x88", b"N") + b"R"
    path = write_archive(tmp_path / "bad.ckpt", weights_of(a=GOOD, b=value), SIX)
    with refused("among its weights, 'b' is no tensor but 'somewhere.Tensor'"):
        read_published(path)


@pytest.mark.parametrize("value", [table(c=GOOD), b"]" + GOOD + b"a", number(3), text("x"), b"N"])
def test_something_else_among_the_weights(tmp_path: Path, value: bytes) -> None:
    path = write_archive(tmp_path / "bad.ckpt", weights_of(a=GOOD, b=value), SIX)
    with refused("among its weights, 'b' is no tensor but"):
        read_published(path)


def test_a_negated_view_is_not_taken_for_its_values(tmp_path: Path) -> None:
    marked = GOOD[:-2] + table(neg=b"\x88") + b"tR"
    with refused("'a' is no tensor but 'torch._utils._rebuild_tensor_v2'"):
        read_weights(write_archive(tmp_path / "bad.ckpt", weights_of(a=marked), SIX))


@pytest.mark.parametrize(
    ("value", "pattern"),
    [
        (
            tensor(storage("0", 7), (7,), (1,)),
            "storage 0 states 7 values in 28 bytes, which are 24",
        ),
        (
            tensor(storage("0", 5), (5,), (1,)),
            "storage 0 states 5 values in 20 bytes, which are 24",
        ),
        (tensor(storage("0", 2**60), (6,), (1,)), "storage 0 states 1152921504606846976 values"),
        (
            tensor(storage("1", 6), (6,), (1,)),
            "storage 1 states 6 values in 24 bytes, which are mis",
        ),
        (tensor(storage("0", 6), (7,), (1,)), r"states '\(7,\)' values from 0 on in storage 0"),
        (tensor(storage("0", 6), (6,), (1,), offset=1), r"states '\(6,\)' values from 1 on"),
        (tensor(storage("0", 6), (2, 3), (4, 1)), r"states '\(2, 3\)' values from 0 on"),
        (tensor(storage("0", 6), (2**20, 2**20), (0, 0)), r"states '\(1048576, 1048576\)' values"),
        (tensor(storage("0", 6), (2**200, 2**50), (0, 0)), "which holds 6"),
        (tensor(storage("0", 6), (2, 3), (3,)), "that is no count"),
        (tensor(storage("0", 6), (-6,), (1,)), "that is no count"),
        (tensor(storage("0", 6), (1,) * 17, (1,) * 17), "or more than 16 axes"),
        (tensor(storage("../0", 6), (6,), (1,)), "names a storage '../0'"),
        (tensor(text("/etc/passwd") + b"Q", (6,), (1,)), "a persistent id that is not a storage"),
        (tensor(sequence(text("storage")) + b"Q", (6,), (1,)), "a persistent id that is not"),
        (tensor(number(3), (6,), (1,)), "makes a tensor of something that is no storage"),
        (
            sequence(GOOD, tensor(storage("0", 3, b"ctorch\nLongStorage\n"), (3,), (1,))),
            "gives storage 0 two types",
        ),
        (
            sequence(storage("0", 6), b"ctorch.storage\nUntypedStorage\n"),
            "is no tensor but 'tuple'",
        ),
    ],
)
def test_sizes_that_are_not_those_held(tmp_path: Path, value: bytes, pattern: str) -> None:
    path = write_archive(tmp_path / "bad.ckpt", weights_of(a=value), SIX)
    with bounded(), refused(pattern):
        read_weights(path)


def test_one_storage_does_not_fill_the_memory_with_tensors(tmp_path: Path) -> None:
    """Twice what is held passes, as for tied weights; a thousand times does not."""
    names = [f"w{i}" for i in range(1000)]
    path = write_archive(tmp_path / "two.ckpt", weights_of(**dict.fromkeys(names[:2], GOOD)), SIX)
    assert len(read_weights(path)) == 2
    path = write_archive(tmp_path / "many.ckpt", weights_of(**dict.fromkeys(names, GOOD)), SIX)
    with refused("states tensors of 24000 bytes and holds 24"):
        read_weights(path)


# Zips that are not those of torch.save.


def test_a_zip_bomb(tmp_path: Path) -> None:
    path = write_archive(
        tmp_path / "bomb.ckpt",
        weights_of(a=tensor(storage("0", 4 * MIB), (4 * MIB,), (1,))),
        {"data/0": bytes(16 * MIB)},
        compression=zipfile.ZIP_DEFLATED,
    )
    assert path.stat().st_size < MIB
    with bounded(), refused("is compressed or encrypted, and torch.save does neither"):
        read_published(path)


@pytest.mark.parametrize("name", ["../../etc/cron", "/etc/cron", "a/../../b", "a\\..\\b"])
def test_members_outside_of_the_archive(tmp_path: Path, name: str) -> None:
    path = write_archive(tmp_path / "bad.ckpt", weights_of(a=GOOD), SIX | {name: b"x"})
    with refused("has a name that leads out of the archive"):
        read_published(path)


def test_members_named_twice(tmp_path: Path) -> None:
    path = tmp_path / "bad.ckpt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", weights_of(a=GOOD))
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("archive/data.pkl", weights_of(a=GOOD))
    with refused("names member 'archive/data.pkl' twice"):
        read_published(path)


def test_members_over_each_other(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "bad.ckpt", weights_of(a=GOOD), SIX)
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 42 : entry + 46] = bytes(4)  # The last member begins where the first one does.
    path.write_bytes(data)
    with refused("that it does not hold"):
        read_published(path)


def test_a_table_of_contents_beyond_the_limit(tiny: Path) -> None:
    with refused(r"lists \d+ members in \d+ bytes; accepted are 100 in"):
        read_published(tiny, limits=replace(LIMITS, members=100))


@pytest.mark.parametrize(("before", "behind"), [(b"junk", b""), (b"", b"junk"), (b"PK" * 20, b"")])
def test_a_zip_with_something_before_or_behind_it(
    tmp_path: Path, before: bytes, behind: bytes
) -> None:
    path = write_archive(tmp_path / "bad.ckpt", weights_of(a=GOOD), SIX)
    path.write_bytes(before + path.read_bytes() + behind)
    with refused("something was added to it"):
        read_published(path)


def test_a_table_of_contents_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    """Its size is what the file's end states."""
    path = tmp_path / "bad.ckpt"
    size = 48 * MIB
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, size, 0, 0)
    path.write_bytes(bytes(size) + end)
    with (
        bounded(),
        refused(f"lists its members in {size} bytes; accepted are {LIMITS.directory_bytes}"),
    ):
        read_published(path)


def test_big_endian_values(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "bad.ckpt", weights_of(a=GOOD), SIX | {"byteorder": b"big"})
    with refused("byte order 'big'; accepted is 'little'"):
        read_published(path)


def test_two_pickles(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "bad.ckpt", weights_of(a=GOOD))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("other/data.pkl", weights_of(a=GOOD))
    with refused("holds 2 pickles"):
        read_published(path)


def test_files_that_are_no_zip(tmp_path: Path) -> None:
    path = tmp_path / "any.ckpt"
    with refused(r"any\.ckpt: cannot be read \(No such file or directory\)"):
        read_published(path)
    path.write_bytes(b"")
    with refused(r"not a checkpoint \(0 bytes\)"):
        read_published(path)
    path.write_bytes(b"something else altogether")
    with refused("is not a checkpoint: expected the zip that torch.save writes"):
        read_published(path)
    torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False)
    with refused(r"written by torch before 1\.6, not as a zip"):
        read_published(path)
    torch.save({"other": 1}, path)
    with refused("holds no table 'state_dict' of weights"):
        read_published(path)
    with refused("cannot be read"):
        read_published(tmp_path)


# Damage by chance.


@contextmanager
def process_bounded(mib: int = 128, *, seconds: float) -> Iterator[None]:
    """The whole process, torch's own memory with it, reaches at most a little further than before."""
    resource = pytest.importorskip("resource")
    kib = 1024 if sys.platform == "darwin" else 1  # macOS counts bytes.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < mib * 1024 * kib
    assert time.perf_counter() - began < seconds


def test_cut_anywhere(tiny: Path, tmp_path: Path) -> None:
    whole = tiny.read_bytes()
    rng = random.Random(0)
    path = tmp_path / "cut.ckpt"
    for length in [*rng.sample(range(len(whole)), 60), len(whole) - 1, len(whole) - 22, 21, 22, 1]:
        path.write_bytes(whole[:length])
        with refused("cut short|expected the zip|not a checkpoint"):
            read_published(path)


def test_any_byte_flipped_is_refused_or_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    whole, good = tiny.read_bytes(), read_published(tiny)
    rng = random.Random(0)
    directory = whole.index(b"PK\x01\x02")
    places = [
        *rng.sample(range(len(whole)), 50),
        *rng.sample(range(directory, len(whole)), 30),
        *rng.sample(range(directory // 20), 20),
    ]
    path = tmp_path / "flipped.ckpt"
    came_through, messages = 0, []
    with process_bounded(seconds=30):
        for place in places:
            flipped = bytearray(whole)
            flipped[place] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            try:
                assert same(read_published(path), good)
                came_through += 1
            except CheckpointError as error:
                messages.append(str(error))
    assert not any("\n" in message for message in messages)
    assert 0 < came_through < len(places)


def test_a_damaged_pickle_with_the_right_checksum(tmp_path: Path) -> None:
    """Whatever its steps become: an answer or a refusal, and never another error."""
    honest = program(
        table(
            state_dict=table(a=GOOD, b=GOOD),
            thing=call("foo", "Bar", table(x=number(2**70))) + table(y=b"\x88") + b"b",
            loops=b"](" + sequence(b"N", b"\x89") + b"G" + struct.pack(">d", 0.5) + b"e",
        )
    )
    rng = random.Random(0)
    answers, messages = 0, []
    with process_bounded(seconds=30):
        for _ in range(400):
            damaged = bytearray(honest)
            for _ in range(rng.choice([1, 1, 3])):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            path = write_archive(tmp_path / "any.ckpt", bytes(damaged), SIX)
            try:
                answers += len(read_weights(path)) > 0
            except CheckpointError as error:
                messages.append(str(error))
    assert not any("\n" in message for message in messages)
    assert 0 < answers < 400


def test_memory_of_the_whole_process(tmp_path: Path) -> None:
    """A file that asks for all there is, in a process that may have 200 MiB more than it starts with."""
    resource = pytest.importorskip("resource")
    assert resource
    path = write_archive(
        tmp_path / "bad.ckpt",
        program(
            table(
                state_dict=table(a=GOOD),
                x=b"(" + b"\x8f" * 300_000 + b"t",
                y=b"\x8d" + b"\xff" * 7 + b"\x7f",
            )
        ),
        SIX,
    )
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from pointdistill.engine.weights.published import read_published\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)\n"
        "try: read_published(Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not say how much memory a process has")
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith(f"CheckpointError {path}: its pickle is damaged ('expected")
