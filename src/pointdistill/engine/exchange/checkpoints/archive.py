"""The zip that ``torch.save`` writes, read strictly.

``torch.save`` stores its members without compression and ends the file with the archive's table of contents. Only
that is accepted, so that a member's size is the bytes it takes in the file and none unfolds to more. Each is
compared with its checksum when it is read. Format: PKWARE's APPNOTE, sections 4.3.7 to 4.3.16.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import PurePosixPath

from pointdistill.data.pickles import shown
from pointdistill.engine.exchange.checkpoints.limits import Limits
from pointdistill.errors import CheckpointError

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_LOCAL_SIGN, _CENTRAL_SIGN, _END_SIGN = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END64_SIGN, _LOCATOR64_SIGN = b"PK\x06\x06", b"PK\x06\x07"
_STORED = 0
_ENCRYPTED, _SIZES_FOLLOW = 1, 8  # bits of a member's flags
_IN_EXTRA_16, _IN_EXTRA_32 = 0xFFFF, 0xFFFFFFFF
_ZIP64_FIELD = 1
# What torch.save wrote before version 1.6: a pickled long that says so, and no zip.
_LEGACY_TORCH = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
_CUT = "it may be cut short, copy it again"


@dataclass(frozen=True, slots=True)
class Member:
    """One file in the archive."""

    name: str
    size: int
    """Bytes."""

    header: int
    """Where its own header begins in the file."""

    checksum: int
    """CRC-32 of its bytes."""


@dataclass(frozen=True, slots=True)
class _Directory:
    """Where the table of contents lies, and how many members it says there are."""

    start: int
    size: int
    count: int


class Archive:
    """Members of an open file by name."""

    def __init__(self, file: BufferedReader, limits: Limits) -> None:
        """Read and check the table of contents.

        Raises:
            CheckpointError: if the file is no such zip, is cut short, names a member twice or outside of
                the archive, compresses one, or lays two over each other.
        """
        self._file = file
        directory = _find_directory(file)
        if directory.size > limits.directory_bytes or directory.count > limits.members:
            msg = (
                f"lists {directory.count} members in {directory.size} bytes; accepted are "
                f"{limits.members} in {limits.directory_bytes}"
            )
            raise CheckpointError(msg)
        found = _read_directory(_read_at(file, directory.start, directory.size), directory.count)
        self._begins = _check_layout(file, found, directory.start)
        self.members: Mapping[str, Member] = {member.name: member for member in found}

    def read(self, name: str, *, most: int | None = None) -> bytearray:
        """The bytes of a member.

        Raises:
            CheckpointError: if there is none of that name, it has more than ``most`` bytes, or its bytes are not
                those that were written.
        """
        member = self.members.get(name)
        if member is None:
            msg = f"member {shown(name)} is missing; {_CUT}"
            raise CheckpointError(msg)
        if most is not None and member.size > most:
            msg = f"member {shown(name)} has {member.size} bytes; accepted are {most}"
            raise CheckpointError(msg)
        data = _read_at(self._file, self._begins[name], member.size)
        if zlib.crc32(data) != member.checksum:
            msg = f"member {shown(name)} is damaged (its checksum differs); copy the file again"
            raise CheckpointError(msg)
        return data


def _read_at(file: BufferedReader, start: int, size: int) -> bytearray:
    """``size`` bytes from ``start``; both were compared with the file's size."""
    data = bytearray(size)
    file.seek(start)
    if file.readinto(data) != size:
        msg = f"ends early; {_CUT}"
        raise CheckpointError(msg)
    return data


def _find_directory(file: BufferedReader) -> _Directory:
    """The table of contents, from the record at the very end of the file."""
    size = file.seek(0, 2)
    if size < _END.size:
        msg = f"not a checkpoint ({size} bytes); {_CUT}"
        raise CheckpointError(msg)
    sign, disk, disk_too, here, count, length, start, comment = _END.unpack(
        _read_at(file, size - _END.size, _END.size)
    )
    if sign != _END_SIGN or comment:
        raise CheckpointError(_not_a_zip(file, size))
    end = size - _END.size
    if disk or disk_too or here != count:
        msg = "is part of a zip over several files; give the whole one"
        raise CheckpointError(msg)
    directory = _Directory(start, length, count)
    if _IN_EXTRA_32 in (length, start) or count == _IN_EXTRA_16:
        directory, end = _find_directory64(file, end)
    if directory.start + directory.size > end:
        msg = f"states a table of contents that it does not hold; {_CUT}"
        raise CheckpointError(msg)
    return directory


