"""Sharing weights: what the card says of licences and results, and what reaches a Hub on this machine."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from pointdistill.data.files.files import write_json
from pointdistill.data.files.schema import to_plain
from pointdistill.engine.evaluation.results import RULES, Result, Spread
from pointdistill.engine.finetuning.models import (
    ClassifierSpec,
    InputSpec,
    build_model,
    load_classifier,
    save_weights,
    write_description,
)
from pointdistill.engine.sharing.model_card import model_card
from pointdistill.engine.sharing.push import prepare, upload
from pointdistill.engine.weights.encoders import fingerprint, load_encoder, save_encoder
from pointdistill.engine.weights.licences import (
    CardLicence,
    Terms,
    card_licence,
    read_ledger,
    terms_of,
)
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.model.classifier import ClassifierConfig
from pointdistill.model.config import AugmentConfig
from pointdistill.model.encoder import Encoder
from pointdistill.model.initialize import initialize
from tests.engine.conftest import micro_config
from tests.engine.local_hub import Uploads

OPEN = {"name": "builtin", "licence": "CC0-1.0 (made on the spot)", "shapes": 4000}
BY = {"name": "OmniObject3D", "licence": "CC BY 4.0", "shapes": 5911}
NC = {"name": "ABO", "licence": "CC BY-NC 4.0", "shapes": 7953}
ACADEMIC = {"name": "modelnet40", "licence": "academic use; models belong to their owners"}
EACH = {"name": "objaverse", "licence": "ODC-By, per object", "shapes": 797_084}


@pytest.mark.parametrize(
    ("licence", "terms", "identifier"),
    [
        ("CC0-1.0 (made on the spot)", Terms.OPEN, "cc0-1.0"),
        ("CC BY 4.0", Terms.OPEN, "cc-by-4.0"),
        ("MIT", Terms.OPEN, "mit"),
        ("Apache-2.0", Terms.OPEN, "apache-2.0"),
        ("CC BY-NC 4.0", Terms.NON_COMMERCIAL, "cc-by-nc-4.0"),
        ("CC BY-NC-SA 4.0", Terms.NON_COMMERCIAL, None),
        ("non-commercial", Terms.NON_COMMERCIAL, None),
        ("Noncommercial use, on a form", Terms.NON_COMMERCIAL, None),
        ("academic use; models belong to their owners", Terms.NON_COMMERCIAL, None),
        ("research use, on its authors' form", Terms.NON_COMMERCIAL, None),
        ("MIT for research only", Terms.NON_COMMERCIAL, None),
        ("MIT, but not for robots", Terms.UNKNOWN, None),
        ("CC BY 4.0, per object", Terms.UNKNOWN, None),
        ("CC BY 4.0 (each object under its own terms)", Terms.UNKNOWN, None),
        ("MIT (no military use)", Terms.UNKNOWN, None),
        ("CC BY 4.0 (ShareAlike)", Terms.UNKNOWN, None),
        ("CC BY 4.0 (Made on the spot)", Terms.OPEN, "cc-by-4.0"),
        ("ODC-By, per object", Terms.UNKNOWN, None),
        ("your own files", Terms.UNKNOWN, None),
        ("unknown: ask whoever published the weights", Terms.UNKNOWN, None),
        ("", Terms.UNKNOWN, None),
    ],
)
def test_what_a_licence_allows(licence: str, terms: Terms, identifier: str | None) -> None:
    assert terms_of(licence) == (terms, identifier)


@pytest.mark.parametrize(
    ("ledger", "identifier", "name"),
    [
        ([OPEN], "cc0-1.0", None),
        ([OPEN, BY], "cc-by-4.0", None),
        ([BY, NC, OPEN], "cc-by-nc-4.0", None),
        ([NC, ACADEMIC], "other", "non-commercial"),
        ([OPEN, EACH], "other", "unknown"),
        ([EACH, ACADEMIC], "other", "non-commercial"),
        ([OPEN, "damaged"], "other", "unknown"),
        ([], "other", "unknown"),
        (None, "other", "unknown"),
    ],
)
def test_a_card_claims_no_more_than_the_strictest_source_allows(
    ledger: Any, identifier: str, name: str | None
) -> None:
    assert card_licence(read_ledger(ledger)) == CardLicence(identifier, name)


def described(*sources: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": "pointdistill-encoder",
        "encoder": {"width": 12, "depth": 1, "heads": 2},
        "sources": list(sources),
        "training": {"name": "tiny", "mode": "dual", "step": 600, "seed": 0, "batch_size": 32},
    }


def test_the_card_of_a_corpus_for_commercial_use_says_so() -> None:
    chosen = OPEN | {"commercial_only": True}
    said = "restricted to sources whose licences allow commercial use"
    assert said in model_card("jane/shapes", described(chosen))
    assert said not in model_card("jane/shapes", described(chosen, OPEN)), "not all were chosen so"


def test_the_card_of_a_mixture() -> None:
    """Every source is named, those without commercial use in bold; the header is what the Hub reads."""
    card = model_card("jane/shapes", described(OPEN, ACADEMIC, NC, EACH))
    header = ModelCard(card).data
    assert header.license == "other"
    assert header.to_dict()["license_name"] == "non-commercial"
    assert header.to_dict()["library_name"] == "pointdistill"
    assert header.datasets is None
    assert "| **ABO** | 7,953 | **CC BY-NC 4.0** | **no commercial use** |" in card
    assert "| **modelnet40** | - | **academic use; models belong to their owners** |" in card
    assert "| builtin | 4,000 | CC0-1.0 (made on the spot) | any use |" in card
    assert "| objaverse | 797,084 | ODC-By, per object | not known |" in card
    assert "**Not for commercial use.**" in card
    assert "pointdistill.load_encoder('jane/shapes')" in card
    for line in ("| recipe | tiny |", "| steps | 600 |", "| seed | 0 |", "| mode | dual |"):
        assert line in card
    assert "None were recorded" in card


def test_the_header_names_datasets_of_the_hub_alone() -> None:
    """The Hub takes every name there for one of its own."""
    own = {"name": "folder", "licence": "your own files", "shapes": 20}
    clouds = {"name": "objaverse-cap3d", "licence": "ODC-By; each object under its own licence"}
    assert ModelCard(model_card("jane/shapes", described(OPEN, own))).data.datasets is None
    card = model_card("jane/shapes", described(OPEN, clouds))
    assert ModelCard(card).data.datasets == ["tiange/Cap3D"]
    assert "| objaverse-cap3d | - |" in card


def test_the_card_says_that_a_run_was_not_finished() -> None:
    stopped = described(OPEN)
    stopped["training"]["total_steps"] = 4000
    assert "| steps | 600 of 4000 steps, unfinished |" in model_card("jane/shapes", stopped)
    stopped["training"]["total_steps"] = 600
    assert "| steps | 600 |" in model_card("jane/shapes", stopped)


def test_a_card_without_bold_where_all_is_open() -> None:
    card = model_card("jane/shapes", described(OPEN))
    assert ModelCard(card).data.license == "cc0-1.0"
    assert "**" not in card.partition("## Licences")[2]


def test_a_ledger_cannot_write_into_the_card() -> None:
    """Names come from a file that a stranger may have made."""
    evil = {
        "name": "a|b\n# Free of charge\n---\nlicense: mit\n<script>",
        "licence": "non-commercial",
    }
    card = model_card("jane/shapes", described(evil))
    assert ModelCard(card).data.license == "other"
    assert "\n# Free" not in card
    assert "<script>" not in card
    assert card.count("\nlicense: ") == 1


def row(**changes: Any) -> Result:
    usual = Result(
        features="encoder of /home/jane/secret",
        benchmark="ScanObjectNN",
        split="OBJ-BG",
        data_name="ScanObjectNN",
        form="main_split",
        checksum="0" * 64,
        stand_in=False,
        train_clouds=30,
        test_clouds=15,
        protocol="linear",
        points=2048,
        patches=128,
        subsampling="uniform",
        augmentation="anew each epoch",
        seeds=(0, 1, 2),
        accuracy=Spread(81.234, 0.456),
        class_accuracy=Spread(79.0, 1.0),
        best_epoch_accuracy=None,
        published=None,
        rules=RULES,
    )
    return replace(usual, **changes)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {},
            "| ScanObjectNN, OBJ-BG | linear | 2048 | OA 81.23 ± 0.46, mAcc 79.00 ± 1.00 | 3 seeds |",
        ),
        ({"stand_in": True}, "| ScanObjectNN, OBJ-BG (stand-in) | linear |"),
        ({"split": None}, "| ScanObjectNN | linear |"),
        (
            {"epochs": 5, "protocol_epochs": 150, "votes": 10},
            "| linear (5 of 150 epochs, 10 votes) |",
        ),
        (
            {"seeds": (3,), "accuracy": Spread(50.0, None)},
            "| OA 50.00, mAcc 79.00 ± 1.00 | 1 seed |",
        ),
        ({"repeated_over": "folds", "seeds": tuple(range(10))}, "| 10 folds |"),
    ],
)
def test_what_was_measured(changes: dict[str, Any], line: str) -> None:
    card = model_card("jane/shapes", described(OPEN), [row(**changes)])
    assert line in card
    assert "secret" not in card
    assert ("its figures are not the benchmark's" in card) == bool(changes.get("stand_in"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An encoder in the run that made it, with results of its own and of others."""
    folder = tmp_path / "runs" / "a"
    encoder = Encoder(micro_config().encoder)
    initialize(encoder, generator=torch.Generator().manual_seed(0))
    save_encoder(encoder, folder / "encoder", sources=[OPEN, NC], training={"name": "tiny"})
    (folder / "metrics.jsonl").touch()
    corpus = {"path": "/home/jane/secret", "shapes": 4000, "fingerprint": "abc"}
    write_json(folder / "config.json", {"format": "pointdistill-run", "corpus": corpus})
    own = fingerprint(encoder)
    rows = [row(fingerprint=own), row(fingerprint="0" * 16, protocol="svm"), row(protocol="knn")]
    stored = {"results": [*map(to_plain, rows), {}, {"accuracy": "high"}, 3]}
    write_json(folder / "evaluation" / "scanobjectnn" / "results.json", stored)
    write_json(folder / "evaluation" / "cut" / "results.json", {"results": "short"})
    return folder


