"""Encoders on disk: the same features in a new process, and refusals that say what is wrong."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pointdistill.data.files.files import hold_file, hold_output
from pointdistill.engine.sharing.export import export_encoder
from pointdistill.engine.sharing.push import upload
from pointdistill.engine.weights.encoders import load_encoder, read_facts, save_encoder
from pointdistill.errors import CheckpointError, DataError, PointDistillError
from pointdistill.model.encoder import Encoder
from pointdistill.model.initialize import initialize
from tests.data.local_server import serving
from tests.engine.conftest import micro_config
from tests.engine.recorder import Recorder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    encoder = Encoder(micro_config().encoder)
    initialize(encoder, generator=torch.Generator().manual_seed(0))
    save_encoder(encoder, tmp_path / "encoder", sources=[{"name": "x", "licence": "CC0"}])
    return tmp_path / "encoder"


def test_export_and_load_in_a_new_process_give_the_same_features(
    saved: Path, tmp_path: Path
) -> None:
    export_encoder(saved, tmp_path / "copy")
    points = np.random.default_rng(0).normal(size=(2, 48, 3)).astype(np.float32)
    np.save(tmp_path / "points.npy", points)
    code = (
        "import numpy, torch, pointdistill; "
        f"e = pointdistill.load_encoder({str(tmp_path / 'copy')!r}); "
        f"p = torch.from_numpy(numpy.load({str(tmp_path / 'points.npy')!r})); "
        f"numpy.save({str(tmp_path / 'features.npy')!r}, e(p).cls.numpy())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    here = load_encoder(saved)(torch.from_numpy(points)).cls
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), here, atol=1e-6)
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["sources"] == [
        {"name": "x", "licence": "CC0"}
    ]


def test_a_second_export_into_one_folder_is_refused(saved: Path, tmp_path: Path) -> None:
    with (
        hold_output(tmp_path / "copy"),
        pytest.raises(DataError, match="copy: another process is writing there"),
    ):
        export_encoder(saved, tmp_path / "copy")
    export_encoder(saved, tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_the_weights_file_alone_is_enough_of_a_name(saved: Path) -> None:
    assert load_encoder(saved / "model.safetensors").config == micro_config().encoder


def test_a_hub_repository_is_found_in_the_cache_without_a_network(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache as a download leaves it; the file system is all that is asked."""
    cached = tmp_path / "hub" / "models--someone--shapes"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(saved, cached / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert load_encoder("someone/shapes").config == micro_config().encoder
    with pytest.raises(
        CheckpointError, match="someone/other: neither a folder here nor a Hub repos"
    ):
        load_encoder("someone/other")


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param({"HF_HUB_OFFLINE": "1"}, id="told to stay offline"),
        # Nothing listens at the discard port.
        pytest.param({"HF_ENDPOINT": "http://127.0.0.1:9"}, id="no network"),
    ],
)
def test_a_new_process_finds_the_cache(
    saved: Path, tmp_path: Path, setting: dict[str, str]
) -> None:
    """The layout that a download leaves: blobs, and a snapshot of links to them."""
    cached = tmp_path / "home" / "hub" / "models--someone--shapes"
    for folder in ("refs", "blobs", f"snapshots/{'0' * 40}"):
        (cached / folder).mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    for number, name in enumerate(("model.safetensors", "config.json")):
        shutil.copy(saved / name, cached / "blobs" / str(number))
        (cached / "snapshots" / ("0" * 40) / name).symlink_to(f"../../blobs/{number}")
    code = (
        "import pointdistill\n"
        "for name in ('someone/shapes', 'someone/other'):\n"
        "    try: print(pointdistill.load_encoder(name).config.width)\n"
        "    except pointdistill.errors.CheckpointError as error: print(error)"
    )
    kept = {n: v for n, v in os.environ.items() if not n.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=kept | setting | {"HF_HOME": str(tmp_path / "home")},
        check=True,
        capture_output=True,
        text=True,
    )
    found, missing = done.stdout.splitlines()
    assert found == "12"
    assert missing.startswith("someone/other: neither a folder here nor a Hub repository")


