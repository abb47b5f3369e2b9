"""Requests to servers that are not trusted: every answer has a size, and every connection an end.

Requests follow redirects; a failure is either final or worth another attempt.
"""

from __future__ import annotations

import email.message
import errno
import http.client
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, TypeVar
from urllib.request import Request

from pointdistill.errors import DataError, one_line

TIMEOUT_SECONDS = 60.0
"""How long a server may be silent before the connection counts as lost."""

_LENGTH_TIMEOUT_SECONDS = 10.0  # only for estimates, so not worth a minute
_HEAD_SECONDS = 120.0  # until an answer begins, redirects included, however many bytes came
PAGE_SECONDS = 600.0  # for a whole answer that is no download
_ATTEMPTS = 6  # in a row without a single new byte
_UNREACHABLE = 2  # attempts at a server that was never reached
_FIRST_PAUSE_SECONDS = 1.0  # doubled after each failed attempt
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Longer numbers are no lengths, and Python refuses those of 5,000 digits.
COUNT = re.compile(r"[0-9]{1,18}")

# The Hugging Face Hub describes the file behind a redirect by these.
_CHECKSUM_HEADER = "X-Linked-Etag"
_LENGTH_HEADER = "X-Linked-Size"

# A lost connection. Not any OSError: a full disk is not the server's fault.
_LOST = (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)

Result = TypeVar("Result")


class LostError(Exception):
    """The connection was lost, or the server asks to try again later."""


class UnreachableError(LostError):
    """There is no way to the server: its name is not known here, or the network is down."""


class RefusedError(DataError):
    """The server refuses to send this file, and asking again will not help."""


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects and remembers what they say about the file behind them."""

    checksum: str | None = None
    """SHA-256 of the file."""

    length: int | None = None
    """Length of the file in bytes."""

    def http_error_302(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage
    ) -> Any:
        """Follow a redirect without reading its body, which may have no end."""
        fp.close()
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, *arguments: Any) -> Request | None:
        """The request for the new address, with the method of the first request.

        Raises:
            DataError: if it is not on the web, or gives up the encryption of the first.
        """
        request, headers, url = arguments[0], arguments[4], arguments[5]
        _check_web(url)
        if request.type == "https" and not url.startswith("https://"):
            msg = f"{request.full_url}: leads to {url!r}, which is not encrypted; fetch it by hand"
            raise RefusedError(msg)
        self.checksum = promised_checksum(headers) or self.checksum
        self.length = _bytes(headers, _LENGTH_HEADER) or self.length
        followed = super().redirect_request(*arguments)
        if followed is not None:
            followed.method = request.get_method()  # Python before 3.13 makes a GET of a HEAD
            places = (urllib.parse.urlsplit(one.full_url).netloc for one in (request, followed))
            if len({*places}) > 1:
                followed.remove_header("Authorization")  # which is for the first server alone
        return followed


@contextmanager
def open_web(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
    redirects: Redirects | None = None,
    timeout_seconds: float | None = None,
) -> Iterator[Answer]:
    """Request a file; to be called within `web_errors`. The answer is closed with the block.

    Raises:
        DataError: if the address, or one that it redirects to, is not http or https.
        RefusedError: if a web page comes instead of the file, or the file is compressed on its way.
    """
    _check_web(url)
    plain = {"User-Agent": "pointdistill", "Accept-Encoding": "identity"}
    request = Request(url, headers=plain | dict(headers or {}), method=method)
    timeout = TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds
    connections = _Connections()
    opener = urllib.request.build_opener(redirects or Redirects(), *connections.handlers())
    with connections.ended_after(_HEAD_SECONDS):
        response: http.client.HTTPResponse = opener.open(request, timeout=timeout)
    with response:
        _check_kind(url, response)
        yield Answer(response, connections)


def _check_kind(url: str, response: http.client.HTTPResponse) -> None:
    """Refuse what is not the file's own bytes."""
    if response.headers.get_content_type() == "text/html":
        msg = f"{url}: answered with a web page in place of the file; fetch it by hand"
        raise RefusedError(msg)
    codings = response.headers.get_all("Content-Encoding") or [""]
    coding = ", ".join(str(one) for one in codings).strip().lower()
    # Some servers state the compression of a file that is compressed itself.
    if coding not in ("", "identity") and not urllib.parse.urlsplit(url).path.endswith(".gz"):
        msg = f"{url}: comes compressed ({one_line(coding[:20])}), which was not asked for; fetch it by hand"
        raise RefusedError(msg)


