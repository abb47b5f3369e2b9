"""Requests over http or https, which follow redirects; a failure is either final or worth another attempt."""

from __future__ import annotations

import email.message
import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

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
