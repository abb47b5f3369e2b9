"""Downloads that resume where they stopped, are complete or absent, and are checked.

The bytes that have arrived are in ``.<name>.part`` beside the file, so a lost connection or a kill costs nothing.
The file gets its name once its length is right, and its checksum where one is known. Requests follow redirects; a
failure is either final or worth another attempt.
"""

from __future__ import annotations

import email.message
import http.client
import json
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pointdistill.data.files.files import (
    disk_is_full,
    flush,
    hold_lock,
    no_room,
    sha256_of,
    write_json,
)
from pointdistill.errors import DataError

TIMEOUT_SECONDS = 60.0
"""How long a server may be silent before the connection counts as lost."""

_LENGTH_TIMEOUT_SECONDS = 10.0  # only for estimates, so not worth a minute
_ATTEMPTS = 6  # in a row without a single new byte
_FIRST_PAUSE_SECONDS = 1.0  # doubled after each failed attempt
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
_SHA256 = re.compile(r"[0-9a-f]{64}")

# The Hugging Face Hub describes the file behind a redirect by these.
_CHECKSUM_HEADER = "X-Linked-Etag"
_LENGTH_HEADER = "X-Linked-Size"

# A lost connection. Not any OSError: a full disk is not the server's fault.
_LOST = (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)

Answer = TypeVar("Answer")


class LostError(Exception):
    """The connection was lost, or the server asks to try again later."""


class RefusedError(DataError):
    """The server refuses to send this file, and asking again will not help."""


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects and remembers what they say about the file behind them."""

    checksum: str | None = None
    """SHA-256 of the file."""

    length: int | None = None
    """Length of the file in bytes."""

    def redirect_request(self, *arguments: Any) -> urllib.request.Request | None:
        """The request for the new address, with the method of the first request."""
        request, headers, url = arguments[0], arguments[4], arguments[5]
        _check_web(url)
        self.checksum = promised_checksum(headers) or self.checksum
        self.length = _bytes(headers, _LENGTH_HEADER) or self.length
        followed = super().redirect_request(*arguments)
        if followed is not None:
            followed.method = request.get_method()  # Python before 3.13 makes a GET of a HEAD
        return followed


def open_web(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
    redirects: Redirects | None = None,
    timeout_seconds: float | None = None,
) -> http.client.HTTPResponse:
    """Request a file; to be called within `web_errors`.

    Raises:
        DataError: if the address, or one that it redirects to, is not http or https.
        RefusedError: if a web page comes instead of the file.
    """
    _check_web(url)
    plain = {"User-Agent": "pointdistill", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=plain | dict(headers or {}), method=method)
    opener = urllib.request.build_opener(redirects or Redirects())
    timeout = TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds
    response: http.client.HTTPResponse = opener.open(request, timeout=timeout)
    if response.headers.get_content_type() == "text/html":
        response.close()
        msg = f"{url}: answered with a web page in place of the file; fetch it by hand"
        raise RefusedError(msg)
    return response


@contextmanager
def web_errors(url: str) -> Iterator[None]:
    """Turn any error of a request into one of two.

    Raises:
        LostError: if another attempt may succeed.
        RefusedError: if it will not.
    """
    try:
        yield
    except urllib.error.HTTPError as error:
        answer = f"{error.code} {error.reason}"
        if error.code in _TEMPORARY:
            raise LostError(answer) from error
        msg = f"{url}: {answer}; see whether it has moved, and fetch it by hand"
        raise RefusedError(msg) from error
    except urllib.error.URLError as error:
        raise LostError(str(error.reason)) from error
    except _LOST as error:
        cause = f"{type(error).__name__}: {error}"
        raise LostError(cause) from error


def with_retries(
    url: str,
    attempt: Callable[[], Answer],
    *,
    received: Callable[[], int] = lambda: 0,
    sleep: Callable[[float], None] = time.sleep,
) -> Answer:
    """The result of an attempt, which is repeated, after longer and longer pauses, while its connection is lost.

    Args:
        url: the address, for messages.
        attempt: makes one request; raises `LostError` if it may be repeated.
        received: returns the bytes that have arrived; an attempt that adds to them does not count as failed.
        sleep: waits between attempts.

    Raises:
        DataError: after several failed attempts in a row.
    """
    failed = 0
    while True:
        before = received()
        try:
            return attempt()
        except LostError as lost:
            failed = 0 if received() > before else failed + 1
            if failed == _ATTEMPTS:
                msg = (
                    f"{url}: no answer in {_ATTEMPTS} attempts ({lost}); {received():,} bytes are kept: run the "
                    f"same again to go on"
                )
                raise DataError(msg) from lost
            sleep(_FIRST_PAUSE_SECONDS * 2**failed)


def announced_bytes(url: str) -> int | None:
    """The length of a file as its server states it; None if it does not say or does not answer."""
    redirects = Redirects()
    try:
        with (
            web_errors(url),
            open_web(
                url, method="HEAD", redirects=redirects, timeout_seconds=_LENGTH_TIMEOUT_SECONDS
            ) as response,
        ):
            return redirects.length or _bytes(response.headers, "Content-Length")
    except (LostError, RefusedError):
        return redirects.length


def promised_checksum(headers: email.message.Message) -> str | None:
    """SHA-256 of the file, if its server states it."""
    value = str(headers.get(_CHECKSUM_HEADER, "")).strip('"')
    return value if _SHA256.fullmatch(value) else None


def _bytes(headers: email.message.Message, name: str) -> int | None:
    value = str(headers.get(name, ""))
    return int(value) or None if value.isdecimal() else None


def _check_web(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        msg = f"{url!r}: only http and https addresses are fetched"
        raise DataError(msg)


_BLOCK_BYTES = 1 << 20

_CHANGED = "the file has changed at its source"


@dataclass(frozen=True, slots=True)
class Fetched:
    """A complete file."""

    path: Path
    bytes: int
    sha256: str

    checked: bool
    """Whether the checksum was compared with a known one; otherwise only the length was."""


class DamagedError(DataError):
    """A downloaded file does not have the expected checksum, or fails its check."""


@dataclass(frozen=True, slots=True)
class _Version:
    """What the server said about the version of the file that a part belongs to."""

    url: str
    version: str
    """The server's tag for the version; empty if it has none, and then a part cannot be resumed."""

    total: int
    """Length in bytes; 0 if the server does not say, and then a part cannot be resumed either."""

    sha256: str | None


