"""An encoder and an archive on disk: what is found by itself, what is said, what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pointdistill.data.benchmark_standins import (
    MeshSizes,
    ScanSizes,
    make_modelnet40_stand_in,
    make_scanobjectnn_stand_in,
)
from pointdistill.data.benchmarks.registry import benchmark_spec
from pointdistill.data.files.files import hold_output
from pointdistill.data.files.workspace import remember_run
from pointdistill.engine.evaluation.evaluate import EvaluationRequest, Outcome, evaluate_saved
from pointdistill.engine.pretraining.run_folder import locate_and_say
from pointdistill.engine.weights.encoders import fingerprint, load_encoder, save_encoder
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.model.config import EncoderConfig
from pointdistill.model.encoder import Encoder
from pointdistill.model.initialize import initialize
from tests.engine.recorder import Recorder

Measure = Callable[..., tuple[Outcome, list[str]]]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in of two splits, two training objects a class and one test object."""
    path = tmp_path_factory.mktemp("stand-in") / "h5_files.zip"
    sizes = ScanSizes(train=2, test=1, copies=1)
    make_scanobjectnn_stand_in(path, splits=("OBJ-BG", "OBJ-ONLY"), sizes=sizes, workers=1)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with an encoder, remembered as the last of its folder."""
    config = EncoderConfig(
        width=12,
        depth=1,
        heads=2,
        stage_one=(8, 8),
        stage_two=(8,),
        points=48,
        patches=6,
        patch_points=8,
    )
    encoder = Encoder(config)
    initialize(encoder, generator=torch.Generator().manual_seed(0))
    folder = tmp_path / "runs" / "tiny"
    save_encoder(encoder, folder / "encoder", training={"name": "tiny", "mode": "dual"})
    (folder / "metrics.jsonl").write_text("")
    remember_run(folder, folder=tmp_path)
    return folder


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    """Evaluate ScanObjectNN in the test's folder, by the quick protocols; also what was said."""

    def run_it(**changes: object) -> tuple[Outcome, list[str]]:
        options: dict[str, object] = {
            "benchmark": "scanobjectnn",
            "protocols": ("knn", "logistic"),
            "seeds": 1,
            "device": "cpu",
            "folder": tmp_path,
        }
        recorder = Recorder()
        request = EvaluationRequest(**{**options, **changes})  # type: ignore[arg-type]
        return evaluate_saved(request, recorder), recorder.said

    return run_it


def test_last_run_is_taken_and_named(measure: Measure, run: Path, stand_in: Path) -> None:
    outcome, said = measure(data=stand_in, splits=("OBJ-BG",))
    assert said[0] == f"encoder: {run}/encoder, the teacher of the last run in this folder"
    assert {result.features for result in outcome.results} == {"encoder of runs/tiny"}
    assert outcome.outputs[0] == run / "evaluation" / "scanobjectnn"


@pytest.mark.parametrize(("steps", "said_so"), [(600, True), (7500, False)])
def test_a_short_run_taken_by_default_names_the_better_encoder(
    run: Path, steps: int, said_so: bool
) -> None:
    training = {"name": "tiny", "mode": "dual", "step": steps, "batch_size": 32}
    save_encoder(load_encoder(run), run / "encoder", training=training)
    recorder = Recorder()
    locate_and_say(run, by_default=True, reporter=recorder)
    better = "knows real ones better"
    assert [line.endswith(better) for line in recorder.said] == [False] + [True] * said_so
    if said_so:
        assert recorder.said[1].startswith("it has seen 19,200 shapes; procedural-mini, which")
        assert recorder.settings == ("encoder",)
    chosen = Recorder()
    locate_and_say(run, by_default=False, reporter=chosen)
    assert len(chosen.said) == 1


def test_results_of_every_split_are_written(measure: Measure, run: Path, stand_in: Path) -> None:
    outcome, said = measure(data=stand_in, splits=("OBJ-ONLY", "OBJ-BG"))
    expected = [("OBJ-BG", "knn"), ("OBJ-BG", "logistic")]
    expected += [("OBJ-ONLY", "knn"), ("OBJ-ONLY", "logistic")]
    assert [(result.split, result.protocol) for result in outcome.results] == expected
    assert all(result.stand_in for result in outcome.results)
    written = json.loads((outcome.outputs[0] / "results.json").read_text())["results"]
    assert [(row["split"], row["protocol"]) for row in written] == expected
    assert "stand-in" in (outcome.outputs[0] / "results.md").read_text()
    data = [line for line in said if line.startswith("data: ")]
    assert data[0] == (
        f"data: ScanObjectNN stand-in, OBJ-BG, 30 training and 15 test clouds, {stand_in}"
    )


