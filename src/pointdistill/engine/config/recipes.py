"""Named runs: sizes and modes, the paper's own runs, and its ablations.

A recipe does not include a corpus: it runs on the one that is named, or on the last one made. Published times and
accuracies are those of docs/method.md, section 9; accuracies are overall, on ScanObjectNN PB-T50-RS. An ablation
changes one thing of the small or the tiny run; its published accuracies are of the small model, SVM / fine-tuned,
and its tiny version asks the same question in minutes on a CPU. Costs that were not published can be measured with
``pointdistill plan``.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.runtime.schedules import ScheduleConfig
from pointdistill.errors import ConfigError
from pointdistill.model.config import (
    AugmentConfig,
    CropConfig,
    EncoderConfig,
    HeadConfig,
    Initialization,
    MaskingConfig,
    MaskKind,
    Mode,
    PredictorConfig,
)

_DEEP = EncoderConfig(stage_one=(256, 512, 1024), stage_two=(2048,), embedding_bias=True)
"""The patch embedding of base and large."""


def small() -> PretrainConfig:
    """21.8 M parameters, 300 epochs at batch 128: the paper's setting on ShapeNetCore v2."""
    return PretrainConfig(name="small", initialization=Initialization.AUTHORS)


def base() -> PretrainConfig:
    """91.5 M parameters; the paper trains it for 50 epochs on the Mixture."""
    return PretrainConfig(
        name="base",
        encoder=replace(_DEEP, width=768, depth=12, heads=12, drop_path=0.2),
        predictor=PredictorConfig(width=384, heads=6),
        epochs=50,
        initialization=Initialization.AUTHORS,
    )


def large() -> PretrainConfig:
    """309.1 M parameters, in the shape that the paper gives for it; epochs as for base.

    No result, time or memory was published for this size. Cost: see ``pointdistill plan``.
    Source: docs/method.md, sections 2 and 3.
    """
    return PretrainConfig(
        name="large",
        encoder=replace(_DEEP, width=1024, depth=24, heads=16, drop_path=0.4),
        predictor=PredictorConfig(width=512, heads=8),
        head=HeadConfig(hidden=2048),
        epochs=50,
        initialization=Initialization.AUTHORS,
    )


def tiny() -> PretrainConfig:
    """Our own: the same method at a size that learns something in minutes on two CPU cores, 600 steps of 32.

    It departs from the paper where a short run requires it. Few steps leave no time to recover from a uniform
    teacher, so the centres begin at the first batch's mean, the teacher's temperatures are constant and low, the
    teacher follows faster (momentum 0.98 instead of 0.995), the learning rate is 1e-3 after one epoch of warm-up,
    attention's initial weights are smaller than the authors' (what these values were chosen with),
    and each view has one mask. Views have a quarter of the points and of the patches; the blocks of a mask are a
    fifth of the patches, since a tenth of 16 would be blocks of a single patch.

    Cost: two or three minutes; ``pointdistill plan``.
    Source: our own; measured in docs/results.md.
    """
    return PretrainConfig(
        name="tiny",
        encoder=EncoderConfig(
            width=64,
            depth=2,
            heads=4,
            stage_one=(32, 48),
            stage_two=(48,),
            points=256,
            patches=16,
            patch_points=16,
        ),
        head=HeadConfig(hidden=256, bottleneck=64, prototypes=256),
        predictor=PredictorConfig(width=48, heads=3, depth=2),
        masking=MaskingConfig(masks_per_view=1, block_share=0.2),
        global_crop=CropConfig(points=256, patches=16, patch_points=16),
        local_crop=CropConfig(
            count=4, share_low=0.05, share_high=0.4, points=96, patches=8, patch_points=16
        ),
        schedule=ScheduleConfig(
            peak_learning_rate=1e-3,
            warmup_epochs=1.0,
            first_momentum=0.98,
            first_cls_temperature=0.03,
            final_cls_temperature=0.03,
            first_patch_temperature=0.04,
            final_patch_temperature=0.04,
        ),
        steps=600,
        batch_size=32,
        centers_from_first_batch=True,
        initialization=Initialization.TRUNCATED_NORMAL,
    )


