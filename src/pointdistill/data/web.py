"""One request over http or https: followed where it leads, refused for good, or worth asking again."""

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
"""Longest silence of a server before the connection counts as lost."""

_LENGTH_TIMEOUT_SECONDS = 10.0  # a length is a courtesy, not worth a minute
_ATTEMPTS = 6  # in a row without one byte more
_FIRST_PAUSE_SECONDS = 1.0  # doubled after each attempt in vain
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_SHA256 = re.compile(r"[0-9a-f]{64}")

# The Hugging Face Hub's, of the file behind a redirect.
_CHECKSUM_HEADER = "X-Linked-Etag"
_LENGTH_HEADER = "X-Linked-Size"

# Not OSError as a whole: a full disk is none of the server's faults.
_LOST = (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)

Answer = TypeVar("Answer")


class LostError(Exception):
    """The connection is gone, or the server asks to come again."""


class RefusedError(DataError):
    """The server does not give this file, and will not when asked again."""


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps what they say of the file behind them."""

    checksum: str | None = None
    """Its SHA-256."""

    length: int | None = None
    """Its bytes."""

    def redirect_request(self, *given: Any) -> urllib.request.Request | None:
        """The request for where it leads, by the method of the first."""
        request, headers, url = given[0], given[4], given[5]
        _check_web(url)
        self.checksum = promised_checksum(headers) or self.checksum
        self.length = _bytes(headers, _LENGTH_HEADER) or self.length
        followed = super().redirect_request(*given)
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
    """Ask for a file; call it within `web_errors`.

    Raises:
        DataError: if the address, or one that it leads to, is not of the web.
        RefusedError: if a web page comes in place of the file.
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
    """Say what a failed request means.

    Raises:
        LostError: if it is worth asking again.
        RefusedError: if it is not.
    """
    try:
        yield
    except urllib.error.HTTPError as error:
        said = f"{error.code} {error.reason}"
        if error.code in _PASSING:
            raise LostError(said) from error
        msg = f"{url}: {said}; see whether it has moved, and fetch it by hand"
        raise RefusedError(msg) from error
    except urllib.error.URLError as error:
        raise LostError(str(error.reason)) from error
    except _LOST as error:
        why = f"{type(error).__name__}: {error}"
        raise LostError(why) from error


def patiently(
    url: str,
    attempt: Callable[[], Answer],
    *,
    kept: Callable[[], int] = lambda: 0,
    sleep: Callable[[float], None] = time.sleep,
) -> Answer:
    """What an attempt gives, which is made again after longer and longer pauses as long as it is lost.

    Args:
        url: what is asked for.
        attempt: asks; raises `LostError`.
        kept: bytes that are there; an attempt after which there are more was not in vain.
        sleep: waits between attempts.

    Raises:
        DataError: after several attempts in vain.
    """
    vain = 0
    while True:
        before = kept()
        try:
            return attempt()
        except LostError as lost:
            vain = 0 if kept() > before else vain + 1
            if vain == _ATTEMPTS:
                msg = (
                    f"{url}: no answer in {_ATTEMPTS} attempts ({lost}); {kept():,} bytes are kept: run the "
                    f"same again to go on"
                )
                raise DataError(msg) from lost
            sleep(_FIRST_PAUSE_SECONDS * 2**vain)


def announced_bytes(url: str) -> int | None:
    """How long a file is, by its server's word; None if it does not say, or does not answer."""
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
    """SHA-256 of the file, where its server states it."""
    value = str(headers.get(_CHECKSUM_HEADER, "")).strip('"')
    return value if _SHA256.fullmatch(value) else None


def _bytes(headers: email.message.Message, name: str) -> int | None:
    value = str(headers.get(name, ""))
    return int(value) or None if value.isdecimal() else None


def _check_web(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        msg = f"{url!r}: only http and https addresses are fetched"
        raise DataError(msg)
