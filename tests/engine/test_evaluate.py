"""A benchmark in, results out: what is run, what is recorded, what is shown beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pointdistill.data.benchmarks.records import Benchmark, LabelledClouds
from pointdistill.data.benchmarks.registry import BASE_MIXTURE, MPM_SMALL, SMALL, SMALL_MIXTURE
from pointdistill.data.files.schema import from_plain, to_plain
from pointdistill.engine.evaluation.classification import evaluate, evaluate_geometry, measure
from pointdistill.engine.evaluation.results import (
    RULES,
    Figure,
    Result,
    Spread,
    combine,
    comparison_for,
    comparison_model,
    published_figure,
    rules_of,
    setting_of,
    write_results,
)
from pointdistill.engine.evaluation.run import Evaluation
from pointdistill.engine.evaluation.tables import results_table, results_tables
from pointdistill.engine.features import HeadTraining
from pointdistill.engine.features.inputs import ProtocolInput, protocol_input
from pointdistill.errors import ConfigError
from pointdistill.model.config import AugmentConfig, EncoderConfig
from pointdistill.model.encoder import Encoder
from pointdistill.model.initialize import initialize
from tests.engine.recorder import Recorder

QUICK = HeadTraining(epochs=6, warmup_epochs=1, peak_learning_rate=0.05)


def shapes(n: int, *, seed: int) -> LabelledClouds:
    """Sticks standing, sticks lying, and balls: three classes that any features tell apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    stretch = np.array([[0.1, 0.1, 1.0], [1.0, 0.1, 0.1], [1.0, 1.0, 1.0]])[labels]
    points = rng.normal(size=(n, 64, 3)) * stretch[:, None]
    return LabelledClouds(points=points.astype(np.float32), labels=labels.astype(np.int64))


@pytest.fixture(scope="module")
def benchmark() -> Benchmark:
    return Benchmark(
        name="ScanObjectNN",
        split="PB-T50-RS",
        classes=("standing", "lying", "ball"),
        train=shapes(30, seed=0),
        test=shapes(15, seed=1),
        data_name="ScanObjectNN stand-in",
        form="h5_files.zip, main_split",
        checksum="0" * 64,
        stand_in=True,
    )


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    config = EncoderConfig(
        width=16,
        depth=1,
        heads=2,
        stage_one=(8, 16),
        stage_two=(16,),
        points=48,
        patches=6,
        patch_points=8,
    )
    encoder = Encoder(config)
    initialize(encoder, generator=torch.Generator().manual_seed(0))
    return encoder


class Oracle:
    """Features that are the label itself, read off the shape; counts how often it is asked."""

    name = "oracle"
    has_patches = False
    inputs = ProtocolInput(
        points=64, patches=1, subsampling="uniform", augment=AugmentConfig(rotate_z=False)
    )

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int | None]] = []

    def voting(self) -> Oracle:
        return self

    def __call__(
        self,
        points: NDArray[np.float32],
        *,
        seed: int,
        epoch: int | None,
        count: Callable[[int], None],
    ) -> torch.Tensor:
        self.asked.append((len(points), seed, epoch))
        spread = points.std(axis=1)
        labels = np.where(spread[:, 0] < 0.5, 0, np.where(spread[:, 2] < 0.5, 1, 2))
        features = torch.eye(3)[torch.from_numpy(labels)]
        count(len(points))
        return features

    def unit(self, features: torch.Tensor) -> torch.Tensor:
        return features


def test_every_protocol_reads_true_features_perfectly(benchmark: Benchmark) -> None:
    results = measure(
        Oracle(), benchmark, Evaluation(head=replace(QUICK, epochs=60, peak_learning_rate=0.02))
    )
    assert [result.protocol for result in results] == ["knn", "svm", "linear", "mlp", "logistic"]
    assert [result.accuracy.mean for result in results] == [100.0] * 5
    assert [result.class_accuracy.mean for result in results] == [100.0] * 5


def test_linear_probe_gets_new_clouds_each_epoch(benchmark: Benchmark) -> None:
    oracle = Oracle()
    measure(oracle, benchmark, Evaluation(protocols=("linear",), seeds=(5,), head=QUICK))
    plain, augmented = oracle.asked[:2], oracle.asked[2:]
    assert plain == [(30, 5, None), (15, 5, None)]
    assert augmented == [(30, 5, epoch) for epoch in range(6)]


