"""Pickles and checkpoints put together step by step, honest and hostile ones, and what is expected of both."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pointdistill.engine.weights.published import ImportedEncoder
from pointdistill.errors import CheckpointError

MIB = 1 << 20

FLOATS = b"ctorch\nFloatStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def sequence(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def table(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(name) + item for name, item in items.items()) + b"u"


def storage(key: str, elements: int, kind: bytes = FLOATS) -> bytes:
    return sequence(text("storage"), kind, text(key), text("cpu"), number(elements)) + b"Q"


def tensor(
    stored: bytes, shape: tuple[int, ...], stride: tuple[int, ...], *, offset: int = 0
) -> bytes:
    sizes, steps = (sequence(*map(number, values)) for values in (shape, stride))
    return REBUILD + sequence(stored, number(offset), sizes, steps, b"\x89", b"N") + b"R"


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + sequence(*arguments) + b"R"


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def write_archive(
    path: Path,
    pickled: bytes,
    members: dict[str, bytes] | None = None,
    *,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A zip in the layout of ``torch.save``; ``members`` beside the pickle, such as ``data/0``."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
        for name, data in (members or {}).items():
            file.writestr(name if name.startswith(("/", "..")) else f"archive/{name}", data)
    return path


@contextmanager
def refused(pattern: str) -> Iterator[None]:
    """In one line."""
    with pytest.raises(CheckpointError, match=pattern) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


@contextmanager
def bounded(mib: float = 32, seconds: float = 5.0) -> Iterator[None]:
    """In memory that Python allocates, and in time."""
    tracemalloc.start()
    began = time.perf_counter()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mib * MIB
        assert time.perf_counter() - began < seconds
    finally:
        tracemalloc.stop()


def same(one: ImportedEncoder, other: ImportedEncoder) -> bool:
    theirs = other.encoder.state_dict()
    return one.encoder.config == other.encoder.config and all(
        torch.equal(value, theirs[name]) for name, value in one.encoder.state_dict().items()
    )
