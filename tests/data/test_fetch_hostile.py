"""Servers that lie about lengths, versions, ranges and addresses, or never come to an end."""

from __future__ import annotations

import itertools
import json
import re
import socketserver
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path

import pytest

from pointdistill.data.corpus_building.mixture_fetch import list_models
from pointdistill.data.files import download, web
from pointdistill.data.files.download import fetch
from pointdistill.data.files.web import Redirects, RefusedError, announced_bytes
from pointdistill.errors import DataError
from tests.data.local_server import no_sleep

Write = Callable[[bytes], object]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/zip\r\n"


@contextmanager
def answering(answer: Callable[[bytes, Write], None]) -> Iterator[tuple[str, list[bytes]]]:
    """A server whose every byte is the test's: ``answer`` gets the head of a request and what sends bytes back."""
    requests: list[bytes] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            lines = list(iter(self.rfile.readline, b"\r\n"))
            requests.append(b"".join(lines))
            try:
                answer(requests[-1], self.wfile.write)
            except OSError:  # the client has had enough
                return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/file", requests
        server.shutdown()


def sends(*pieces: bytes) -> Callable[[bytes, Write], None]:
    return lambda _, write: [write(piece) for piece in pieces] and None


def refusal(answer: Callable[[bytes, Write], None], folder: Path, **arguments: object) -> str:
    """The one line with which a file is refused that is not there afterwards."""
    with answering(answer) as (url, _), pytest.raises(DataError) as caught:
        fetch(url, folder / "a.zip", sleep=no_sleep, **arguments)  # type: ignore[arg-type]
    assert not (folder / "a.zip").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("length", [b"9" * 5000, b"-5", b"1e9", b"0x10", b"", b"9" * 19])
def test_a_length_that_is_none(length: bytes, tmp_path: Path) -> None:
    answer = sends(OK + b"Content-Length: " + length + b"\r\n\r\nabc")
    assert "does not say how long the file is" in refusal(answer, tmp_path)
    with answering(answer) as (url, _):
        assert announced_bytes(url) is None


def test_a_length_of_5000_digits_in_a_range_and_in_a_redirect(tmp_path: Path) -> None:
    (tmp_path / ".a.zip.part").write_bytes(b"abc")

    def answer(request: bytes, write: Write) -> None:
        if b"Range" not in request:
            write(OK + b'ETag: "a"\r\nContent-Length: 6\r\n\r\nabc')
        else:
            total = b"9" * 5000
            write(b"HTTP/1.1 206 Part\r\nContent-Range: bytes 3-5/" + total + b"\r\n\r\ndef")

    assert "does not say which part" in refusal(answer, tmp_path)
    moved = b"HTTP/1.1 302 Moved\r\nLocation: /b\r\nX-Linked-Size: " + b"9" * 5000 + b"\r\n\r\n"
    with answering(lambda r, w: w(OK + b"\r\n" if b" /b " in r else moved) and None) as (url, _):
        assert announced_bytes(url) is None


@pytest.mark.parametrize(
    "address",
    ["http://[::1", "http://127.0.0.1:x/", "http://" + "a" * 70 + ".b/", "http://\x01/"],
)  # fmt: skip
def test_a_redirect_to_what_is_no_address_is_final(address: str, tmp_path: Path) -> None:
    answer = sends(f"HTTP/1.1 302 Moved\r\nLocation: {address}\r\n\r\n".encode())
    with answering(answer) as (url, requests), pytest.raises(RefusedError, match=r"no address|302"):
        fetch(url, tmp_path / "a.zip", sleep=no_sleep)
    assert len(requests) == 1


def test_redirects_without_end(tmp_path: Path) -> None:
    """Each leads to an address that was not there before, and has a body that never ends."""
    numbers = itertools.count()

    def answer(_: bytes, write: Write) -> None:
        write(f"HTTP/1.1 302 Moved\r\nLocation: /{next(numbers)}\r\n\r\n".encode())
        for _ in range(10_000):
            write(b"x" * 10_000)

    assert "302" in refusal(answer, tmp_path)
    assert next(numbers) < 20