def test_augmented_copies_are_made_once(benchmark: Benchmark) -> None:
    oracle = Oracle()
    plan = Evaluation(protocols=("linear",), augmented_copies=2, head=QUICK)
    (result,) = measure(oracle, benchmark, plan)
    assert oracle.asked[2:] == [(30, 0, 0), (30, 0, 1)]
    assert result.augmentation == "2 augmented copies of the training clouds, in turn"
    assert result.label == "linear (2 augmented copies)"


@pytest.mark.parametrize("copies", [None, 2, 50])
def test_progress_ends_at_what_was_announced(benchmark: Benchmark, copies: int | None) -> None:
    recorder = Recorder()
    measure(
        Oracle(),
        benchmark,
        Evaluation(seeds=(0, 1), augmented_copies=copies, head=QUICK),
        reporter=recorder,
    )
    tasks, done, totals = zip(*recorder.steps, strict=True)
    assert set(totals) == {done[-1]}
    assert list(done) == sorted(done)
    assert tasks[0] == "ScanObjectNN, PB-T50-RS, seed 0: features"
    assert tasks[-1] == "ScanObjectNN, PB-T50-RS, seed 1: features"


def test_encoder_result_says_what_was_measured(benchmark: Benchmark, encoder: Encoder) -> None:
    plan = Evaluation(seeds=(0, 1), head=QUICK)
    results = evaluate(encoder, benchmark, plan, name="teacher", published_model=SMALL)
    linear = results[2]
    assert linear.features == "teacher"
    assert (linear.benchmark, linear.split) == ("ScanObjectNN", "PB-T50-RS")
    assert linear.data_name == "ScanObjectNN stand-in"
    assert linear.stand_in
    assert (linear.train_clouds, linear.test_clouds) == (30, 15)
    assert (linear.points, linear.patches, linear.subsampling) == (48, 6, "uniform")
    assert linear.seeds == (0, 1)
    assert linear.accuracy.deviation is not None
    assert linear.best_epoch_accuracy is not None
    assert linear.best_epoch_accuracy.mean >= linear.accuracy.mean
    assert results[0].best_epoch_accuracy is None
    # The paper has SVM and linear figures for this split, and none for neighbours.
    published = [result.published and result.published.accuracy for result in results]
    assert published == [None, 82.34, 83.33, None, None]


def test_copies_that_never_come_again_are_the_protocol(benchmark: Benchmark) -> None:
    """Six epochs: with six copies, each has its own, as if none had been asked for."""
    plans = [
        Evaluation(protocols=("knn", "linear"), augmented_copies=n, head=QUICK)
        for n in (None, 6, 5)
    ]
    published, six, five = (measure(Oracle(), benchmark, plan) for plan in plans)
    assert six == published
    assert [result.label for result in five] == ["knn", "linear (5 augmented copies)"]


def test_the_same_seeds_give_the_same_results(benchmark: Benchmark, encoder: Encoder) -> None:
    plan = Evaluation(augmented_copies=2, head=QUICK)
    first = evaluate(encoder, benchmark, plan, name="teacher", batch_size=64)
    assert evaluate(encoder, benchmark, plan, name="teacher", batch_size=64) == first


