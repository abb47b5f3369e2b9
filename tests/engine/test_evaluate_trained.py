"""Protocols that train the encoder, votes, and what a long evaluation is said to cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pointdistill.data.benchmarks.records import Benchmark, LabelledClouds
from pointdistill.engine.evaluation.classification import evaluate, evaluate_geometry
from pointdistill.engine.evaluation.protocols import (
    held_out_part,
    trained_score,
    training_cost,
    voted_logits,
)
from pointdistill.engine.evaluation.run import Evaluation
from pointdistill.engine.features import Score, score_predictions
from pointdistill.engine.features.inputs import (
    CUTS,
    ProtocolInput,
    partial_clouds,
    protocol_input,
    voting_input,
)
from pointdistill.engine.features.probe_heads import last_epoch_score
from pointdistill.engine.finetuning.classification import train_classifier
from pointdistill.engine.finetuning.epochs import EpochRecord
from pointdistill.engine.finetuning.recipes import RECIPES, recipe_for
from pointdistill.engine.finetuning.training_file import TrainingFile
from pointdistill.errors import ConfigError
from pointdistill.model.config import AugmentConfig, EncoderConfig
from pointdistill.model.encoder import Encoder
from pointdistill.model.initialize import initialize
from pointdistill.reporter import SHORTER, Forecast
from tests.engine.recorder import Recorder

CONFIG = EncoderConfig(
    width=16,
    depth=1,
    heads=2,
    stage_one=(8, 16),
    stage_two=(16,),
    points=48,
    patches=6,
    patch_points=8,
)


def shapes(n: int, *, seed: int) -> LabelledClouds:
    """Sticks standing, sticks lying, and balls."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    stretch = np.array([[0.1, 0.1, 1.0], [1.0, 0.1, 0.1], [1.0, 1.0, 1.0]])[labels]
    points = rng.normal(size=(n, 64, 3)) * stretch[:, None]
    return LabelledClouds(points=points.astype(np.float32), labels=labels.astype(np.int64))


@pytest.fixture(scope="module")
def benchmark() -> Benchmark:
    return Benchmark(
        name="ScanObjectNN",
        split="OBJ-BG",
        classes=("standing", "lying", "ball", "never seen"),
        train=shapes(24, seed=0),
        test=shapes(12, seed=1),
        data_name="ScanObjectNN stand-in",
        form="h5_files.zip",
        checksum="0" * 64,
        stand_in=True,
    )


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    encoder = Encoder(CONFIG)
    initialize(encoder, generator=torch.Generator().manual_seed(0))
    return encoder


@pytest.mark.parametrize(
    ("benchmark", "protocol", "recipe"),
    [
        ("ScanObjectNN", "finetune", "finetune-scanobjectnn"),
        ("ModelNet40", "finetune", "finetune-modelnet40"),
        ("ModelNet40 few-shot", "finetune", "few-shot"),
        ("ModelNet40", "scratch", "scratch"),
    ],
)
def test_recipe_of_a_protocol(benchmark: str, protocol: str, recipe: str) -> None:
    assert recipe_for(benchmark, protocol) is RECIPES[recipe]


def test_no_recipe_is_lent_to_another_benchmark() -> None:
    with pytest.raises(ConfigError, match="no recipe for 'finetune' on 'ShapeNetPart'"):
        recipe_for("ShapeNetPart", "finetune")


def test_the_score_is_the_trainings_own(benchmark: Benchmark, encoder: Encoder) -> None:
    inputs = protocol_input(benchmark.name, encoder.config)
    done: list[int] = []
    score = trained_score(
        encoder,
        benchmark,
        "scratch",
        inputs=inputs,
        seed=1,
        epochs=3,
        votes=1,
        device="cpu",
        report=done.append,
    )
    expected = train_classifier(
        encoder,
        benchmark.train,
        benchmark.test,
        classes=4,
        recipe=RECIPES["scratch"],
        inputs=inputs,
        seed=1,
        epochs=3,
    ).score
    assert done == [1, 2, 3]
    assert score.accuracy == pytest.approx(expected.accuracy)
    assert score.class_accuracy == pytest.approx(expected.class_accuracy)
    assert (score.best_accuracy, score.best_epoch) == (expected.best_accuracy, expected.best_epoch)
    assert score.confusion is not None
    assert sum(map(sum, score.confusion)) == 12


