"""Student and teacher: what follows what, what leaks where, and that no weight escapes initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pointdistill.model.config import Mode, PredictorConfig, Temperatures
from pointdistill.model.distillation import (
    Head,
    SeenAs,
    Student,
    Teacher,
    TeacherOutput,
    Views,
    objective,
)
from pointdistill.model.encoder import Encoder, Tokens
from pointdistill.model.heads import Predictor, ProjectionHead
from pointdistill.model.initialize import initialize
from pointdistill.model.masking import Masks
from pointdistill.model.patches import Patches
from pointdistill.model.transformer import Layout, StochasticDepth
from tests.engine.conftest import micro_config

CONFIG = micro_config()


PREDICTOR = PredictorConfig(width=8, heads=2, depth=1)


def student(predictor: PredictorConfig | None = PREDICTOR) -> Student:
    module = Student(Mode.DUAL, CONFIG.encoder, CONFIG.head, predictor)
    initialize(module, generator=torch.Generator().manual_seed(0))
    return module


BUILDERS: list[Callable[[], nn.Module]] = [
    lambda: Encoder(CONFIG.encoder),
    lambda: Predictor(12, PREDICTOR),
    lambda: Predictor(12, replace(PREDICTOR, query_attention=True)),
    lambda: ProjectionHead(12, CONFIG.head),
    student,
    lambda: student(None),
]


@pytest.mark.parametrize("build", BUILDERS)
def test_initialize_reaches_every_parameter(build: Callable[[], nn.Module]) -> None:
    """Poison all weights, initialise, and look for survivors."""
    module = build()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(math.nan)
    initialize(module, generator=torch.Generator().manual_seed(0))
    assert [name for name, p in module.named_parameters() if p.isnan().any()] == []


def test_initial_weights_have_the_stated_distributions() -> None:
    weights = dict(student().named_parameters())
    assert weights[
        "encoder.transformer.blocks.0.mlp.mlp.expand.weight"
    ].std().item() == pytest.approx(0.02, rel=0.1)
    assert (weights["encoder.transformer.norm.weight"] == 1).all()
    assert (weights["cls_head.mlp.0.bias"] == 0).all()
    direction = weights["cls_head.prototypes.direction"]
    assert direction.abs().max() <= 8**-0.5  # PyTorch's default: uniform within 1 / sqrt(inputs)
    torch.testing.assert_close(
        weights["cls_head.prototypes.magnitude"], direction.norm(dim=1, keepdim=True)
    )


def test_a_teacher_begins_with_the_students_own_bits() -> None:
    one = student()
    teacher = Teacher(Mode.DUAL, CONFIG.encoder, CONFIG.head)
    teacher.copy_weights(one)
    theirs = dict(one.named_parameters())
    for name, value in teacher.named_parameters():
        assert torch.equal(value, theirs[name]), name


def test_a_centre_is_subtracted_from_the_logits_of_its_own_head() -> None:
    logits = {Head.CLS: torch.tensor([[3.0, 1.0]]), Head.PATCH: torch.tensor([[5.0, 5.0]])}
    centers = {Head.CLS: torch.tensor([1.0, 2.0]), Head.PATCH: torch.tensor([5.0, 0.0])}
    output = TeacherOutput(logits, torch.zeros(1), centers)
    assert output.centered_logits(Head.CLS).tolist() == [[2.0, -1.0]]
    assert output.centered_logits(Head.PATCH).tolist() == [[0.0, 5.0]]


def test_teacher_stays_in_evaluation_mode_and_gets_no_gradient() -> None:
    teacher = Teacher(Mode.DUAL, CONFIG.encoder, CONFIG.head).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_hidden_places_do_not_see_each_other() -> None:
    """Another hidden patch elsewhere changes nothing for the rest: no shape of the mask leaks."""
    predictor = student().predictor
    assert predictor is not None
    memory, places = torch.randn(1, 4, 12), torch.randn(1, 3, 12)
    moved = places.clone()
    moved[0, 2] = torch.randn(12)
    before, after = predictor(places, memory), predictor(moved, memory)
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2], after[:, 2])


def test_with_query_attention_they_do() -> None:
    """The ablation: another hidden patch changes the answer at every hidden place."""
    predictor = Predictor(12, replace(PREDICTOR, query_attention=True))
    initialize(predictor, generator=torch.Generator().manual_seed(0))
    memory, places = torch.randn(1, 4, 12), torch.randn(1, 3, 12)
    moved = places.clone()
    moved[0, 2] = torch.randn(12)
    before, after = predictor(places, memory), predictor(moved, memory)
    assert not any(torch.allclose(before[0, row], after[0, row]) for row in range(3))


def some_views(*, local: bool = True) -> Views:
    """Two shapes, two global views of 8 patches under one mask that hides 5."""

    def cut(count: int, patches: int) -> Patches:
        centers = torch.randn(2, count, patches, 3)
        return Patches(centers, torch.randn(2, count, patches, 6, 3))

    order = torch.stack([torch.randperm(8) for _ in range(4)])
    return Views(cut(2, 8), cut(2, 4) if local else None, Masks(order[:, :5], order[:, 5:]))


def moved_patch(views: Views, place: Tensor) -> Views:
    """The same with other points in one patch of every global view; (4,) ``place`` says which."""
    offsets = views.global_views.offsets.clone()
    offsets.flatten(0, 1)[torch.arange(4), place] = torch.randn(4, 6, 3)
    return replace(views, global_views=Patches(views.global_views.centers, offsets))


@pytest.mark.parametrize("predictor", [PREDICTOR, None])
def test_what_is_hidden_is_not_seen_and_what_is_visible_is(
    predictor: PredictorConfig | None,
) -> None:
    """Predictions depend on the points of visible patches alone, with a predictor and without."""
    module = student(predictor).eval()
    views = some_views()
    masks = views.masks
    assert masks is not None
    before = module(views).patch.logits
    hidden = module(moved_patch(views, masks.hidden_index[:, 0])).patch.logits
    torch.testing.assert_close(hidden, before)
    seen = module(moved_patch(views, masks.visible_index[:, 0])).patch.logits
    assert not torch.allclose(seen, before, atol=1e-6)
    assert before.shape == (4 * 5, 16)


def test_without_a_predictor_the_encoder_itself_answers_at_hidden_places() -> None:
    """By hand: the mask token put at the hidden places, one pass, the features of these places."""
    module = student(None).eval()
    assert module.predictor is None
    assert module.mask_token is not None
    views = some_views()
    masks = views.masks
    assert masks is not None
    tokens = module.encoder.embed(views.global_views.flatten())
    features = tokens.features.clone()
    for row, hidden in enumerate(masks.hidden_index.tolist()):
        for place in hidden:
            features[row, place] = module.mask_token[0, 0]
    _, encoded = module.encoder.encode_tokens(Tokens(features, tokens.positions))
    wanted = torch.stack([encoded[row, index] for row, index in enumerate(masks.hidden_index)])
    torch.testing.assert_close(module(views).patch.features, wanted.flatten(0, 1))


@pytest.mark.parametrize("mode", [Mode.DUAL, Mode.CLS])
def test_without_local_views_the_other_terms_make_the_mean(mode: Mode) -> None:
    """By hand: each term the mean over its (target, prediction) pairs, the loss the mean over what is left."""
    module = Student(mode, CONFIG.encoder, CONFIG.head, CONFIG.predictor)
    initialize(module, generator=torch.Generator().manual_seed(0))
    views = some_views(local=False)
    predictions = module.eval()(views)
    seen = {view.seen_as: view.logits for view in predictions.cls.views}
    assert SeenAs.LOCAL not in seen
    cls_logits = torch.randn(2, 2, 16)
    logits = {Head.CLS: cls_logits, Head.PATCH: torch.randn(4, 8, 16)}
    temperatures = Temperatures(cls_teacher=0.04, patch_teacher=0.05)
    targets = TeacherOutput(logits, torch.randn(4, 8, 12))
    loss = objective(predictions, targets, temperatures).terms["cls"]

    def against(logits: Tensor, first: int) -> Tensor:
        probs = (cls_logits / 0.04).softmax(-1)[:, first:]
        pairs = [
            -(p * (q / 0.1).log_softmax(-1)).sum(-1)
            for p in probs.unbind(1)
            for q in logits.unbind(1)
        ]
        return torch.stack(pairs).mean()

    terms = [against(seen[SeenAs.WHOLE], 1 if mode is Mode.DUAL else 0)]
    if mode is Mode.DUAL:
        terms.append(against(seen[SeenAs.MASKED], 0))
    torch.testing.assert_close(loss, torch.stack(terms).mean())


@pytest.mark.parametrize("rate", [0.05, 0.25])
def test_stochastic_depth_keeps_the_mean(rate: float) -> None:
    """Both ways, by subset and by factor: a branch that adds 1 adds 1 on average."""

    class One(nn.Module):
        def forward(self, tokens: torch.Tensor, layout: Layout | None = None) -> torch.Tensor:
            return torch.ones_like(tokens)

    depth, device = StochasticDepth(rate).train(), torch.device("cpu")
    draw = depth.draw(4000, torch.Generator().manual_seed(0), device)
    rows = depth(torch.zeros(4000, 1, 1), One(), [draw])
    assert rows.mean().item() == pytest.approx(1.0, abs=0.03)
    passed = rows[rows > 0]
    torch.testing.assert_close(passed, torch.full_like(passed, 1 / (1 - rate)))
    depth.eval()
    assert depth.draw(2, None, device) is None
    assert (depth(torch.zeros(2, 1, 1), One(), [None]) == 1).all()


@pytest.mark.parametrize("weight", [0.0, 0.01, 0.5])
def test_koleo_counts_with_its_weight_beside_one_for_the_others(weight: float) -> None:
    module = Student(Mode.DUAL, CONFIG.encoder, CONFIG.head, CONFIG.predictor)
    initialize(module, generator=torch.Generator().manual_seed(0))
    predictions = module.eval()(some_views())
    logits = {Head.CLS: torch.randn(2, 2, 16), Head.PATCH: torch.randn(4, 8, 16)}
    targets = TeacherOutput(logits, torch.randn(4, 8, 12))
    temperatures = Temperatures(cls_teacher=0.04, patch_teacher=0.05)
    found = objective(predictions, targets, temperatures, koleo_weight=weight)
    patch, cls, spread = (found.terms[name] for name in ("patch", "cls", "koleo"))
    torch.testing.assert_close(found.total, (patch + cls + weight * spread) / (2.0 + weight))
    if weight == 0.01:
        assert torch.equal(found.total, objective(predictions, targets, temperatures).total)