def test_geometry_is_measured_on_the_same_points(benchmark: Benchmark, encoder: Encoder) -> None:
    results = evaluate_geometry(
        benchmark,
        Evaluation(protocols=("svm", "logistic"), head=QUICK),
        inputs=protocol_input("ScanObjectNN", encoder.config),
    )
    assert [result.accuracy.mean for result in results] == [100.0, 100.0]
    assert results[0].features == "geometric features"
    assert (results[0].points, results[0].patches) == (48, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"protocols": ("svm", "vote")},
            "mlp, logistic, partial-knn, partial-svm, finetune, scratch, parts, retrieval, got 'vote'",
        ),
        ({"protocols": ()}, "got none"),
        ({"seeds": ()}, "at least one seed"),
        ({"augmented_copies": 0}, "at least 1, got 0; leave it out"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"protocols": ("linear", "svm"), "votes": 2}, "got 2; svm has no logits to average"),
        ({"protocols": ("linear",), "votes": 0}, "votes must be at least 1"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Evaluation(**change)  # type: ignore[arg-type]


def test_spread_is_the_sample_deviation() -> None:
    """1, 2, 3 around 2: the squares sum to 2, over n - 1 = 2."""
    assert Spread.of([1.0, 2.0, 3.0]) == Spread(mean=2.0, deviation=1.0)
    assert str(Spread.of([1.0, 2.0, 3.0])) == "2.00 ± 1.00"
    assert str(Spread.of([50.125])) == "50.12"


def make_result(**changes: object) -> Result:
    plain = Result(
        features="teacher",
        benchmark="ScanObjectNN",
        split="OBJ-BG",
        data_name="ScanObjectNN",
        form="h5_files.zip",
        checksum="ab",
        stand_in=False,
        train_clouds=2309,
        test_clouds=581,
        protocol="linear",
        points=2048,
        patches=128,
        subsampling="uniform",
        augmentation="training clouds augmented anew each epoch",
        seeds=(0,),
        accuracy=Spread(89.5, None),
        class_accuracy=Spread(88.25, None),
        best_epoch_accuracy=Spread(90.0, None),
        published=published_figure(
            SMALL, benchmark="ScanObjectNN", split="OBJ-BG", protocol="linear"
        ),
        rules=RULES,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_results_under_earlier_rules_are_told_apart() -> None:
    """A row from before the field existed: its own setting and name, except where no rule has changed."""
    now, svm = make_result(protocol="knn"), make_result(protocol="svm", rules=rules_of("svm"))
    rows = [to_plain(now), to_plain(svm)]
    for row in rows:
        del row["rules"]
    old, old_svm = (from_plain(Result, row) for row in rows)
    assert (now.label, old.label) == ("knn", "knn (earlier rules)")
    assert setting_of(now) != setting_of(old)
    assert (old_svm, old_svm.label) == (svm, "svm")


def test_table_shows_ours_beside_the_published_figure() -> None:
    """One encoder on one split: what is the same in both rows has no column."""
    table = results_table([make_result(), make_result(protocol="knn", published=None)])
    assert table.title == "Accuracy on ScanObjectNN, OBJ-BG"
    assert table.columns == (
        "protocol",
        "OA %",
        "mAcc %",
        "best epoch %",
        "published %",
    )
    assert table.rows[0] == ("linear", "89.50", "88.25", "90.00", "89.95")
    assert table.rows[1] == ("knn", "89.50", "88.25", "90.00", "-")
    assert "Features: teacher." in table.notes
    assert "Points / patches: 2048 / 128." in table.notes
    assert "Points chosen by uniform subsampling." in table.notes
    assert any("AsymDSD-S (ShapeNet)" in note for note in table.notes)
    assert not any("stand-in" in note for note in table.notes)


def test_what_differs_between_rows_has_a_column() -> None:
    others = make_result(features="initial weights", split="OBJ-ONLY", points=256, patches=16)
    table = results_table([make_result(), others])
    assert table.title == "Accuracy on ScanObjectNN"
    assert table.columns[:4] == ("features", "split", "protocol", "points / patches")
    assert table.rows[1][:4] == (
        "initial weights",
        "OBJ-ONLY",
        "linear",
        "256 / 16",
    )


def test_table_of_a_stand_in_says_so_in_title_and_notes() -> None:
    table = results_table([make_result(stand_in=True, data_name="ScanObjectNN stand-in")])
    assert "stand-in" in table.title
    assert any("not comparable with published" in note for note in table.notes)


def test_warnings_of_probes_reach_the_table_once() -> None:
    results = [make_result(notes=("not converged",)), make_result(notes=("not converged",))]
    notes = results_table(results).notes
    assert [note for note in notes if "converged" in note] == ["teacher, linear: not converged."]


def test_markdown_has_a_row_a_result() -> None:
    lines = results_table([make_result()]).markdown().splitlines()
    assert lines[0] == "**Accuracy on ScanObjectNN, OBJ-BG**"
    assert lines[2].startswith("| protocol | OA % |")
    assert lines[4].startswith("| linear | 89.50 |")


def test_results_file_holds_every_field(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", [make_result()])
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["format"] == 3
    (row,) = content["results"]
    assert set(row) == set(Result.__dataclass_fields__)
    assert row["accuracy"] == {"mean": 89.5, "deviation": None}
    assert row["published"]["model"] == SMALL
    assert row["published"]["accuracy"] == 89.95
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("model", "benchmark", "split", "protocol", "accuracy"),
    [
        (SMALL, "ModelNet40", None, "linear", 92.52),
        (SMALL, "ScanObjectNN", "PB-T50-RS", "linear", 83.33),
        (SMALL, "ScanObjectNN", "PB-T50-RS", "finetune", 90.53),
        (SMALL_MIXTURE, "ScanObjectNN", "OBJ-ONLY", "linear", 94.51),
        (BASE_MIXTURE, "ScanObjectNN", "OBJ-BG", "linear", 96.16),
        (MPM_SMALL, "ScanObjectNN", "PB-T50-RS", "svm", 81.06),
    ],
)
def test_published_figures(
    model: str, benchmark: str, split: str | None, protocol: str, accuracy: float
) -> None:
    figure = published_figure(model, benchmark=benchmark, split=split, protocol=protocol)
    assert figure is not None
    assert figure.accuracy == accuracy


@pytest.mark.parametrize(
    ("model", "benchmark", "split", "protocol"),
    [
        (SMALL, "ScanObjectNN", "PB-T50-RS", "knn"),
        (SMALL, "ScanObjectNN", "OBJ-BG", "svm"),
        (SMALL, "ScanObjectNN", None, "linear"),
        (BASE_MIXTURE, "ModelNet40", None, "svm"),
        (None, "ModelNet40", None, "linear"),
    ],
)
def test_no_figure_is_lent_to_another_protocol(
    model: str | None, benchmark: str, split: str | None, protocol: str
) -> None:
    found = published_figure(model, benchmark=benchmark, split=split, protocol=protocol)
    assert found is None


@pytest.mark.parametrize(
    ("size", "mode", "sources", "model"),
    [
        ("small", "dual", 1, SMALL),
        ("small", "dual", 12, SMALL_MIXTURE),
        ("small", "mpm", 12, MPM_SMALL),  # never trained on the Mixture
        ("tiny", "dual", 1, SMALL),
        ("base", "dual", 1, BASE_MIXTURE),  # never trained on ShapeNet alone
        ("base", "cls", 1, None),
        ("large", "dual", 12, None),
    ],
)
def test_model_that_is_set_beside_ours(
    size: str, mode: str, sources: int, model: str | None
) -> None:
    assert comparison_model(size=size, mode=mode, sources=sources) == model


def test_comparison_is_read_from_an_encoder_folder(tmp_path: Path) -> None:
    config = {"training": {"name": "small", "mode": "mpm"}, "sources": [{"name": "builtin"}]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert comparison_for(tmp_path) == MPM_SMALL
    (tmp_path / "config.json").write_text("{}")
    assert comparison_for(tmp_path) is None


@pytest.mark.parametrize(
    ("model", "benchmark", "split", "protocol", "text"),
    [
        (SMALL, "ModelNet40 few-shot", "10w10s", "finetune", "94.40 ± 3.50"),
        (SMALL, "ShapeNetPart", None, "parts", "86.00 / 84.40"),
        (BASE_MIXTURE, "Objaverse-LVIS", None, "knn", "33.68 / 50.24 / 54.68"),
        (SMALL_MIXTURE, "Objaverse-LVIS", None, "linear", "37.75 / 57.43 / 64.70"),
        (None, "ModelNet40", None, "scratch", "92.90"),
    ],
)
def test_published_figures_of_the_other_protocols(
    model: str | None, benchmark: str, split: str | None, protocol: str, text: str
) -> None:
    figure = published_figure(model, benchmark=benchmark, split=split, protocol=protocol)
    assert str(figure) == text


def of_seed(seed: int, accuracy: float, **changes: object) -> Result:
    values: dict[str, object] = {
        "seeds": (seed,),
        "each": (accuracy,),
        "accuracy": Spread.of([accuracy]),
        "best_epoch_accuracy": Spread.of([accuracy + 1]),
        "further": (Figure("top-5", Spread.of([2 * accuracy])),),
    }
    return make_result(**{**values, **changes})


def test_seeds_of_one_setting_become_one_result() -> None:
    """Whatever the order they were measured in."""
    (joined,) = combine([of_seed(2, 30.0), of_seed(0, 10.0), of_seed(1, 20.0)])
    assert (joined.seeds, joined.each) == ((0, 1, 2), (10.0, 20.0, 30.0))
    assert joined.accuracy == Spread(20.0, 10.0)
    assert joined.best_epoch_accuracy == Spread(21.0, 10.0)
    assert joined.further == (Figure("top-5", Spread(40.0, 20.0)),)


@pytest.mark.parametrize(
    "change",
    [
        {"checksum": "cd"},
        {"protocol": "mlp"},
        {"epochs": 5},
        {"votes": 3},
        {"copies": 4},
        {"checksum": "cd", "repeated_over": "folds"},
        {"fingerprint": "ef"},
        {"subsampling": "farthest"},
    ],
)
def test_what_differs_is_never_averaged(change: dict[str, object]) -> None:
    assert len(combine([of_seed(0, 10.0), of_seed(1, 20.0, **change)])) == 2


def test_folds_of_different_archives_are_different_rows() -> None:
    """Fold 0 of another archive is no fold of this one, and takes the place of none."""
    folds = [of_seed(k, 10.0, repeated_over="folds") for k in range(2)]
    other = of_seed(0, 90.0, checksum="cd", repeated_over="folds")
    rows = combine([*folds, other])
    assert [(row.checksum, row.seeds, row.each) for row in rows] == [
        ("ab", (0, 1), (10.0, 10.0)),
        ("cd", (0,), (90.0,)),
    ]


def test_every_benchmark_has_a_table_with_its_own_figures() -> None:
    parts = make_result(
        benchmark="ShapeNetPart",
        data_name="ShapeNetPart",
        split=None,
        protocol="parts",
        metrics=("instance mIoU", "class mIoU"),
    )
    classes, segments = results_tables([make_result(), parts])
    assert classes.title == "Accuracy on ScanObjectNN, OBJ-BG"
    assert segments.title == "Instance mIoU on ShapeNetPart"
    assert segments.columns[1:3] == ("instance mIoU %", "class mIoU %")


def test_deviations_are_in_the_row_and_under_the_table() -> None:
    short = make_result(epochs=5, protocol_epochs=150, votes=10)
    whole = make_result(epochs=150, protocol_epochs=150)
    table = results_table([whole, short])
    assert [row[0] for row in table.rows] == ["linear", "linear (5 of 150 epochs, 10 votes)"]
    assert any(note.startswith("Votes: logits averaged") for note in table.notes)
    assert any("deviation" in note for note in table.notes)
    assert not any("deviation" in note for note in results_table([whole]).notes)


def test_rows_of_different_data_or_seeds_are_told_apart() -> None:
    table = results_table([make_result(), make_result(checksum="cd" * 32, seeds=(0, 1))])
    assert ("data" in table.columns, "repeats" in table.columns) == (True, True)
    assert table.rows[1][table.columns.index("data")] == "cdcdcdcd"
    assert table.rows[1][table.columns.index("repeats")] == "2 seeds"


def test_rows_of_one_archive_read_in_two_forms_are_told_apart_and_explained() -> None:
    table = results_table([make_result(form="meshes, z up"), make_result(form="meshes, y up")])
    column = table.columns.index("data")
    assert [row[column].split(", ")[1] for row in table.rows] == ["form 1", "form 2"]
    for form in ("Form 1: ScanObjectNN.*z up", "Form 2: ScanObjectNN.*y up"):
        assert any(re.match(form, note) for note in table.notes)


def test_copies_are_a_deviation_in_the_row_and_under_the_table() -> None:
    rows = [make_result(copies=copies) for copies in (None, 1, 4)]
    table = results_table(rows)
    assert [row[0] for row in table.rows] == [
        "linear",
        "linear (1 augmented copy)",
        "linear (4 augmented copies)",
    ]
    note = "Augmented copies are a deviation from the protocol, which augments anew each epoch."
    assert note in table.notes
    assert note not in results_table(rows[:1]).notes


@pytest.mark.parametrize(
    "deviation", [{"copies": 4}, {"epochs": 5, "protocol_epochs": 150}, {"votes": 2}]
)
def test_no_published_figure_stands_beside_a_deviation(deviation: dict[str, object]) -> None:
    figure = make_result().published
    assert make_result(published=None).beside(figure).published == figure
    assert make_result(**deviation).beside(figure).published is None


def test_data_form_and_checksum_are_under_the_table() -> None:
    notes = results_table([make_result(checksum="ab" * 32)]).notes
    assert (
        "ScanObjectNN, OBJ-BG: 2,309 training and 581 test clouds; h5_files.zip; "
        "SHA-256 abababababababab." in notes
    )