def test_modelnet40_goes_from_meshes_to_results(
    measure: Measure, run: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "ModelNet40.zip"
    make_modelnet40_stand_in(archive, sizes=MeshSizes(train=1, test=1), workers=1)
    outcome, said = measure(benchmark="modelnet40", data=archive, protocols=("knn",))
    (result,) = outcome.results
    assert (result.data_name, result.split, result.stand_in) == ("ModelNet40 stand-in", None, True)
    assert (result.points, result.patches, result.subsampling) == (48, 6, "farthest")
    assert result.train_clouds == result.test_clouds
    assert any(line.startswith("data: ModelNet40 stand-in, ") for line in said)


def test_first_splits_results_survive_a_failure_in_the_second(
    measure: Measure, run: Path, stand_in: Path
) -> None:
    with pytest.raises(DataError, match="PB-T50-RS needs"):
        measure(data=stand_in, splits=("OBJ-BG", "PB-T50-RS"))
    written = run / "evaluation" / "scanobjectnn" / "results.json"
    assert {row["split"] for row in json.loads(written.read_text())["results"]} == {"OBJ-BG"}


def test_archive_is_looked_for_under_data(
    measure: Measure, run: Path, stand_in: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "h5_files.zip").write_bytes(stand_in.read_bytes())
    outcome, _ = measure(splits=("OBJ-BG",))
    assert len(outcome.results) == 2


@pytest.mark.parametrize(
    ("benchmark", "archive", "origin"),
    [
        ("scanobjectnn", "data/h5_files.zip", "hkust-vgd.github.io/scanobjectnn"),
        ("modelnet40", "data/ModelNet40.zip", "modelnet.cs.princeton.edu"),
    ],
)
def test_without_the_archive_one_line_says_where_it_comes_from_and_goes(
    measure: Measure, benchmark: str, archive: str, origin: str
) -> None:
    with pytest.raises(DataError) as caught:
        measure(benchmark=benchmark)
    message = str(caught.value)
    assert archive in message
    assert origin in message
    assert caught.value.settings == ("stand_in",)
    assert "\n" not in message


def test_stand_in_is_made_once_and_remembered(
    measure: Measure, run: Path, stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def make(path: Path, *, progress: Callable[[int, int], None]) -> None:
        made.append(path)
        path.parent.mkdir(parents=True)
        path.write_bytes(stand_in.read_bytes())
        progress(1, 1)

    module, _, function = benchmark_spec("scanobjectnn").stand_in_maker.partition(":")
    monkeypatch.setattr(f"{module}.{function}", make)
    outcome, said = measure(stand_in=True, splits=("OBJ-BG",))
    _, said_again = measure(stand_in=True, splits=("OBJ-BG",))
    assert made == [tmp_path / "data" / "stand-in" / "h5_files.zip"]
    assert [line for line in said if line.startswith("making the stand-in")]
    assert not [line for line in said_again if line.startswith("making the stand-in")]
    assert outcome.outputs[0] == run / "evaluation" / "scanobjectnn-stand-in"


@pytest.mark.usefixtures("no_bundled_encoder")
def test_no_stand_in_is_made_without_an_encoder(measure: Measure, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no run was made in this folder.*pretrain"):
        measure(stand_in=True)
    assert not (tmp_path / "data").exists()


def test_a_second_evaluation_into_one_folder_is_refused(
    measure: Measure, run: Path, stand_in: Path
) -> None:
    """Each writes the results of all scores it knows, and would drop those of the other."""
    output = run / "evaluation" / "scanobjectnn"
    with (
        hold_output(output),
        pytest.raises(DataError, match=r"scanobjectnn: another process is writing there; wait"),
    ):
        measure(data=stand_in, splits=("OBJ-BG",), protocols=("knn",))
    assert not output.exists()


def test_an_encoder_outside_a_run_leaves_its_folder_alone(
    measure: Measure, run: Path, stand_in: Path, tmp_path: Path
) -> None:
    (run / "encoder").rename(tmp_path / "mine")
    outcome, said = measure(encoder=tmp_path / "mine", data=stand_in, splits=("OBJ-BG",))
    assert said[0] == f"encoder: {tmp_path}/mine"
    assert outcome.outputs[0] == tmp_path / "evaluation" / "scanobjectnn"
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_a_file_by_itself_and_a_hub_repository_are_encoders(
    measure: Measure, run: Path, stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights wherever they lie: nothing is measured twice, it is one row."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda repository, **_: {"jane/shapes": str(run / "encoder")}[repository],
    )
    alone = tmp_path / "mine.safetensors"
    alone.write_bytes((run / "encoder" / "model.safetensors").read_bytes())
    data = {"data": stand_in, "splits": ("OBJ-BG",), "protocols": ("knn",)}
    first, said = measure(**data, encoder=alone)
    assert said[0] == f"encoder: {alone}"
    assert first.outputs == (tmp_path / "evaluation" / "scanobjectnn",)
    second, _ = measure(**data, encoder=Path("jane/shapes"), output=first.outputs[0])
    assert second.results == first.results


@pytest.mark.parametrize(
    ("copies", "augmentation", "label", "published"),
    [
        # The default on a CPU.
        (
            None,
            "4 augmented copies of the training clouds, in turn",
            "linear (4 augmented copies)",
            None,
        ),
        (1, "one augmented copy of the training clouds", "linear (1 augmented copy)", None),
        (0, "training clouds augmented anew each epoch", "linear", 89.95),
    ],
)
def test_augmented_copies_are_recorded(
    measure: Measure,
    run: Path,
    stand_in: Path,
    copies: int | None,
    augmentation: str,
    label: str,
    published: float | None,
) -> None:
    outcome, _ = measure(
        data=stand_in, splits=("OBJ-BG",), protocols=("linear",), augmented_copies=copies
    )
    (result,) = outcome.results
    assert (result.augmentation, result.label) == (augmentation, label)
    if published is None:
        assert result.published is None
    else:
        # Set beside the small model: there is no published figure of a tiny one.
        assert result.published is not None
        assert result.published.model == "AsymDSD-S (ShapeNet)"
        assert result.published.accuracy == published


def test_a_later_narrower_evaluation_adds_and_overwrites_nothing(
    measure: Measure, run: Path, stand_in: Path
) -> None:
    data = {"data": stand_in, "splits": ("OBJ-BG",)}
    measure(**data, protocols=("knn",), seeds=2)
    outcome, _ = measure(**data, protocols=("logistic",))
    assert [result.protocol for result in outcome.results] == ["logistic"]
    rows = json.loads((outcome.outputs[0] / "results.json").read_text())["results"]
    assert [(row["protocol"], row["seeds"]) for row in rows] == [("knn", [0, 1]), ("logistic", [0])]
    # One seed more joins the row that is there.
    outcome, _ = measure(**data, protocols=("knn",), seeds=3)
    (result,) = outcome.results
    assert result.seeds == (0, 1, 2)
    assert len(result.each) == 3


def test_what_is_done_is_not_measured_again(
    measure: Measure, run: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"data": stand_in, "splits": ("OBJ-BG",), "protocols": ("knn", "finetune"), "epochs": 1}
    first, _ = measure(**data)

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("measured again")

    monkeypatch.setattr("pointdistill.engine.evaluation.classification.trained_score", refuse)
    monkeypatch.setattr("pointdistill.engine.evaluation.classification.FrozenRun", refuse)
    again, _ = measure(**data)
    assert again.results == first.results


def test_interrupted_after_a_seed_goes_on_with_the_next(
    measure: Measure, run: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pointdistill.engine.evaluation import classification as module

    whole = module.trained_score
    trained: list[int] = []

    def until_the_second(*arguments: object, seed: int, **options: object) -> object:
        if seed == 1 and not trained.count(1):
            trained.append(seed)
            raise KeyboardInterrupt
        trained.append(seed)
        return whole(*arguments, seed=seed, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "trained_score", until_the_second)
    data = {"data": stand_in, "splits": ("OBJ-BG",), "protocols": ("finetune",), "epochs": 1}
    with pytest.raises(KeyboardInterrupt):
        measure(**data, seeds=2)
    written = run / "evaluation" / "scanobjectnn" / "results.json"
    assert json.loads(written.read_text())["results"][0]["seeds"] == [0]
    outcome, _ = measure(**data, seeds=2)
    assert trained == [0, 1, 1]
    assert outcome.results[0].seeds == (0, 1)


def test_other_weights_under_the_same_name_are_another_row(
    measure: Measure, run: Path, stand_in: Path
) -> None:
    data = {"data": stand_in, "splits": ("OBJ-BG",), "protocols": ("knn",)}
    before = fingerprint(load_encoder(run))
    measure(**data)
    encoder = Encoder(load_encoder(run).config)
    initialize(encoder, generator=torch.Generator().manual_seed(1))
    save_encoder(encoder, run / "encoder", training={"name": "tiny", "mode": "dual"})
    assert fingerprint(load_encoder(run)) != before
    outcome, _ = measure(**data)
    rows = json.loads((outcome.outputs[0] / "results.json").read_text())["results"]
    assert len({row["fingerprint"] for row in rows}) == len(rows) == 2


def test_a_moved_run_keeps_its_scores(measure: Measure, run: Path, stand_in: Path) -> None:
    data = {"data": stand_in, "splits": ("OBJ-BG",), "protocols": ("knn",)}
    measure(**data, output=run.parent / "shared")
    moved = run.rename(run.with_name("moved"))
    outcome, _ = measure(**data, encoder=moved, output=run.parent / "shared", seeds=2)
    assert [result.seeds for result in outcome.results] == [(0, 1)]


def test_deviations_and_votes_are_named_in_every_output(
    measure: Measure, run: Path, stand_in: Path
) -> None:
    outcome, _ = measure(
        data=stand_in, splits=("OBJ-BG",), protocols=("linear", "finetune"), epochs=2, votes=3
    )
    labels = [result.label for result in outcome.results]
    assert labels == [f"{name} (2 of 150 epochs, 3 votes)" for name in ("linear", "finetune")]
    assert all(result.published is None for result in outcome.results)
    assert all(result.best_epoch_accuracy is None for result in outcome.results)
    folder = outcome.outputs[0]
    assert "linear (2 of 150 epochs, 3 votes)" in (folder / "results.md").read_text()
    for kind in ("pictures", "scores"):
        names = [path.name for path in (folder / kind).iterdir()]
        assert len(names) == 2
        assert all("2-of-150-epochs-3-votes" in name for name in names)
    plain, _ = measure(data=stand_in, splits=("OBJ-BG",), protocols=("linear",), epochs=2)
    assert [result.label for result in plain.results] == ["linear (2 of 150 epochs)"]


def test_a_picture_a_row_is_drawn_and_shown(measure: Measure, run: Path, stand_in: Path) -> None:
    outcome, _ = measure(data=stand_in, splits=("OBJ-BG", "OBJ-ONLY"))
    folder = outcome.outputs[0]
    pictures = sorted(path.name for path in (folder / "pictures").iterdir())
    assert len(pictures) == len(outcome.results) == 4
    text = (folder / "results.md").read_text()
    assert all(f"(pictures/{name})" in text for name in pictures)


def test_a_damaged_score_is_named(measure: Measure, run: Path, stand_in: Path) -> None:
    outcome, _ = measure(data=stand_in, splits=("OBJ-BG",))
    broken = next((outcome.outputs[0] / "scores").iterdir())
    broken.write_text('{"result": {}}')
    with pytest.raises(DataError, match=rf"{broken.name}: damaged .*not a score.*measured again"):
        measure(data=stand_in, splits=("OBJ-BG",))


def test_results_of_another_version_are_not_overwritten(
    measure: Measure, run: Path, stand_in: Path, tmp_path: Path
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text('{"format": 1, "results": []}')
    with pytest.raises(ConfigError, match=r"has format 1.*choose another output folder"):
        measure(data=stand_in, output=tmp_path / "old")


def test_all_measures_what_is_there_and_says_what_is_not(
    measure: Measure, run: Path, stand_in: Path, tmp_path: Path
) -> None:
    """Nothing but ModelNet40's archive under data/."""
    (tmp_path / "data").mkdir()
    make_modelnet40_stand_in(
        tmp_path / "data" / "ModelNet40.zip", sizes=MeshSizes(train=1, test=1), workers=1
    )
    outcome, _ = measure(benchmark="all", protocols=("knn", "finetune"), epochs=1)
    assert [result.protocol for result in outcome.results] == ["knn", "finetune"]
    assert outcome.outputs == (run / "evaluation" / "modelnet40",)
    missing = dict(line.split(": ", 1) for line in outcome.absent)
    assert list(missing) == ["scanobjectnn", "fewshot", "lvis", "psb"]  # ShapeNetPart has neither
    assert "hkust-vgd.github.io" in missing["scanobjectnn"]
    assert "ModelNetFewshot.zip" in missing["fewshot"]


def test_all_without_any_data_is_one_line(measure: Measure, run: Path) -> None:
    with pytest.raises(DataError, match=r"no benchmark's data is here.*stand-ins") as caught:
        measure(benchmark="all", protocols=())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmark": "modelnet10"}, "unknown benchmark 'modelnet10'; choose one of scanobjectnn"),
        ({"splits": ("PB",)}, "no split 'PB'; choose from OBJ-BG, OBJ-ONLY, PB-T50-RS"),
        ({"benchmark": "modelnet40", "splits": ("PB",)}, "has one only; leave it out"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"benchmark": "fewshot", "seeds": 11, "protocols": ()}, "at most 10, the folds there are"),
        ({"device": "gpu"}, "device must be one of auto, cpu, cuda, got 'gpu'"),
        ({"protocols": ("parts",)}, "scanobjectnn has no protocol 'parts'; choose from knn, svm"),
        (
            {"votes": 2},
            "knn, logistic: there are no logits to average; choose from linear, mlp, fine",
        ),
        ({"benchmark": "lvis", "protocols": (), "votes": 2}, "leave votes out"),
        ({"benchmark": "all", "splits": ("OBJ-BG",)}, "a split belongs to one benchmark"),
        ({"stand_in": True, "corpus": Path("c")}, "c was given too; choose one"),
        ({"stand_in": True, "data": Path("x.zip")}, "choose one"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(
    measure: Measure, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        measure(**change)
