"""One rule for every record that may come from elsewhere: bounded, of the stated types, refused in one line.

A corpus, a run, an encoder and an embedding are shared between people, and disks damage files. Whoever reads such
a record reads it inside `refusing_damage`, parses it with `parse_json`, and checks it with `from_plain` before any
of its values is used. Readers of HDF5, safetensors and npz check shapes and types instead, inside the same block.
"""

from __future__ import annotations

import difflib
import errno
import functools
import json
import math
import re
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from pointdistill.errors import ConfigError, DataError, PointDistillError

Record = TypeVar("Record")

MOST_RECORD_BYTES = 32 * 2**20
"""Largest record that is parsed: small JSON values take some twenty times their text in memory."""

MOST_LINE_BYTES = 2**20
"""Longest line of a list of records."""

MOST_LEVELS = 64
"""Deepest nesting of lists and tables; the records of this program have fewer than ten levels."""

_MOST_DIGITS = 40
_INTEGER_LIMIT = 2**64

_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = 80


def short_repr(value: object) -> str:
    """A value from elsewhere for a message, at most a line whatever its size."""
    return _shortener.repr(value)


@contextmanager
def refusing_damage(
    place: Path | str,
    *,
    advice: str = "copy or make it again",
    error: type[PointDistillError] = DataError,
) -> Iterator[None]:
    """Whatever goes wrong while a record is read becomes one ``error`` whose message begins with its place.

    The block should only read and check: what it computes besides would have its own mistakes reported as damage.

    Args:
        place: the file, or the file and the place in it.
        advice: what to do about a damaged one.
        error: the class to raise. An error of this program that begins with the place keeps its text.
    """
    try:
        yield
    except PointDistillError as cause:
        named = str(cause).startswith(str(place))
        if named and isinstance(cause, error):
            raise
        msg = str(cause) if named else f"{place}: damaged ({cause}); {advice}"
        raise error(msg, settings=cause.settings) from cause
    except FileNotFoundError as cause:
        msg = f"{place}: no such file"
        raise error(msg) from cause
    except Exception as cause:
        # Any exception: bytes from elsewhere can make a library raise whatever it has.
        msg = f"{place}: damaged ({_reason(cause)}); {advice}"
        raise error(msg) from cause


def _reason(cause: Exception) -> str:
    """The first line of an exception, or what its class says where the text alone says nothing."""
    if isinstance(cause, RecursionError):
        return "nested too deeply"
    if isinstance(cause, MemoryError):
        return "it needs more memory than there is"
    text = (str(getattr(cause, "strerror", None) or cause).strip().splitlines() or [""])[0][:200]
    if isinstance(cause, LookupError):
        return f"without {text}" if text else type(cause).__name__
    return text or type(cause).__name__


def read_bounded(path: Path, most: int = MOST_RECORD_BYTES) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: if there is none.
        ValueError: if it is anything else, such as a pipe or a device, or has more than ``most`` bytes.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    # Not opened: a pipe would wait for someone to write to it. A missing file gets the error of opening it.
    if path.exists() and not path.is_file():
        msg = "no regular file"
        raise ValueError(msg)
    with path.open("rb") as file:
        return read_at_most(file, most)


class Readable(typing.Protocol):
    """Anything that gives bytes."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes."""
        ...


def read_at_most(file: Readable, most: int) -> bytes:
    """The rest of a stream, whatever its header says of its length.

    Raises:
        ValueError: if it has more than ``most`` bytes.
    """
    content = file.read(most + 1)
    if len(content) > most:
        msg = f"more than the {most:,} bytes that are read of such a record"
        raise ValueError(msg)
    return content


def bounded_lines(
    file: BinaryIO | typing.IO[bytes], most: int = MOST_LINE_BYTES
) -> Iterator[bytes]:
    """The lines of a binary stream, each with its end.

    Raises:
        ValueError: at a line of more than ``most`` bytes.
    """
    while line := file.readline(most + 1):
        if len(line) > most:
            msg = f"a line of more than {most:,} bytes"
            raise ValueError(msg)
        yield line


def parse_json(
    content: bytes | str, *, most: int = MOST_RECORD_BYTES, any_text: bool = False
) -> Any:
    """The value of a JSON text, which is UTF-8.

    Args:
        content: the text.
        most: largest number of bytes or characters.
        any_text: accept halves of surrogate pairs, which stand for bytes of file names that are not UTF-8.

    Raises:
        ValueError: if it is not JSON, is too large or nested too deeply, or has a number that is not finite, has
            more digits than any of ours, or text that is no Unicode.
    """
    if len(content) > most:
        msg = f"{len(content):,} bytes, at most {most:,} are read"
        raise ValueError(msg)
    text = content if isinstance(content, str) else content.decode("utf-8")
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_integer
        )
    except RecursionError:
        value = None
        nested = True
    else:
        nested = _is_deeper(value, MOST_LEVELS)
    if nested:
        msg = f"nested more than {MOST_LEVELS} levels deep"
        raise ValueError(msg)
    if not any_text and re.search(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]", text):
        _check_unicode(value)
    return value


