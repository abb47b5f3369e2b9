"""A Hub on this machine: the method's published checkpoints, and as much as an upload asks for."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.data.local_server import serving

REPOSITORY = "/remcofl/AsymDSD"
PIECE = 1 << 16


def nothing() -> None:
    """What a server does in the middle of a file, unless it is told to wait."""


@dataclass
class Uploads:
    """What reached a Hub: the last repository that was made, its files, the requests and their token."""

    asked: list[str] = field(default_factory=list)
    created: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    token: str = ""

    @property
    def repository(self) -> str:
        return f"{self.created['organization']}/{self.created['name']}" if self.created else ""

    def about(self) -> dict[str, Any]:
        return {"id": self.repository, "sha": "0" * 40, "siblings": []}

    def answer(
        self, address: str, path: str, body: bytes, token: str
    ) -> tuple[dict[str, Any], int]:
        """What is answered to a POST, and the status."""
        self.asked.append(path)
        self.token = token
        if path == "/api/repos/create":
            self.created = json.loads(body)
            return {"url": f"{address}/{self.repository}"}, 200
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}, 200
        if path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            return {"files": [{"path": name} | regular for name in names]}, 200
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[line["value"]["path"]] = content
            commit = f"{address}/{self.repository}/commit/1"
            return {"commitUrl": commit, "commitOid": "1" * 40}, 200
        return {"error": f"not here: {path}"}, 404


@dataclass
class LocalHub:
    """Its files, what is said of them, and what was requested."""

    files: dict[str, bytes]
    uploads: Uploads = field(default_factory=Uploads)
    checksums: dict[str, str] = field(default_factory=dict)
    """SHA-256 to state in place of the true ones."""

    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    """The ``Range`` of each request for a file's bytes."""

    address: str = ""
    pause: Callable[[], None] = nothing
    """Called when the first piece of a file has been sent."""

    def sha256(self, name: str) -> str:
        return self.checksums.get(name) or hashlib.sha256(self.files[name]).hexdigest()

    def listing(self) -> list[dict[str, object]]:
        """The Hub's list of a repository's files, with a text file among them, which has no checksum."""
        plain: dict[str, object] = {
            "type": "file",
            "oid": "0" * 40,
            "size": 3,
            "path": ".gitattributes",
        }
        return [
            plain,
            *(
                {
                    "type": "file",
                    "oid": "0" * 40,
                    "size": len(content),
                    "lfs": {"oid": self.sha256(name), "size": len(content), "pointerSize": 134},
                    "path": name,
                }
                for name, content in self.files.items()
            ),
        ]


@contextmanager
def local_hub(files: dict[str, bytes]) -> Iterator[LocalHub]:
    """Serve files within the block. The bytes lie behind a redirect, as the Hub's do."""
    hub = LocalHub(files)
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                hub.requests.append(self.path)
            name = self.path.rpartition("/")[2]
            if self.path == f"/api/models{REPOSITORY}/tree/main":
                self._answer(json.dumps(hub.listing()).encode(), "application/json")
            elif self.path == f"{REPOSITORY}/resolve/main/{name}" and name in hub.files:
                self.send_response(302)
                self.send_header("Location", f"/storage/{name}")
                self.send_header("X-Linked-Etag", f'"{hub.sha256(name)}"')
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif self.path == f"/storage/{name}":
                self._send(hub.files[name])
            elif hub.uploads.created and f"/{hub.uploads.repository}" in self.path:
                self._answer(json.dumps(hub.uploads.about()).encode(), "application/json")
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            token, path = self.headers.get("Authorization", ""), self.path.partition("?")[0]
            with lock:
                value, status = hub.uploads.answer(hub.address, path, body, token)
            self._answer(json.dumps(value).encode(), "application/json", status)

        def _answer(self, body: bytes, kind: str, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _send(self, content: bytes) -> None:
            requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            hub.ranges.append(self.headers.get("Range", ""))
            start = int(requested[1]) if requested else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("ETag", '"one"')
            if start:
                whole = len(content)
                self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
            self.end_headers()
            try:
                for first in range(start, len(content), PIECE):
                    self.wfile.write(content[first : first + PIECE])
                    if first == 0:
                        self.wfile.flush()
                        hub.pause()
            except ConnectionError:  # the client was interrupted
                pass

    with serving(Handler) as hub.address:
        yield hub