def test_the_prepared_folder(run: Path, tmp_path: Path) -> None:
    made = prepare(run, "jane/shapes", tmp_path / "card")
    assert {entry.name for entry in made.folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    assert load_encoder(made.folder).config == micro_config().encoder
    assert (made.results, made.non_commercial) == (1, ("ABO",))
    card = (made.folder / "README.md").read_text()
    assert "linear" in card
    assert "svm" not in card
    assert "knn" not in card
    assert "| shapes of the corpus | 4000 |" in card
    assert "secret" not in card
    (made.folder / "model.onnx").touch()
    again = prepare(run, "jane/shapes", tmp_path / "card")
    assert not (again.folder / "model.onnx").exists()


def test_a_file_by_itself_is_pushed_as_a_folder(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.safetensors"
    shutil.copyfile(run / "encoder" / "model.safetensors", alone)
    made = prepare(alone, "jane/shapes", tmp_path / "card", working=tmp_path)
    assert (made.source, made.is_encoder, made.non_commercial) == (alone, True, ("ABO",))
    for name in ("model.safetensors", "config.json"):
        assert (made.folder / name).read_bytes() == (run / "encoder" / name).read_bytes()
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors: no encoder here"):
        prepare(tmp_path / "nothing.safetensors", "jane/shapes", tmp_path / "other")


def test_a_fine_tuned_classifier(tmp_path: Path) -> None:
    """It carries the licences of its pretraining and of the data it was trained on."""
    encoder = micro_config().encoder
    spec = ClassifierSpec(
        encoder=encoder,
        classifier=ClassifierConfig(classes=2, hidden=(4,)),
        classes=("chair", "table|s"),
        input=InputSpec(
            points=48,
            patches=8,
            subsampling="uniform",
            augment=AugmentConfig(),
            cloud_points=60,
            up="z",
        ),
    )
    folder = tmp_path / "model"
    training = {"recipe": {"name": "mlp"}, "epochs": 3, "data_name": "chairs", "stand_in": True}
    score = {"accuracy": 91.234, "class_accuracy": 88, "best_epoch_accuracy": 93.0, "best_epoch": 2}
    facts = {"sources": [OPEN, ACADEMIC], "training": training, "score": score}
    write_description(folder, spec, facts)
    with pytest.raises(CheckpointError, match="not finished"):
        prepare(folder, "jane/chairs", tmp_path / "card")
    save_weights(folder, build_model(spec))
    made = prepare(folder, "jane/chairs", tmp_path / "card")
    assert load_classifier(made.folder).spec == spec
    card = (made.folder / "README.md").read_text()
    assert "A classifier of 3-D shapes" in card
    assert "Classes: chair, table s." in card
    assert "load_classifier('jane/chairs')" in card
    assert "| recipe | mlp |" in card
    assert "| accuracy | 91.23 |\n| mean over classes | 88.00 |" in card
    assert "On the test split of chairs, after the last of 3 epochs." in card
    assert "its figures are not the benchmark's" in card
    assert "pointdistill evaluate" not in card
    assert made.results == 1
    assert made.licence.name == "non-commercial"


@pytest.mark.parametrize(
    "name", ["shapes", "a/b/c", "../x", "jane/a--b", "jane/-a", "jane/" + "a" * 99]
)
def test_names_that_the_hub_does_not_have(run: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"not the name of a Hub repository; expected owner/name"):
        prepare(run, name, tmp_path / "card")
    assert not (tmp_path / "card").exists()


def test_other_files_are_not_touched(run: Path, tmp_path: Path) -> None:
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"holds other files \(notes\.txt\)"):
        prepare(run, "jane/shapes", tmp_path / "card")
    with pytest.raises(DataError, match="is where the weights come from"):
        prepare(run, "jane/shapes", run / "encoder")
    with pytest.raises(CheckpointError, match="no encoder here"):
        prepare(tmp_path / "runs", "jane/shapes", tmp_path / "other")


class Hub(ThreadingHTTPServer):
    """As much of the Hub as an upload asks for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.uploads = Uploads()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._answer(self.server.uploads.about())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token, path = self.headers.get("Authorization", ""), self.path.partition("?")[0]
        self._answer(*self.server.uploads.answer(self.server.address, path, body, token))

    def _answer(self, value: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 (the base's own name)
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine, to which the client is sent; no request leaves it."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    point_client_at(monkeypatch, server.address)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def point_client_at(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_jane")
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("private", [False, True])
def test_what_reaches_the_hub(hub: Hub, run: Path, tmp_path: Path, private: bool) -> None:
    made = prepare(run, "jane/shapes", tmp_path / "card")
    assert upload(made.folder, "jane/shapes", private=private) == f"{hub.address}/jane/shapes"
    assert hub.uploads.created["name"] == "shapes"
    assert hub.uploads.created["organization"] == "jane"
    assert (
        bool(
            hub.uploads.created.get("private") or hub.uploads.created.get("visibility") == "private"
        )
        == private
    )
    assert hub.uploads.token == "Bearer hf_of_jane"
    assert hub.uploads.files == {entry.name: entry.read_bytes() for entry in made.folder.iterdir()}


class _Endless(_Handler):
    def _answer(self, value: dict[str, Any], status: int = 200) -> None:
        """A body without a stated length and without an end."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(b" " * (1 << 20))


def test_an_answer_without_an_end_ends_the_upload(
    run: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepare(run, "jane/shapes", tmp_path / "card")
    monkeypatch.setattr(hub, "RequestHandlerClass", _Endless)
    with pytest.raises(CheckpointError, match=r"does not end.*is ready and stays") as caught:
        upload(made.folder, "jane/shapes", private=False)
    assert "\n" not in str(caught.value)


def test_without_a_token_the_folder_stays(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepare(run, "jane/shapes", tmp_path / "card")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(
        CheckpointError, match=r"no Hugging Face token .*set HF_TOKEN\. .*is ready and"
    ):
        upload(made.folder, "jane/shapes", private=False)
    assert hub.uploads.asked == []
    assert (made.folder / "README.md").is_file()


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_the_folder_stays(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    """Nothing listens at the discard port; and offline mode does not even try."""
    made = prepare(run, "jane/shapes", tmp_path / "card")
    point_client_at(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(
        CheckpointError, match=r"could not be uploaded .*is ready and stays"
    ) as caught:
        upload(made.folder, "jane/shapes", private=False)
    assert "\n" not in str(caught.value)
    assert (made.folder / "README.md").is_file()