def procedural_mini() -> PretrainConfig:
    """Our own: the encoder that comes with the program, 15,000 steps of 32 shapes made on the spot.

    The corpus is 40,000 builtin shapes of 2,048 points, half of them procedural. Beside tiny: three wider blocks,
    views of twice the points and patches, four times the prototypes, axes scaled by 0.5 to 1.5, because real
    shapes of one kind differ more in their proportions than ours do, and ten times KoLeo's weight.

    Cost: two hours of two cores; ``nox -s bundled`` makes corpus, run and encoder.
    Source: our own; measured in docs/results.md.
    """
    base, points, patches, patch_points = tiny(), 512, 32, 24
    assert base.local_crop is not None
    return replace(
        base,
        encoder=EncoderConfig(
            width=96,
            depth=3,
            heads=4,
            stage_one=(48, 64),
            stage_two=(96,),
            points=points,
            patches=patches,
            patch_points=patch_points,
        ),
        head=HeadConfig(hidden=512, bottleneck=96, prototypes=1024),
        predictor=PredictorConfig(width=64, heads=4, depth=2),
        masking=replace(base.masking, block_share=0.1),
        global_crop=CropConfig(points=points, patches=patches, patch_points=patch_points),
        local_crop=replace(base.local_crop, points=128, patch_points=patch_points),
        augment=AugmentConfig(scale_low=0.5, scale_high=1.5),
        koleo_weight=0.1,
        steps=15_000,
    )


SIZES: dict[str, Callable[[], PretrainConfig]] = {
    "tiny": tiny,
    "small": small,
    "base": base,
    "large": large,
}


def recipe(size: str, mode: Mode = Mode.DUAL) -> PretrainConfig:
    """The run of a size and mode.

    MPM mode uses one global view per shape, under 8 masks of ratio 0.8 (tiny: 2 masks); CLS mode has no masks. The
    authors' configuration files for MPM say ratio 0.7, but their paper found 0.8 best and reports its results.
    Source: sections 1 and 4 of docs/method.md.

    Raises:
        ConfigError: for a size that does not exist.
    """
    if size not in SIZES:
        msg = f"size must be one of {', '.join(SIZES)}, got {size!r}"
        raise ConfigError(msg)
    config = SIZES[size]()
    if mode is Mode.MPM:
        masks = 2 * config.masking.masks_per_view
        return replace(
            config,
            mode=mode,
            encoder=replace(config.encoder, cls_token=False),
            masking=replace(config.masking, ratio=0.8, masks_per_view=masks),
            global_crop=replace(config.global_crop, count=1),
        )
    return replace(config, mode=mode)


def mpm_query_attention(size: str) -> PretrainConfig:
    """Masked patches, with self-attention among the queries of the predictor.

    Before a block's cross-attention the queries attend to each other, so that each masked patch knows which others
    are masked. Published: 77.00 / 85.98, against 81.06 / 88.58 without.
    Cost: see ``pointdistill plan``.
    """
    config = recipe(size, Mode.MPM)
    assert config.predictor is not None
    return replace(config, predictor=replace(config.predictor, query_attention=True))


def mpm_no_predictor(size: str) -> PretrainConfig:
    """Masked patches without a predictor: mask tokens go through the encoder with the visible tokens.

    The encoder's output at a masked patch goes straight to the patch head. This is how we read "without a
    predictor": student and teacher become the same function except for the mask tokens, so nothing keeps the
    encoder from a constant answer, and it sees the shape of the masked region. Leaving out only the predictor's
    blocks would be a different experiment: the prediction would depend on the position alone, no gradient would
    reach the transformer, and its features would stay those of its initial weights instead of collapsing.
    Published: 24.95 / 69.74, a collapse, against 81.06 / 88.58.
    Cost: see ``pointdistill plan``.
    """
    return replace(recipe(size, Mode.MPM), predictor=None)


def mpm_one_mask(size: str) -> PretrainConfig:
    """Masked patches with one mask per shape, and a batch that is larger to have as many masked views per step.

    Small: 1024 shapes under one mask instead of 128 under 8. We read the published comparison as one of equal
    steps, so the epochs (and those of warm-up and temperatures) grow with the batch.
    Published: the same accuracy; several masks need a third of the memory and run 3.3 times as fast.
    Cost: see ``pointdistill plan``.
    """
    config = recipe(size, Mode.MPM)
    times = config.masking.masks_per_view
    return replace(
        config,
        masking=replace(config.masking, masks_per_view=1),
        batch_size=times * config.batch_size,
        epochs=times * config.epochs,
        schedule=replace(
            config.schedule,
            warmup_epochs=times * config.schedule.warmup_epochs,
            temperature_epochs=times * config.schedule.temperature_epochs,
        ),
    )


def no_local_crops(size: str) -> PretrainConfig:
    """Both objectives without local views; their term is left out of the CLS loss's mean.

    Published: 81.99 / 89.52, against 82.34 / 90.53 with them.
    Cost: see ``pointdistill plan``.
    """
    return replace(recipe(size), local_crop=None)


def cls_no_local_crops(size: str) -> PretrainConfig:
    """The CLS objective on the two global crops alone.

    Published: 78.38 / 85.64, against 82.27 / 88.72 with local views.
    Cost: see ``pointdistill plan``.
    """
    return replace(recipe(size, Mode.CLS), local_crop=None)


