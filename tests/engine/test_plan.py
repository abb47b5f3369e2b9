"""Plans: what they say is the run's own, what is measured is real, what does not fit is said."""

from __future__ import annotations

import io
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.config.recipes import recipe
from pointdistill.engine.config.settings import RunOverrides
from pointdistill.engine.planning import Plan, make_plan
from pointdistill.engine.planning import trial as trial_process
from pointdistill.engine.planning.cards import CARDS, Estimate, estimate_on_card, find_card
from pointdistill.engine.planning.plan import affordable_batch, estimate, extrapolate
from pointdistill.engine.planning.trial import (
    DoesNotFitError,
    Measurement,
    Trial,
    measure_steps,
    read_answer,
)
from pointdistill.engine.pretraining.cost import (
    IDLE_GIB,
    checkpoint_gib,
    encoder_gib,
    step_flops,
    step_gib,
    step_traffic,
)
from pointdistill.engine.pretraining.trainer import RunOptions
from pointdistill.engine.runtime.devices import GIB
from pointdistill.errors import ConfigError, DataError, PointDistillError
from tests.engine.conftest import micro_config

CPU = RunOptions(device="cpu")


def trial(batch_size: int = 128, size: str = "small") -> Trial:
    config = replace(recipe(size), batch_size=batch_size)
    return Trial(
        config=config, corpus=None, points=16_384, device="cpu", precision="auto", seconds=1.0
    )


class LinearMachine:
    """A step takes 1 s and 2 GiB, and 0.5 s and 0.25 GiB a shape; remembers what it was given."""

    def __init__(self, limit: int = 10**6) -> None:
        self.limit = limit
        self.tried: list[int] = []

    def __call__(self, one: Trial) -> Measurement:
        size = one.config.batch_size
        self.tried.append(size)
        if size > self.limit:
            raise DoesNotFitError(size)
        return Measurement(
            batch_size=size, seconds=1 + size / 2, gib=2 + size / 4, idle_gib=0.0, steps=9
        )


def test_a_gpu_tries_the_batch_that_was_asked_for() -> None:
    machine = LinearMachine()
    found = estimate(trial(128), on_gpu=True, measure=machine)
    assert machine.tried == [128]
    assert found == Estimate(65.0, 34.0, "median of 9 real steps of 128 shapes")


def test_what_does_not_fit_is_extrapolated_from_what_does() -> None:
    machine = LinearMachine(limit=40)
    found = estimate(trial(128), on_gpu=True, measure=machine)
    assert machine.tried == [128, 64, 32, 16]
    assert (found.seconds, found.gib, found.fits) == (65.0, 34.0, False)
    assert found.basis == "extrapolated from real steps of 16 and 32 shapes"


