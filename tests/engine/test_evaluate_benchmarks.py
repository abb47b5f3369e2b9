"""Few-shot, ShapeNetPart and LVIS from stand-in archives to results, at toy sizes."""

from __future__ import annotations

import json
import os
import signal
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pointdistill.data.benchmark_standins import (
    HalfSizes,
    MeshSizes,
    ScanSizes,
    make_modelnet40_stand_in,
    make_psb_stand_in,
    make_scanobjectnn_stand_in,
)
from pointdistill.data.benchmark_standins.lvis import CORPUS_FOLDER, LvisSizes, make_lvis_stand_in
from pointdistill.data.benchmark_standins.modelnet import (
    FewshotSizes,
    make_modelnet_fewshot_stand_in,
)
from pointdistill.data.benchmark_standins.shapenetpart import PartSizes, make_shapenetpart_stand_in
from pointdistill.data.benchmarks.lvis import draw_lvis, read_lvis
from pointdistill.data.benchmarks.modelnet_fewshot import read_modelnet_fewshot
from pointdistill.data.benchmarks.records import Benchmark
from pointdistill.data.benchmarks.registry import BENCHMARKS, benchmark_spec
from pointdistill.data.corpus import open_corpus
from pointdistill.data.files.workspace import last_stand_in, remember_run, remember_stand_in
from pointdistill.engine.evaluation import evaluate as saved
from pointdistill.engine.evaluation import lvis
from pointdistill.engine.evaluation.evaluate import EvaluationRequest, Outcome, evaluate_saved
from pointdistill.engine.evaluation.lvis import CorpusFeatures, rank_score
from pointdistill.engine.features.extract import extract_features
from pointdistill.engine.features.feature_extractors import EncoderFeatures
from pointdistill.engine.features.inputs import protocol_input
from pointdistill.engine.weights.encoders import load_encoder, save_encoder
from pointdistill.errors import DataError
from pointdistill.model.config import EncoderConfig
from pointdistill.model.encoder import Encoder
from pointdistill.model.initialize import initialize
from pointdistill.reporter import Reporter

