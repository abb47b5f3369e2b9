"""The production training step, in each mode, against an independent implementation's numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.pretraining import execution
from pointdistill.engine.pretraining import step as step_module
from pointdistill.engine.pretraining.checkpoints import TrainState, new_state, to_device
from pointdistill.engine.pretraining.execution import StepCompiler, prepare_student
from pointdistill.engine.pretraining.loader import Batch
from pointdistill.engine.pretraining.step import TrainingStep
from pointdistill.engine.runtime.devices import build_accelerator
from pointdistill.engine.runtime.optimizer import clip_gradients
from pointdistill.engine.runtime.schedules import Rates
from pointdistill.engine.weights.published import to_our_names
from pointdistill.model.config import (
    CropConfig,
    EncoderConfig,
    HeadConfig,
    Mode,
    PredictorConfig,
    Temperatures,
)
from pointdistill.model.distillation import (
    CENTER_MOMENTUM,
    Head,
    Losses,
    Predictions,
    SeenAs,
    TeacherOutput,
    Views,
    objective,
)
from pointdistill.model.masking import Masks
from pointdistill.model.patches import Patches, cut_patches, to_unit_sphere

CASES = {
    "dual": Mode.DUAL,
    "cls": Mode.CLS,
    "mpm": Mode.MPM,
    "dual_deep_patch_embedding": Mode.DUAL,
}

BACKEND = os.environ.get("POINTDISTILL_GOLDEN_BACKEND")
"""``aot_eager`` or ``inductor`` for all cases compiled, backward passes included, which takes minutes."""


class GoldenStep:
    """A case's model, and what one call of the production step made of it."""

    def __init__(
        self,
        folder: Path,
        name: str,
        device: str = "cpu",
        precision: str = "no",
        compiler: StepCompiler | None = None,
    ) -> None:
        self.mode = CASES[name]
        self.expected: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
        tensors = load_file(folder / f"{name}.safetensors")
        self.outputs = _under("output.", tensors)
        self.before = to_our_names(_under("weights.", tensors))
        self.expected_gradients = to_our_names(_under("grad.", tensors))
        self.expected_after = to_our_names(_under("after.", tensors))
        accelerator = build_accelerator(device, precision)
        inputs = _under("input.", tensors)
        self.views = _views(
            self.mode, {n: value.to(accelerator.device) for n, value in inputs.items()}
        )
        update, values = self.expected["update"], self.expected["schedule_values"]
        assert values["cls_centering_momentum"] == CENTER_MOMENTUM
        self.state = _build(self.mode, self.before, update)
        rates = Rates(
            learning_rate=update["lr"],
            teacher_momentum=update["ema_decay"],
            temperatures=Temperatures(
                cls_teacher=values["cls_teacher_temp"],
                patch_teacher=values["patch_teacher_temp"],
                student=values["cls_student_temp"],
            ),
        )
        to_device(self.state, accelerator.device)
        student = prepare_student(self.state, accelerator, "none")
        with pytest.MonkeyPatch.context() as monkeypatch:
            self._look_inside(monkeypatch, compiled=compiler is not None)
            step = TrainingStep(self.state, student, accelerator, compiler)
            self.metrics = step(_no_batch(), self.views, rates)

    def _look_inside(self, monkeypatch: pytest.MonkeyPatch, *, compiled: bool) -> None:
        """Note what goes into the objective, and the gradients before they are clipped; change nothing."""

        def noted_objective(
            predictions: Predictions, targets: TeacherOutput, *rest: Any, **named: Any
        ) -> Losses:
            self.predictions, self.targets = predictions, targets
            return objective(predictions, targets, *rest, **named)

        def noted_clip(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
            named = self.state.student.named_parameters()
            self.gradients = {n: p.grad.clone() for n, p in named if p.grad is not None}
            return clip_gradients(parameters, max_norm)

        if not compiled:
            monkeypatch.setattr(step_module, "objective", noted_objective)
        monkeypatch.setattr(step_module, "clip_gradients", noted_clip)


def _no_batch() -> Batch:
    """The step takes the views; of the batch it reads the epoch, and that it could be read."""
    return Batch(torch.empty(0, 0, 3), torch.empty(0), torch.empty(0), epoch=0)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _build(mode: Mode, weights: dict[str, Tensor], update: dict[str, float]) -> TrainState:
    """A state of the sizes that the weights have, just before its 20th step."""
    embedding = "student.encoder.patch_embedding."

    def outputs(stage: str) -> tuple[int, ...]:
        names = [n for n in weights if n.startswith(embedding + stage) and weights[n].ndim == 2]
        return tuple(len(weights[n]) for n in sorted(names))

    head = "student.cls_head." if mode.has_cls else "student.patch_head."
    encoder = EncoderConfig(
        width=48,
        depth=3,
        heads=3,
        stage_one=outputs("stage_one"),
        stage_two=outputs("stage_two")[:-1],
        embedding_bias=embedding + "stage_one.0.bias" in weights,
        cls_token=mode.has_cls,
        points=256,
        patches=16,
        patch_points=8,
    )
    heads = HeadConfig(
        hidden=len(weights[head + "mlp.0.bias"]),
        bottleneck=len(weights[head + "mlp.4.bias"]),
        prototypes=len(weights[head + "prototypes.bias"]),
    )
    config = PretrainConfig(
        mode=mode,
        encoder=encoder,
        head=heads,
        predictor=PredictorConfig(width=24, heads=3, depth=2),
        global_crop=CropConfig(points=256, patches=16, patch_points=8),
        weight_decay=update["weight_decay"],
        clip_norm=update["clip_norm"],
    )
    state = new_state(config)
    _load(state.student, _under("student.", weights), mode)
    _load(state.teacher, _under("teacher.", weights), mode)
    state.step = 20
    return state


def _load(module: torch.nn.Module, weights: dict[str, Tensor], mode: Mode) -> None:
    """Strictly, but for what a mode does not have: the published files keep it all the same."""
    missing, unexpected = module.load_state_dict(weights, strict=False)
    absent = {
        Mode.DUAL: set(),
        Mode.CLS: {"predictor.mask_token", "patch_center"},
        Mode.MPM: {"cls_center"},
    }[mode]
    assert set(missing) | set(unexpected) <= absent


def _views(mode: Mode, inputs: dict[str, Tensor]) -> Views:
    def cut(kind: str) -> Patches:
        points = to_unit_sphere(inputs[f"{kind}.points"])
        rows = points.flatten(0, -3)
        center_index = inputs[f"{kind}.centers_idx"].flatten(0, -2)
        patches = cut_patches(rows, center_index, inputs[f"{kind}.patches_idx"].flatten(0, -3))
        views = points.shape[1] if points.ndim == 4 else 1
        return Patches(
            patches.centers.unflatten(0, (-1, views)), patches.offsets.unflatten(0, (-1, views))
        )

    views = cut("global")
    masks = None
    if mode.has_patches:
        masks = Masks.from_bool(inputs["mask"], int(inputs["mask"][0].sum()))
    return Views(views, cut("local") if mode.has_cls else None, masks)


@pytest.fixture(scope="module", params=CASES)
def step(request: pytest.FixtureRequest, golden_dir: Path) -> GoldenStep:
    return GoldenStep(golden_dir, request.param)


def test_losses(step: GoldenStep) -> None:
    logged, terms = step.metrics.logged, step.metrics.terms
    ours = {"loss": logged["loss"]} | {f"{name}_loss": logged[name] for name in terms}
    assert ours.keys() == step.expected["losses"].keys()
    for name, value in step.expected["losses"].items():
        assert ours[name].item() == pytest.approx(value, rel=1e-6), name


def test_outputs(step: GoldenStep) -> None:
    ours = _logits(step)
    assert ours.keys() == step.outputs.keys()
    for name, value in step.outputs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5, msg=name)