def test_a_cpu_tries_what_it_can_afford_and_holds_a_checkpoint_beside() -> None:
    machine, one = LinearMachine(), trial(128)
    found = estimate(one, on_gpu=False, measure=machine)
    size = affordable_batch(one)
    assert 4 <= size < 128
    assert machine.tried == [size, size // 2]
    assert found.seconds == pytest.approx(65.0)
    assert found.gib == pytest.approx(34.0 + checkpoint_gib(one.config))
    assert found.fits


def test_a_machine_on_which_nothing_fits_says_so() -> None:
    machine = LinearMachine(limit=2)
    with pytest.raises(DoesNotFitError):
        estimate(trial(128), on_gpu=True, measure=machine)
    assert machine.tried == [128, 64, 32, 16, 8, 4]


def test_the_line_through_two_measurements() -> None:
    two, six = (LinearMachine()(trial(size)) for size in (2, 6))
    assert extrapolate(two, six, 10) == (6.0, 4.5)
    assert extrapolate(replace(two, gib=None), six, 10) == (6.0, None)


def test_a_tiny_step_is_affordable() -> None:
    assert affordable_batch(trial(32, "tiny")) == 32


def test_steps_are_measured_in_a_process_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time and memory are of the size that such a model has; what lies in the working folder is not loaded."""
    (tmp_path / "random.py").write_text("raise SystemExit('a file of the user was run')")
    monkeypatch.chdir(tmp_path)
    one = replace(trial(), config=micro_config(), points=256)
    found = measure_steps(one)
    assert found.batch_size == 6
    assert found.steps >= 3
    assert 0 < found.seconds < 30
    if found.gib is not None:
        assert 0.05 < found.idle_gib < found.gib < 4


def answered(stdout: str = "", stderr: str = "", code: int = 0) -> Measurement:
    return read_answer(subprocess.CompletedProcess([], code, stdout, stderr), trial(16))


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (
            {"stdout": '{"out_of_memory": true}\n'},
            DoesNotFitError,
            "a step of 16 shapes does not fit",
        ),
        ({"code": -9}, DoesNotFitError, "a step of 16 shapes does not fit"),
        (
            {"stdout": '{"refused": "no corpus"}'},
            PointDistillError,
            r"measured \(no corpus\); the plan can also be estimated",
        ),
        ({"stderr": "Trace\nValueError: odd\n", "code": 1}, PointDistillError, "ValueError: odd"),
        ({"code": 3}, PointDistillError, "no message"),
    ],
)
def test_a_process_that_did_not_measure(
    answer: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        answered(**answer)


@pytest.mark.parametrize(
    ("raised", "answer"),
    [
        (MemoryError(), {"out_of_memory": True}),
        (torch.OutOfMemoryError("CUDA out of memory"), {"out_of_memory": True}),
        (DataError("no corpus here"), {"refused": "no corpus here"}),
    ],
)
def test_what_a_trial_says_of_its_end(
    raised: Exception,
    answer: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_given: object) -> None:
        raise raised

    monkeypatch.setattr(trial_process, "run_trial", fail)
    monkeypatch.setattr("sys.stdin", io.StringIO("{}"))
    trial_process.main()
    assert json.loads(capsys.readouterr().out) == answer


def test_the_pace_is_that_of_the_steps_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reported at 10, 14, 15 and, two at once, 18: the slow first step is not among the paces of a step."""
    moments = iter([10.0, 14.0, 15.0, 18.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(moments))
    watch = trial_process.Watch(budget=60.0)
    for step in (1, 2, 3, 5):
        watch.step(SimpleNamespace(step=step))  # type: ignore[arg-type]
    assert watch.seconds() == [1.0, 1.5]


def plan(asked: RunOverrides, shapes: int | None = 4000, data: Path | None = None) -> Plan:
    return make_plan(asked, data=data, shapes=shapes, options=CPU, measured=False)


def test_arithmetic_plans_say_where_they_come_from() -> None:
    made = plan(RunOverrides(recipe="tiny", batch_size=16, epochs=2))
    config = made.config
    assert made.steps == 500
    assert made.hours is None
    assert made.step.basis == "arithmetic for float32"
    assert made.step.gib == step_gib(config) + IDLE_GIB + checkpoint_gib(config)
    assert made.disk_gib == 3 * checkpoint_gib(config) + encoder_gib(config)
    assert made.problems == []


@pytest.mark.parametrize("keep", [1, 5])
def test_the_disk_holds_the_checkpoints_kept_and_one_being_written(keep: int) -> None:
    options = RunOptions(device="cpu", keep=keep)
    made = make_plan(
        RunOverrides(recipe="tiny"), data=None, shapes=4000, options=options, measured=False
    )
    assert made.disk_gib == (keep + 1) * checkpoint_gib(made.config) + encoder_gib(made.config)


def test_a_gpus_peak_is_all_that_torch_took_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 3 GiB taken, tensors filled 2 at once: the run does not fit into 2."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2 * GIB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3 * GIB)
    assert trial_process.peak_gib(on_gpu=True) == 3.0


def test_hours_are_steps_times_seconds() -> None:
    made = plan(RunOverrides(recipe="tiny", steps=7200))
    assert replace(made, step=Estimate(0.5, 1.0, "by hand")).hours == 1.0


def test_a_corpus_gives_shapes_and_licences(tmp_path: Path) -> None:
    source = open_source("builtin", SourceRequest(shapes=40))
    build_corpus(source, tmp_path / "corpus", points=128, seed=0, workers=0)
    made = plan(RunOverrides(recipe="tiny", epochs=3), shapes=None, data=tmp_path / "corpus")
    assert (made.shapes, made.steps) == (40, 3)
    ((name, licence, kept),) = made.licences
    assert (name, kept) == ("builtin", 40)
    assert licence


def test_what_does_not_fit_is_a_problem() -> None:
    made = plan(RunOverrides(recipe="tiny"))
    assert "does not fit" in replace(made, memory_gib=0.1).problems[0][0]
    assert "does not fit" in replace(made, step=Estimate(1.0, 0.1, "", fits=False)).problems[0][0]
    assert "checkpoints need" in replace(made, free_gib=0.0).problems[0][0]


def test_a_launchers_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would wait for the others in its trial."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="plan is for one process, but 2 were started"):
        plan(RunOverrides(recipe="tiny"))


def test_without_a_corpus_or_shapes_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=r"no corpus was made in this folder yet; .*or plan without one"
    ):
        plan(RunOverrides(), shapes=None)
    with pytest.raises(ConfigError, match="fewer than one batch of 16"):
        plan(RunOverrides(recipe="tiny", batch_size=16), shapes=8)


PUBLISHED = [  # recipe, shapes, GPU, hours (docs/method.md, section 9)
    ("small-shapenet", 52_470, "rtx4090", 18.0),
    ("small-mixture", 928_284, "a100", 100.0),
    ("base-mixture", 928_284, "a100", 175.0),
]


@pytest.mark.parametrize(("name", "shapes", "gpu", "hours"), PUBLISHED)
def test_published_runs_lie_within_the_estimate(
    name: str, shapes: int, gpu: str, hours: float
) -> None:
    planned = make_plan(
        RunOverrides(recipe=name), data=None, shapes=shapes, options=RunOptions(), gpu=gpu
    )
    assert planned.step.seconds is not None
    assert planned.step.seconds_at_most is not None
    shortest = planned.steps * planned.step.seconds / 3600
    longest = planned.steps * planned.step.seconds_at_most / 3600
    assert shortest < hours < longest
    assert 2.0 < hours / shortest < 3.9, "as docs/training.md says"


def test_an_estimate_is_the_arithmetic_that_it_says() -> None:
    """Products at 60 % of 165.2 TFLOP/s, then traffic at 80 % of 1,008 GB/s."""
    config = recipe("small")
    card = find_card("NVIDIA GeForce RTX 4090")
    one = estimate_on_card(config, card, count=1, points=16_384, bf16=True)
    traffic = step_traffic(config)
    assert traffic / 1e9 == pytest.approx(128.1, rel=0.02), "counted"
    expected = step_flops(config) / (0.6 * 165.2e12) + traffic / (0.8 * 1.008e12)
    assert one.seconds == pytest.approx(expected)
    assert one.gib == pytest.approx(9.1, rel=0.2), "counted"
    four = estimate_on_card(config, card, count=4, points=16_384, bf16=True)
    gradients = 4 * 30_117_376 * 1.5
    assert four.seconds == pytest.approx(expected / 4 + gradients / (0.6 * 32e9))
    slow = estimate_on_card(config, card, count=1, points=16_384, bf16=False)
    assert slow.seconds == pytest.approx(
        step_flops(config) / (0.6 * 82.6e12) + 2 * traffic / (0.8 * 1.008e12)
    )
    assert (one.fits, slow.fits) == (True, False), "32 GiB in float32"


def test_cards_are_found_by_any_spelling_and_the_page_lists_them() -> None:
    for name in ("rtx4090", "RTX 4090", "GeForce RTX-4090"):
        assert find_card(name).title == "GeForce RTX 4090"
    assert find_card("A100 80GB").memory_gib == 80
    assert find_card("nvidia a100 40gb").memory_gib == 40
    with pytest.raises(ConfigError, match=r"no GPU 'rtx4900' is known; did you mean 'rtx4090'\?"):
        find_card("rtx4900")
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    for card in CARDS:
        assert (
            f"| `{card.name}` | {card.memory_gib:g} | {card.bf16:g} | {card.tf32:g} | "
            f"{card.float32:g} | {card.bandwidth:,g} |" in page
        )


def test_a_plan_for_gpus_elsewhere_fits_the_batch_to_them() -> None:
    def plan_for(**more: Any) -> Plan:
        return make_plan(
            RunOverrides(size="small", **more.pop("run", {})), data=None, shapes=4000, **more
        )

    there = plan_for(options=RunOptions(), gpu="rtx3060", gpus=3)
    assert there.config.batch_size == 126
    assert there.device == "3 GPUs, each a GeForce RTX 3060, which need not be here"
    large = plan_for(options=RunOptions(), gpu="rtx3060", run={"batch_size": 256})
    assert [setting for _, setting in large.problems] == ["batch_size"]
    with pytest.raises(ConfigError, match="a multiple of the 3 GPUs, got 128"):
        plan_for(options=RunOptions(), gpu="rtx3060", gpus=3, run={"batch_size": 128})
    with pytest.raises(ConfigError, match="a plan for 2 GPUs needs the name of the GPU"):
        plan_for(options=RunOptions(), gpus=2)
    with pytest.raises(ConfigError, match="for no device of this machine, got 'cpu' too"):
        plan_for(options=CPU, gpu="rtx3060")