def cls_no_crops(size: str) -> PretrainConfig:
    """The CLS objective on two views of the whole shape: nothing is cropped.

    We read "without crops" as two global views of the whole shape, each with its own random subset of the points,
    rotation and scale, and no local views.
    Published: 73.60 / 82.13, against 82.27 / 88.72.
    Cost: see ``pointdistill plan``.
    """
    config = recipe(size, Mode.CLS)
    whole = replace(config.global_crop, share_low=1.0, share_high=1.0)
    return replace(config, global_crop=whole, local_crop=None)


def random_masks(size: str) -> PretrainConfig:
    """Both objectives, the hidden patches drawn uniformly instead of around compact visible blocks.

    Named among the method's alternatives (docs/method.md, section 4), without a figure of its own.
    Cost: see ``pointdistill plan``.
    """
    return _masked(size, MaskKind.RANDOM)


def block_masks(size: str) -> PretrainConfig:
    """Both objectives, compact blocks hidden instead of kept visible.

    Named among the method's alternatives (docs/method.md, section 4), without a figure of its own.
    Cost: see ``pointdistill plan``.
    """
    return _masked(size, MaskKind.BLOCK)


def _masked(size: str, kind: MaskKind) -> PretrainConfig:
    config = recipe(size)
    return replace(config, masking=replace(config.masking, kind=kind))


ABLATIONS = (
    mpm_query_attention,
    mpm_no_predictor,
    mpm_one_mask,
    no_local_crops,
    cls_no_local_crops,
    cls_no_crops,
    random_masks,
    block_masks,
)


def small_shapenet() -> PretrainConfig:
    """AsymDSD-S: both objectives on ShapeNetCore v2, 300 epochs; the paper's main setting.

    Published: 90.53 % fine-tuned, 83.33 % linear, 82.34 % SVM.
    Cost, published: about 18 hours on one RTX 4090, 25.6 GiB; on your device: ``pointdistill plan``.
    Source: docs/method.md, sections 1 to 6.
    """
    return replace(small(), name="small-shapenet")


def small_shapenet_cls() -> PretrainConfig:
    """AsymSD-CLS-S: the CLS objective alone on ShapeNetCore v2, 300 epochs.

    Published: 88.72 % fine-tuned, 83.19 % linear, 82.27 % SVM. Cost: see ``pointdistill plan``.
    Source: docs/method.md, sections 5 and 9.
    """
    return replace(recipe("small", Mode.CLS), name="small-shapenet-cls")


def small_shapenet_mpm() -> PretrainConfig:
    """AsymSD-MPM-S: masked patches alone on ShapeNetCore v2, 300 epochs, one view under 8 masks.

    Hides 0.8 of the patches, which the paper found best and reports; the authors' published files say 0.7
    (``masking.ratio=0.7``).
    Published: 88.58 % fine-tuned, 81.04 % linear, 81.06 % SVM. Cost: see ``pointdistill plan``.
    Source: docs/method.md, sections 4, 5 and 9.
    """
    return replace(recipe("small", Mode.MPM), name="small-shapenet-mpm")


def small_mixture() -> PretrainConfig:
    """AsymDSD-S*: both objectives on the Mixture of corpora, 100 epochs.

    Published: 92.89 % fine-tuned, 91.31 % linear.
    Cost, published: about 100 hours on one A100; on your device: ``pointdistill plan``.
    Source: docs/method.md, sections 6 and 9.
    """
    return replace(small(), name="small-mixture", epochs=100)


def base_mixture() -> PretrainConfig:
    """AsymDSD-B*: the base size with both objectives on the Mixture of corpora, 50 epochs.

    Published: 93.72 % fine-tuned, 91.96 % linear.
    Cost, published: about 175 hours on one A100; on your device: ``pointdistill plan``.
    Source: docs/method.md, sections 2, 6 and 9.
    """
    return replace(base(), name="base-mixture")


ADAPT = "adapt"
"""Name of the recipe that continues from an encoder's weights."""

ADAPT_RATE = 0.2
"""Peak learning rate of ``adapt``, relative to that of the size's own recipe."""

ADAPT_WARMUP = 0.1
"""Share of the run in which the learning rate of ``adapt`` rises."""

ADAPT_EPOCHS, ADAPT_LEAST_STEPS = 20, 300
"""Length of ``adapt``: so many passes over the shapes, and at least so many steps."""

FEWEST_SHAPES = 8
"""Fewer shapes than these cannot be adapted to."""

_SMALLEST_BATCH, _BATCHES_A_PASS = 4, 4