class Repository(http.server.BaseHTTPRequestHandler):
    """The Hub with one repository, whose files lie on another server, as they do behind the real one."""

    commit = "ab" * 20
    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[tuple[str, str]]] = []
    storage: ClassVar[str] = ""
    listing: ClassVar[bytes | None] = None
    stated: ClassVar[int | None] = None

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization", "")))
        name = self.path.rpartition("/")[2]
        if self.path == "/api/models/jane/shapes/revision/main":
            names = [{"rfilename": name} for name in (*self.files, "../evil", "pytorch_model.bin")]
            told = json.dumps({"sha": self.commit, "siblings": names}).encode()
            self._send(told if self.listing is None else self.listing)
        elif self.path == f"/jane/shapes/resolve/{self.commit}/{name}":
            self.send_response(302)
            self.send_header("Location", f"{self.storage}/{name}")
            self.end_headers()
        elif name in self.files and self.path == f"/{name}":
            self._send(self.files[name], self.stated)
        else:
            self.send_error(404)

    def _send(self, content: bytes, stated: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(stated or len(content)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content)


@pytest.fixture
def hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Repository]]:
    state = {"files": {path.name: path.read_bytes() for path in saved.iterdir()}, "asked": []}
    handler = type("OneTest", (Repository,), state)
    with serving(handler) as storage, serving(handler) as address:
        handler.storage = storage
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_of_jane")
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.chdir(tmp_path)
        yield handler


