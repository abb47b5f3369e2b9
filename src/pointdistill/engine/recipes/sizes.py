"""The four sizes, and what a mode changes in them: the settings that every named run begins with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pointdistill.engine.config import PretrainConfig
from pointdistill.engine.schedules import ScheduleConfig
from pointdistill.errors import ConfigError
from pointdistill.model.config import (
    CropConfig,
    EncoderConfig,
    HeadConfig,
    MaskingConfig,
    Mode,
    PredictorConfig,
)

_DEEP = EncoderConfig(stage_one=(256, 512, 1024), stage_two=(2048,), embedding_bias=True)
"""The patch embedding of base and large."""


def small() -> PretrainConfig:
    """21.8 M parameters, 300 epochs at batch 128: the paper's setting on ShapeNetCore v2."""
    return PretrainConfig(name="small")


def base() -> PretrainConfig:
    """91.5 M parameters; the paper trains it for 50 epochs on the Mixture."""
    return PretrainConfig(
        name="base",
        encoder=replace(_DEEP, width=768, depth=12, heads=12, drop_path=0.2),
        predictor=PredictorConfig(width=384, heads=6),
        epochs=50,
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
    )


def tiny() -> PretrainConfig:
    """Our own: the same method at a size that learns something in minutes on two CPU cores, 600 steps of 32.

    It departs from the paper where a short run needs it. Few steps leave no time to recover from a uniform
    teacher, so the centres begin at the first batch's mean, the teacher's temperatures are constant and low, the
    teacher follows faster (0.98 instead of 0.995), the learning rate is 1e-3 after an epoch of warm-up, and a
    view has one mask. Views have a quarter of the points and of the patches; a mask's blocks are a fifth
    of them, since a tenth of 16 would be blocks of a single patch.

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
    )


SIZES: dict[str, Callable[[], PretrainConfig]] = {
    "tiny": tiny,
    "small": small,
    "base": base,
    "large": large,
}


def recipe(size: str, mode: Mode = Mode.DUAL) -> PretrainConfig:
    """The run of a size and mode.

    MPM mode sees one global view a shape, unfolded into 8 masks of ratio 0.8 (tiny: 2 masks); CLS mode has no
    masks. The authors' MPM files say ratio 0.7; their paper found 0.8 best and reports it.
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
