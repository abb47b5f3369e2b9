"""Downloads that go on where they stopped, are whole or absent, and are checked.

What has arrived lies in ``.<name>.part`` beside the file's place, so that a lost connection or a kill costs
nothing. The file takes its name when its length, and its checksum where one is known, are right.
"""

from __future__ import annotations

import email.message
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from pointdistill.data.files import disk_is_full, no_room, sha256_of, write_json
from pointdistill.errors import DataError

TIMEOUT_SECONDS = 60.0
"""Longest silence of a server before the connection counts as lost."""

_ATTEMPTS = 6  # in a row without one byte more
_FIRST_PAUSE_SECONDS = 1.0  # doubled after each attempt in vain
_BLOCK_BYTES = 1 << 20
_CHECKSUM_HEADER = "X-Linked-Etag"  # the Hugging Face Hub's: SHA-256 of the file behind a redirect
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})

_CHANGED = "the file has changed at its source"

# Not OSError as a whole: a full disk is none of the server's faults.
_LOST = (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


class Progress(Protocol):
    """Told bytes that are there, and bytes in all."""

    def __call__(self, done: int, total: int, /) -> None:
        """At every block."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that is there, whole."""

    path: Path
    bytes: int
    sha256: str

    checked: bool
    """Whether the checksum was compared with one known beforehand; else the length alone was."""


class _LostError(Exception):
    """The connection is gone, or the server asks to come again; what has arrived is kept."""


@dataclass(frozen=True, slots=True)
class _Noted:
    """What the server said of the file that a part belongs to."""

    url: str
    version: str
    """Its name of the version; empty if it has none, and a part cannot be gone on with."""

    total: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class _Part:
    """What has arrived of a file."""

    path: Path

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def note(self) -> Path:
        """Where the version that it is part of is noted."""
        return self.path.with_name(f"{self.path.name}.json")

    def begin(self, noted: _Noted) -> None:
        """Empty, of a version."""
        self.path.write_bytes(b"")
        write_json(self.note, asdict(noted))

    def noted(self, url: str) -> _Noted | None:
        """What it is a part of; None if there is nothing of this address to go on from."""
        try:
            noted = _Noted(**json.loads(self.note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return noted if noted.url == url and self.path.exists() else None

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Fetched:
    """Download a file, or go on with a download that was interrupted.

    Args:
        url: http or https; redirects are followed.
        path: the file's place; its folder is made.
        sha256: checksum that the file must have; None takes the server's word where it gives one.
        progress: told how far it is.
        sleep: waits between attempts.

    Raises:
        DataError: if the server refuses, does not say how long the file is, sends another file than the
            checksum's, or stays away for several attempts; if the disk has no room for the file; or if
            another process fetches the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(path.with_name(f".{path.name}.part"))
    with _room_for(path, part), _locked(part.path, path):
        promised = _receive_all(url, part, progress, sleep)
        found = sha256_of(part.path)
        expected = sha256 or promised
        if expected is not None and found != expected:
            part.remove()
            msg = f"{path.name}: SHA-256 {found}, expected {expected}; fetch it again from {url}"
            raise DataError(msg)
        size = part.bytes
        _flush(part.path)
        part.path.replace(path)
        part.remove()
    return Fetched(path, size, found, checked=expected is not None)


def _receive_all(
    url: str, part: _Part, progress: Progress | None, sleep: Callable[[float], None]
) -> str | None:
    """Bring a part to its full length; the checksum that the server promised."""
    vain = 0
    while True:
        before = part.bytes
        try:
            return _receive(url, part, progress)
        except _LostError as lost:
            vain = 0 if part.bytes > before else vain + 1
            if vain == _ATTEMPTS:
                msg = (
                    f"{url}: no answer in {_ATTEMPTS} attempts ({lost}); {part.bytes:,} bytes are kept: "
                    f"run the same again to go on"
                )
                raise DataError(msg) from lost
            sleep(_FIRST_PAUSE_SECONDS * 2**vain)


def _receive(url: str, part: _Part, progress: Progress | None) -> str | None:
    """One connection: append what comes; the promised checksum once the part has its full length."""
    noted = part.noted(url)
    if noted is None or part.bytes != noted.total:
        try:
            redirects = _Redirects()
            with _open(url, part, noted, redirects) as response:
                noted = _begin(url, response, part, noted, redirects.checksum)
                _append(response, part, noted.total, progress)
        except urllib.error.HTTPError as error:
            raise _refusal(url, error, part) from error
        except urllib.error.URLError as error:
            raise _LostError(str(error.reason)) from error
        except _LOST as error:
            why = f"{type(error).__name__}: {error}"
            raise _LostError(why) from error
    if part.bytes < noted.total:
        why = f"{part.bytes:,} of {noted.total:,} bytes came"
        raise _LostError(why)
    return noted.sha256


def _begin(
    url: str,
    response: http.client.HTTPResponse,
    part: _Part,
    noted: _Noted | None,
    promised: str | None,
) -> _Noted:
    """Make the part ready for what comes next: at its end, or at its beginning where the whole comes."""
    version = _version(response.headers)
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        start, total = _range(url, response.headers)
        known = (part.bytes, noted.total, noted.version) if noted else None
        if noted is not None and known == (start, total, version):
            return noted
        part.remove()
        raise _LostError(_CHANGED)
    total = _length(url, response.headers)
    _check_room(part, total)
    noted = _Noted(url, version, total, promised or _promised(response.headers))
    part.begin(noted)
    return noted


def _check_room(part: _Part, total: int) -> None:
    """Raise before hours of download that cannot end well; what is there of another version will go."""
    free = shutil.disk_usage(part.path.parent).free + part.bytes
    if total > free:
        msg = (
            f"{part.path.parent}: the file takes {total:,} bytes, and its disk has {free:,} for it; make "
            f"room and run the same again"
        )
        raise DataError(msg)


@contextmanager
def _room_for(path: Path, part: _Part) -> Iterator[None]:
    """Say in one line that the disk ran full."""
    try:
        yield
    except OSError as error:
        if not disk_is_full(error):
            raise
        raise no_room(path, error, safe=f"what came, {part.bytes:,} bytes, is safe") from error


def _refusal(url: str, error: urllib.error.HTTPError, part: _Part) -> Exception:
    """What a status means: come again, begin again, or never."""
    if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        part.remove()
        return _LostError(_CHANGED)
    said = f"{error.code} {error.reason}"
    if error.code in _PASSING:
        return _LostError(said)
    return DataError(f"{url}: {said}; see whether it has moved, and fetch it by hand")


def _append(
    response: http.client.HTTPResponse, part: _Part, total: int, progress: Progress | None
) -> None:
    done = part.bytes
    with part.path.open("ab") as file:
        # read1: what came before a silence is kept, where read would wait for a whole block.
        while done < total and (block := response.read1(min(_BLOCK_BYTES, total - done))):
            file.write(block)
            done += len(block)
            if progress:
                progress(done, total)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps the checksum that one of them may carry."""

    checksum: str | None = None

    def redirect_request(self, *given: Any) -> urllib.request.Request | None:
        _check_web(given[5])
        self.checksum = _promised(given[4]) or self.checksum
        return super().redirect_request(*given)


def _open(
    url: str, part: _Part, noted: _Noted | None, redirects: _Redirects
) -> http.client.HTTPResponse:
    """Ask for the file, or for what is lacking of it if it has not changed."""
    _check_web(url)
    headers = {"User-Agent": "pointdistill", "Accept-Encoding": "identity"}
    if noted is not None and noted.version and part.bytes:
        headers |= {"Range": f"bytes={part.bytes}-", "If-Range": noted.version}
    request = urllib.request.Request(url, headers=headers)
    opener = urllib.request.build_opener(redirects)
    response: http.client.HTTPResponse = opener.open(request, timeout=TIMEOUT_SECONDS)
    if response.headers.get_content_type() == "text/html":
        response.close()
        msg = f"{url}: answered with a web page in place of the file; fetch it by hand"
        raise DataError(msg)
    return response


def _check_web(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        msg = f"{url!r}: only http and https addresses are fetched"
        raise DataError(msg)


def _range(url: str, headers: email.message.Message) -> tuple[int, int]:
    """First byte and length of the whole, of an answer with a part of the file."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
    if found is None:
        msg = f"{url}: a part without its place in the file; fetch it by hand"
        raise DataError(msg)
    return int(found[1]), int(found[2])


def _length(url: str, headers: email.message.Message) -> int:
    length = headers.get("Content-Length", "")
    if not length.isdecimal():
        msg = f"{url}: the server does not say how long the file is; fetch it by hand"
        raise DataError(msg)
    if int(length) == 0:
        msg = f"{url}: an empty file; see whether it has moved, and fetch it by hand"
        raise DataError(msg)
    return int(length)


def _version(headers: email.message.Message) -> str:
    """What tells this version of the file from another; a weak tag does not, for ranges."""
    tag = str(headers.get("ETag", ""))
    return tag if tag and not tag.startswith("W/") else str(headers.get("Last-Modified", ""))


def _promised(headers: email.message.Message) -> str | None:
    value = str(headers.get(_CHECKSUM_HEADER, "")).strip('"')
    return value if _SHA256.fullmatch(value) else None


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def _locked(part: Path, path: Path) -> Iterator[None]:
    """Keep a second download of the same file out; the lock ends with the process."""
    try:
        import fcntl  # not on Windows, where two at a time are up to the user
    except ImportError:
        yield
        return
    lock = part.with_name(f"{part.name}.lock")
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"{path}: another process is fetching it; wait for that one"
            raise DataError(msg) from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
