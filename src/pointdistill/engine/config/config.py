"""The configuration of a pretraining run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import StrEnum

from pointdistill.engine.runtime.schedules import ScheduleConfig
from pointdistill.errors import ConfigError
from pointdistill.model.config import (
    KOLEO_WEIGHT,
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
from pointdistill.reporter import plural

RUN_FORMAT = "pointdistill-run"
"""The ``format`` of a run's ``config.json``."""

_SETTINGS_OF = {"patch": ("masking", "predictor"), "cls": ("local_crop", "koleo_weight")}
"""Settings, and tables of settings, that only one of the two objectives uses."""


class Recompute(StrEnum):
    """Whether activations are computed again in the backward pass instead of being kept for it."""

    AUTO = "auto"
    """On a GPU."""

    ON = "on"
    OFF = "off"

    def applies_on(self, device_type: str) -> bool:
        """Whether to recompute on a device of this type: ``cpu``, ``cuda``, …"""
        return self is Recompute.ON or (self is Recompute.AUTO and device_type == "cuda")


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """Everything that decides what a run computes; the defaults are the small model in dual mode on ShapeNet."""

    name: str = "small"
    """Name of the recipe it is based on, or a name of your own; run folders are named after it."""

    mode: Mode = Mode.DUAL
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    predictor: PredictorConfig | None = field(default_factory=PredictorConfig)
    """None is an ablation: mask tokens go through the encoder with the visible ones. Not used in CLS mode."""

    masking: MaskingConfig = field(default_factory=MaskingConfig)
    global_crop: CropConfig = field(default_factory=CropConfig)
    local_crop: CropConfig | None = field(
        default_factory=lambda: CropConfig(
            count=4, share_low=0.05, share_high=0.4, points=256, patches=16
        )
    )
    """None is an ablation: no local views. Not used in MPM mode."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    epochs: int = 300
    """Passes over the corpus; the last partial batch of each is dropped."""

    steps: int | None = None
    """Optimiser steps of the whole run; takes precedence over ``epochs``."""

    batch_size: int = 128
    """Shapes per step, over all processes."""

    weight_decay: float = 0.05
    clip_norm: float = 10.0

    koleo_weight: float = KOLEO_WEIGHT
    """Weight of KoLeo in the total loss, a weighted mean in which every other term has weight 1. Not used in MPM
    mode."""

    centers_from_first_batch: bool = False
    """Start the teacher's centres at the first batch's mean logits instead of zero (the paper: zero)."""

    initialization: Initialization = Initialization.TRUNCATED_NORMAL
    """How the initial weights are drawn. The default is that of runs made before this setting existed; the recipes
    of small, base and large set it to ``authors``."""

    checkpoint_patch_embedding: Recompute = Recompute.AUTO
    """Keep none of the student's patch embedding for the backward pass, and in compiled code less of the MLPs of
    predictor and heads, which takes less memory and more time. It does not change the model or its losses."""

    seed: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.+-]{0,99}", self.name):
            msg = f"name must be up to 100 letters, digits and . + - _, as in tiny-mpm, got {self.name!r}"
            raise ConfigError(msg)
        if self.batch_size < 1:
            msg = f"batch_size must be at least 1, got {self.batch_size}"
            raise ConfigError(msg)
        if self.epochs < 1 or (self.steps is not None and self.steps < 1):
            msg = f"epochs and steps must be at least 1, got {self.epochs} and {self.steps}"
            raise ConfigError(msg)
        if self.weight_decay < 0.0 or self.clip_norm <= 0.0:
            msg = (
                "weight_decay must not be negative and clip_norm must be positive, "
                f"got {self.weight_decay!r} and {self.clip_norm!r}"
            )
            raise ConfigError(msg)
        if not 0.0 <= self.koleo_weight < math.inf:
            msg = (
                f"koleo_weight must be a finite number and not negative, got {self.koleo_weight!r}"
            )
            raise ConfigError(msg)
        if not 0 <= self.seed < 2**63:
            msg = f"seed must lie in 0 to 2**63 - 1, got {self.seed}"
            raise ConfigError(msg)
        self._check_views()

    def _check_views(self) -> None:
        """Check that mode, encoder, crops and masks fit together."""
        crop, encoder = self.global_crop, self.encoder
        sizes = (crop.points, crop.patches, crop.patch_points)
        if sizes != (encoder.points, encoder.patches, encoder.patch_points):
            msg = (
                f"encoder.points, .patches and .patch_points must be those of global_crop, {sizes}"
            )
            raise ConfigError(msg)
        if encoder.cls_token != self.mode.has_cls:
            msg = (
                f"encoder.cls_token must be {self.mode.has_cls} in {self.mode} mode; choose the mode "
                "by its name, which sets everything that belongs to it"
            )
            raise ConfigError(msg, settings=("mode",))
        if self.mode is Mode.DUAL and crop.count < 2:
            msg = f"dual mode needs at least 2 global views, got global_crop.count {crop.count}"
            raise ConfigError(msg)
        if self.mode is Mode.CLS and crop.count < 2 and self.local_crop is None:
            msg = f"cls mode without local views needs at least 2 global views, got {crop.count}"
            raise ConfigError(msg)
        if self.mode.has_patches:
            self.masking.hidden_patches(crop.patches)

    def why_unused(self, key: str) -> str | None:
        """Why this run does not use a setting, and what to do about it; None if it does use it.

        Args:
            key: dotted name of a setting, or the name of a table of settings.
        """
        table, _, name = key.partition(".")
        for part, has in (("patch", self.mode.has_patches), ("cls", self.mode.has_cls)):
            if not has and (table in _SETTINGS_OF[part] or f"_{part}_" in name):
                using = " or ".join(mode for mode in Mode if mode is not self.mode)
                return f"in {self.mode} mode; leave it out, or train in {using} mode"
        if key == "masking.block_share" and self.masking.kind is MaskKind.RANDOM:
            return "with masking.kind = random; leave it out, or choose inverse-block or block"
        return None

    def check_batch(self, shapes: int, processes: int) -> None:
        """Check that ``shapes`` shapes fill a batch, and that it can be divided equally among ``processes``.

        Raises:
            ConfigError: if not; names a batch size that works.
        """
        largest = max(processes, min(shapes, self.batch_size) // processes * processes)
        if shapes < processes and processes > 1:
            msg = (
                f"the corpus holds {plural(shapes, 'shape')}, fewer than the {processes} processes that share a "
                "batch; start fewer processes, or use a larger corpus"
            )
            raise ConfigError(msg)
        if shapes < self.batch_size:
            msg = (
                f"the corpus holds {plural(shapes, 'shape')}, fewer than one batch of {self.batch_size}; "
                f"use a larger corpus, or a batch size of {largest}"
            )
            raise ConfigError(msg, settings=("batch_size",))
        if self.batch_size % processes:
            msg = (
                f"batch_size {self.batch_size} is not a multiple of the {processes} processes; use a batch "
                f"size of {largest}, or start a number of processes that divides it"
            )
            raise ConfigError(msg, settings=("batch_size",))

    def steps_per_epoch(self, shapes: int) -> int:
        """Number of full batches in a pass over ``shapes`` shapes.

        Raises:
            ConfigError: if there are too few shapes for one batch.
        """
        self.check_batch(shapes, processes=1)
        return shapes // self.batch_size

    def total_steps(self, shapes: int) -> int:
        """Optimiser steps of the run over a corpus of ``shapes`` shapes."""
        per_epoch = self.steps_per_epoch(shapes)
        return self.steps if self.steps is not None else self.epochs * per_epoch
