"""A Hub on this machine with the method's published checkpoints, as far as a download by name asks for it."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.data.local_server import serving

REPOSITORY = "/remcofl/AsymDSD"
PIECE = 1 << 16


def nothing() -> None:
    """What a server does in the middle of a file, unless it is told to wait."""


@dataclass
class LocalHub:
    """Its files, what is said of them, and what was requested."""

    files: dict[str, bytes]
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
            else:
                self.send_error(404)

        def _answer(self, body: bytes, kind: str) -> None:
            self.send_response(200)
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
