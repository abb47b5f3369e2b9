"""Google Scanned Objects from a local server that pages its list, states no lengths, and lacks models."""

from __future__ import annotations

import http.server
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from pointdistill.data.corpus_building import mixture_fetch
from pointdistill.data.corpus_building.mixture_fetch import fetch_models, list_models
from pointdistill.errors import DataError
from tests.data.local_server import no_sleep, serving
from tests.data.watching import Watching


def a_zip(text: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("meshes/model.obj", text * 1_000)
    return made.getvalue()


def rows(*names: object) -> list[dict[str, object]]:
    return [{"name": name, "owner": "GoogleResearch"} for name in names]


@dataclass
class ModelServer:
    """What the server has, and the paths that were requested."""

    url: str = ""
    pages: list[Any] = field(default_factory=list)
    after_the_last: int = 200
    """Status of pages beyond the last; 200 comes with an empty list."""

    zips: dict[str, bytes] = field(default_factory=dict)
    requested: list[str] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    monkeypatch.setattr(mixture_fetch, "_PAGE_MODELS", 2)
    state = ModelServer(zips={name: a_zip(name) for name in ("Cup", "Mug & Lid", "Pen")})
    state.pages = [rows("Cup", "Mug & Lid"), rows("Pen")]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            state.requested.append(unquote(address.path))
            if address.path == "/1.0/models":
                self._list(parse_qs(address.query))
            else:
                name = unquote(address.path).removeprefix("/1.0/GoogleResearch/models/")
                self._send(state.zips.get(name.removesuffix(".zip")), "application/zip")

        def _list(self, query: dict[str, list[str]]) -> None:
            assert query["q"] == ["collections:Scanned Objects by Google Research"]
            assert query["per_page"] == ["2"]
            page = int(query["page"][0])
            beyond = None if state.after_the_last == 404 else b"[]"
            listed = page <= len(state.pages)
            content = json.dumps(state.pages[page - 1]).encode() if listed else beyond
            self._send(content, "application/json")

        def _send(self, content: bytes | None, kind: str) -> None:
            """Without a length: the connection's end is the file's."""
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(content)

    with serving(Handler) as address:
        state.url = f"{address}/1.0"
        yield state


@pytest.mark.parametrize("after_the_last", [200, 404])
def test_every_model_of_every_page_comes_once(
    server: ModelServer, tmp_path: Path, after_the_last: int
) -> None:
    server.after_the_last = after_the_last
    folder = tmp_path / "google-scanned-objects"
    report = fetch_models(server.url, folder, sleep=no_sleep)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        f"{name}.zip": content for name, content in server.zips.items()
    }
    size = sum(map(len, server.zips.values()))
    assert (report.fetched, report.there, report.bytes, report.failed) == (3, 3, size, ())
    server.requested.clear()
    again = fetch_models(server.url, folder, sleep=no_sleep)
    assert (again.fetched, again.there, again.bytes) == (0, 3, 0)
    assert set(server.requested) == {"/1.0/models"}, "what is there is not fetched again"


def test_a_model_that_is_gone_or_cut_short_costs_itself_alone_and_comes_later(
    server: ModelServer, tmp_path: Path
) -> None:
    whole = server.zips["Pen"]
    del server.zips["Cup"]
    for damaged in (whole[:-40], whole.replace(b"Pen" * 9, b"Pan" * 9), b""):
        server.zips["Pen"] = damaged
        report = fetch_models(server.url, tmp_path / "scans", sleep=no_sleep)
        assert report.there == 1
        gone, cut = report.failed
        assert "Cup.zip: 404" in gone
        assert cut.startswith(("Pen.zip: is no whole zip", "Pen.zip: its member"))
        assert [path.name for path in (tmp_path / "scans").iterdir()] == ["Mug & Lid.zip"]
    server.zips["Pen"] = whole
    report = fetch_models(server.url, tmp_path / "scans", sleep=no_sleep)
    assert (report.fetched, report.there, len(report.failed)) == (1, 2, 1)


def test_names_that_lead_elsewhere_are_never_asked_for(server: ModelServer, tmp_path: Path) -> None:
    bad = [
        "../up",
        "..",
        "",
        ".hidden",
        "a/b",
        "a\\b",
        "c:d",
        "\0",
        "\ud800",
        "x" * 201,
        "a\nb",
    ]
    server.pages = [[*rows(*bad, "Cup"), {"name": "Pen", "owner": "somebody"}]]
    report = fetch_models(server.url, tmp_path / "scans", sleep=no_sleep)
    assert [path.name for path in (tmp_path / "scans").iterdir()] == ["Cup.zip"]
    assert [path.name for path in tmp_path.iterdir()] == ["scans"]
    assert set(server.requested) == {"/1.0/models", "/1.0/GoogleResearch/models/Cup.zip"}
    assert len(report.failed) == len(bad)
    assert all(line.isprintable() for line in report.failed)


def test_a_server_that_knows_no_pages_ends_its_list(server: ModelServer) -> None:
    server.pages = [rows("Cup", "Pen")] * 5
    assert list_models(server.url, sleep=no_sleep) == ("Cup", "Pen")
    assert len(server.requested) == 2


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ([], "lists no models"),
        ({"errcode": 3}, "is no list of models"),
        ([{"title": "Cup"}], "is no list of models"),
        (7, "is no list of models"),
    ],
)
def test_what_is_no_list_is_one_error(
    server: ModelServer, tmp_path: Path, page: object, message: str
) -> None:
    server.pages = [page]
    with pytest.raises(DataError, match=message):
        fetch_models(server.url, tmp_path, sleep=no_sleep)
    with pytest.raises(DataError, match="404"):
        list_models(f"{server.url}/elsewhere", sleep=no_sleep)


def test_ctrl_c_leaves_whole_zips_and_the_same_call_goes_on(
    server: ModelServer, tmp_path: Path
) -> None:
    def stop_at_the_second(*_: object) -> None:
        if len(reporter.tasks) == 2:
            raise KeyboardInterrupt

    reporter = Watching(stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        fetch_models(server.url, tmp_path, reporter=reporter)
    assert reporter.tasks[0] == f"{tmp_path.name}/Cup.zip (1 of 3)"
    assert [path.name for path in tmp_path.iterdir()] == ["Cup.zip"]
    assert fetch_models(server.url, tmp_path).fetched == 2