CONFIG = EncoderConfig(
    width=12,
    depth=1,
    heads=2,
    stage_one=(8, 8),
    stage_two=(8,),
    points=48,
    patches=6,
    patch_points=8,
)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every benchmark: few-shot has two settings, ScanObjectNN one split."""
    folder = tmp_path_factory.mktemp("stand-ins")
    sizes = FewshotSizes(settings=((5, 10), (10, 20)), folds=2, test=2, points=64)
    make_modelnet_fewshot_stand_in(folder / "ModelNetFewshot.zip", sizes=sizes, workers=1)
    make_shapenetpart_stand_in(
        folder / "parts.zip", sizes=PartSizes(train=1, val=1, test=1, points=80), workers=1
    )
    make_scanobjectnn_stand_in(
        folder / "h5_files.zip",
        splits=("OBJ-BG",),
        sizes=ScanSizes(train=2, test=1, copies=1),
        workers=1,
    )
    make_psb_stand_in(
        folder / "psb_v1.zip",
        sizes=HalfSizes(classes=("chair", "table"), train=10, test=1),
        workers=1,
    )
    make_modelnet40_stand_in(folder / "ModelNet40.zip", sizes=MeshSizes(train=1, test=1), workers=1)
    make_lvis_stand_in(
        folder / "lvis",
        sizes=LvisSizes(
            categories=("chair", "table", "bottle"),
            each=12,
            scarce=1,
            unlabelled=2,
            missing=1,
            points=64,
        ),
        workers=1,
    )
    return folder


@pytest.fixture
def workplace(tmp_path: Path, stand_ins: Path) -> Path:
    """A folder with a run, that knows the stand-ins."""
    encoder = Encoder(CONFIG)
    initialize(encoder, generator=torch.Generator().manual_seed(0))
    save_encoder(encoder, tmp_path / "run" / "encoder", training={"name": "tiny", "mode": "dual"})
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    remember_run(tmp_path / "run", folder=tmp_path)
    for name, path in (
        ("scanobjectnn", "h5_files.zip"),
        ("modelnet40", "ModelNet40.zip"),
        ("fewshot", "ModelNetFewshot.zip"),
        ("shapenetpart", "parts.zip"),
        ("lvis", "lvis"),
        ("psb", "psb_v1.zip"),
    ):
        remember_stand_in(name, stand_ins / path, folder=tmp_path)
    return tmp_path


def measure(folder: Path, benchmark: str, **changes: object) -> Outcome:
    request = EvaluationRequest(
        benchmark=benchmark,
        stand_in=True,
        device="cpu",
        folder=folder,
        **changes,  # type: ignore[arg-type]
    )
    return evaluate_saved(request)


def test_every_fold_is_trained_once_and_summed_up_by_setting(workplace: Path) -> None:
    settings = {"splits": ("5w10s", "10w20s"), "epochs": 1}
    measure(workplace, "fewshot", **settings, seeds=1)
    scores = workplace / "run" / "evaluation" / "fewshot-stand-in" / "scores"
    before = {path.name: path.stat().st_mtime_ns for path in scores.iterdir()}
    assert len(before) == 2
    outcome = measure(workplace, "fewshot", **settings, seeds=2)
    after = {path.name: path.stat().st_mtime_ns for path in scores.iterdir()}
    assert len(after) == 4
    assert before.items() <= after.items()
    first, second = outcome.results
    assert (first.split, second.split) == ("5w10s", "10w20s")
    assert (first.seeds, first.repeated_over) == ((0, 1), "folds")
    assert first.accuracy.mean == pytest.approx(np.mean(first.each))
    assert first.accuracy.deviation == pytest.approx(np.std(first.each, ddof=1))
    assert (first.train_clouds, first.test_clouds, second.train_clouds) == (50, 10, 200)
    assert first.label == "finetune (1 of 150 epochs)"
    assert (first.points, first.patches, first.subsampling) == (48, 6, "farthest")


def test_a_leak_is_looked_for_in_every_fold(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[np.ndarray] = []

    def remember(benchmark: Benchmark, *_: object) -> str:
        looked_at.append(benchmark.test.points)
        return "seen"

    monkeypatch.setattr(saved, "leak_warning", remember)
    measure(workplace, "fewshot", splits=("5w10s",), protocols=("knn",), seeds=2)
    (found,) = looked_at
    archive = last_stand_in("fewshot", folder=workplace)
    assert archive is not None
    folds = [read_modelnet_fewshot(archive, way=5, shot=10, fold=fold) for fold in (0, 1)]
    np.testing.assert_array_equal(found, np.concatenate([f.test.points for f in folds]))


def test_folds_of_another_archive_are_a_row_of_their_own(workplace: Path) -> None:
    """Extracted folders: every fold is a file of its own, and still one archive."""
    source = last_stand_in("fewshot", folder=workplace)
    assert source is not None
    for name in ("one", "other"):
        with zipfile.ZipFile(source) as archive:
            archive.extractall(workplace / name)
    first, second = (
        workplace / "other" / member
        for member in ("ModelNetFewshot/5way_10shot/0.pkl", "ModelNetFewshot/5way_10shot/1.pkl")
    )
    second.write_bytes(first.read_bytes())
    for name, seeds in (("one", 2), ("other", 1)):
        request = EvaluationRequest(
            benchmark="fewshot",
            data=workplace / name,
            splits=("5w10s",),
            protocols=("knn",),
            seeds=seeds,
            device="cpu",
            folder=workplace,
        )
        outcome = evaluate_saved(request)
        assert [result.seeds for result in outcome.results] == [tuple(range(seeds))]
    rows = json.loads((outcome.outputs[0] / "results.json").read_text())["results"]
    assert sorted(row["seeds"] for row in rows) == [[0], [0, 1]]
    assert len({row["checksum"] for row in rows}) == 2


def test_probes_on_frozen_features_of_the_folds(workplace: Path) -> None:
    outcome = measure(workplace, "fewshot", splits=("5w10s",), protocols=("knn",), seeds=2)
    (result,) = outcome.results
    assert (result.protocol, result.seeds, result.metrics) == ("knn", (0, 1), ("OA", "mAcc"))
    # The classes of one fold are not those of another: nothing to draw.
    assert not (outcome.outputs[0] / "pictures").exists()


def test_parts_are_kept_seed_by_seed(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(workplace, "shapenetpart", epochs=1, seeds=1)
    outcome = measure(workplace, "shapenetpart", epochs=1, seeds=2)
    (result,) = outcome.results
    assert (result.benchmark, result.protocol, result.seeds) == ("ShapeNetPart", "parts", (0, 1))
    assert result.metrics == ("instance mIoU", "class mIoU")
    assert result.label == "parts (1 of 300 epochs)"
    assert result.accuracy.mean == pytest.approx(np.mean(result.each))
    assert result.each[0] != result.each[1]
    assert result.best_epoch_accuracy == result.accuracy
    assert (result.points, result.subsampling, result.stand_in) == (48, "uniform", True)
    assert 0.0 <= result.class_accuracy.mean <= 100.0
    text = (outcome.outputs[0] / "results.md").read_text()
    assert "| parts (1 of 300 epochs) |" in text
    assert "instance mIoU %" in text
    # All of it is kept: nothing is trained again.
    monkeypatch.setattr(
        "pointdistill.engine.evaluation.classification.train_segmenter", pytest.fail
    )
    assert measure(workplace, "shapenetpart", epochs=1, seeds=2).results == outcome.results


def measure_until(
    epoch: int, folder: Path, benchmark: str, **changes: object
) -> tuple[Outcome | None, list[int]]:
    """With Ctrl-C after ``epoch``, counted from 1: the outcome, None where it was stopped, and the epochs seen.

    A signal is answered once, at once.
    """
    seen: list[int] = []
    answered: list[int] = []

    class Stopper(Reporter):
        def progress(self, task: str, done: float, *_: float | None, **__: str) -> None:
            if task.endswith(("finetune", "parts")) and done:
                seen.append(int(done))
                if done == epoch:
                    os.kill(os.getpid(), signal.SIGINT)
                    assert answered == [epoch]

        def on_signal(self) -> None:
            answered.append(seen[-1])

    request = EvaluationRequest(
        benchmark=benchmark,
        stand_in=True,
        device="cpu",
        folder=folder,
        **changes,  # type: ignore[arg-type]
    )
    try:
        return evaluate_saved(request, Stopper()), seen
    except KeyboardInterrupt:
        return None, seen


TRAININGS = [("scanobjectnn", "finetune"), ("shapenetpart", "parts")]


@pytest.mark.parametrize(("benchmark", "protocol"), TRAININGS)
def test_interrupted_inside_a_seed_is_gone_on_with_to_the_bit(
    workplace: Path, benchmark: str, protocol: str
) -> None:
    options = {"protocols": (protocol,), "splits": (), "epochs": 3, "seeds": 1}
    if benchmark == "scanobjectnn":
        options["splits"] = ("OBJ-BG",)
    measure(workplace, benchmark, **options, output=workplace / "whole")
    options["output"] = workplace / "stopped"
    assert measure_until(1, workplace, benchmark, **options) == (None, [1])
    scores = workplace / "stopped" / "scores"
    assert [path.suffix for path in scores.iterdir()] == [".safetensors"]
    outcome, seen = measure_until(0, workplace, benchmark, **options)
    assert outcome is not None
    assert seen == [2, 3]
    (expected,) = (workplace / "whole" / "scores").iterdir()
    (found,) = scores.iterdir()
    assert (found.name, found.read_bytes()) == (expected.name, expected.read_bytes())


@pytest.mark.parametrize(("benchmark", "protocol"), TRAININGS)
def test_interrupted_after_the_last_epoch_the_score_is_kept_first(
    workplace: Path, benchmark: str, protocol: str
) -> None:
    splits = ("OBJ-BG",) if benchmark == "scanobjectnn" else ()
    options = {"protocols": (protocol,), "splits": splits, "epochs": 1, "seeds": 2}
    output = workplace / "here"
    stopped = measure_until(1, workplace, benchmark, **options, output=output)
    assert stopped == (None, [1])
    (score,) = (output / "scores").iterdir()
    assert score.suffix == ".json"
    # What a kill between the score and the end of its training leaves.
    left = score.with_suffix(".safetensors")
    left.touch()
    outcome, seen = measure_until(0, workplace, benchmark, **options, output=output)
    assert outcome is not None
    assert (outcome.results[0].seeds, seen) == ((0, 1), [1])
    assert not left.exists()


def test_lvis_draws_share_features_that_are_computed_once(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[tuple[int, int | None]] = []
    whole = CorpusFeatures.of

    def counted(self: CorpusFeatures, rows: np.ndarray, **options: object) -> object:  # type: ignore[type-arg]
        computed.append((len(rows), options["epoch"]))  # type: ignore[arg-type]
        return whole(self, rows, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(CorpusFeatures, "of", counted)
    monkeypatch.setattr(lvis, "ROWS", 10)
    outcome = measure(workplace, "lvis", epochs=3, seeds=2, augmented_copies=2)
    knn, linear = outcome.results
    # 24 shapes in files of 10, 10 and 4; as they are, then twice augmented; however many draws.
    assert computed == [(n, epoch) for epoch in (None, 0, 1) for n in (10, 10, 4)]
    measure(workplace, "lvis", epochs=3, seeds=4, augmented_copies=2)
    assert len(computed) == 9
    assert (linear.seeds, linear.repeated_over, linear.metrics) == (
        (0, 1),
        "draws",
        ("top-1", "mAcc"),
    )
    assert (linear.train_clouds, linear.test_clouds) == (20, 4)
    assert [figure.name for figure in linear.further] == ["top-3", "top-5"]
    # Two categories: every true one is among three.
    assert linear.further[0].value.mean == 100.0
    assert knn.accuracy.mean <= knn.further[0].value.mean
    assert linear.label == "linear (3 of 150 epochs, 2 augmented copies)"
    assert knn.label == "knn"


def test_lvis_augments_anew_each_epoch_as_published(workplace: Path) -> None:
    outcome = measure(
        workplace, "lvis", epochs=2, seeds=1, augmented_copies=0, protocols=("linear",)
    )
    assert outcome.results[0].augmentation == "training clouds augmented anew each epoch"
    assert outcome.results[0].label == "linear (2 of 150 epochs)"


def test_streamed_features_are_those_of_the_encoder(
    workplace: Path, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the corpus in memory; for any batch size and any size of file."""
    corpus = open_corpus(stand_ins / "lvis" / CORPUS_FOLDER)
    shapes = read_lvis(next((stand_ins / "lvis").glob("*.gz")), corpus)
    encoder = load_encoder(workplace / "run")
    inputs = protocol_input("Objaverse-LVIS", encoder.config)
    in_memory = np.stack([corpus.points(index) for index in range(len(corpus))])
    expected = extract_features(encoder, in_memory, inputs=inputs, seed=0)[shapes.indices]
    for size, rows in ((1, 7), (5, 100)):
        monkeypatch.setattr(lvis, "ROWS", rows)
        extractor = EncoderFeatures(name="", encoder=encoder, inputs=inputs, batch_size=size)
        folder = tmp_path / f"features-{size}"
        features = CorpusFeatures(folder, extractor, corpus, shapes.indices)
        features.compute(None, lambda _: None)
        assert features.missing(None) == 0
        found = torch.cat([part for _, part in features.stream()])
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)
        train, _ = draw_lvis(shapes, seed=0)
        assert torch.equal(features.rows(train, None), found[train])