def test_a_repository_is_downloaded_once_and_its_token_stays_with_the_hub(
    hub: type[Repository], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files lie where the Hub's own client looks for them, and are found there without a network."""
    assert load_encoder("jane/shapes").config == micro_config().encoder
    tokens = {token for path, token in hub.asked if path.startswith(("/api", "/jane"))}
    assert tokens == {"Bearer hf_of_jane"}
    stored = [token for path, token in hub.asked if path in ("/config.json", "/model.safetensors")]
    assert stored == ["", ""]
    kept = tmp_path / "hub" / "models--jane--shapes" / "snapshots" / hub.commit
    assert {path.name for path in kept.iterdir()} == hub.files.keys()
    hub.asked.clear()
    load_encoder("jane/shapes")
    assert [path for path, _ in hub.asked] == ["/api/models/jane/shapes/revision/main"]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert load_encoder("jane/shapes").config == micro_config().encoder


@pytest.mark.parametrize(
    ("lie", "cause"),
    [
        ({"stated": 99 << 30}, r"106,300,440,576 bytes, at most 33,554,432 are accepted"),
        ({"listing": b"[" * 100_000}, "answers with something else than a list of files"),
        ({"listing": b'{"sha": "../..", "siblings": []}'}, "answers with something else"),
        ({"listing": bytes(5 << 20)}, "sends more than 4,194,304 bytes"),
        ({"storage": "ftp://127.0.0.1"}, "only http and https addresses are fetched"),
    ],
)
def test_a_hub_that_lies_is_one_line(
    hub: type[Repository], tmp_path: Path, lie: dict[str, Any], cause: str
) -> None:
    for name, value in lie.items():
        setattr(hub, name, value)
    with pytest.raises(CheckpointError, match=cause) as caught:
        load_encoder("jane/shapes")
    assert str(caught.value).startswith("jane/shapes: neither a folder here nor a Hub repository")
    assert str(caught.value).isprintable()
    assert not list((tmp_path / "hub").rglob("*.json"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_download_does_not_stay_in_the_cache(
    hub: type[Repository], name: str, tmp_path: Path
) -> None:
    """It would be found there, and refused, for ever."""
    whole = hub.files[name]
    hub.files[name] = whole[:-5]
    with pytest.raises(CheckpointError, match=rf"{name}: damaged .*; fetch it again from"):
        load_encoder("jane/shapes")
    hub.files[name] = whole
    assert load_encoder("jane/shapes").config == micro_config().encoder
    assert {path.name for path in (tmp_path / "hub").rglob("*.*") if path.is_file()} == {*hub.files}


def test_a_file_that_another_process_downloads_is_waited_for(
    hub: type[Repository], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever comes second waits, and finds one sound file."""
    kept = tmp_path / "hub" / "models--jane--shapes" / "snapshots" / hub.commit
    kept.mkdir(parents=True)
    busy = ExitStack()
    part = kept / ".model.safetensors.part"
    busy.enter_context(hold_file(part, DataError("it is held already")))
    waited = []

    def until_it_is_there(seconds: float) -> None:
        waited.append(seconds)
        (kept / "model.safetensors").write_bytes(hub.files["model.safetensors"])
        busy.close()

    monkeypatch.setattr("pointdistill.engine.weights.time.sleep", until_it_is_there)
    said = Recorder()
    assert load_encoder("jane/shapes", reporter=said).config == micro_config().encoder
    assert len(waited) == 1
    assert said.said == ["jane/shapes: another process is downloading it; waiting for it"]
    assert not [path for path, _ in hub.asked if path == "/model.safetensors"]


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:99999", "http://[", "ftp://x", "", "http://a b", "http://\u202ex"]
)
def test_an_address_of_the_hub_that_is_none_is_one_line(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.chdir(tmp_path)
    for call in (load_encoder, partial(upload, tmp_path, private=True)):
        with pytest.raises(PointDistillError, match=r"HF_ENDPOINT is .*, no address of a Hub"):
            call("jane/shapes")


def test_a_file_alone_is_an_encoder(saved: Path, tmp_path: Path) -> None:
    """Under any name, anywhere: its header holds the configuration."""
    alone = tmp_path / "elsewhere" / "mine.safetensors"
    alone.parent.mkdir()
    shutil.copy(saved / "model.safetensors", alone)
    assert load_encoder(alone).config == micro_config().encoder
    save_file({"a": torch.ones(1)}, alone)
    with pytest.raises(CheckpointError, match=r"its header holds no configuration .* export"):
        load_encoder(alone)
    alone.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="damaged"):
        load_encoder(alone)


def test_a_folder_without_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no encoder here; expected a folder with model\.safe"
    ):
        load_encoder(tmp_path)


def test_weights_cut_short(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="damaged"):
        load_encoder(saved)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_unknown_version(saved: Path) -> None:
    edit(saved, version=99)
    with pytest.raises(CheckpointError, match="format version 99, this program reads 1"):
        load_encoder(saved)


def test_an_unknown_setting_names_the_nearest(saved: Path) -> None:
    edit(saved, encoder={"widht": 12})
    with pytest.raises(
        CheckpointError, match=r"unknown setting 'encoder\.widht'; did you mean 'width'"
    ):
        load_encoder(saved)


def test_weights_of_another_shape_are_listed(saved: Path) -> None:
    kept = json.loads((saved / "config.json").read_text())["encoder"]
    edit(saved, encoder=kept | {"depth": 2})
    with pytest.raises(
        CheckpointError, match=r"does not fit this model: missing transformer\.blocks\.1"
    ):
        load_encoder(saved)


@pytest.mark.parametrize(
    "sizes",
    [{"width": 16_384, "heads": 2}, {"depth": 16_384}, {"stage_one": [16_384] * 4_000}],
)
def test_a_model_that_no_machine_holds_is_refused_before_memory_is_taken(
    saved: Path, sizes: dict[str, object]
) -> None:
    """The widest would take 4.3 GB, the deepest minutes to outline."""
    kept = json.loads((saved / "config.json").read_text())["encoder"]
    edit(saved, encoder=kept | sizes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors does not fit this model: "
    ) as caught:
        load_encoder(saved)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "sizes", [{"points": 10**9}, {"points": 2**20, "patches": 2**20, "patch_points": 2**20}]
)
def test_clouds_that_no_machine_holds_are_refused(saved: Path, sizes: dict[str, object]) -> None:
    """Weights of any shape fit them."""
    kept = json.loads((saved / "config.json").read_text())["encoder"]
    edit(saved, encoder=kept | sizes)
    with pytest.raises(CheckpointError, match=r"encoder\.points must be at most 1,048,576"):
        load_encoder(saved)


@pytest.mark.parametrize("key", ["sources", "training", "results"])
def test_what_is_recorded_has_its_type(saved: Path, key: str) -> None:
    edit(saved, **{key: 5})
    with pytest.raises(CheckpointError, match=rf"config\.json: damaged \({key} must be of type"):
        read_facts(saved)


def test_export_does_not_write_among_other_files(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(DataError, match="exists and holds other files"):
        export_encoder(saved, tmp_path / "photos")


def test_weights_are_not_mapped(saved: Path, tmp_path: Path) -> None:
    """Where a mapped file becomes shorter, whoever reads it is ended by a signal."""
    code = (
        "import os, sys, torch; from pathlib import Path\n"
        "from pointdistill.engine.weights.encoders import read_tensors\n"
        "path = Path(sys.argv[1]); tensors = read_tensors(path); os.truncate(path, 10)\n"
        "print(sum(float(tensor.double().sum()) for tensor in tensors.values()) == 0.0)"
    )
    save_file({"a": torch.zeros(100_000)}, tmp_path / "a.safetensors")
    program = [sys.executable, "-c", code, tmp_path / "a.safetensors"]
    done = subprocess.run(program, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
