"""A strict reader for the zip files that ``torch.save`` writes, on top of ``zipfile``.

``zipfile`` reads the table of contents and compares each member with its checksum, but it accepts more than
``torch.save`` writes. So this module also checks that there is nothing before or after the archive, that members
are not compressed (so that none expands to more than its size in the file), that names are unique and stay inside
the archive, and that members are inside the file and do not overlap.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader

from pointdistill.data.files.archive import leads_outside
from pointdistill.data.files.member import read_local_header
from pointdistill.data.files.pickle_machine import PickleLimits, shown
from pointdistill.errors import CheckpointError


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits(PickleLimits):
    """Limits of what reading a file may cost: by default at most 150 MiB, besides the weights, and a few seconds.

    A checkpoint of the large model with its optimiser's moments needs a tenth of each. The values of tensors are
    not in the pickle and do not count.
    """

    members: int = 20_000
    """Files in the archive; each tensor has one."""

    directory_bytes: int = 4 << 20
    """Size of the archive's table of contents."""

    dimensions: int = 16
    """Axes of one tensor."""

    held_twice: int = 2
    """Tensors may share values (tied weights), but add up to at most this many times what the file holds."""


LIMITS = Limits()
"""The limits of ``import-weights``."""


_MEMBER_SIGN, _END_SIGN = b"PK\x03\x04", b"PK\x05\x06"
_END_BYTES = 22
"""Size of the record at the end of a zip without a comment."""

_LONGEST_TAIL = (1 << 16) + _END_BYTES  # the most that zipfile reads to find that record
_ENCRYPTED = 1  # a bit of a member's flags
_CHUNK_BYTES = 1 << 20
# torch.save before version 1.6 wrote no zip but a pickle that begins with this magic number.
_LEGACY_TORCH = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
_CUT = "it may be cut short, copy it again"


class TorchArchive:
    """The members of an open file, by name."""

    def __init__(self, file: BufferedReader, limits: Limits) -> None:
        """Read and check the table of contents.

        Raises:
            CheckpointError: if the file is no such zip or is cut short, or a member's name is not unique or leads
                outside the archive, or a member is compressed or overlaps another one.
        """
        size = _check_end(file)
        bounded = _BoundedReader(file, max(limits.directory_bytes, _LONGEST_TAIL))
        with _zip_errors("its table of contents is damaged"):
            self._zip = zipfile.ZipFile(bounded)
            bounded.most = None
            directory = self._zip.start_dir
        members = self._zip.infolist()
        if size - directory > limits.directory_bytes or len(members) > limits.members:
            msg = (
                f"lists {len(members)} members in {size - directory} bytes; accepted are "
                f"{limits.members} in {limits.directory_bytes}"
            )
            raise CheckpointError(msg)
        for member in members:
            _check_member(member)
        _check_layout(file, members, directory)
        self.members: Mapping[str, zipfile.ZipInfo] = {info.filename: info for info in members}

    def read(self, name: str, *, most: int | None = None) -> bytearray:
        """The bytes of a member.

        Raises:
            CheckpointError: if there is no such member, it has more than ``most`` bytes, or it is damaged.
        """
        member = self.members.get(name)
        if member is None:
            msg = f"member {shown(name)} is missing; {_CUT}"
            raise CheckpointError(msg)
        if most is not None and member.file_size > most:
            msg = f"member {shown(name)} has {member.file_size} bytes; accepted are {most}"
            raise CheckpointError(msg)
        data = bytearray(member.file_size)
        view = memoryview(data)
        with _zip_errors(f"member {shown(name)} is damaged"), self._zip.open(member) as stream:
            # In chunks into writable memory, which torch needs: a member may be most of the file, and reading it
            # into bytes first would hold it twice.
            for start in range(0, len(data), _CHUNK_BYTES):
                part = view[start : start + _CHUNK_BYTES]
                part[:] = stream.read(len(part))
            stream.read(1)  # zipfile compares the checksum at the end, also of an empty member
        return data


class _BoundedReader(io.RawIOBase):
    """A reader that refuses to read too much at once."""

    # zipfile reads a table of contents in one piece, whatever size the file states for it.

    def __init__(self, file: BufferedReader, most: int) -> None:
        self._file = file
        self.most: int | None = most

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            position = self._file.tell()
            size = self._file.seek(0, io.SEEK_END) - position
            self._file.seek(position)
        if self.most is not None and size > self.most:
            msg = f"lists its members in {size} bytes; accepted are {self.most}"
            raise CheckpointError(msg)
        return self._file.read(size)


@contextmanager
def _zip_errors(problem: str) -> Iterator[None]:
    """Convert any error that ``zipfile`` raises for a damaged zip."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        EOFError,
        NotImplementedError,
        OSError,
        OverflowError,
        RuntimeError,
        ValueError,
        struct.error,
    ) as error:
        msg = f"{problem} ({shown(str(error))}); {_CUT}"
        raise CheckpointError(msg) from error


def _check_end(file: BufferedReader) -> int:
    """The size of the file, which must end like a zip without a comment."""
    # ``zipfile`` would search for an earlier end record, and ignore everything after it.
    size = file.seek(0, io.SEEK_END)
    if size < _END_BYTES:
        msg = f"not a checkpoint ({size} bytes); {_CUT}"
        raise CheckpointError(msg)
    file.seek(-_END_BYTES, io.SEEK_END)
    end = file.read(_END_BYTES)
    if not (end.startswith(_END_SIGN) and end.endswith(b"\0\0")):
        raise CheckpointError(_not_a_zip(file))
    return size


def _not_a_zip(file: BufferedReader) -> str:
    """A message that says what the file is instead."""
    file.seek(0)
    head = file.read(64)
    if _LEGACY_TORCH in head:
        return (
            "was written by torch before 1.6, not as a zip; if you trust it, load it with torch and "
            "save it again"
        )
    if head.startswith(_MEMBER_SIGN):
        return f"is not a whole zip, or something was added to it; {_CUT}"
    return "is not a checkpoint: expected the zip that torch.save writes (.ckpt, .pt or .pth)"


def _check_member(member: zipfile.ZipInfo) -> None:
    """Check that torch.save could have written such a member."""
    # zipfile cuts a name at a zero byte and converts backslashes; the original name is the one in the file.
    name = member.orig_filename
    if leads_outside(name) or "\\" in name or "\0" in name:
        msg = f"member {shown(name)} has a name that leads out of the archive"
        raise CheckpointError(msg)
    stored = member.compress_type == zipfile.ZIP_STORED
    if not stored or member.compress_size != member.file_size or member.flag_bits & _ENCRYPTED:
        msg = f"member {shown(name)} is compressed or encrypted, and torch.save does neither"
        raise CheckpointError(msg)


def _check_layout(file: BufferedReader, members: list[zipfile.ZipInfo], directory: int) -> None:
    """Check that all members are between the file's start and its table of contents, and do not overlap."""
    names: set[str] = set()
    free = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        name = member.filename
        if name in names:
            msg = f"names member {shown(name)} twice"
            raise CheckpointError(msg)
        if not names and member.header_offset:
            # zipfile skips any data that a zip was appended to.
            msg = f"is not a whole zip, or something was added to it; {_CUT}"
            raise CheckpointError(msg)
        names.add(name)
        header = (
            read_local_header(file, member.header_offset) if member.header_offset >= free else None
        )
        if header is not None:
            free = header.start + member.file_size
        if header is None or header.name != name.encode() or free > directory:
            msg = f"member {shown(name)} states {member.file_size} bytes that it does not hold; {_CUT}"
            raise CheckpointError(msg)