def _refuse_constant(name: str) -> float:
    msg = f"{name} is no number that is accepted"
    raise ValueError(msg)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        msg = f"{text[:_MOST_DIGITS]} is too large for a number"
        raise ValueError(msg)
    return value


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        msg = f"a number of {len(text):,} digits, {text[:8]}…"
        raise ValueError(msg)
    return int(text)


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and tables are nested more than ``levels`` deep; level by level, without recursion."""
    below = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        inner = (item.values() if isinstance(item, dict) else item for item in below)
        below = [
            child for children in inner for child in children if isinstance(child, dict | list)
        ]
        if not below:
            return False
    return True


def _check_unicode(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        msg = f"text that is no Unicode, {error.object[error.start : error.end]!r}"
        raise ValueError(msg) from error


def check_text(text: str) -> str:
    """The same text; raises ValueError if it is no Unicode, or has zero bytes, which no path may have."""
    # NumPy takes any number for a character, and what is beyond Unicode shows on the way back alone.
    text.encode("utf-8").decode("utf-8")
    if "\0" in text:
        msg = "text with a zero byte"
        raise ValueError(msg)
    return text


def to_plain(value: Any) -> Any:
    """A record as dictionaries, lists and plain values that JSON can represent."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


def from_plain(
    kind: type[Record], value: Mapping[str, Any], *, where: str = "", partial: bool = False
) -> Record:
    """The record that ``to_plain`` turned into ``value``; missing keys take their defaults.

    Args:
        kind: a dataclass; the annotations of its fields are the schema.
        value: a table, as JSON or TOML give it.
        where: the table's own name, for messages.
        partial: ignore keys that the record has no field for, those of a larger table or a later version.

    Raises:
        ConfigError: for an unknown key (names the nearest known one), a missing one, or a value of the wrong type.
    """
    if not isinstance(typing.cast("object", value), Mapping):
        msg = f"{where or kind.__name__}: expected a table of settings, got {short_repr(value)}"
        raise ConfigError(msg)
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    if partial:
        value = {key: item for key, item in value.items() if key in known}
    for key in value:
        if key not in known:
            # Cut, because the search takes time that grows with the square of the length.
            near = difflib.get_close_matches(key[:80], known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            msg = f"unknown setting {short_repr(_path(where, key))}{hint}"
            raise ConfigError(msg)
    missing = [
        name
        for name, item in known.items()
        if name not in value and item.default is MISSING and item.default_factory is MISSING
    ]
    if missing:
        msg = f"missing setting {_path(where, missing[0])!r}"
        raise ConfigError(msg)
    hints = _hints(typing.cast("type", kind))
    built = {
        key: _convert(hints[key], item, where=_path(where, key)) for key, item in value.items()
    }
    return kind(**built)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _path(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _convert(hint: Any, value: Any, *, where: str) -> Any:
    """``value`` as the annotated type.

    Raises:
        ConfigError: if it is not of this type.
    """
    if hint is Any:
        return value
    if is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value, where=where)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        if value is None or value == "none":  # TOML has no null
            return None
        return _convert(inner[0], value, where=where)
    if origin is tuple or origin is list:
        if isinstance(value, list | tuple):
            return _convert_items(hint, value, where=where)
    elif origin is Literal:
        if value in inner:
            return value
        msg = f"{where} must be one of {', '.join(map(str, inner))}, got {short_repr(value)}"
        raise ConfigError(msg)
    elif origin is not None and issubclass(origin, Mapping):
        if isinstance(value, Mapping):
            return {
                str(key): _convert(inner[1], item, where=_path(where, str(key)[:80]))
                for key, item in value.items()
            }
    elif isinstance(hint, type) and issubclass(hint, Enum):
        accepted = [member.value for member in hint]
        if value in accepted:
            return hint(value)
        msg = f"{where} must be one of {', '.join(map(str, accepted))}, got {short_repr(value)}"
        raise ConfigError(msg)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            msg = f"{where} must be a finite number, got {value!r}"
            raise ConfigError(msg)
        return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        if hint is int and abs(value) >= _INTEGER_LIMIT:
            msg = f"{where} must be a number of at most 64 bits, got {value!r}"
            raise ConfigError(msg)
        return value
    name = str(hint) if origin is not None else hint.__name__
    msg = f"{where} must be of type {name}, got {short_repr(value)}"
    raise ConfigError(msg)


def _convert_items(hint: Any, value: list[Any] | tuple[Any, ...], *, where: str) -> Any:
    """The items of a list or tuple, as many as the annotation says where it names each."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is list or inner[-1] is Ellipsis:
        return kind(_convert(inner[0], item, where=where) for item in value)
    if len(value) != len(inner):
        msg = f"{where} must have {len(inner)} values, got {len(value)}"
        raise ConfigError(msg)
    return tuple(_convert(one, item, where=where) for one, item in zip(inner, value, strict=True))