def _find_directory64(file: BufferedReader, end: int) -> tuple[_Directory, int]:
    """The same for files above 4 GiB, and where the record that says so begins."""
    before = end - _LOCATOR64.size
    if before >= _END64.size:
        sign, _, record, _ = _LOCATOR64.unpack(_read_at(file, before, _LOCATOR64.size))
        if sign == _LOCATOR64_SIGN and record <= before - _END64.size:
            fields = _END64.unpack(_read_at(file, record, _END64.size))
            sign, here, count, length, start = fields[0], *fields[6:]
            if sign == _END64_SIGN and here == count:
                return _Directory(start, length, count), record
    msg = f"is not a whole zip; {_CUT}"
    raise CheckpointError(msg)


def _not_a_zip(file: BufferedReader, size: int) -> str:
    """What the file is instead."""
    head = bytes(_read_at(file, 0, min(size, 64)))
    if _LEGACY_TORCH in head:
        return (
            "was written by torch before 1.6, not as a zip; where you trust it, load it with torch and "
            "save it anew"
        )
    if head.startswith(_LOCAL_SIGN):
        return f"is not a whole zip, or something was added to it; {_CUT}"
    return "is not a checkpoint: expected the zip that torch.save writes (.ckpt, .pt or .pth)"


def _read_directory(data: bytearray, count: int) -> list[Member]:
    """All members that the table of contents names, in its order."""
    members = []
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(data):
            break
        fields = _CENTRAL.unpack_from(data, at)
        if fields[0] != _CENTRAL_SIGN:
            break
        at += _CENTRAL.size
        text = [bytes(part) for part in _split(data, at, fields[10:13])]
        at += sum(fields[10:13])
        if at > len(data):
            break
        members.append(_member(fields, text[0], text[1]))
    if len(members) != count or at != len(data):
        msg = f"its table of contents is damaged; {_CUT}"
        raise CheckpointError(msg)
    return members


def _split(data: bytearray, at: int, lengths: tuple[int, int, int]) -> list[bytearray]:
    """Name, extra fields and comment, which lie one behind the other."""
    ends = list(itertools.accumulate(lengths, initial=at))
    return [data[start:end] for start, end in itertools.pairwise(ends)]


def _member(fields: tuple[int, ...], raw_name: bytes, extra: bytes) -> Member:
    """One member, if torch.save could have written it."""
    _, _, _, flags, method, _, _, checksum, packed, size, _, _, _, _, _, _, header = fields
    name = _safe_name(raw_name)
    size, packed, header = _from_extra(extra, [size, packed, header])
    if method != _STORED or packed != size or flags & _ENCRYPTED:
        msg = f"member {shown(name)} is compressed or encrypted, and torch.save does neither"
        raise CheckpointError(msg)
    return Member(name, size, header, checksum)


def _safe_name(raw: bytes) -> str:
    """A member's name, if it stays inside the archive."""
    name = raw.decode("utf-8", errors="replace")
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name[0] == "/" or any(c in name for c in "\\\0\ufffd"):
        msg = f"member {shown(name)} has a name that leads out of the archive"
        raise CheckpointError(msg)
    return name


def _from_extra(extra: bytes, values: list[int]) -> list[int]:
    """Size, packed size and header, those of 4 GiB and more from the zip64 field."""
    wide = [i for i, value in enumerate(values) if value == _IN_EXTRA_32]
    at = 0
    while wide and at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == _ZIP64_FIELD and length >= 8 * len(wide) and at + 4 + length <= len(extra):
            for i, value in zip(
                wide, struct.unpack_from(f"<{len(wide)}Q", extra, at + 4), strict=True
            ):
                values[i] = value
            return values
        at += 4 + length
    return values


def _check_layout(file: BufferedReader, members: list[Member], end: int) -> dict[str, int]:
    """Where each member's bytes begin, if all of them lie in the file, apart, and their own headers agree."""
    begins: dict[str, int] = {}
    free = 0
    for member in sorted(members, key=lambda m: m.header):
        if member.name in begins:
            msg = f"names member {shown(member.name)} twice"
            raise CheckpointError(msg)
        begin = -1
        if free <= member.header <= end - _LOCAL.size:
            begin = _after_header(file, member)
        free = begin + member.size
        if begin < 0 or free > end:
            msg = f"member {shown(member.name)} states {member.size} bytes that it does not hold; {_CUT}"
            raise CheckpointError(msg)
        begins[member.name] = begin
    return begins


def _after_header(file: BufferedReader, member: Member) -> int:
    """Where a member's bytes begin, or -1 if its own header is not the table of contents' member."""
    fields = _LOCAL.unpack(_read_at(file, member.header, _LOCAL.size))
    sign, _, flags, method, _, _, _, packed, size, name_length, extra_length = fields
    name = file.read(name_length)
    if sign != _LOCAL_SIGN or method != _STORED or name != member.name.encode():
        return -1
    stated = () if flags & _SIZES_FOLLOW else (packed, size)
    if any(value not in (member.size, _IN_EXTRA_32) for value in stated):
        return -1
    return member.header + _LOCAL.size + name_length + extra_length
