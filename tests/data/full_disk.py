"""Builds and downloads on a disk that is full, run by `test_full_disk` as a program of its own.

It mounts small file systems, which it may do in a user namespace of its own; they are gone when it ends.
``python -m tests.data.full_disk FOLDER`` writes what every scenario saw as JSON, or how it failed.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.server
import io
import json
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pointdistill.cli import main as command
from pointdistill.data.corpus import verify_corpus
from pointdistill.data.corpus_building import BuildSettings, build_corpus, retry_corpus
from pointdistill.data.corpus_building.mixture import build_mixture
from pointdistill.data.corpus_building.source_status import MixtureRequest
from pointdistill.data.files.download import fetch
from pointdistill.errors import DataError
from tests.data.local_server import serving
from tests.data.mixture_archives import write_modelnet40
from tests.data.odd_source import OddSource
from tests.data.source_archives import wedge_obj, write_zip

REMOUNT = 32
PAGE = os.sysconf("SC_PAGESIZE")
LINE = "no space left on the disk; what is done is safe: make room and run the same again to go on"


class SmallDisk:
    """A file system in memory whose size can be changed while it is used."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        self._call("tmpfs", 0, "size=64m")
        (path / "ballast").write_bytes(bytes(PAGE))  # so that it is never of size 0: unlimited

    def resize(self, free_pages: int = 1 << 14) -> None:
        """Leave so much room."""
        status = os.statvfs(self.path)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        self._call("tmpfs", REMOUNT, f"size={used + free_pages * PAGE}")

    def _call(self, kind: str, flags: int, options: str) -> None:
        words = (kind.encode(), bytes(self.path), kind.encode(), flags, options.encode())
        if ctypes.CDLL(None, use_errno=True).mount(*words) != 0:
            raise OSError(ctypes.get_errno(), f"mount {options}", str(self.path))


class FullAt:
    """Fills a disk at the moment when a file is opened on it to be written, the n-th since it was armed."""

    def __init__(self, disk: SmallDisk) -> None:
        self._disk = disk
        self._left = 0
        self.name = ""
        """The file at which it filled up; empty as long as it has not."""

        sys.addaudithook(self._on_event)

    def arm(self, number: int) -> None:
        self._left, self.name = number, ""

    def disarm(self) -> None:
        self._left = 0

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not self._left or not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        path = Path(os.fsdecode(arguments[0])) if not isinstance(arguments[0], int) else None
        if path is not None and path.is_relative_to(self._disk.path):
            self._left -= 1
            if not self._left:
                self._disk.resize(free_pages=0)
                kind = path.name.lstrip(".").partition(".")[0]  # without numbers and what is aside
                self.name = re.sub(r"[-\d]+$", "", kind) + path.suffix


def scanned(folder: Path) -> Path:
    """Two scanned objects, of which one is no zip."""
    write_zip(folder / "google-scanned-objects/Cup.zip", {"meshes/model.obj": wedge_obj()})
    (folder / "google-scanned-objects/Broken.zip").write_bytes(b"no zip")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def mixed(archives: Path, output: Path) -> Path:
    return build_mixture(
        MixtureRequest(archives=archives), output, BuildSettings(points=512, workers=0)
    ).path


def refusal(build: Callable[[], object]) -> str:
    """The line with which a build ends; empty if it succeeds."""
    try:
        build()
    except DataError as error:
        return str(error)
    return ""


def every_writer(folder: Path, disk: SmallDisk) -> dict[str, list[str]]:
    """The disk fills up at each file in turn that a new mixture, and then a growing one, writes."""
    archives, full = scanned(folder / "archives"), FullAt(disk)

    def work(output: Path) -> object:
        return mixed(archives, output)

    one = files_of(mixed(archives, folder / "one"))
    new = list(_at_every_file(work, disk, full, {}, one))
    write_modelnet40(archives)
    two = files_of(mixed(archives, folder / "two"))
    return {"new": new, "grown": list(_at_every_file(work, disk, full, one, two))}


def every_writer_of_a_retry(folder: Path, disk: SmallDisk) -> list[str]:
    """The same of one that reads retryable shapes again, of which one shape stays refused."""
    source = OddSource(8, {2: "nan", 4: "one huge array"}, folder)
    build_corpus(source, folder / "before", points=64, workers=0)
    (folder / "healed").touch()
    build_corpus(source, folder / "after", points=64, workers=0)

    def work(output: Path) -> object:
        return retry_corpus([source], output, workers=0)

    before, after = files_of(folder / "before"), files_of(folder / "after")
    return list(_at_every_file(work, disk, FullAt(disk), before, after))