def test_the_selected_epoch_is_the_last_of_those_best_on_what_is_held_out(
    benchmark: Benchmark, encoder: Encoder, tmp_path: Path
) -> None:
    """Beside trainings of the same weights that are tested on one set only; also stopped and resumed."""
    inputs = protocol_input(benchmark.name, encoder.config)
    chosen = held_out_part(benchmark.train.labels, 0.25, seed=1)
    rest, held_out = (
        LabelledClouds(benchmark.train.points[part], benchmark.train.labels[part])
        for part in (~chosen, chosen)
    )

    def accuracies(test: LabelledClouds) -> list[float]:
        records: list[EpochRecord] = []
        train_classifier(
            encoder,
            rest,
            test,
            classes=4,
            recipe=RECIPES["scratch"],
            inputs=inputs,
            seed=1,
            epochs=6,
            report=records.append,
        )
        return [record.accuracy for record in records]

    on_test, on_held_out = accuracies(benchmark.test), accuracies(held_out)
    expected = max(range(6), key=lambda epoch: (on_held_out[epoch], epoch))
    steps = iter(range(100))
    stops = TrainingFile(tmp_path / "file", lambda: next(steps) == 3)
    with pytest.raises(KeyboardInterrupt):
        _scratch(benchmark, encoder, inputs, stops)
    for file in (None, TrainingFile(tmp_path / "file")):
        score = _scratch(benchmark, encoder, inputs, file)
        assert (score.selected_epoch, score.best_epoch) == (
            expected + 1,
            on_test.index(max(on_test)) + 1,
        )
        assert score.selected_accuracy == on_test[expected]
        assert score.accuracy == pytest.approx(on_test[-1])


def _scratch(
    benchmark: Benchmark, encoder: Encoder, inputs: ProtocolInput, file: TrainingFile | None
) -> Score:
    return trained_score(
        encoder,
        benchmark,
        "scratch",
        inputs=inputs,
        seed=1,
        epochs=6,
        votes=1,
        device="cpu",
        report=lambda _: None,
        file=file,
        hold_out=0.25,
    )


def test_what_is_held_out_is_a_share_of_every_class() -> None:
    labels = np.array([0] * 20 + [1] * 7 + [2] * 2 + [3])
    chosen = held_out_part(labels, 0.1, seed=0)
    assert [int(chosen[labels == label].sum()) for label in range(4)] == [2, 1, 1, 0]
    assert (held_out_part(labels, 0.1, seed=0) == chosen).all()
    assert (held_out_part(labels, 0.1, seed=1) != chosen).any()


def test_a_heads_selected_epoch_is_the_last_of_the_best() -> None:
    scores = [Score(accuracy=a, class_accuracy=a) for a in (60.0, 90.0, 70.0, 80.0)]
    score = last_epoch_score(scores, held_out=[50.0, 40.0, 50.0, 45.0])
    assert (score.accuracy, score.best_accuracy, score.best_epoch) == (80.0, 90.0, 2)
    assert (score.selected_accuracy, score.selected_epoch) == (70.0, 3)
    assert last_epoch_score(scores).selected_accuracy is None


def test_partial_clouds_are_nested_and_contiguous_ones_are_the_nearest_to_one_point() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(3, 40, 3)).astype(np.float32)
    inputs = ProtocolInput(points=32, patches=4, subsampling="uniform", augment=AugmentConfig())
    for cut in CUTS:
        half, quarter = (
            partial_clouds(points, inputs, seed=0, cut=cut, share=share) for share in (0.5, 0.25)
        )
        assert (half.shape, quarter.shape) == ((3, 16, 3), (3, 8, 3))
        assert (half[:, :8] == quarter).all()
        alone = partial_clouds(points[:2], inputs, seed=0, cut=cut, share=0.5)
        assert (alone == half[:2]).all(), "a cloud's cut does not depend on the others"
    whole = partial_clouds(points, inputs, seed=0, cut="contiguous", share=1.0)
    for cloud, kept in zip(whole, half, strict=True):
        anchor = kept[0]  # itself the nearest to itself
        distances = np.sort(np.linalg.norm(cloud - anchor, axis=1))
        assert np.linalg.norm(kept - anchor, axis=1).max() == pytest.approx(distances[15])


def test_results_of_trained_protocols_name_what_deviates(
    benchmark: Benchmark, encoder: Encoder
) -> None:
    plan = Evaluation(protocols=("knn", "finetune", "scratch"), seeds=(0, 1), epochs=2)
    reporter = Recorder()
    knn, finetune, scratch = evaluate(encoder, benchmark, plan, name="teacher", reporter=reporter)
    assert (knn.label, finetune.label) == ("knn", "finetune (2 of 150 epochs)")
    assert knn.epochs is None
    assert (scratch.epochs, scratch.protocol_epochs, scratch.seeds) == (2, 150, (0, 1))
    assert finetune.augmentation == "training clouds augmented anew each epoch"
    assert finetune.best_epoch_accuracy is not None
    assert finetune.published is None
    assert reporter.steps[-1][0] == "ScanObjectNN, OBJ-BG, seed 1: scratch"


