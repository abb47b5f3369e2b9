"""Pickles read as data: honest ones as pickle itself reads them, hostile ones refused with nothing done."""

from __future__ import annotations

import pickle
import struct
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from pointdistill.data.files.pickle_machine import Builder, PickleLimits, Placeholder, Purpose
from pointdistill.data.files.pickles import read_pickle
from pointdistill.errors import DataError
from tests.engine.handmade import MIB, bounded, call, number, program, sequence, table, text

KNOWN = {("collections", "OrderedDict"): Builder(lambda _: OrderedDict())}
LIMITS = PickleLimits()
PURPOSE = Purpose(contents="weights", writer="torch.save", advice="save it anew")


def read(data: bytes, limits: PickleLimits = LIMITS) -> Any:
    return read_pickle(
        data, known=KNOWN, persistent=lambda identity: identity, limits=limits, purpose=PURPOSE
    )


@contextmanager
def refused(pattern: str) -> Iterator[None]:
    """In one line."""
    with pytest.raises(DataError, match=pattern) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


SHARED = [1, 2]
PLAIN = {
    "epoch": 7,
    "large": [2**31, -(2**31), 2**62, 2**100, -1],
    "rates": (0.5, float("inf")),
    "none": [None, True, False],
    "nested": {"a": {"b": ([], (), {})}, 3: "three"},
    "text": "Ω" * 300,
    "shared": (SHARED, SHARED),
    "one": (1,),
    "order": OrderedDict(b=1, a=2),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_read_as_pickle_reads_them(protocol: int) -> None:
    found = read(pickle.dumps(PLAIN, protocol=protocol))
    assert found == PLAIN
    assert found["shared"][0] is found["shared"][1]
    assert list(found["order"]) == ["b", "a"]


def test_bytes_and_sets_of_later_protocols() -> None:
    value = {"raw": b"\x00\xff", "long": b"x" * 300, "set": {1, "a"}, "frozen": frozenset({2})}
    assert read(pickle.dumps(value, protocol=4)) == value
    assert read(pickle.dumps(bytearray(b"abc"), protocol=5)) == b"abc"


def test_an_object_becomes_a_placeholder_that_writes_down_what_it_was_given() -> None:
    found = read(pickle.dumps({"path": PurePosixPath("a", "b")}, protocol=2))["path"]
    assert isinstance(found, Placeholder)
    assert (found.name, found.received) == ("pathlib.PurePosixPath", [("a", "b")])


def test_a_placeholder_takes_state_items_and_named_arguments() -> None:
    thing = b"cfoo.bar\nThing\n)\x81" + table(width=number(3)) + b"b"
    thing += b"(" + text("k") + number(1) + b"u" + number(2) + b"a"
    found = read(program(thing))
    assert found.received == [(), {"width": 3}, "k", 1, 2]
    named = b"\x80\x04cfoo\nThing\n)" + table(depth=number(2)) + b"\x92."
    assert read(named).received == [(), {"depth": 2}]


def test_naming_a_module_does_not_import_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bait.py").write_text("from pathlib import Path\nPath('sprung').touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = read(program(call("bait", "Thing", number(1)) + b"N" + b"b"))
    assert found.name == "bait.Thing"
    assert "bait" not in sys.modules
    assert not (tmp_path / "sprung").exists()


def opens(marker: Path, module: str = "io") -> bytes:
    return program(call(module, "open", text(str(marker)), text("w")))


def runs(marker: Path, module: str = "os") -> bytes:
    return program(call(module, "system", text(f"echo > {marker}")))


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (runs, "os.system"),
        (lambda m: runs(m, "posix"), "posix.system"),
        (opens, "io.open"),
        (lambda m: opens(m, "builtins"), "builtins.open"),
        (lambda m: opens(m, "__builtin__"), "__builtin__.open"),
        (
            lambda m: program(
                call("subprocess", "check_call", b"]" + text("touch") + b"a" + text(str(m)) + b"a")
            ),
            "subprocess.check_call",
        ),
        (
            lambda m: program(
                call("builtins", "exec", text(f"__import__('pathlib').Path({str(m)!r}).touch()"))
            ),
            "builtins.exec",
        ),
        # The name comes from the stack, through the memo, and reaches over a module that is accepted.
        (
            lambda m: (
                b"\x80\x04"
                + text("pathlib")
                + b"\x94"
                + text("os.system")
                + b"\x940h\x00h\x01\x93"
                + sequence(text(f"echo > {m}"))
                + b"R."
            ),
            "pathlib.os.system",
        ),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="the attacks are written for POSIX")
