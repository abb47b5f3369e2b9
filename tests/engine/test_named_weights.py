"""Published weights by name, from a Hub on this machine; and the encoder that comes with the program."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import pointdistill
from pointdistill.data.files.workspace import remember_run
from pointdistill.engine.pretraining.run_folder import (
    RunEnvironment,
    begin_run,
    choose_encoder,
    encoder_line,
)
from pointdistill.engine.sharing.export import export_encoder
from pointdistill.engine.sharing.push import prepare
from pointdistill.engine.weights import (
    BUNDLED,
    CONFIG,
    PUBLISHED,
    WEIGHTS,
    bundled_is_here,
    cache_folder,
    is_name,
    name_of,
    suggestion,
)
from pointdistill.engine.weights.encoders import (
    STATISTICS,
    fingerprint,
    load_encoder,
    locate_encoder,
    save_encoder,
)
from pointdistill.engine.weights.licences import Terms, read_ledger
from pointdistill.engine.weights.published import fetch_published
from pointdistill.errors import CheckpointError
from pointdistill.model.config import Mode
from pointdistill.model.encoder import Encoder
from pointdistill.model.patches import cut_patches, to_unit_sphere
from tests.data.local_server import no_sleep
from tests.engine.conftest import MemoryCorpus, micro_config
from tests.engine.labelled import make_encoder, saved_encoder
from tests.engine.local_hub import LocalHub, local_hub
from tests.engine.recorder import Recorder
from tests.engine.test_import_weights import official
from tests.engine.test_push import point_client_at

SMALL = PUBLISHED["asymdsd-s"]
CPU = RunEnvironment(device="cpu", precision="no")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the current folder is empty too, and there is no bundled encoder."""
    monkeypatch.setenv("POINTDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pointdistill.engine.weights.BUNDLED_FOLDER", tmp_path / "bundled")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "cache"


