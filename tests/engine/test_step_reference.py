"""Five steps of a real run against the method written out plainly in float64.

The reference shares the network's modules, in double precision, for its forward passes. Everything that a step
does with what they give is written once more, from docs/method.md: order of the shapes, seeds of their views,
rows of masks, centring, temperatures, losses, clipping, AdamW, moving average, centres, schedules.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.pretraining.checkpoints import TrainState, load_state, new_state
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.runtime.schedules import ScheduleConfig
from pointdistill.model.config import Mode
from pointdistill.model.distillation import Student, Teacher
from pointdistill.model.encoder import Tokens
from pointdistill.model.masking import draw_masks
from pointdistill.model.patches import Patches
from pointdistill.model.random import KeyedRandom, sample_keys
from pointdistill.model.views import draw_views
from tests.engine.conftest import MemoryCorpus, micro_config
from tests.engine.runs import options

STEPS, SEED = 5, 3


def config_of(mode: Mode, *, centers_from_first_batch: bool) -> PretrainConfig:
    """Three steps an epoch, so that the fifth lies in the second; no two rates alike, and a clip that bites.

    The moving average is far from 1 and weight decay far from 0, so that both show after five steps.
    """
    config = micro_config(mode)
    return replace(
        config,
        encoder=replace(config.encoder, drop_path=0.0),
        masking=replace(config.masking, masks_per_view=2),
        schedule=ScheduleConfig(
            first_learning_rate=1e-3,
            peak_learning_rate=8e-3,
            final_learning_rate=5e-4,
            warmup_epochs=1.0,
            first_momentum=0.6,
            final_momentum=0.95,
            first_cls_temperature=0.3,
            final_cls_temperature=0.7,
            first_patch_temperature=0.9,
            final_patch_temperature=0.5,
            temperature_epochs=1.3,
            student_temperature=0.2,
        ),
        steps=STEPS,
        weight_decay=0.5,
        clip_norm=0.05,
        seed=SEED,
        centers_from_first_batch=centers_from_first_batch,
    )


# -- the method, plainly ------------------------------------------------------------------------------------------


def learning_rate(step: int) -> float:
    """1 epoch of 3 steps up, then half a cosine over the 2 that are left."""
    if step < 3:
        return 1e-3 + (8e-3 - 1e-3) * step / 3
    return 5e-4 + (8e-3 - 5e-4) * (1 + math.cos(math.pi * (step - 3) / 2)) / 2


def teacher_momentum(step: int) -> float:
    return 0.95 + (0.6 - 0.95) * (1 + math.cos(math.pi * step / 5)) / 2


def ramp(step: int, first: float, last: float) -> float:
    """1.3 epochs of 3 steps are 4 steps."""
    return first + (last - first) * step / 4 if step < 4 else last


def views_of(
    config: PretrainConfig, corpus: MemoryCorpus, step: int
) -> tuple[Patches, Patches, Tensor]:
    """Global views, local views and masks of the shapes whose turn it is."""
    epoch, place = divmod(step, 3)
    order = np.random.default_rng(np.random.SeedSequence((SEED, epoch))).permutation(20)
    chosen = order[6 * place : 6 * place + 6]
    counts = torch.tensor([len(corpus.clouds[i]) for i in chosen])
    points = torch.zeros(6, int(counts.max()), 3)
    for row, i in enumerate(chosen):
        points[row, : len(corpus.clouds[i])] = torch.from_numpy(corpus.clouds[i])
    random = KeyedRandom(sample_keys(seed=SEED, epoch=epoch, index=torch.from_numpy(chosen)))
    augment = config.augment
    whole, _ = draw_views(points, counts, config.global_crop, random.child("global"), augment)
    local_crop = config.local_crop or config.global_crop
    local, _ = draw_views(points, counts, local_crop, random.child("local"), augment)
    return whole, local, draw_masks(whole.centers, config.masking, random)


def view(patches: Patches, number: int) -> Patches:
    """One view of every shape, in double precision."""
    return Patches(patches.centers[:, number].double(), patches.offsets[:, number].double())


def cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """Of teacher posteriors (..., K) and student logits (..., K) at the student's temperature 0.2."""
    scaled = logits / 0.2
    return -(target * (scaled - torch.logsumexp(scaled, -1, keepdim=True))).sum(-1)


def mean(values: list[Tensor]) -> Tensor:
    """Over the list, entry by entry."""
    return torch.stack(values).mean(0)


class Said(NamedTuple):
    """What the teacher says of one view of every shape; nothing is centred."""

    cls: Tensor | None  # (6, K)
    patch: Tensor | None  # (6, P, K)
    features: Tensor  # (6, P, D)