class _Connections:
    """The connections of one request, which can be ended: a timeout only limits the time between two bytes."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def handlers(self) -> list[urllib.request.BaseHandler]:
        """Handlers of http and https whose connections are noted."""
        noted = self._sockets

        class Plain(http.client.HTTPConnection):
            def connect(self) -> None:
                super().connect()
                noted.append(self.sock)

        class Encrypted(http.client.HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                noted.append(self.sock)

        class Http(urllib.request.HTTPHandler):
            def http_open(self, request: Request) -> http.client.HTTPResponse:
                return self.do_open(Plain, request)

        class Https(urllib.request.HTTPSHandler):
            def https_open(self, request: Request) -> http.client.HTTPResponse:
                return self.do_open(Encrypted, request)

        return [Http(), Https()]

    @contextmanager
    def ended_after(self, seconds: float) -> Iterator[None]:
        """End the connections if the block takes longer; what waits for them then sees a lost connection."""
        timer = threading.Timer(seconds, self._end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end(self) -> None:
        for connection in self._sockets:
            with suppress(OSError):
                # Not the method of an encrypted socket, which would pull its state from under its reader.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered."""

    response: http.client.HTTPResponse
    connections: _Connections

    def block(self, most: int) -> bytes:
        """The next bytes of the body, at least one and at most ``most``; none at its end.

        Raises:
            LostError: if more come than were asked for, as where a piece states a negative length.
        """
        # read1 returns what has arrived before a connection stalls; read would wait for a whole block, and for the
        # end of a body whose piece has the length -1.
        content = self.response.read1(most)
        if len(content) > most:
            cause = f"{len(content):,} bytes came where {most:,} were asked for"
            raise LostError(cause)
        return content

    def read(self, most: int) -> bytes:
        """The whole body, which is expected to be small.

        Raises:
            LostError: if bytes are missing.
            RefusedError: if it has more than ``most`` bytes.
        """
        content = bytearray()
        with self.connections.ended_after(PAGE_SECONDS):
            while len(content) <= most and (block := self.block(most + 1 - len(content))):
                content += block
        if len(content) > most:
            msg = f"{self.response.url}: sends more than {most:,} bytes; fetch it by hand"
            raise RefusedError(msg)
        if self.response.length:  # read() with a size does not complain about missing bytes
            cause = f"{len(content):,} bytes came and {self.response.length:,} are missing"
            raise LostError(cause)
        return bytes(content)


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
        error.close()
        answer = one_line(f"{error.code} {' '.join(str(error.reason).split())}")
        if error.code in _TEMPORARY:
            raise LostError(answer) from error
        msg = f"{url}: {answer}; see whether it has moved, and fetch it by hand"
        raise RefusedError(msg) from error
    except urllib.error.URLError as error:
        lost = UnreachableError if _is_unreachable(error.reason) else LostError
        raise lost(one_line(str(error.reason))) from error
    except (http.client.InvalidURL, ValueError, OverflowError) as error:
        # Of a redirect too: a port of 99999, an unfinished IPv6 address, a host that is no name.
        msg = f"{url}: leads to what is no address ({one_line(str(error))}); fetch it by hand"
        raise RefusedError(msg) from error
    except _LOST as error:
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise LostError(one_line(cause)) from error


def _is_unreachable(reason: object) -> bool:
    return isinstance(reason, socket.gaierror) or (
        isinstance(reason, OSError) and reason.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
    )


def with_retries(
    url: str,
    attempt: Callable[[], Result],
    *,
    received: Callable[[], int] = lambda: 0,
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """The result of an attempt, which is repeated, after longer and longer pauses, while its connection is lost.

    Args:
        url: the address, for messages.
        attempt: makes one request; raises `LostError` if it may be repeated.
        received: returns the bytes that are kept. An attempt counts as failed unless they are more than ever
            before: a server that makes them be thrown away each time would otherwise be asked for ever.
        sleep: waits between attempts.

    Raises:
        DataError: after several failed attempts in a row, or two if the server was never reached.
    """
    failed, largest = 0, received()
    first = largest
    while True:
        try:
            return attempt()
        except LostError as lost:
            kept = received()
            failed, largest = (0, kept) if kept > largest else (failed + 1, largest)
            # A network that fails in the middle may come back; one that was never there is not waited for.
            if isinstance(lost, UnreachableError) and largest == first and failed == _UNREACHABLE:
                msg = f"{url}: cannot be reached from here ({lost}); check the network and run the same again"
                raise DataError(msg) from lost
            if failed == _ATTEMPTS:
                msg = (
                    f"{url}: no answer in {_ATTEMPTS} attempts ({lost}); {kept:,} bytes are kept: run the "
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
            ) as answer,
        ):
            return redirects.length or _bytes(answer.response.headers, "Content-Length")
    except (LostError, RefusedError):
        return redirects.length


def promised_checksum(headers: email.message.Message) -> str | None:
    """SHA-256 of the file, if its server states it."""
    value = str(headers.get(_CHECKSUM_HEADER, "")).strip('"')
    return value if _SHA256.fullmatch(value) else None


def _bytes(headers: email.message.Message, name: str) -> int | None:
    value = str(headers.get(name, ""))
    return int(value) or None if COUNT.fullmatch(value) else None


def _check_web(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        msg = f"{url!r}: only http and https addresses are fetched"
        raise DataError(msg)
