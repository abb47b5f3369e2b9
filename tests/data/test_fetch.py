"""Downloads from a local server that drops connections, changes its files, and refuses requests."""

from __future__ import annotations

import errno
import hashlib
import http.server
import re
import socket
import threading
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.files.download import DamagedError, fetch
from pointdistill.data.files.web import announced_bytes, web_errors, with_retries
from pointdistill.errors import DataError
from tests.data.local_server import no_sleep, serving

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """What the server does, and the requests that it received."""

    url: str = ""
    content: bytes = CONTENT
    methods: list[str] = field(default_factory=list)
    etag: str | None = '"one"'
    drop_after: list[int] = field(default_factory=list)
    """Bytes after which the next connections end."""

    stall_after: list[int] = field(default_factory=list)
    """Bytes after which the next connections stall."""

    statuses: list[int] = field(default_factory=list)
    """Refusals of the next requests."""

    moved: dict[str, str] = field(default_factory=lambda: {"/moved": "/file"})
    """Redirects."""

    headers: dict[str, str] = field(default_factory=dict)
    ignores_ranges: bool = False
    ignores_versions: bool = False
    ranges: list[str] = field(default_factory=list)
    """The ranges of the requests; empty for a whole file."""


@pytest.fixture
def server() -> Iterator[Server]:
    state, over = Server(), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            state.methods.append(self.command)
            state.ranges.append(self.headers.get("Range", ""))
            if state.statuses:
                self.send_error(state.statuses.pop(0))
                return
            if self.path in state.moved:
                self.send_response(302)
                self.send_header("Location", state.moved[self.path])
                self.send_header("X-Linked-Etag", f'"{SHA256}"')
                self.send_header("X-Linked-Size", "300000")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self._send(self._start())

        def _start(self) -> int:
            requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            same = state.ignores_versions or self.headers.get("If-Range") == state.etag
            return int(requested[1]) if requested and same and not state.ignores_ranges else 0

        def _send(self, start: int) -> None:
            body, size = state.content[start:], len(state.content)
            self.send_response(206 if start else 200)
            answer = {"Content-Length": str(len(body)), "Content-Type": "application/zip"}
            if start:
                answer["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
            if state.etag:
                answer["ETag"] = state.etag
            for name, value in (answer | state.headers).items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if state.stall_after:
                self.wfile.write(body[: state.stall_after.pop(0)])
                over.wait()
            else:
                self.wfile.write(body[: state.drop_after.pop(0)] if state.drop_after else body)
            self.close_connection = True

    with serving(Handler) as address:
        state.url = f"{address}/file"
        yield state
        over.set()


def test_a_dropped_connection_is_gone_on_with_from_its_last_byte(
    server: Server, tmp_path: Path
) -> None:
    server.drop_after = [100_000, 50_000]
    told: list[tuple[int, int | None]] = []
    path = tmp_path / "downloads" / "a.zip"
    got = fetch(server.url, path, progress=lambda *at: told.append(at), sleep=no_sleep)
    assert path.read_bytes() == CONTENT
    assert (got.path, got.bytes, got.sha256, got.checked) == (path, 300_000, SHA256, False)
    assert server.ranges == ["", "bytes=100000-", "bytes=150000-"]
    assert told[-1] == (300_000, 300_000)
    assert [file.name for file in path.parent.iterdir()] == ["a.zip"]


def test_a_later_call_goes_on_and_until_then_the_file_is_absent(
    server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "a.zip"
    server.drop_after = [100_000, *[0] * 6]
    with pytest.raises(DataError, match=r"no answer in 6 attempts .* 100,000 bytes are kept"):
        fetch(server.url, path, sleep=no_sleep)
    assert not path.exists()
    server.ranges.clear()
    assert fetch(server.url, path, sha256=SHA256, sleep=no_sleep).checked
    assert server.ranges == ["bytes=100000-"]
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("way", ["asked by version", "by a server that knows none", "refused"])
def test_a_file_that_changed_in_between_is_fetched_from_its_beginning(
    server: Server, tmp_path: Path, way: str
) -> None:
    path = tmp_path / "a.zip"
    server.drop_after = [100_000, *[0] * 6]
    with pytest.raises(DataError):
        fetch(server.url, path, sleep=no_sleep)
    server.etag, server.content = '"two"', CONTENT[::-1]
    server.ignores_versions = way == "by a server that knows none"
    server.statuses = [416] if way == "refused" else []
    fetch(server.url, path, sleep=no_sleep)
    assert path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("way", ["no version", "no ranges"])
def test_a_server_that_cannot_go_on_begins_again(server: Server, tmp_path: Path, way: str) -> None:
    server.drop_after = [100_000]
    if way == "no version":
        server.etag = None
    else:
        server.ignores_ranges = True
    path = tmp_path / "a.zip"
    fetch(server.url, path, sleep=no_sleep)
    assert path.read_bytes() == CONTENT


def test_another_content_than_promised_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(DataError, match=f"expected {SHA256}; fetch it again"):
        fetch(server.url, tmp_path / "a.zip", sha256=SHA256, sleep=no_sleep)
    with pytest.raises(DataError, match=f"expected {SHA256}"):
        fetch(server.url.replace("file", "moved"), tmp_path / "a.zip", sleep=no_sleep)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_was_stopped_while_it_was_checked_is_not_fetched_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(_: Path) -> str:
        raise KeyboardInterrupt

    url = server.url.replace("file", "moved")
    with monkeypatch.context() as patched:
        patched.setattr("pointdistill.data.files.download.sha256_of", stopped)
        with pytest.raises(KeyboardInterrupt):
            fetch(url, tmp_path / "a.zip", sleep=no_sleep)
    assert not (tmp_path / "a.zip").exists()
    server.ranges.clear()
    assert fetch(url, tmp_path / "a.zip", sleep=no_sleep).checked
    assert server.ranges == []
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_the_checksum_of_a_redirect_is_compared(server: Server, tmp_path: Path) -> None:
    got = fetch(server.url.replace("file", "moved"), tmp_path / "a.zip", sleep=no_sleep)
    assert got.checked
    assert got.path.read_bytes() == CONTENT


def test_the_length_of_a_file_is_asked_without_fetching_it(server: Server) -> None:
    assert announced_bytes(server.url) == 300_000
    assert server.methods == ["HEAD"]
    server.headers = {"Content-Length": ""}
    assert announced_bytes(server.url) is None
    moved = server.url.replace("file", "moved")
    assert announced_bytes(moved) == 300_000, "the redirect says it"
    server.moved["/moved"] = "/moved"
    assert announced_bytes(moved) == 300_000
    assert set(server.methods) == {"HEAD"}
    server.statuses = [404]
    assert announced_bytes(server.url) is None


def test_with_a_check_the_server_need_not_say_how_long_the_file_is(
    server: Server, tmp_path: Path
) -> None:
    server.headers, path = {"Content-Length": ""}, tmp_path / "a.zip"
    (tmp_path / ".a.zip.part").write_bytes(b"of another call")
    got = fetch(
        server.url, path, check=lambda part: "" if part.stat().st_size == 300_000 else "short"
    )
    assert (got.bytes, path.read_bytes()) == (300_000, CONTENT)
    path.unlink()
    server.drop_after = [100_000]
    with pytest.raises(DamagedError, match=r"a\.zip: 100000 bytes; fetch it again from http"):
        fetch(server.url, path, check=lambda part: f"{part.stat().st_size} bytes", sleep=no_sleep)
    assert list(tmp_path.iterdir()) == []


def test_a_busy_server_is_asked_again_with_longer_and_longer_pauses(
    server: Server, tmp_path: Path
) -> None:
    server.statuses = [503, 429]
    pauses: list[float] = []
    fetch(server.url, tmp_path / "a.zip", sleep=pauses.append)
    assert pauses == [2.0, 4.0]
    server.statuses = [404]
    with pytest.raises(DataError, match="404 Not Found; see whether it has moved"):
        fetch(server.url, tmp_path / "b.zip", sleep=no_sleep)


def test_a_silent_connection_is_given_up_and_what_came_is_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointdistill.data.files.web.TIMEOUT_SECONDS", 0.1)
    server.stall_after = [100_000, 50_000]
    got = fetch(server.url, tmp_path / "a.zip", sha256=SHA256, sleep=no_sleep)
    assert got.path.read_bytes() == CONTENT
    assert server.ranges == ["", "bytes=100000-", "bytes=150000-"]


def test_ctrl_c_keeps_what_came(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, _: int | None) -> None:
        if done >= 100_000:
            raise KeyboardInterrupt

    monkeypatch.setattr("pointdistill.data.files.download._BLOCK_BYTES", 10_000)
    path = tmp_path / "a.zip"
    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, path, progress=stop, sleep=no_sleep)
    received = (tmp_path / ".a.zip.part").stat().st_size
    assert 100_000 <= received < 110_000
    assert not path.exists()
    fetch(server.url, path, sleep=no_sleep)
    assert server.ranges == ["", f"bytes={received}-"]
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_final_at_once(server: Server, tmp_path: Path, status: int) -> None:
    server.statuses = [status] * 9
    with pytest.raises(DataError, match=rf"/file: {status} .*; see whether it has moved"):
        fetch(server.url, tmp_path / "a.zip", sleep=no_sleep)
    assert len(server.ranges) == 1


def test_a_server_that_stays_broken_is_given_up(server: Server, tmp_path: Path) -> None:
    server.statuses = [500] * 99
    with pytest.raises(DataError, match=r"no answer in 6 attempts \(500 Internal Server Error\)"):
        fetch(server.url, tmp_path / "a.zip", sleep=no_sleep)
    assert len(server.ranges) == 6


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("/moved", "/moved: 302 "),
        ("file:///etc/hostname", "/moved: 302 "),
        ("ftp://127.0.0.1/a.zip", "'ftp://127.0.0.1/a.zip': only http and https"),
    ],
)
def test_redirects_in_a_circle_or_to_other_than_the_web_are_refused(
    server: Server, tmp_path: Path, to: str, message: str
) -> None:
    server.moved["/moved"] = to
    with pytest.raises(DataError, match=message):
        fetch(server.url.replace("file", "moved"), tmp_path / "a.zip", sleep=no_sleep)
    assert not (tmp_path / "a.zip").exists()