@dataclass
class Reference:
    """Student and teacher in double precision, and every other number of the state by parameter name."""

    config: PretrainConfig
    student: Student
    teacher: Teacher
    cls_center: Tensor
    patch_center: Tensor
    first: dict[str, Tensor] = field(default_factory=dict)
    second: dict[str, Tensor] = field(default_factory=dict)
    losses: list[dict[str, float]] = field(default_factory=list)

    def step(self, corpus: MemoryCorpus, step: int) -> None:
        for parameter in self.student.parameters():
            parameter.grad = None
        whole, local, masks = views_of(self.config, corpus, step)
        said = [self.ask_teacher(view(whole, number)) for number in range(whole.centers.shape[1])]
        cls_means = [one.cls.mean(0) for one in said if one.cls is not None]
        patch_means = [one.patch.mean((0, 1)) for one in said if one.patch is not None]
        if self.config.centers_from_first_batch and step == 0:
            self.cls_center = mean(cls_means) if cls_means else self.cls_center
            self.patch_center = mean(patch_means) if patch_means else self.patch_center
        terms = self.terms(whole, local, masks, said, step)
        weights = {"patch": 1.0, "regression": 1.0, "cls": 1.0, "koleo": 0.01}
        total = sum(weights[n] * v for n, v in terms.items()) / sum(weights[n] for n in terms)
        assert isinstance(total, Tensor)
        total.backward()
        row = {name: value.item() for name, value in terms.items()}
        self.losses.append({"loss": total.item(), "gradient_norm": self.clip()} | row)
        self.adamw(step)
        self.average(step)
        if cls_means:
            self.cls_center = 0.9 * self.cls_center + 0.1 * mean(cls_means)
        if patch_means:
            self.patch_center = 0.9 * self.patch_center + 0.1 * mean(patch_means)

    @torch.no_grad()
    def ask_teacher(self, patches: Patches) -> Said:
        cls, features = self.teacher.encoder.encode_tokens(self.teacher.encoder.embed(patches))
        of_cls = None if self.config.mode is Mode.MPM else self.teacher.cls_head(cls)
        of_patch = None if self.config.mode is Mode.CLS else self.teacher.patch_head(features)
        return Said(of_cls, of_patch, features)

    def terms(
        self, whole: Patches, local: Patches, masks: Tensor, said: list[Said], step: int
    ) -> dict[str, Tensor]:
        """Every term of the loss, one view at a time."""
        mode = self.config.mode
        cls_temperature, patch_temperature = ramp(step, 0.3, 0.7), ramp(step, 0.9, 0.5)
        targets = [
            ((one.cls - self.cls_center) / cls_temperature).softmax(-1)
            for one in said
            if one.cls is not None
        ]
        patch_losses, regressions, crops = (
            [],
            [],
            [],
        )  # crops: CLS features of each global crop position
        masked_logits, whole_logits, local_logits = [], [], []
        for number, one in enumerate(said):
            tokens = self.student.encoder.embed(view(whole, number))
            if mode is Mode.CLS or (mode is Mode.DUAL and number == 0):
                cls, _ = self.student.encoder.encode_tokens(tokens)
                crops.append(cls)
                whole_logits.append(self.student.cls_head(cls))
            for mask in masks[:, number].unbind(1) if one.patch is not None else ():
                rows = [(~mask).unsqueeze(-1), mask.unsqueeze(-1)]
                features, positions, places = (
                    torch.masked_select(of, row).view(6, -1, 12)
                    for of, row in (
                        (tokens.features, rows[0]),
                        (tokens.positions, rows[0]),
                        (tokens.positions, rows[1]),
                    )
                )
                cls, memory = self.student.encoder.encode_tokens(Tokens(features, positions))
                if mode is Mode.DUAL:
                    memory = torch.cat([cls[:, None], memory], 1)
                    crops.append(cls)
                    masked_logits.append(self.student.cls_head(cls))
                found = self.student.predictor(places, memory)
                target = ((one.patch - self.patch_center) / patch_temperature).softmax(-1)
                target = torch.masked_select(target, rows[1]).view(6, -1, 16)
                patch_losses.append(cross_entropy(target, self.student.patch_head(found)).flatten())
                answer = torch.masked_select(one.features, rows[1]).view(6, -1, 12)
                gap = (found - answer).abs()
                regressions.append(torch.where(gap < 2, gap**2 / 4, gap - 1).flatten())
        terms: dict[str, Tensor] = {}
        if mode is not Mode.CLS:
            terms["patch"] = torch.cat(patch_losses).mean()
        if mode is Mode.MPM:
            return terms | {"regression": torch.cat(regressions).mean()}
        for number in range(local.centers.shape[1]):
            tokens = self.student.encoder.embed(view(local, number))
            local_logits.append(
                self.student.cls_head(self.student.encoder.encode_tokens(tokens)[0])
            )
        pairs = [[(t, q) for t in targets for q in local_logits]]
        if mode is Mode.DUAL:
            pairs.append([(t, q) for t in targets for q in masked_logits])
            pairs.append([(targets[1], whole_logits[0])])
        else:
            pairs.append([(t, q) for t in targets for q in whole_logits])
        terms["cls"] = mean([mean([cross_entropy(t, q).mean() for t, q in kind]) for kind in pairs])
        terms["koleo"] = mean([koleo(features) for features in crops])
        return terms

    def clip(self) -> float:
        gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        assert norm > 2 * 0.05, "the clip must bite in every step"
        for gradient in gradients:
            gradient.mul_(0.05 / (norm + 1e-6))
        return norm

    @torch.no_grad()
    def adamw(self, step: int) -> None:
        rate, count = learning_rate(step), step + 1
        for name, weight in self.student.named_parameters():
            if weight.grad is None:
                continue
            zero = torch.zeros_like(weight)
            self.first[name] = 0.9 * self.first.get(name, zero) + 0.1 * weight.grad
            self.second[name] = 0.999 * self.second.get(name, zero) + 0.001 * weight.grad**2
            corrected = self.first[name] / (1 - 0.9**count)
            scale = (self.second[name] / (1 - 0.999**count)).sqrt() + 1e-8
            weight.copy_(weight - rate * 0.5 * weight - rate * corrected / scale)

    @torch.no_grad()
    def average(self, step: int) -> None:
        momentum, weights = teacher_momentum(step), dict(self.student.named_parameters())
        for name, weight in self.teacher.named_parameters():
            weight.copy_(momentum * weight + (1 - momentum) * weights[name])