def test_an_attack_is_refused_and_does_nothing(tmp_path: Path, attack: Any, named: str) -> None:
    """That it is an attack is shown by letting pickle itself load it."""
    marker = tmp_path / "marker"
    with refused(f"names '{named}', which weights do not need"):
        read(attack(marker))
    assert not marker.exists()
    done = pickle.loads(attack(marker))
    getattr(done, "close", lambda: None)()
    assert marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("importlib", "import_module"),
        ("importlib.machinery", "SourceFileLoader"),
        ("sys", "modules"),
        ("nt", "system"),
        ("os.path", "join"),
        ("torch.os", "system"),
        ("torch", "sys"),
        ("foo.subprocess.bar", "Popen"),
        (" os", "system"),
        ("copyreg", "_reconstructor"),
        ("copy_reg", "__newobj__"),
        ("runpy", "run_path"),
        ("pickle", "loads"),
        ("ctypes", "CDLL"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("collections", "OrderedDict.__init__"),
    ],
)
def test_names_that_have_no_place_among_weights(module: str, name: str) -> None:
    """Whether it is called or only named, and in whichever of the two ways a pickle names."""
    with refused("which weights do not need"):
        read(b"\x80\x04" + text(module) + text(name) + b"\x930N.")
    if module == module.strip():
        with refused("which weights do not need"):
            read(program(f"c{module}\n{name}\n0N".encode()))


@pytest.mark.parametrize(
    ("step", "data"),
    [
        ("INST", b"(ios\nsystem\n."),
        ("OBJ", b"(cfoo\nThing\no."),
        ("EXT1", b"\x82\x01."),
        ("EXT4", b"\x84\x01\x00\x00\x00."),
        ("PERSID", b"P0\n."),
        ("NEXT_BUFFER", b"\x97."),
        ("INT", b"I1\n."),
        ("LONG", b"L" + b"9" * 5000 + b"L\n."),
        ("STRING", b"S'a'\n."),
        ("GET", b"g0\n."),
    ],
)
def test_steps_that_torch_does_not_write(step: str, data: bytes) -> None:
    with refused(f"has a step {step}, which torch.save does not write"):
        read(data)


@pytest.mark.parametrize(
    ("data", "pattern"),
    [
        (b"X" + struct.pack("<I", 2**31) + b"a.", "expected 2147483648 bytes"),
        (b"\x8d" + struct.pack("<Q", 2**62) + b"a.", "expected 4611686018427387904 bytes"),
        (b"\x8e" + struct.pack("<Q", 2**64 - 1) + b"a.", "damaged"),
        (b"\x8b" + struct.pack("<i", 2**31 - 1) + b"a.", "damaged"),
        (b"\x8b" + struct.pack("<i", -1) + b"a.", "damaged"),
        (b"\x8a\x40" + b"\x7f" * 64 + b".", "an integer of 511 bits; accepted are 256"),
        (
            b"\x95" + struct.pack("<Q", 2**62) + b"N.",
            "a frame of 4611686018427387904 bytes and has 2",
        ),
        (b"(" * 300, "nests deeper than 200"),
        (b"N" * (LIMITS.pickle_bytes + 1), "8388609 bytes; accepted are 8388608"),
        (text("a" * 200) * 2 + b"\x93.", "a global of 400 characters"),
    ],
)
def test_sizes_beyond_the_limits(data: bytes, pattern: str) -> None:
    with bounded(mib=20), refused(pattern):
        read(data)