def test_only_an_encoder_can_be_trained(benchmark: Benchmark) -> None:
    inputs = protocol_input(benchmark.name, CONFIG)
    with pytest.raises(ConfigError, match="'finetune' trains an encoder"):
        evaluate_geometry(benchmark, Evaluation(protocols=("finetune",)), inputs=inputs)


def test_votes_are_the_mean_of_the_clouds_and_of_their_versions(
    benchmark: Benchmark, encoder: Encoder
) -> None:
    inputs = protocol_input(benchmark.name, encoder.config)
    classifier = train_classifier(
        encoder,
        benchmark.train,
        benchmark.test,
        classes=4,
        recipe=RECIPES["scratch"],
        inputs=inputs,
        seed=0,
        epochs=1,
    ).classifier
    logits = [
        voted_logits(classifier, benchmark.test, inputs, seed=0, votes=votes, device="cpu")
        for votes in (1, 2, 3)
    ]
    second, third = 2 * logits[1] - logits[0], 3 * logits[2] - 2 * logits[1]
    assert not torch.allclose(second, logits[0], atol=1e-4)
    assert not torch.allclose(third, second, atol=1e-4)
    predicted = score_predictions(logits[0].argmax(1), torch.from_numpy(benchmark.test.labels))
    assert 0.0 <= predicted.accuracy <= 100.0


def test_a_vote_scales_and_never_rotates() -> None:
    voting = voting_input(protocol_input("ScanObjectNN", CONFIG)).augment
    assert not voting.rotate_z
    assert (voting.scale_low, voting.scale_high) == (0.9, 1.1)


def test_frozen_epochs_cost_a_third() -> None:
    """ModelNet40: 50 epochs with the encoder frozen, 100 with it trained."""
    cost = training_cost("finetune", "ModelNet40", epochs=None)
    assert cost == pytest.approx(50 / 3 + 100)
    assert training_cost("finetune", "ModelNet40", epochs=None, done=60) == 90
    assert training_cost("finetune", "ModelNet40", epochs=15) == pytest.approx(5 / 3 + 10)
    assert training_cost("scratch", "ModelNet40", epochs=None, done=1) == 149


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_takes_long_is_said_once_after_the_first_measured_part() -> None:
    reporter, clock = Recorder(), Clock()
    forecast = Forecast(reporter, "finetune", clock=clock)
    forecast.hint, forecast.settings = SHORTER
    clock.now = 1.0
    forecast(1, 100)
    assert reporter.said == []  # too early to tell
    clock.now = 30.0
    forecast(10, 100)
    forecast(20, 100)
    assert len(reporter.said) == 1
    assert reporter.said[0].startswith(
        "finetune: about 4 min to go, by the first 30 s; finished work is saved"
    )
    assert reporter.said[0].endswith("fewer epochs shorten it, as a deviation from the protocol")
    assert reporter.settings == ("epochs",)


def test_that_work_can_be_stopped_is_said_by_the_first_of_several_forecasts() -> None:
    reporter, clock = Recorder(), Clock()
    for _ in range(3):
        began = clock.now
        forecast = Forecast(reporter, "finetune", clock=clock)
        clock.now = began + 30.0
        forecast(10, 100)
    assert len(reporter.said) == 3
    assert ["finished work is saved" in line for line in reporter.said] == [True, False, False]
    assert reporter.said[1] == "finetune: about 4 min to go, by the first 30 s"


def test_what_was_done_another_time_does_not_count_as_fast() -> None:
    """Gone on with after 90 of 100 parts: the first new one took 30 s, so nine more take 270 s."""
    reporter, clock = Recorder(), Clock()
    forecast = Forecast(reporter, "finetune", clock=clock)
    clock.now = 30.0
    forecast(91, 100, latest=1)
    assert reporter.said[0].startswith("finetune: about 4 min to go, by the first 30 s")


def test_what_is_short_is_not_mentioned() -> None:
    reporter, clock = Recorder(), Clock()
    forecast = Forecast(reporter, "features", clock=clock)
    clock.now = 10.0
    forecast(50, 100)
    assert reporter.said == []
