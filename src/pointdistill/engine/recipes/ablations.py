"""The paper's ablations: each takes one thing from the small or the tiny run and keeps all else.

Published accuracies (docs/method.md, section 9) are the small model's on ScanObjectNN PB-T50-RS, SVM / fine-tuned.
The tiny versions ask the same question in minutes on a CPU. But for the speed of several masks no costs were
published: ``pointdistill plan`` measures them.
"""

from __future__ import annotations

from dataclasses import replace

from pointdistill.engine.config import PretrainConfig
from pointdistill.engine.recipes.sizes import recipe
from pointdistill.model.config import MaskKind, Mode


def mpm_query_attention(size: str) -> PretrainConfig:
    """Masked patches, with self-attention among the queries of the predictor.

    Before a block's cross-attention the queries attend to each other, so that each masked place knows which others
    are masked. Published: 77.00 / 85.98, against 81.06 / 88.58 without.
    Cost: see ``pointdistill plan``.
    """
    config = recipe(size, Mode.MPM)
    assert config.predictor is not None
    return replace(config, predictor=replace(config.predictor, query_attention=True))


def mpm_no_predictor(size: str) -> PretrainConfig:
    """Masked patches without a predictor: mask tokens pass the encoder among the visible tokens.

    What the encoder puts out at a hidden place goes straight to the patch head. This is how we read "without a
    predictor": student and teacher become the same function but for the mask tokens, so that nothing stands
    between the encoder and a constant answer, and the encoder sees the shape of the masked region. Leaving out
    only the predictor's blocks would be another experiment: the prediction would know the place alone, no gradient
    would reach the transformer, and its features would stay those of initial weights instead of collapsing.
    Published: 24.95 / 69.74, a collapse, against 81.06 / 88.58.
    Cost: see ``pointdistill plan``.
    """
    return replace(recipe(size, Mode.MPM), predictor=None)


def mpm_one_mask(size: str) -> PretrainConfig:
    """Masked patches, one mask a shape in a batch as many times larger: as many masked versions a step.

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

    We read "without crops" as two global views that keep all of the shape, each with its own random subset of the
    points, rotation and scale, and no local views.
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
