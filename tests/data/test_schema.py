"""The rule for records from elsewhere: bounded, of the stated types, refused in one line that names the place."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from pointdistill.data.files.files import read_json, read_record
from pointdistill.data.files.schema import (
    bounded_lines,
    from_plain,
    parse_json,
    read_at_most,
    refusing_damage,
    short_repr,
)
from pointdistill.errors import ConfigError, CorpusError, DataError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested more than 64 levels"),
        ("[" * 65 + "]" * 65, "nested more than 64 levels"),
        ('{"a":' * 70 + "1" + "}" * 70, "nested more than 64 levels"),
        ("NaN", "NaN is no number"),
        ("[1, -Infinity]", "-Infinity is no number"),
        ("1e999", "1e999 is too large"),
        ("9" * 5000, "a number of 5,000 digits"),
        ('"\\ud800"', "no Unicode"),
        ('{"a": 1', "line 1"),
        ("", "line 1"),
    ],
)
def test_json_that_no_record_of_ours_is(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_json_as_it_is_written() -> None:
    assert parse_json(b'{"a": [1, 0.5, "\xc3\xa9", null, true], "b": 18446744073709551615}') == {
        "a": [1, 0.5, "é", None, True],
        "b": 2**64 - 1,
    }
    assert parse_json("[" * 64 + "]" * 64)
    assert parse_json('"\\ud83d\\ude00"') == "😀"
    assert parse_json('"\\udcff"', any_text=True) == "\udcff"


def test_a_record_is_no_larger_than_it_may_be() -> None:
    with pytest.raises(ValueError, match="101 bytes, at most 100"):
        parse_json(" " * 99 + "11", most=100)
    with pytest.raises(ValueError, match="more than the 10 bytes"):
        read_at_most(io.BytesIO(bytes(11)), 10)
    assert list(bounded_lines(io.BytesIO(b"ab\ncd"), 3)) == [b"ab\n", b"cd"]
    with pytest.raises(ValueError, match="a line of more than 3 bytes"):
        list(bounded_lines(io.BytesIO(b"ab\nabcd"), 3))


def test_a_pipe_in_place_of_a_record_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match=r"pipe\.json: .*no regular file"):
        read_json(tmp_path / "pipe.json")
    with pytest.raises(DataError, match="is a folder"):
        read_json(tmp_path)


@dataclass(frozen=True, kw_only=True)
class Inner:
    number: int


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    pair: tuple[int, str] = (1, "a")
    many: tuple[Inner, ...] = ()
    table: Mapping[str, tuple[float, ...]] | None = None
    kind: Literal["a", "b"] = "a"
    anything: Any = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner": 3}, "inner: expected a table of settings, got 3"),
        ({"inner": {"number": 2**64}}, "inner.number must be a number of at most 64 bits"),
        ({"inner": {"number": True}}, "inner.number must be of type int, got True"),
        ({"pair": [1]}, "pair must have 2 values, got 1"),
        ({"pair": [1, 2]}, "pair must be of type str, got 2"),
        ({"many": [{"number": "1"}]}, "many.number must be of type int"),
        ({"table": {"x": [1, "2"]}}, "table.x must be of type float"),
        ({"table": [1]}, "table must be of type .*Mapping"),
        ({"kind": "c"}, "kind must be one of a, b, got 'c'"),
        ({"kind": ["a"]}, "kind must be one of a, b"),
        ({"x" * 10**6: 1}, "unknown setting 'xxx"),
    ],
)
def test_a_value_of_another_type_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_plain(Outer, {"inner": {"number": 1}} | change)
    assert len(str(caught.value)) < 300


def test_a_partial_record_leaves_the_rest_alone() -> None:
    found = from_plain(
        Outer, {"inner": {"number": 1}, "later": 2, "table": {"x": [1]}}, partial=True
    )
    assert found == Outer(inner=Inner(number=1), table={"x": (1.0,)})


def test_a_record_in_a_file_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "outer.json"
    path.write_text('{"inner": {"number": null}}')
    with pytest.raises(
        DataError, match=r"outer\.json: damaged \(inner.number must be of type int.*\); copy"
    ):
        read_record(path, Outer)


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (RecursionError("maximum"), "place: damaged (nested too deeply); copy or make it again"),
        (
            MemoryError(),
            "place: damaged (it needs more memory than there is); copy or make it again",
        ),
        (KeyError("name"), "place: damaged (without 'name'); copy or make it again"),
        (ValueError("one\ntwo"), "place: damaged (one); copy or make it again"),
        (DataError("place: as it was"), "place: as it was"),
        (DataError("something else"), "place: damaged (something else); copy or make it again"),
        (FileNotFoundError(2, "No such file"), "place: no such file"),
    ],
)
def test_whatever_goes_wrong_is_one_line(cause: Exception, message: str) -> None:
    with pytest.raises(CorpusError) as caught, refusing_damage("place", error=CorpusError):
        raise cause
    assert str(caught.value) == message
    assert caught.value.__cause__ is cause


def test_ctrl_c_is_no_damage() -> None:
    with pytest.raises(KeyboardInterrupt), refusing_damage("place"):
        raise KeyboardInterrupt


def test_a_value_of_any_size_fits_a_line() -> None:
    assert len(short_repr("x" * 10**6)) < 100
    assert len(short_repr([["x" * 10**5] * 100] * 100)) < 4000