def test_encryption_is_not_given_up() -> None:
    first = urllib.request.Request("https://example.org/a.zip")
    arguments = (first, None, 302, "Found", Message())
    with pytest.raises(RefusedError, match="is not encrypted; fetch it by hand"):
        Redirects().redirect_request(*arguments, "http://example.org/a.zip")
    followed = Redirects().redirect_request(*arguments, "https://example.com/a.zip")
    assert followed is not None
    assert followed.full_url == "https://example.com/a.zip"


def endless(head: bytes, piece: bytes = b"x" * 4096) -> Callable[[bytes, Write], None]:
    def answer(_: bytes, write: Write) -> None:
        write(head)
        for _ in range(100_000):
            write(piece)

    return answer


def test_a_body_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_MOST_UNSTATED_BYTES", 1 << 20)
    assert "does not say how long" in refusal(endless(OK + b"\r\n"), tmp_path)
    line = refusal(endless(OK + b"\r\n"), tmp_path, check=lambda _: "")
    assert "sends more than 1,048,576 bytes without stating a length" in line
    chunked = endless(
        OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b"x" * 4096 + b"\r\n"
    )
    assert "sends more than 1,048,576 bytes" in refusal(chunked, tmp_path, check=lambda _: "")
    assert list(tmp_path.iterdir()) == []


def test_more_than_the_stated_length_is_not_read(tmp_path: Path) -> None:
    with answering(endless(OK + b"Content-Length: 5\r\n\r\n")) as (url, _):
        assert fetch(url, tmp_path / "a.zip", sleep=no_sleep).bytes == 5
    assert (tmp_path / "a.zip").read_bytes() == b"xxxxx"