class RaggedCorpus:
    """Two clouds with fewer points than the protocol's, one with more."""

    sizes = (20, 64, 20)

    def __len__(self) -> int:
        return 3

    def points(self, index: int) -> np.ndarray:  # type: ignore[type-arg]
        rng = np.random.default_rng(index)
        return rng.normal(size=(self.sizes[index], 3)).astype(np.float32)


def test_shapes_of_different_sizes_keep_their_places(workplace: Path, tmp_path: Path) -> None:
    encoder, corpus = load_encoder(workplace / "run"), RaggedCorpus()
    inputs = protocol_input("Objaverse-LVIS", encoder.config)
    extractor = EncoderFeatures(name="", encoder=encoder, inputs=inputs)
    features = CorpusFeatures(tmp_path, extractor, corpus, np.arange(3))
    found = features.of(np.arange(3), seed=0, epoch=None, count=lambda _: None)
    for index in (0, 2):  # used whole, so there is nothing random
        alone = extract_features(encoder, corpus.points(index)[None], inputs=inputs, seed=0)
        torch.testing.assert_close(found[index : index + 1], alone, rtol=0.0, atol=1e-5)


def test_ranked_accuracies() -> None:
    """Of four shapes one is right at once, one at the third place, one at the fifth, one never."""
    ranked = torch.tensor([[7, 1, 2, 3, 4], [1, 2, 7, 3, 4], [1, 2, 3, 4, 7], [1, 2, -1, -1, -1]])
    score = rank_score(ranked, torch.tensor([7, 7, 7, 7]))
    assert score.accuracy == 25.0
    assert score.further == (("top-3", 50.0), ("top-5", 75.0))


