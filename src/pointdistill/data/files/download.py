"""Downloads that resume where they stopped, are complete or absent, and are checked.

The bytes that have arrived are in ``.<name>.part`` beside the file, so a lost connection or a kill costs nothing.
The file gets its name once its length is right, and its checksum where one is known. Every download has a
deadline, and at most the length that its server states.
"""

from __future__ import annotations

import email.message
import http.client
import re
import shutil
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pointdistill.data.files.files import (
    disk_is_full,
    flush,
    hold_file,
    no_room,
    read_record,
    sha256_of,
    write_json,
)
from pointdistill.data.files.web import (
    COUNT,
    Answer,
    LostError,
    Redirects,
    RefusedError,
    open_web,
    promised_checksum,
    web_errors,
    with_retries,
)
from pointdistill.errors import DataError

_PATIENCE_SECONDS = 3600.0  # of a download, beyond its length at the slowest speed
_SLOWEST_BYTES_PER_SECOND = 50_000
_MOST_UNSTATED_BYTES = 4 << 30  # of a file whose server does not state its length
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


class BusyError(DataError):
    """Another process is fetching the same file."""


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
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def note(self) -> Path:
        """The file that notes which version the part belongs to."""
        return self.path.with_name(f"{self.path.name}.json")

    def begin(self, noted: _Version) -> None:
        """Start an empty part of a version."""
        self.path.unlink(missing_ok=True)
        self.path.write_bytes(b"")
        write_json(self.note, asdict(noted))

    def noted(self, url: str) -> _Version | None:
        """What the part belongs to; None if there is nothing from this address to resume."""
        try:
            noted = read_record(self.note, _Version)
        except DataError:
            return None
        # A link or a pipe was not made here, and what it leads to is not to be written to.
        ours = self.path.is_file() and not self.path.is_symlink()
        return noted if noted.url == url and ours else None

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    headers: Mapping[str, str] | None = None,
    most_bytes: int | None = None,
    check: Callable[[Path], str] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Fetched:
    """Download a file, or resume a download that was interrupted.

    Args:
        url: http or https; redirects are followed.
        path: where the file goes; its folder is made.
        sha256: checksum that the file must have; None uses the server's, if it states one.
        headers: sent with every request; one called ``Authorization`` to the first server alone.
        most_bytes: a longer file is refused before its bytes come.
        check: called with the complete file before it gets its name; returns what is wrong with it, or an empty
            string. With a check, the server need not state the length.
        progress: called with the bytes that have arrived and the total, which is None if the server does not say.
        sleep: waits between attempts.
        clock: returns seconds.

    Raises:
        DataError: if the server does not state the length, does not answer in several attempts, or takes longer
            than an hour and the time of a very slow line; or if the disk has no room for the file.
        BusyError: if another process is fetching the same file.
        RefusedError: if the server refuses.
        DamagedError: if the file does not have the checksum, or fails the check.
    """
    part = _Part(path.with_name(f".{path.name}.part"))
    timing = _Timing(url, clock, clock(), dict(headers or {}), most_bytes)
    busy = BusyError(f"{path}: another process is fetching it; wait for that one")
    with _folder_for(path), _room_for(path, part), hold_file(part.path, busy):
        promised = with_retries(
            url,
            lambda: _receive(timing, part, progress, any_length=check is not None),
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


@dataclass(frozen=True, slots=True)
class _Timing:
    """What is asked for, with which headers, when it must have ended, and how long it may be."""

    url: str
    clock: Callable[[], float]
    began: float
    headers: Mapping[str, str]
    most_bytes: int | None

    def check_length(self, total: int) -> None:
        """Raise if the file is longer than it may be."""
        if self.most_bytes is not None and total > self.most_bytes:
            msg = f"{self.url}: {total:,} bytes, at most {self.most_bytes:,} are accepted; fetch it by hand"
            raise RefusedError(msg)

    def left(self, total: int) -> float:
        """Seconds left for a file of ``total`` bytes; 0 if the server does not state them."""
        slow = (total or _MOST_UNSTATED_BYTES) / _SLOWEST_BYTES_PER_SECOND
        return self.began + _PATIENCE_SECONDS + slow - self.clock()

    def check(self, total: int, kept: int) -> None:
        """Raise if no time is left."""
        if self.left(total) <= 0:
            hours = (self.clock() - self.began) / 3600
            msg = (
                f"{self.url}: not there after {hours:.1f} hours; {kept:,} bytes are kept: run the same again to "
                "go on, or fetch it by hand"
            )
            raise DataError(msg)


def _receive(
    timing: _Timing,
    part: _Part,
    progress: Callable[[int, int | None], None] | None,
    *,
    any_length: bool,
) -> str | None:
    """Receive over one connection; returns the promised checksum once the part has its full length."""
    url = timing.url
    noted = part.noted(url)
    if noted is None or not noted.total or part.bytes != noted.total:
        timing.check(noted.total if noted else 0, part.bytes)
        redirects = Redirects()
        with web_errors(url):
            try:
                with open_web(
                    url, headers={**timing.headers, **_rest(part, noted)}, redirects=redirects
                ) as answer:
                    checksum = redirects.checksum
                    noted = _begin(
                        timing, answer.response, part, noted, checksum, any_length=any_length
                    )
                    _append(answer, part, noted.total, progress, timing)
            except urllib.error.HTTPError as error:
                if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    raise
                error.close()
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
    timing: _Timing,
    response: http.client.HTTPResponse,
    part: _Part,
    noted: _Version | None,
    promised: str | None,
    *,
    any_length: bool,
) -> _Version:
    """Prepare the part for a response that either continues it or sends the whole file."""
    url, version = timing.url, _version(response.headers)
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        start, total = _range(url, response.headers)
        if noted is None or not part.bytes:
            msg = f"{url}: sends a part of the file where all of it was asked for; fetch it by hand"
            raise RefusedError(msg)
        if (part.bytes, noted.total, noted.version) == (start, total, version):
            return noted
        part.remove()
        raise LostError(_CHANGED)
    total = _length(url, response.headers, any_length=any_length)
    timing.check_length(total)
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
def _folder_for(path: Path) -> Iterator[None]:
    """Make the folder of a file; where nothing came, folders that are new are removed again."""
    new = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # one that is not empty
            for folder in new:
                folder.rmdir()
        raise


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
    answer: Answer,
    part: _Part,
    total: int,
    progress: Callable[[int, int | None], None] | None,
    timing: _Timing,
) -> None:
    """Append the body up to ``total``, or to its end where the total is not known."""
    done = part.bytes
    most = total or min(_MOST_UNSTATED_BYTES, timing.most_bytes or _MOST_UNSTATED_BYTES)
    with part.path.open("ab") as file, answer.connections.ended_after(timing.left(total)):
        while done < most:
            block = answer.block(min(_BLOCK_BYTES, most - done))
            if not block:
                timing.check(total, done)
                return
            file.write(block)
            done += len(block)
            timing.check(total, done)
            if progress:
                progress(done, total or None)
    if not total:
        part.remove()
        msg = f"{timing.url}: sends more than {most:,} bytes without stating a length; fetch it by hand"
        raise RefusedError(msg)


def _range(url: str, headers: email.message.Message) -> tuple[int, int]:
    """First byte and total length, from a response with a part of the file."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
    if match is None or not all(COUNT.fullmatch(number) for number in match.groups()):
        msg = f"{url}: the server does not say which part of the file it sends; fetch it by hand"
        raise DataError(msg)
    return int(match[1]), int(match[2])


def _length(url: str, headers: email.message.Message, *, any_length: bool) -> int:
    """Length of the whole file; 0 if the server does not say and need not."""
    # Of a body in pieces a length says nothing: it was meant for something else, or is a lie.
    in_pieces = "Transfer-Encoding" in headers
    length = "" if in_pieces else str(headers.get("Content-Length", ""))
    if not length and any_length:
        return 0
    if not COUNT.fullmatch(length):
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