@dataclass(frozen=True, slots=True)
class _Part:
    """The part of a file that has arrived."""

    path: Path

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def note(self) -> Path:
        """The file that notes which version the part belongs to."""
        return self.path.with_name(f"{self.path.name}.json")

    def begin(self, noted: _Version) -> None:
        """Start an empty part of a version."""
        self.path.write_bytes(b"")
        write_json(self.note, asdict(noted))

    def noted(self, url: str) -> _Version | None:
        """What the part belongs to; None if there is nothing from this address to resume."""
        try:
            noted = _Version(**json.loads(self.note.read_text(encoding="utf-8")))
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
    check: Callable[[Path], str] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Fetched:
    """Download a file, or resume a download that was interrupted.

    Args:
        url: http or https; redirects are followed.
        path: where the file goes; its folder is made.
        sha256: checksum that the file must have; None uses the server's, if it states one.
        check: called with the complete file before it gets its name; returns what is wrong with it, or an empty
            string. With a check, the server need not state the length.
        progress: called with the bytes that have arrived and the total, which is None if the server does not say.
        sleep: waits between attempts.

    Raises:
        DataError: if the server does not state the length, or does not answer in several attempts; if the disk has
            no room for the file; or if another process is fetching the same file.
        RefusedError: if the server refuses.
        DamagedError: if the file does not have the checksum, or fails the check.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(path.with_name(f".{path.name}.part"))
    with _room_for(path, part), _locked(part.path, path):
        promised = with_retries(
            url,
            lambda: _receive(url, part, progress, any_length=check is not None),
            received=lambda: part.bytes,
            sleep=sleep,
        )
        checksum = sha256_of(part.path)
        expected = sha256 or promised
        if expected is not None and checksum != expected:
            part.remove()
            msg = f"{path.name}: SHA-256 {checksum}, expected {expected}; fetch it again from {url}"
            raise DamagedError(msg)
        if check and (wrong := check(part.path)):
            part.remove()
            msg = f"{path.name}: {wrong}; fetch it again from {url}"
            raise DamagedError(msg)
        size = part.bytes
        flush(part.path)
        part.path.replace(path)
        part.remove()
    return Fetched(path, size, checksum, checked=expected is not None)


def _receive(
    url: str, part: _Part, progress: Callable[[int, int | None], None] | None, *, any_length: bool
) -> str | None:
    """Receive over one connection; returns the promised checksum once the part has its full length."""
    noted = part.noted(url)
    if noted is None or not noted.total or part.bytes != noted.total:
        redirects = Redirects()
        with web_errors(url):
            try:
                with open_web(url, headers=_rest(part, noted), redirects=redirects) as response:
                    checksum = redirects.checksum
                    noted = _begin(url, response, part, noted, checksum, any_length=any_length)
                    _append(response, part, noted.total, progress)
            except urllib.error.HTTPError as error:
                if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    raise
                part.remove()
                raise LostError(_CHANGED) from error
    if part.bytes < noted.total:
        cause = f"{part.bytes:,} of {noted.total:,} bytes came"
        raise LostError(cause)
    return noted.sha256


def _rest(part: _Part, noted: _Version | None) -> dict[str, str]:
    """Headers that ask for the rest of the file if it has not changed, and for the whole otherwise."""
    if noted is None or not noted.version or not noted.total or not part.bytes:
        return {}
    return {"Range": f"bytes={part.bytes}-", "If-Range": noted.version}


def _begin(
    url: str,
    response: http.client.HTTPResponse,
    part: _Part,
    noted: _Version | None,
    promised: str | None,
    *,
    any_length: bool,
) -> _Version:
    """Prepare the part for a response that either continues it or sends the whole file."""
    version = _version(response.headers)
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        start, total = _range(url, response.headers)
        known = (part.bytes, noted.total, noted.version) if noted else None
        if noted is not None and known == (start, total, version):
            return noted
        part.remove()
        raise LostError(_CHANGED)
    total = _length(url, response.headers, any_length=any_length)
    _check_room(part, total)
    noted = _Version(url, version, total, promised or promised_checksum(response.headers))
    part.begin(noted)
    return noted


def _check_room(part: _Part, total: int) -> None:
    """Raise before hours of download that would fill the disk; a part of another version counts as free space."""
    free = shutil.disk_usage(part.path.parent).free + part.bytes
    if total > free:
        msg = (
            f"{part.path.parent}: the file takes {total:,} bytes, and its disk has {free:,} for it; make "
            f"room and run the same again"
        )
        raise DataError(msg)


@contextmanager
def _room_for(path: Path, part: _Part) -> Iterator[None]:
    """Turn a full disk into a one-line error."""
    try:
        yield
    except OSError as error:
        if not disk_is_full(error):
            raise
        raise no_room(path, error, safe=f"what came, {part.bytes:,} bytes, is safe") from error


def _append(
    response: http.client.HTTPResponse,
    part: _Part,
    total: int,
    progress: Callable[[int, int | None], None] | None,
) -> None:
    """Append the response up to ``total``, or to its end where the total is not known."""
    done = part.bytes
    with part.path.open("ab") as file:
        while not total or done < total:
            # read1 returns what has arrived before a connection stalls; read would wait for a whole block.
            block = response.read1(min(_BLOCK_BYTES, total - done) if total else _BLOCK_BYTES)
            if not block:
                break
            file.write(block)
            done += len(block)
            if progress:
                progress(done, total or None)


def _range(url: str, headers: email.message.Message) -> tuple[int, int]:
    """First byte and total length, from a response with a part of the file."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
    if match is None:
        msg = f"{url}: the server does not say which part of the file it sends; fetch it by hand"
        raise DataError(msg)
    return int(match[1]), int(match[2])


def _length(url: str, headers: email.message.Message, *, any_length: bool) -> int:
    """Length of the whole file; 0 if the server does not say and need not."""
    length = headers.get("Content-Length", "")
    if not length and any_length:
        return 0
    if not length.isdecimal():
        msg = f"{url}: the server does not say how long the file is; fetch it by hand"
        raise DataError(msg)
    if int(length) == 0:
        msg = f"{url}: an empty file; see whether it has moved, and fetch it by hand"
        raise DataError(msg)
    return int(length)


def _version(headers: email.message.Message) -> str:
    """What names this version of the file. Not a weak tag, which promises no equal bytes: ranges need those."""
    tag = str(headers.get("ETag", ""))
    return tag if tag and not tag.startswith("W/") else str(headers.get("Last-Modified", ""))


@contextmanager
def _locked(part: Path, path: Path) -> Iterator[None]:
    """Keep other processes from downloading the same file; the lock ends with the process."""
    lock = part.with_name(f"{part.name}.lock")
    busy = DataError(f"{path}: another process is fetching it; wait for that one")
    with hold_lock(lock, busy, lambda: lock.parent.mkdir(parents=True, exist_ok=True)):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
