"""Whole checkpoints that attack: each is refused in one line, and leaves no trace."""

from __future__ import annotations

import codecs
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pointdistill.engine.weights.published import import_weights
from pointdistill.errors import CheckpointError
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
    codecs.lookup("cp437")  # Python's own reader of zips may load it for the names in one
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


@pytest.mark.parametrize("name", ["data.pkl", "byteorder"])
def test_a_huge_member_is_not_read_to_be_refused(tmp_path: Path, name: str) -> None:
    """Stored as torch.save stores it, in a file that is really as large."""
    path = tmp_path / "bad.ckpt"
    with zipfile.ZipFile(path, "w") as file:
        if name != "data.pkl":
            file.writestr("archive/data.pkl", program(table(state_dict=table(a=GOOD))))
        file.writestr(f"archive/{name}", bytes(48 << 20))
    refuse(path, f"member 'archive/{name}' has 50331648 bytes; accepted are ")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (text("torch") + text("load") + b"\x93" + sequence(RUN) + b"R", "torch.load"),
        # Memoized, so that the names are not in the step that uses them.
        (text("shelve") + b"\x94" + text("open") + b"\x94\x30\x30h\x00h\x01\x93", "shelve.open"),
        (text("buil\u200btins") + text("exec") + b"\x93", "builtins.exec"),
        (text("\uff4f\uff53") + text("system") + b"\x93" + sequence(RUN) + b"R", "os.system"),
        (b"cnumpy\nload\n)\x81}b", "numpy.load"),
        (b"cfoo\nBar\n)}\x92", "foo.Bar"),
    ],
)
def test_names_that_are_not_known_are_written_down_and_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: bytes, found: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = checkpoint(tmp_path / "bad.ckpt", value, table(a=GOOD, b=value))
    refuse(path, "among its weights, 'b' is no tensor but '")
    with pytest.raises(CheckpointError) as caught:
        import_weights(path, tmp_path / "out")
    assert found.split(".")[1] in str(caught.value)


@pytest.mark.parametrize("chain", [b"q\x010h\x00h\x01\x85R", b"q\x010]h\x01a", b"q\x01h\x01\x86"])
def test_what_is_nested_thousands_of_times_comes_apart_again(tmp_path: Path, chain: bytes) -> None:
    """Objects of objects, lists of lists, pairs of pairs: no deeper stack when they are built or dropped."""
    nested = b"cfoo\nbar\nq\x000]" + chain * 4_000
    refuse(checkpoint(tmp_path / "bad.ckpt", nested), "no encoder of this method")


def test_a_wide_encoder_of_which_nearly_all_is_missing_takes_no_memory(tmp_path: Path) -> None:
    """Its few weights state 32 blocks of width 16,384, which would take 384 GiB."""
    width = 1 << 14
    norm, rest = tensor(storage("0", width), (width,), (1,)), storage("1", 8 * width)
    named = {
        "encoder.norm.weight": norm,
        "encoder.stack.31.self_attn.norm.weight": norm,
        "patch_embedding.point_embedding.block_1.0.weight": tensor(rest, (8, 3), (3, 1)),
        "patch_embedding.point_embedding.block_2.0.weight": tensor(rest, (8, 16), (16, 1)),
        "patch_embedding.point_embedding.block_2.3.weight": tensor(rest, (width, 8), (8, 1)),
    }
    weights = table(**{f"teacher.point_encoder.{name}": value for name, value in named.items()})
    heads = table(encoder_config=table(num_heads=number(1)))
    pickled = program(table(state_dict=weights, hyper_parameters=heads))
    held = {"data/0": bytes(4 * width), "data/1": bytes(32 * width)}
    path = write_archive(tmp_path / "bad.ckpt", pickled, held)
    with bounded(), refused(r"does not fit this model: missing .*; give the whole checkpoint"):
        import_weights(path, tmp_path / "out")


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