def test_lvis_without_a_corpus_says_what_is_lacking(workplace: Path) -> None:
    request = EvaluationRequest(benchmark="lvis", folder=workplace, device="cpu")
    with pytest.raises(DataError, match="names shapes of a corpus") as caught:
        evaluate_saved(request)
    assert caught.value.settings == ("corpus", "stand_in")


def test_all_on_stand_ins_runs_frozen_protocols_first(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every benchmark, into one folder."""
    for name, splits in (("fewshot", ("5w10s", "10w20s")), ("scanobjectnn", ("OBJ-BG",))):
        spec = replace(benchmark_spec(name), splits=splits)
        monkeypatch.setattr(f"{BENCHMARKS[name].module}.SPEC", spec)
    outcome = measure(
        workplace,
        "all",
        protocols=("knn", "finetune", "parts"),
        epochs=1,
        seeds=1,
        output=workplace / "out",
    )
    written = (workplace / "out" / "scores").iterdir()
    in_order = [path.name for path in sorted(written, key=lambda path: path.stat().st_mtime_ns)]
    assert ["knn" in name for name in in_order] == [True] * 6 + [False] * 5
    rows = json.loads((workplace / "out" / "results.json").read_text())["results"]
    assert len(rows) == len(outcome.results) == 11
    assert len({row["benchmark"] for row in rows}) == 6
    text = (workplace / "out" / "results.md").read_text()
    assert len([line for line in text.splitlines() if line.startswith("**")]) == 6