@pytest.mark.parametrize(
    "piece", [b"HTTP/1.1 100 Continue\r\n\r\n", b"x"], ids=["continue", "head"]
)
def test_an_answer_that_never_begins(
    piece: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then keeps the timeout between bytes from ever being reached."""
    monkeypatch.setattr(web, "_HEAD_SECONDS", 0.05)

    def answer(_: bytes, write: Write) -> None:
        for _ in range(10_000):
            write(piece)
            time.sleep(0.005)

    assert "no answer in 6 attempts" in refusal(answer, tmp_path)


def dripping(_: bytes, write: Write) -> None:
    write(OK + b'ETag: "a"\r\nContent-Length: 1000000\r\n\r\n')
    for _ in range(10_000):
        write(b"x")
        time.sleep(0.001)


def test_a_body_that_drips_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(download, "_SLOWEST_BYTES_PER_SECOND", 1e9)
    line = refusal(dripping, tmp_path)
    assert re.search(r"not there after 0\.0 hours; \d+ bytes are kept: run the same again", line)
    assert (tmp_path / ".a.zip.part").stat().st_size > 0


def test_a_trickle_over_ever_new_connections_has_a_deadline(tmp_path: Path) -> None:
    """Every connection adds a byte, which never counts as failed; the clock says an hour has passed each time."""
    hours = itertools.count(0, 3600)

    def answer(request: bytes, write: Write) -> None:
        start = int((re.search(rb"bytes=(\d+)-", request) or [0, 0])[1])
        if not start:
            write(OK + b'ETag: "a"\r\nContent-Length: 1000\r\n\r\nx')
        else:
            place = f"bytes {start}-999/1000"
            write(f'HTTP/1.1 206 Part\r\nETag: "a"\r\nContent-Range: {place}\r\n\r\nx'.encode())

    line = refusal(answer, tmp_path, clock=lambda: float(next(hours)))
    assert "hours" in line


@pytest.mark.parametrize("status", [200, 206])
def test_a_version_that_differs_each_time_is_given_up(status: int, tmp_path: Path) -> None:
    """Each answer is cut short; what came of another version is thrown away, so no attempt gets further."""
    versions = itertools.count()

    def answer(request: bytes, write: Write) -> None:
        tag = f'ETag: "{next(versions)}"\r\n'.encode()
        if b"Range" in request and status == 206:
            write(b"HTTP/1.1 206 Part\r\n" + tag + b"Content-Range: bytes 3-5/6\r\n\r\nde")
        else:
            write(OK + tag + b"Content-Length: 6\r\n\r\nabc")

    with answering(answer) as (url, requests):
        with pytest.raises(DataError, match="no answer in 6 attempts"):
            fetch(url, tmp_path / "a.zip", sleep=no_sleep)
        assert len(requests) < 20


@pytest.mark.parametrize("part", ["bytes 0-5/6", "bytes 1-5/6", "bytes 3-5/7", "bytes */6", "3-5"])
def test_a_range_that_lies_is_never_joined_to_what_came(part: str, tmp_path: Path) -> None:
    def answer(request: bytes, write: Write) -> None:
        if b"Range" in request:
            head = f'HTTP/1.1 206 Part\r\nETag: "a"\r\nContent-Range: {part}\r\n\r\n'
            write(head.encode() + b"def")
        else:
            write(OK + b'ETag: "a"\r\nContent-Length: 6\r\n\r\nabc')

    assert re.search("no answer in 6|does not say which part", refusal(answer, tmp_path))


def test_a_part_that_was_not_asked_for(tmp_path: Path) -> None:
    answer = sends(b"HTTP/1.1 206 Part\r\nContent-Range: bytes 0-2/6\r\n\r\nabc")
    assert "sends a part of the file where all of it was asked for" in refusal(answer, tmp_path)


def test_what_went_on_is_hashed_from_its_first_byte(tmp_path: Path) -> None:
    """The part on the disk was changed in between, so the whole has another checksum than the promised one."""
    digest = "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721"  # of abcdef

    def answer(request: bytes, write: Write) -> None:
        if b"Range" in request:
            write(b'HTTP/1.1 206 Part\r\nETag: "a"\r\nContent-Range: bytes 3-5/6\r\n\r\ndef')
        else:
            write(OK + b'ETag: "a"\r\nContent-Length: 6\r\n\r\nabc')

    def pause(_: float) -> None:
        (tmp_path / ".a.zip.part").write_bytes(b"abX")

    with answering(answer) as (url, _):
        with pytest.raises(DataError, match=f"expected {digest}"):
            fetch(url, tmp_path / "a.zip", sha256=digest, sleep=pause)
        assert fetch(url, tmp_path / "a.zip", sha256=digest, sleep=no_sleep).checked


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip", "\x1b[31m"])
def test_a_file_that_is_compressed_on_its_way_is_refused(coding: str, tmp_path: Path) -> None:
    head = OK + f"Content-Encoding: {coding}\r\nContent-Length: 3\r\n\r\n".encode()
    assert "comes compressed" in refusal(sends(head + b"abc"), tmp_path)
    with answering(sends(head + b"abc")) as (url, _):  # here it describes the file itself
        assert fetch(f"{url}.gz", tmp_path / "a.gz", sleep=no_sleep).bytes == 3


def test_a_second_coding_counts_too(tmp_path: Path) -> None:
    codings = b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\n"
    line = refusal(sends(OK + codings + b"Content-Length: 3\r\n\r\nabc"), tmp_path)
    assert "comes compressed (identity, gzip)" in line


def test_a_length_beside_pieces_is_not_believed(tmp_path: Path) -> None:
    """The first four bytes of six would be taken for the whole file."""
    head = OK + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = sends(head, b"6\r\nwhole!\r\n0\r\n\r\n")
    assert "does not say how long" in refusal(answer, tmp_path)
    with answering(answer) as (url, _):
        fetch(url, tmp_path / "b.zip", check=lambda _: "", sleep=no_sleep)
    assert (tmp_path / "b.zip").read_bytes() == b"whole!"


def test_the_most_bytes_hold_where_no_length_is_stated(tmp_path: Path) -> None:
    line = refusal(endless(OK + b"\r\n"), tmp_path, check=lambda _: "", most_bytes=1 << 16)
    assert "sends more than 65,536 bytes without stating a length" in line


@pytest.mark.parametrize("length", [b"-1", b"-5", b"-FFFFFFFF"])
def test_a_piece_of_negative_length(
    length: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's reader takes such a piece for one without an end, whatever number of bytes is asked for."""
    head = OK + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n" + length + b"\r\n"
    line = refusal(endless(head), tmp_path, check=lambda _: "")
    assert "no answer in 6 attempts" in line
    monkeypatch.setattr("pointdistill.data.corpus_building.mixture_fetch._MOST_PAGE_BYTES", 1000)
    with answering(endless(head)) as (url, _), pytest.raises(DataError, match=r"no answer in 6"):
        list_models(url, sleep=no_sleep)


DAMAGE = [
    *({key: value} for key in ("total", "version", "url", "sha256") for value in (["6"], 6.5)),
    {"total": "6"},
    {"total": None},
    {"more": 1},
]


@pytest.mark.parametrize("damage", [*DAMAGE, None], ids=str)
def test_a_damaged_note_beside_a_part_costs_the_part_alone(
    damage: dict[str, object] | None, tmp_path: Path
) -> None:
    part = tmp_path / ".a.zip.part"
    with answering(sends(OK + b'ETag: "a"\r\nContent-Length: 6\r\n\r\nabcdef')) as (url, requests):
        note = {"url": url, "version": '"a"', "total": 6, "sha256": None}
        text = "[" * 100_000 if damage is None else json.dumps(note | damage)
        part.write_bytes(b"xyz")
        part.with_name(".a.zip.part.json").write_text(text)
        fetch(url, tmp_path / "a.zip", sleep=no_sleep)
    assert (tmp_path / "a.zip").read_bytes() == b"abcdef"
    assert b"Range" not in requests[0]


def test_a_link_in_place_of_a_part_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"abc")
    part = tmp_path / ".a.zip.part"
    part.symlink_to(tmp_path / "mine")
    with answering(sends(OK + b'ETag: "a"\r\nContent-Length: 6\r\n\r\nabcdef')) as (url, _):
        note = {"url": url, "version": '"a"', "total": 6, "sha256": None}
        part.with_name(".a.zip.part.json").write_text(json.dumps(note))
        fetch(url, tmp_path / "a.zip", sleep=no_sleep)
    assert (tmp_path / "a.zip").read_bytes() == b"abcdef"
    assert (tmp_path / "mine").read_bytes() == b"abc"


@pytest.mark.parametrize(
    "head", [b"rubbish\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", OK + b"a: b\r\n" * 200, b"x" * 70_000]
)
def test_what_is_no_http(head: bytes, tmp_path: Path) -> None:
    assert "no answer in 6 attempts" in refusal(sends(head), tmp_path)


def test_a_list_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ever new names on ever new pages, and a page that is too long."""
    monkeypatch.setattr("pointdistill.data.corpus_building.mixture_fetch._MOST_MODELS", 20)
    numbers = itertools.count()

    def answer(_: bytes, write: Write) -> None:
        names = ",".join(f'{{"name":"{next(numbers)}"}}' for _ in range(5))
        write(OK + f"Content-Length: {len(names) + 2}\r\n\r\n[{names}]".encode())

    with answering(answer) as (url, _), pytest.raises(DataError, match="more than 20 models"):
        list_models(url, sleep=no_sleep)
    monkeypatch.setattr("pointdistill.data.corpus_building.mixture_fetch._MOST_PAGE_BYTES", 1000)
    line = "sends more than 1,000 bytes"
    with answering(endless(OK + b"\r\n")) as (url, _), pytest.raises(DataError, match=line):
        list_models(url, sleep=no_sleep)