@pytest.fixture
def hub(cache: Path, golden_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """The golden checkpoint in the place of the published ones."""
    content = (golden_dir / "official_tiny.ckpt").read_bytes()
    with local_hub({one.file: content for one in PUBLISHED.values()}) as served:
        point_client_at(monkeypatch, served.address)
        yield served


def features_agree(encoder: Encoder, golden_dir: Path) -> None:
    """The golden features of the teacher, which another implementation computed."""
    expected = load_file(golden_dir / "official_tiny_features.safetensors")
    points = to_unit_sphere(expected["input.points"])
    patches = cut_patches(points, expected["input.centers_idx"], expected["input.patches_idx"])
    cls, features = encoder.encode_tokens(encoder.embed(patches))
    torch.testing.assert_close(cls, expected["teacher.cls"], rtol=0, atol=1e-5)
    torch.testing.assert_close(features, expected["teacher.patch"], rtol=0, atol=1e-5)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def test_downloaded_once_and_then_read_without_a_network(
    hub: LocalHub, cache: Path, golden_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Recorder()
    features_agree(pointdistill.load_encoder("asymdsd-s", reporter=told), golden_dir)
    assert told.said == [f"asymdsd-s: downloading 230 MB, once, from {SMALL.url}"]
    assert SMALL.url == f"{hub.address}/remcofl/AsymDSD/resolve/main/AsymDSD-S_ShapeNet.ckpt"
    size = len(hub.files[SMALL.file])
    assert told.steps[-1] == (f"downloading {SMALL.file}", size, size)
    assert left_in(cache) == ["config.json", "model.safetensors"]
    requested = list(hub.requests)
    offline(monkeypatch)
    features_agree(pointdistill.load_encoder("asymdsd-s"), golden_dir)
    assert hub.requests == requested


def test_what_is_recorded_of_it(hub: LocalHub) -> None:
    """Its card must forbid what the licence of its training data forbids."""
    folder = fetch_published(PUBLISHED["asymdsd-b"])
    facts = json.loads((folder / "config.json").read_text())
    origin = facts["training"]["imported"]
    assert origin["url"] == PUBLISHED["asymdsd-b"].url
    assert origin["sha256"] == hub.sha256("AsymDSD-B_Mixture_B.ckpt")
    assert [source.terms for source in read_ledger(facts["sources"])] == [Terms.NON_COMMERCIAL]
    assert name_of(folder) == "asymdsd-b"
    assert encoder_line(folder) == f"encoder: asymdsd-b ({folder})"
    assert prepare("asymdsd-b", "jane/copy", Path("card")).non_commercial


def test_a_download_is_not_silent_in_a_notebook(
    hub: LocalHub, caplog: pytest.LogCaptureFixture
) -> None:
    pointdistill.load_encoder("asymdsd-s")
    assert caplog.messages == [f"asymdsd-s: downloading 230 MB, once, from {SMALL.url}"]


class Interrupts(Recorder):
    """Ctrl-C when the first bytes have arrived."""

    def progress(
        self, task: str, done: float, total: float | None = None, *, note: str = "", unit: str = ""
    ) -> None:
        raise KeyboardInterrupt


def test_an_interrupted_download_is_resumed(hub: LocalHub, cache: Path, golden_dir: Path) -> None:
    gone = threading.Event()
    hub.pause = lambda: gone.wait(10) and None
    with pytest.raises(KeyboardInterrupt):
        load_encoder("asymdsd-s", reporter=Interrupts())
    gone.set()
    (part,) = cache.rglob("*.part")
    arrived = part.stat().st_size
    assert 0 < arrived < len(hub.files[SMALL.file])
    features_agree(load_encoder("asymdsd-s"), golden_dir)
    assert hub.ranges == ["", f"bytes={arrived}-"]
    assert left_in(cache) == ["config.json", "model.safetensors"]


def test_a_kill_before_the_conversion_costs_no_second_download(
    hub: LocalHub, cache: Path, golden_dir: Path
) -> None:
    SMALL.folder.mkdir(parents=True)
    (SMALL.folder / SMALL.file).write_bytes(hub.files[SMALL.file])
    features_agree(load_encoder("asymdsd-s"), golden_dir)
    assert hub.ranges == []


def test_a_damaged_checkpoint_left_in_the_cache_is_downloaded_again(
    hub: LocalHub, cache: Path, golden_dir: Path
) -> None:
    SMALL.folder.mkdir(parents=True)
    content = hub.files[SMALL.file]
    (SMALL.folder / SMALL.file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    features_agree(load_encoder("asymdsd-s"), golden_dir)
    assert hub.ranges == [""]
    assert left_in(cache) == ["config.json", "model.safetensors"]


def test_a_damaged_download_is_refused_and_removed(hub: LocalHub, cache: Path) -> None:
    """The list of files and the file do not agree."""
    hub.checksums[SMALL.file] = "a" * 64
    with pytest.raises(
        CheckpointError, match=rf"asymdsd-s: .*: SHA-256 [0-9a-f]+, expected {'a' * 64}; fetch it"
    ):
        load_encoder("asymdsd-s")
    assert left_in(cache) == []
    del hub.checksums[SMALL.file]
    assert load_encoder("asymdsd-s").config.width == 48


def test_a_file_that_is_no_checkpoint_is_refused(hub: LocalHub) -> None:
    hub.files[SMALL.file] = b"cos\nsystem\n" * 9
    with pytest.raises(CheckpointError, match=r"asymdsd-s: .*AsymDSD-S_ShapeNet\.ckpt: "):
        load_encoder("asymdsd-s")
    assert not SMALL.is_here


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda hub: hub.files.pop(SMALL.file), "lists no AsymDSD-S_ShapeNet.ckpt with a checksum"),
        (lambda hub: setattr(hub, "listing", lambda: {"error": "x"}), "lists no AsymDSD-S"),
        (lambda hub: setattr(hub, "listing", lambda: ["odd", {"lfs": 3}]), "lists no AsymDSD-S"),
        (
            lambda hub: setattr(hub, "listing", lambda: json.loads("[" * 500 + "]" * 500)),
            "nested more than 64 levels",
        ),
    ],
)
def test_a_list_without_the_file(hub: LocalHub, cache: Path, change: object, reason: str) -> None:
    assert callable(change)
    change(hub)
    with pytest.raises(CheckpointError, match=f"asymdsd-s: .*{reason}"):
        load_encoder("asymdsd-s")
    assert left_in(cache) == []