def _at_every_file(
    work: Callable[[Path], object],
    disk: SmallDisk,
    full: FullAt,
    before: dict[str, bytes],
    after: dict[str, bytes],
) -> Iterator[str]:
    """Names of the files at which the disk was full; each time the build ended well and went on."""
    output = disk.path / "corpus"
    for number in range(1, 200):
        disk.resize()
        output.mkdir()
        for name, content in before.items():
            (output / name).write_bytes(content)
        full.arm(number)
        message = refusal(lambda: work(output))
        full.disarm()
        if not full.name:
            assert message == "", message
            assert files_of(output) == after
            shutil.rmtree(output)
            return
        assert message == f"{output}: {LINE}", message
        assert {n: c for n, c in files_of(output).items() if n in before} == before
        assert (output / "corpus.json").exists() == bool(before)
        assert not before or verify_corpus(output) == ()
        disk.resize()
        work(output)
        assert files_of(output) == after, full.name
        shutil.rmtree(output)
        yield full.name
    raise AssertionError("it never ends")


def processes(folder: Path, disk: SmallDisk) -> dict[str, str]:
    """A mixture that two workers build, as it is typed."""
    archives = scanned(folder / "archives")
    output = disk.path / "corpus"
    disk.resize(free_pages=3)  # for the two plans, and not for the first piece
    words = ["prepare-data", "mixture", "--archives", str(archives), "--points", "512"]
    code, message = typed([*words, "--workers", "2", "--output", str(output)])
    assert (code, message) == (2, f"error: {output}: {LINE}\n"), message
    disk.resize()
    assert files_of(mixed(archives, output)) == files_of(mixed(archives, folder / "whole"))
    return {"message": message}


def typed(words: list[str]) -> tuple[int, str]:
    """Exit code and errors of a command."""
    message = io.StringIO()
    with contextlib.redirect_stderr(message), contextlib.redirect_stdout(io.StringIO()):
        try:
            command(words)
        except SystemExit as stop:
            return int(stop.code or 0), message.getvalue()
    raise AssertionError("a command ends in an exit code")


def temporary_files(folder: Path, disk: SmallDisk) -> dict[str, str]:
    """The disk of temporary files is full, that of the corpus is not."""
    archives = scanned(folder / "archives")
    output = folder / "corpus"
    tempfile.tempdir = str(disk.path)
    disk.resize(free_pages=0)
    message = refusal(lambda: mixed(archives, output))
    code, planned = typed(["prepare-data", "mixture", "--archives", str(archives), "--plan"])
    assert code == 2
    tempfile.tempdir = None
    disk.resize()
    assert files_of(mixed(archives, output)) == files_of(mixed(archives, folder / "whole"))
    return {"message": message, "planned": planned.splitlines()[-1]}


def download(folder: Path, disk: SmallDisk) -> dict[str, str]:
    """The file fits into what is free when its length becomes known, and then not; or not even then."""
    content, place = bytes(range(256)) * 4000, disk.path / "downloads/a.zip"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(requested[1]) if requested else 0
            self.send_response(206 if start else 200)
            self.send_header("ETag", '"one"')
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content[start:])

    with serving(Handler) as address:
        url = f"{address}/a.zip"
        disk.resize(free_pages=100)
        early = refusal(lambda: fetch(url, place))
        with pretended_room():
            late = refusal(lambda: fetch(url, place))
        assert not place.exists()
        received = (place.parent / ".a.zip.part").stat().st_size
        assert 50 * PAGE < received <= 100 * PAGE
        disk.resize()
        fetch(url, place)
    assert place.read_bytes() == content
    assert [path.name for path in place.parent.iterdir()] == ["a.zip"]
    return {"early": early, "late": late.replace(f"{received:,}", "…")}


@contextlib.contextmanager
def pretended_room() -> Iterator[None]:
    """Free disk as a quota of the user's makes it look."""
    true = shutil.disk_usage
    shutil.disk_usage = lambda _: type(true("/"))(1 << 40, 0, 1 << 40)  # type: ignore[assignment]
    try:
        yield
    finally:
        shutil.disk_usage = true


SCENARIOS = (every_writer, every_writer_of_a_retry, processes, temporary_files, download)


def run_all(folder: Path) -> dict[str, dict[str, Any]]:
    """What each scenario saw, or how it failed."""
    found: dict[str, dict[str, Any]] = {}
    for scenario in SCENARIOS:
        place = folder / scenario.__name__
        place.mkdir()
        try:
            found[scenario.__name__] = {"saw": scenario(place, SmallDisk(place / "small"))}
        except Exception:
            found[scenario.__name__] = {"failed": traceback.format_exc()}
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run_all(Path(sys.argv[1]))))