def _logits(step: GoldenStep) -> dict[str, Tensor]:
    cls, patch = step.predictions
    result: dict[str, Tensor] = {}
    if cls is not None:
        logits = {view.seen_as: view.logits for view in cls.views}
        result["cls_preds"] = logits.get(SeenAs.MASKED, logits[SeenAs.WHOLE])
        result["cls_targets"] = step.targets.centered_logits(Head.CLS)
    if patch is not None:
        result["patch_preds"] = patch.logits
        targets = step.targets.centered_logits(Head.PATCH).flatten(0, 1)
        result["patch_targets"] = targets[patch.target_index]
    return result


def test_gradients(step: GoldenStep) -> None:
    ours = {f"student.{name}": gradient for name, gradient in step.gradients.items()}
    assert ours.keys() == step.expected_gradients.keys()
    for name, gradient in step.expected_gradients.items():
        error = (ours[name] - gradient).norm() / gradient.norm()
        assert error < 1e-4, (name, float(error))
    norm = step.metrics.logged["gradient_norm"].item()
    assert norm == pytest.approx(step.expected["grad_total_norm"], rel=1e-5)


def test_state_after_the_update(step: GoldenStep) -> None:
    """Clip, AdamW, EMA and centres, in that order."""
    ours = {f"student.{n}": v for n, v in step.state.student.state_dict().items()}
    ours |= {f"teacher.{n}": v for n, v in step.state.teacher.state_dict().items()}
    after = dict(step.expected_after)
    if step.mode is Mode.CLS:  # Without a gradient it is left alone: neither stepped nor decayed.
        name = "student.predictor.mask_token"
        assert torch.equal(after.pop(name), step.before[name])
    assert len(after) > 5
    for name, value in after.items():
        error = (ours[name] - value).norm() / value.norm()
        assert error < 1e-6, (name, float(error))
    assert step.state.step == 21


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("name", CASES if BACKEND else ["mpm"])
def test_a_compiled_step_has_the_same_numbers(
    name: str, golden_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Student, teacher and objective as whole graphs."""
    monkeypatch.setitem(execution._WHOLE, "backend", BACKEND or "eager")
    compiled = GoldenStep(golden_dir, name, compiler=StepCompiler(active=True, retries=False))
    test_losses(compiled)
    test_gradients(compiled)
    test_state_after_the_update(compiled)
    torch._dynamo.reset()