def test_a_file_that_the_disk_cannot_hold_is_not_begun(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 299_999}))
    with pytest.raises(DataError, match="takes 300,000 bytes, and its disk has 299,999 for it"):
        fetch(server.url, tmp_path / "a.zip", sleep=no_sleep)
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Content-Type": "text/html; charset=utf-8"}, "answered with a web page"),
        ({"Content-Length": ""}, "does not say how long the file is"),
        ({"Content-Length": "0"}, "an empty file"),
    ],
)
def test_what_is_no_whole_file_is_refused(
    server: Server, tmp_path: Path, headers: dict[str, str], message: str
) -> None:
    server.headers = headers
    with pytest.raises(DataError, match=message):
        fetch(server.url, tmp_path / "a.zip", sleep=no_sleep)
    assert not (tmp_path / "a.zip").exists()


def test_other_addresses_and_a_second_process_are_refused(server: Server, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with pytest.raises(DataError, match="only http and https"):
        fetch("file:///etc/hostname", tmp_path / "a.zip")
    with (tmp_path / ".a.zip.part.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is fetching it"):
            fetch(server.url, tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("lost", "attempts"),
    [
        (urllib.error.URLError(socket.gaierror(-3, "Temporary failure in name resolution")), 2),
        (urllib.error.URLError(OSError(errno.ENETUNREACH, "Network is unreachable")), 2),
        (urllib.error.URLError(ConnectionRefusedError(errno.ECONNREFUSED, "refused")), 6),
    ],
)
def test_a_server_that_was_never_reached_is_not_waited_for(lost: Exception, attempts: int) -> None:
    pauses: list[float] = []

    def attempt() -> None:
        with web_errors("http://host/a"):
            raise lost

    with pytest.raises(DataError, match="cannot be reached" if attempts == 2 else "no answer in 6"):
        with_retries("http://host/a", attempt, sleep=pauses.append)
    assert len(pauses) == attempts - 1
    assert attempts > 2 or sum(pauses) <= 2.0


def test_a_network_that_fails_in_the_middle_is_waited_for() -> None:
    kept = [0]
    pauses: list[float] = []

    def attempt() -> str:
        kept[0] += 1000 if len(pauses) < 2 else 0
        if len(pauses) == 4:
            return "done"
        with web_errors("http://host/a"):
            raise urllib.error.URLError(socket.gaierror(-3, "Temporary failure"))
        raise AssertionError

    assert with_retries("http://host/a", attempt, received=lambda: kept[0], sleep=pauses.append)
    assert len(pauses) == 4
