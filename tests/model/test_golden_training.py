"""One training step of each mode against an independent implementation's numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pointdistill.engine.exchange.published import to_our_names
from pointdistill.engine.optimizer import build_optimizer, clip_gradients
from pointdistill.model.distillation import (
    Mode,
    Student,
    Targets,
    Teacher,
    Temperatures,
    Views,
    objective,
)
from pointdistill.model.encoder import EncoderConfig
from pointdistill.model.heads import HeadConfig
from pointdistill.model.masking import Masks
from pointdistill.model.patches import Patches, cut_patches, to_unit_sphere
from pointdistill.model.predictor import PredictorConfig

CASES = {
    "dual": Mode.DUAL,
    "cls": Mode.CLS,
    "mpm": Mode.MPM,
    "dual_deep_patch_embedding": Mode.DUAL,
}


class GoldenStep:
    """A case's model in its state before the step, and the step taken up to the gradients."""

    def __init__(self, folder: Path, name: str) -> None:
        self.mode = CASES[name]
        self.expected: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
        tensors = load_file(folder / f"{name}.safetensors")
        self.inputs = _under("input.", tensors)
        self.outputs = _under("output.", tensors)
        self.before = to_our_names(_under("weights.", tensors))
        self.gradients = to_our_names(_under("grad.", tensors))
        self.after = to_our_names(_under("after.", tensors))
        self.student, self.teacher = _build(self.mode, self.before)
        self.views = _views(self.mode, self.inputs)
        values = self.expected["schedule_values"]
        self.temperatures = Temperatures(
            cls_teacher=values["cls_teacher_temp"],
            patch_teacher=values["patch_teacher_temp"],
            student=values["cls_student_temp"],
        )
        self.targets, self.means = self.teacher(self.views.global_views)
        self.predictions = self.student(self.views)
        self.losses = objective(
            self.mode, self.predictions, self.targets, self.views.masks, self.temperatures
        )
        self.losses.total.backward()


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _build(mode: Mode, weights: dict[str, Tensor]) -> tuple[Student, Teacher]:
    """Student and teacher of the sizes that the weights have."""
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
    student = Student(mode, encoder, heads, PredictorConfig(width=24, heads=3, depth=2))
    teacher = Teacher(mode, encoder, heads)
    _load(student, _under("student.", weights), mode)
    _load(teacher, _under("teacher.", weights), mode)
    return student, teacher


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
    masks, per_view = None, 1
    if mode.has_patches:
        masks = Masks.from_bool(inputs["mask"], int(inputs["mask"][0].sum()))
        per_view = len(inputs["mask"]) // views.centers.shape[:2].numel()
    return Views(views, cut("local") if mode.has_cls else None, masks, per_view)


@pytest.fixture(scope="module", params=CASES)
def step(request: pytest.FixtureRequest, golden_dir: Path) -> GoldenStep:
    return GoldenStep(golden_dir, request.param)


def test_losses(step: GoldenStep) -> None:
    ours = {"loss": step.losses.total} | {f"{k}_loss": v for k, v in step.losses.terms.items()}
    assert ours.keys() == step.expected["losses"].keys()
    for name, value in step.expected["losses"].items():
        assert ours[name].item() == pytest.approx(value, rel=1e-6), name


def test_outputs(step: GoldenStep) -> None:
    ours = _logits(step)
    assert ours.keys() == step.outputs.keys()
    for name, value in step.outputs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5, msg=name)


def _logits(step: GoldenStep) -> dict[str, Tensor]:
    predictions, targets = step.predictions, step.targets
    result: dict[str, Tensor] = {}
    if step.mode.has_cls:
        masked = predictions.masked_cls_logits
        result["cls_preds"] = predictions.whole_cls_logits if masked is None else masked
        result["cls_targets"] = targets.cls_logits
    if step.mode.has_patches:
        result["patch_preds"] = predictions.patch_logits.flatten(0, 1)
        result["patch_targets"] = _hidden_targets(step.views.masks, targets)
    return result


def _hidden_targets(masks: Masks, targets: Targets) -> Tensor:
    per_view = len(masks.hidden_index) // len(targets.patch_logits)
    rows = torch.arange(len(masks.hidden_index)) // per_view
    return targets.patch_logits[rows[:, None], masks.hidden_index].flatten(0, 1)


def test_gradients(step: GoldenStep) -> None:
    ours = {f"student.{n}": p.grad for n, p in step.student.named_parameters()}
    expected = {n: g for n, g in step.gradients.items() if n in ours}
    assert ours.keys() == step.gradients.keys()
    for name, gradient in expected.items():
        error = (ours[name] - gradient).norm() / gradient.norm()
        assert error < 1e-4, (name, float(error))


def test_state_after_the_update(step: GoldenStep) -> None:
    """Clip, AdamW, EMA and centres, on copies, so that the other tests see the gradients untouched."""
    update = step.expected["update"]
    student, teacher = _build(step.mode, step.before)
    for mine, theirs in zip(student.parameters(), step.student.parameters(), strict=True):
        mine.grad = theirs.grad.clone()
    norm = clip_gradients(student.parameters(), update["clip_norm"])
    assert norm.item() == pytest.approx(step.expected["grad_total_norm"], rel=1e-5)
    build_optimizer(student, learning_rate=update["lr"], weight_decay=update["weight_decay"]).step()
    teacher.update_centers(step.means, step.expected["schedule_values"]["cls_centering_momentum"])
    teacher.follow(student, update["ema_decay"])
    ours = {f"student.{n}": v for n, v in student.state_dict().items()}
    ours |= {f"teacher.{n}": v for n, v in teacher.state_dict().items()}
    if step.mode is Mode.CLS:  # Without a gradient it is left alone: neither stepped nor decayed.
        name = "student.predictor.mask_token"
        assert torch.equal(step.after.pop(name), step.before[name])
    assert len(step.after) > 5
    for name, value in step.after.items():
        error = (ours[name] - value).norm() / value.norm()
        assert error < 1e-6, (name, float(error))
