"""Whole checkpoints that attack: each is refused in one line, and leaves no trace."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pointdistill.engine.exchange.import_weights import import_weights
from tests.engine.handmade import (
    bounded,
    call,
    number,
    program,
    refused,
    sequence,
    storage,
    table,
    tensor,
    text,
    write_archive,
)

GOOD = tensor(storage("0", 6), (2, 3), (3, 1))
SIX = {"data/0": struct.pack("<6f", *range(6))}


def checkpoint(path: Path, settings: bytes, weights: bytes | None = None) -> Path:
    """A file whose weights are honest and whose settings are not, or the other way round."""
    pickled = program(
        table(state_dict=weights or table(a=GOOD), hyper_parameters=table(x=settings))
    )
    return write_archive(path, pickled, SIX)


def refuse(path: Path, pattern: str) -> None:
    """In one line, in little memory and time, with nothing written and nothing imported."""
    before, loaded = sorted(path.parent.iterdir()), set(sys.modules)
    with bounded(), refused(pattern):
        import_weights(path, path.parent / "out")
    assert sorted(path.parent.iterdir()) == before
    assert set(sys.modules) == loaded


RUN = text("echo > marker")


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("builtins", "eval", [text("open('marker', 'w')")]),
        ("builtins", "getattr", [text("a"), text("b")]),
        ("os", "system", [RUN]),
        ("posix", "system", [RUN]),
        ("nt", "system", [RUN]),
        ("subprocess", "run", [RUN]),
        ("sys", "exit", [number(1)]),
        ("importlib", "import_module", [text("antigravity")]),
        ("copyreg", "_reconstructor", [text("a"), text("b"), b"N"]),
        ("copy_reg", "__newobj__", [text("a")]),
        ("codecs", "open", [text("marker"), text("w")]),
        ("operator", "attrgetter", [text("os.system")]),
        ("operator", "methodcaller", [text("system"), RUN]),
        ("timeit", "timeit", [text("open('marker', 'w')")]),
        ("pydoc", "pipepager", [text("x"), text("tee marker")]),
        ("gzip", "open", [text("marker"), text("wb")]),
        ("sqlite3", "connect", [text("marker")]),
        ("urllib.request", "urlretrieve", [text("http://127.0.0.1:9"), text("marker")]),
        ("torch._utils", "os.system", [RUN]),
        ("torch.serialization.os", "system", [RUN]),
        ("pathlib", "Path.touch", [text("marker")]),
    ],
)
def test_names_that_run_open_or_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str, arguments: list[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = f"names '{module}.{name}', which weights do not need"
    refuse(checkpoint(tmp_path / "bad.ckpt", call(module, name, *arguments)), expected)


def test_bytes_of_old_pickles_are_no_weights(tmp_path: Path) -> None:
    """Protocol 2 makes bytes by calling ``_codecs.encode``: not refused by name, not called, and no tensor."""
    value = call("_codecs", "encode", text("x"), text("latin1"))
    path = checkpoint(tmp_path / "bad.ckpt", value, table(a=GOOD, b=value))
    refuse(path, "among its weights, 'b' is no tensor but '_codecs.encode'")


def test_a_chain_of_getattr(tmp_path: Path) -> None:
    """getattr(getattr(<class>, '__init__'), '__globals__')['os'].system: the first link is refused."""
    link = (
        b"cbuiltins\ngetattr\n" + sequence(b"ccollections\nOrderedDict\n", text("__init__")) + b"R"
    )
    chain = b"cbuiltins\ngetattr\n" + sequence(link, text("__globals__")) + b"R"
    refuse(checkpoint(tmp_path / "bad.ckpt", chain), "names 'builtins.getattr'")


class Attack:
    """What pickle itself makes of an object that asks to be built by a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("open('marker', 'w').close()",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_every_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    """As ``torch.save`` and pickle write it; loading it so would have made the marker."""
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"state_dict": {}, "x": Attack()}, protocol=protocol)
    path = write_archive(tmp_path / "bad.ckpt", data)
    refuse(path, r"names '(builtins|__builtin__)\.eval'|which torch\.save does not write")
    pickle.loads(data)
    assert (tmp_path / "marker").exists()


def test_saved_by_torch_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.ones(2)}, "x": Attack()}, tmp_path / "bad.ckpt")
    refuse(tmp_path / "bad.ckpt", r"names '(builtins|__builtin__)\.eval'")
    torch.load(tmp_path / "bad.ckpt", weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(table(__class__=text("Tensor")), id="attributes"),
        pytest.param(sequence(GOOD, b"N"), id="a tensor"),
        pytest.param(table(shape=sequence(number(2))), id="a shape"),
    ],
)
def test_state_does_not_make_a_placeholder_a_weight(tmp_path: Path, state: bytes) -> None:
    """BUILD on it, items set in it, or a parameter around it: it stays what it is."""
    thing = call("somewhere", "Tensor") + state + b"b"
    wrapped = b"ctorch._utils\n_rebuild_parameter\n" + sequence(thing, b"\x88", b"N") + b"R"
    for value in (thing, wrapped, call("somewhere", "Tensor") + text("k") + GOOD + b"s"):
        path = checkpoint(tmp_path / "bad.ckpt", b"N", table(a=GOOD, b=value))
        refuse(path, "among its weights, 'b' is no tensor but 'somewhere.Tensor'")


def test_attributes_of_the_table_of_weights_change_nothing(tmp_path: Path) -> None:
    """BUILD on an ordered dictionary gives it attributes; weights hidden there are not read."""
    ordered = b"ccollections\nOrderedDict\n)R(" + text("a") + GOOD + b"u"
    ordered += table(_metadata=call("somewhere", "Tensor"), b=GOOD) + b"b"
    refuse(checkpoint(tmp_path / "bad.ckpt", b"N", ordered), "no encoder of this method")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_bombs(tmp_path: Path, method: int) -> None:
    """16 MiB of zeros in a few KiB, as a tensor's bytes and as the pickle itself."""
    zeros = bytes(16 << 20)
    tensors = write_archive(
        tmp_path / "bad.ckpt",
        program(table(state_dict=table(a=tensor(storage("0", 4 << 20), (4 << 20,), (1,))))),
        {"data/0": zeros},
        compression=method,
    )
    assert tensors.stat().st_size < 1 << 18
    refuse(tensors, "compressed or encrypted, and torch.save does neither")
    refuse(
        write_archive(tmp_path / "bad.ckpt", zeros, compression=method), "compressed or encrypted"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="the command is written for POSIX")
def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "bad.ckpt", call("os", "system", text("echo > marker")))
    done = subprocess.run(
        [sys.executable, "-m", "pointdistill", "import-weights", path.name, "--output", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "bad.ckpt: its pickle names 'os.system'" in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.ckpt"]