def adapt(encoder: EncoderConfig, mode: Mode, *, shapes: int) -> PretrainConfig:
    """Our own: continue from an encoder's weights on shapes of one's own, few or many.

    The encoder's size is that of the weights; views, heads, predictor and masks are those of the recipe whose size
    is nearest. Student and teacher both begin with the weights, and their heads anew, as an encoder comes without
    them. What is learned already must not be lost while the heads are still random, so the peak learning rate is a
    fifth of the size's own, it rises over the first tenth of the run, and the teacher's centres begin at the first
    batch's mean.
    20 passes over the shapes, and at least 300 steps; the batch is that of the size, but small enough that a pass
    has four of them.

    The settings printed here are those for the small encoder and 10,000 shapes.
    Cost: see ``pointdistill plan``, and docs/adapting.md. Source: our own.
    """
    # The nearest by its ratio: 96 is as far from 64 as from 144.
    base = min(
        (recipe(size, mode) for size in SIZES),
        key=lambda one: abs(math.log(one.encoder.width / encoder.width)),
    )
    batch = max(_SMALLEST_BATCH, min(base.batch_size, shapes // _BATCHES_A_PASS))
    per_epoch = max(1, shapes // batch)
    total = max(ADAPT_EPOCHS * per_epoch, ADAPT_LEAST_STEPS)
    schedule = base.schedule
    return replace(
        base,
        name=ADAPT,
        encoder=encoder,
        global_crop=replace(
            base.global_crop,
            points=encoder.points,
            patches=encoder.patches,
            patch_points=encoder.patch_points,
        ),
        local_crop=_fitting_local_crop(base, encoder),
        schedule=replace(
            schedule,
            peak_learning_rate=ADAPT_RATE * schedule.peak_learning_rate,
            final_learning_rate=min(
                schedule.final_learning_rate, ADAPT_RATE * schedule.peak_learning_rate
            ),
            warmup_epochs=ADAPT_WARMUP * total / per_epoch,
            temperature_epochs=ADAPT_WARMUP * total / per_epoch,
            # The teacher averages over some 1 / (1 - momentum) steps, which must be a small part of the run.
            first_momentum=min(schedule.first_momentum, max(0.98, 1.0 - 10.0 / total)),
        ),
        epochs=ADAPT_EPOCHS,
        steps=total,
        batch_size=batch,
        centers_from_first_batch=True,
    )


def _fitting_local_crop(base: PretrainConfig, encoder: EncoderConfig) -> CropConfig | None:
    """The base recipe's local crop at the encoder's density."""
    crop = base.local_crop
    if crop is None:
        return None
    scale = encoder.points / base.encoder.points
    return replace(
        crop,
        points=max(encoder.patch_points, round(crop.points * scale)),
        patches=max(1, round(crop.patches * encoder.patches / base.encoder.patches)),
        patch_points=encoder.patch_points,
    )


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named run."""

    name: str
    config: PretrainConfig
    about: str
    """Its description, source and cost: the docstring of the function that makes it."""

    @property
    def summary(self) -> str:
        """The first line of ``about``."""
        return self.about.splitlines()[0]


def _tiny_cls() -> PretrainConfig:
    """Our own: the CLS objective alone at the tiny size, 600 steps of 32.

    Cost: minutes; see ``pointdistill plan``.
    """
    return recipe("tiny", Mode.CLS)


def _tiny_mpm() -> PretrainConfig:
    """Our own: masked patches alone at the tiny size, 600 steps of 32 shapes under 2 masks.

    Cost: minutes; see ``pointdistill plan``.
    """
    return recipe("tiny", Mode.MPM)


def _named(make: Callable[..., PretrainConfig], name: str, *size: str) -> Recipe:
    """The recipe that a function makes, described by the function's docstring."""
    about = (inspect.getdoc(make) or "").replace("``", "`")
    return Recipe(name, replace(make(*size), name=name), about)


def _all() -> list[Recipe]:
    runs = (small_shapenet, small_shapenet_cls, small_shapenet_mpm, small_mixture, base_mixture)
    recipes = [_named(run, run.__name__.replace("_", "-")) for run in runs]
    recipes += [_named(large, "large"), _named(tiny, "tiny")]
    recipes.append(_named(procedural_mini, "procedural-mini"))
    recipes += [_named(_tiny_cls, "tiny-cls"), _named(_tiny_mpm, "tiny-mpm")]
    about = (inspect.getdoc(adapt) or "").replace("``", "`")
    recipes.append(Recipe(ADAPT, adapt(small().encoder, Mode.DUAL, shapes=10_000), about))
    for size in ("small", "tiny"):
        for ablation in ABLATIONS:
            recipes.append(_named(ablation, f"{size}-{ablation.__name__.replace('_', '-')}", size))
    return recipes


RECIPES: dict[str, Recipe] = {one.name: one for one in _all()}


def find_recipe(name: str) -> Recipe:
    """The recipe with this name.

    Raises:
        ConfigError: if there is none; suggests the nearest name.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    msg = f"there is no recipe {name!r}; {hint}`pointdistill recipes` lists them all"
    raise ConfigError(msg)