def test_offline_without_a_cache_is_one_line_with_the_address(
    hub: LocalHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = rf"asymdsd-s: not in the cache .*download {SMALL.url} and convert it by `pointd"
    with monkeypatch.context() as told:
        offline(told)
        with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE forbids") as stopped:
            load_encoder("asymdsd-s")
        assert stopped.match(wanted)
    assert hub.requests == []
    # Nothing listens at the discard port.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="the Hub cannot be reached") as stopped:
        load_encoder("asymdsd-s")
    assert stopped.match(r"download http://127.0.0.1:9/remcofl/AsymDSD/resolve/main/Asym")
    assert "\n" not in str(stopped.value)
    assert left_in(cache) == []


class Waits(Recorder):
    """Notes when it is told to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = threading.Event()

    def say(self, line: str, *settings: str) -> None:
        super().say(line, *settings)
        if "waiting for it" in line:
            self.waiting.set()


def test_the_second_of_two_at_once_waits_for_the_first(hub: LocalHub, cache: Path) -> None:
    """The first is held in the middle of the file until the second is seen to wait."""
    second, begun, results = Waits(), threading.Event(), list[Path]()

    def pause() -> None:
        begun.set()
        assert second.waiting.wait(10)

    hub.pause = pause
    first = threading.Thread(target=lambda: results.append(fetch_published(SMALL)))
    first.start()
    assert begun.wait(10)
    results.append(fetch_published(SMALL, reporter=second, sleep=lambda _: first.join(0.01)))
    first.join()
    assert results == [SMALL.folder, SMALL.folder]
    assert second.said == ["asymdsd-s: another process is downloading it; waiting for it"]
    assert hub.ranges == [""]
    assert left_in(cache) == ["config.json", "model.safetensors"]


def test_a_path_is_never_a_name(hub: LocalHub) -> None:
    """A folder that happens to be called so is named as a path."""
    saved_encoder(Path("asymdsd-s"))
    mine = fingerprint(load_encoder("./asymdsd-s"))
    assert mine == fingerprint(load_encoder(Path("asymdsd-s"))) == fingerprint(make_encoder())
    assert hub.requests == []
    told = Recorder()
    assert fingerprint(load_encoder("asymdsd-s", reporter=told)) != mine
    assert (
        told.said[0] == "note: asymdsd-s is the encoder of that name; the one here is ./asymdsd-s"
    )
    assert [is_name(text) for text in ("asymdsd-s", Path("asymdsd-s"), "jane/asymdsd-s", None)] == [
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("asymdsd_s", "asymdsd-s"), ("AsymDSD-B", "asymdsd-b"), ("asymsd-mpm", "asymsd-mpm-s")],
)
def test_a_misspelt_name(cache: Path, typed: str, meant: str) -> None:
    with pytest.raises(CheckpointError, match=f"no encoder here; did you mean '{meant}'"):
        load_encoder(typed)
    assert suggestion("runs/mine") == suggestion("my-encoder") == ""


def test_the_cache_is_where_the_environment_says(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("POINTDISTILL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "pointdistill"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path("~/.cache/pointdistill").expanduser()


def test_a_user_without_a_home_has_the_cache_in_the_working_folder(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POINTDISTILL_CACHE", "~no such user/here")
    assert cache_folder() == Path("~no such user/here")
    monkeypatch.delenv("POINTDISTILL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where nothing is known
    assert cache_folder() == Path(".pointdistill/cache")


def test_a_run_begins_with_published_weights(
    hub: LocalHub, memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    config = micro_config(Mode.DUAL)
    encoder = Encoder(config.encoder)
    settings = {"encoder_config": {"num_heads": config.encoder.heads}}
    stored = {"state_dict": official(encoder), "hyper_parameters": settings}
    torch.save(stored, tmp_path / "micro.ckpt")
    hub.files[SMALL.file] = (tmp_path / "micro.ckpt").read_bytes()
    run = tmp_path / "run"
    state = begin_run(config, memory_corpus, run, init_from="asymdsd-s", environment=CPU)
    begun = state.student.encoder.state_dict()
    assert all(torch.equal(begun[n], value) for n, value in encoder.state_dict().items())
    assert json.loads((run / "config.json").read_text())["init_from"] == "asymdsd-s"


@pytest.fixture
def bundled(cache: Path, tmp_path: Path) -> Path:
    """An encoder in the place of the one that comes with the program, stored as that is."""
    ledger = [{"name": "builtin", "licence": "CC0-1.0 (made on the spot)", "shapes": 9}]
    save_encoder(make_encoder(), tmp_path / "bundled", sources=ledger, half=True)
    return tmp_path / "bundled"


def test_float16_takes_half_the_space_and_loads_as_float32(bundled: Path, tmp_path: Path) -> None:
    with safe_open(bundled / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
    rounded = load_encoder(BUNDLED)
    for name, value in make_encoder().state_dict().items():
        assert rounded.state_dict()[name].dtype == torch.float32
        assert torch.equal(rounded.state_dict()[name], value.half().float()), name
    # What export writes from the whole encoder is this encoder, to the last bit.
    save_encoder(make_encoder(), tmp_path / "whole")
    export_encoder(tmp_path / "whole", tmp_path / "half", half=True)
    assert fingerprint(load_encoder(tmp_path / "half")) == fingerprint(rounded)


def test_a_weight_too_large_for_float16_is_refused(tmp_path: Path) -> None:
    encoder = make_encoder()
    encoder.transformer.norm.weight[0] = 1e6
    with pytest.raises(CheckpointError, match="a weight is too large for float16"):
        save_encoder(encoder, tmp_path / "half", half=True)
    assert not (tmp_path / "half").exists()


def test_the_bundled_encoder_is_the_last_choice(bundled: Path, tmp_path: Path) -> None:
    told = Recorder()
    assert choose_encoder(None, reporter=told) == bundled
    assert told.said == [
        f"encoder: {BUNDLED}, which comes with pointdistill (trained on made shapes only, free for any use); "
        "another can be chosen"
    ]
    assert told.settings == ("encoder",)
    saved_encoder(Path("runs/a/encoder"))
    assert choose_encoder("runs/a") == Path("runs/a/encoder")
    remember_run(Path("runs/a"))
    assert choose_encoder(None) == Path("runs/a/encoder")
    assert choose_encoder(BUNDLED) == bundled


def test_an_installation_without_the_bundled_encoder(cache: Path) -> None:
    assert not bundled_is_here()
    with pytest.raises(CheckpointError, match=f"{BUNDLED}: not in this installation"):
        load_encoder(BUNDLED)
    with pytest.raises(CheckpointError, match="no run was made in this folder yet"):
        choose_encoder(None)


@pytest.mark.skipif(not bundled_is_here(), reason="this source tree has no bundled encoder")
def test_the_encoder_that_comes_with_this_installation() -> None:
    """Small, in float16, described, and free for any use."""
    folder = locate_encoder(BUNDLED)
    assert {file.name for file in folder.iterdir()} == {CONFIG, WEIGHTS, STATISTICS, "README.md"}
    assert (folder / WEIGHTS).stat().st_size <= 6e6
    with safe_open(folder / WEIGHTS, "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
    sources = read_ledger(json.loads((folder / CONFIG).read_text())["sources"])
    assert [source.terms for source in sources] == [Terms.OPEN] * max(1, len(sources))
    assert load_encoder(BUNDLED)(torch.randn(1, 2048, 3)).patches.isfinite().all()


def test_a_card_of_the_bundled_encoder_allows_any_use(bundled: Path) -> None:
    made = prepare(BUNDLED, "jane/copy", Path("card"))
    assert (made.licence.identifier, made.non_commercial) == ("cc0-1.0", ())


def test_waiting_ends_where_the_other_process_fails(hub: LocalHub, cache: Path) -> None:
    """Then it is this one's turn: the lock ends with its process."""
    SMALL.folder.mkdir(parents=True)
    (SMALL.folder / ".lock").touch()  # of a process that was killed
    assert fetch_published(SMALL, sleep=no_sleep) == SMALL.folder