def test_more_steps_than_the_limit() -> None:
    limits = replace(LIMITS, operations=1000)
    assert read(program(b"N0" * 499 + b"N")[2:], limits) is None
    with refused("more than 1000 steps"):
        read(program(b"N0" * 500 + b"N")[2:], limits)


def far_memo() -> bytes:
    return b"N" + b"".join(b"r" + struct.pack("<I", 2**32 - 1 - i) for i in range(2000)) + b"."


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(far_memo(), id="memo at the far end"),
        pytest.param(b")" + b"\x85" * 20_000 + b".", id="tuples in tuples"),
        pytest.param(b"cfoo\nbar\n" + b"(NtR" * 100 + b".", id="calls of calls"),
        pytest.param(b"}" + b")" + b"2\x86" * 200 + b"Ns.", id="key of 2^200 parts"),
        pytest.param(b"\x8f(" + b")" + b"2\x86" * 200 + b"\x90.", id="member of 2^200 parts"),
        pytest.param(b"]" + b"2" * 100 + b"a" * 100 + b".", id="list in itself"),
        pytest.param(
            b"}("
            + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(2**20, 2**20 + 4000))
            + b"u.",
            id="keys that collide",
        ),
    ],
)
def test_values_that_would_be_costly_elsewhere_cost_little(data: bytes) -> None:
    with bounded(mib=10):
        read(data)


@pytest.mark.parametrize("key", [2**16, -1, 2**61, 0.5])
def test_numbers_whose_hashes_can_be_chosen_are_wrapped(key: float) -> None:
    """175,000 well chosen keys made a table take half a minute."""
    (read_key,) = read(pickle.dumps({key: None}, protocol=2))
    assert isinstance(read_key, Placeholder)
    assert read_key.received == [key]
    assert read(pickle.dumps({2**16 - 1: 1, None: 2, "a": 3}, protocol=2)) == {
        2**16 - 1: 1,
        None: 2,
        "a": 3,
    }


def test_memory_is_linear_in_the_number_of_steps() -> None:
    """Empty sets are the largest objects that one step makes: some 220 bytes each."""
    count = 20_000
    with bounded(mib=300 * count / MIB):
        read(b"(" + b"\x8f" * count + b"t.", replace(LIMITS, operations=count + 3))


@pytest.mark.parametrize(
    "body",
    [
        text("os.system") + sequence(number(1)) + b"R",  # a text
        number(1) + b")\x81",
        b"ccollections\nOrderedDict\n" + b"]R",  # arguments that are a list
        b"ccollections\nOrderedDict\n)}\x92",
        b"}" + table(a=number(1)) + b"b",
        number(1) + b"Na",
        b"]" + text("a") + b"Ns",
        b"](" + text("a") + b"u",
        b"}(" + text("a") + b"u",
        number(1) + text("name") + b"\x93",
        b"h\x05",
        b"(",
        b"t",
        b"0",
        b"N(N0000",
        b"NN",
        b"\x80\x06N",
    ],
)
def test_steps_that_do_not_fit_each_other(body: bytes) -> None:
    with refused("its pickle"):
        read(program(body))


@pytest.mark.parametrize(
    "data",
    [b"", b"N", b"X", b"K", b"\xff.", b"cos", b"X\x02\x00\x00\x00\xff\xff.", b"cfoo\nTh\\!ing\n."],
)
def test_cut_short_or_damaged(data: bytes) -> None:
    with refused("damaged"):
        read(data)


def test_nothing_may_follow_the_end() -> None:
    with refused("goes on for 3 bytes after its end"):
        read(b"N.abc")


def test_names_in_messages_are_short_and_without_control_characters() -> None:
    with refused(r"names 'os\.\\x1b\[31m"):
        read(program(b"cos\n\x1b[31m" + b"y" * 120 + b"\n"))