def koleo(features: Tensor) -> Tensor:
    """Of one crop position: (6, D), one row a shape."""
    unit = features / features.norm(dim=-1, keepdim=True)
    found = []
    for row in range(6):
        cosines = [
            -2.0 if row == other else float((unit[row] @ unit[other]).detach())
            for other in range(6)
        ]
        nearest = unit[cosines.index(max(cosines))]
        distance = ((unit[row] - nearest + 1e-6) ** 2).sum().sqrt()
        found.append(-(distance + 1e-6).log())
    return mean(found)


# -- against the real run -----------------------------------------------------------------------------------------


def fresh(config: PretrainConfig) -> Reference:
    """The state that a run begins with; its distribution is tested elsewhere."""
    state = new_state(config)
    student = Student(config.mode, config.encoder, config.head, config.predictor).double()
    student.load_state_dict(state.student.state_dict())
    teacher = Teacher(config.mode, config.encoder, config.head).double()
    teacher.load_state_dict(state.teacher.state_dict())
    zero = torch.zeros(config.head.prototypes, dtype=torch.float64)
    return Reference(config, student, teacher, zero, zero.clone())


def assert_close(ours: Tensor, wanted: Tensor, name: str, tolerance: float) -> None:
    difference = (ours.detach().double() - wanted.detach()).norm()
    error = float(difference / wanted.detach().norm().clamp(min=1e-12))
    assert error < tolerance, (name, error)


@pytest.mark.parametrize(
    ("mode", "from_first"),
    [(Mode.DUAL, False), (Mode.CLS, False), (Mode.MPM, False), (Mode.DUAL, True)],
)
def test_five_steps_are_those_of_the_plain_reference(
    mode: Mode, from_first: bool, memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    config = config_of(mode, centers_from_first_batch=from_first)
    reference = fresh(config)
    for step in range(STEPS):
        reference.step(memory_corpus, step)
    run = tmp_path / "run"
    pretrain(config, corpus=memory_corpus, run=run, options=options(precision="no"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for number, (row, wanted) in enumerate(zip(rows, reference.losses, strict=True)):
        for name, value in wanted.items():
            # Distances between nearly equal unit vectors lose digits in float32.
            tolerance = 2e-3 if name == "koleo" else 5e-5
            assert row[name] == pytest.approx(value, rel=tolerance), (number, name)
        assert row["learning_rate"] == pytest.approx(learning_rate(number), rel=1e-12)
        assert row["teacher_momentum"] == pytest.approx(teacher_momentum(number), rel=1e-12)
    state, _ = load_state(run / "checkpoints" / "step-00000005")
    assert_close_state(state, reference)


def assert_close_state(state: TrainState, reference: Reference) -> None:
    """Weights, moments, teacher and centres, tensor by tensor.

    The patch embedding's maxima may fall on another point in float32, and then its gradient differs; AdamW divides
    small gradients by their own size, which magnifies that, by how much depends on the number of threads. Most
    tensors agree to 1e-5.
    """
    students = dict(reference.student.named_parameters())
    for name, weight in state.student.named_parameters():
        assert_close(weight, students[name], f"student {name}", 2e-2 if "stage_" in name else 5e-3)
        moments = state.optimizer.state.get(weight, {})
        assert bool(moments) == (name in reference.first)
        if moments:
            moment_tolerance = 0.3 if "stage_" in name else 0.1
            for key, wanted in (("exp_avg", reference.first), ("exp_avg_sq", reference.second)):
                assert_close(moments[key], wanted[name], f"{key} of {name}", moment_tolerance)
    teachers = dict(reference.teacher.named_parameters())
    for name, weight in state.teacher.named_parameters():
        assert_close(weight, teachers[name], f"teacher {name}", 2e-3 if "stage_" in name else 5e-4)
    if state.config.mode is not Mode.MPM:
        assert_close(state.teacher.cls_center, reference.cls_center, "CLS centre", 1e-4)
    if state.config.mode is not Mode.CLS:
        assert_close(state.teacher.patch_center, reference.patch_center, "patch centre", 1e-4)
