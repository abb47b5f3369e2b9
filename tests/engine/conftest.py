"""A run small enough to be taken many times: a corpus in memory and a model of a few thousand weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.config.recipes import recipe
from pointdistill.model.config import CropConfig, EncoderConfig, HeadConfig, Mode, PredictorConfig


@dataclass
class MemoryCorpus:
    """Shapes in memory, behind the same interface as a corpus on disk."""

    clouds: list[NDArray[np.float32]]
    path: Path = Path("memory")
    sources: tuple[SimpleNamespace, ...] = (SimpleNamespace(name="random", licence="CC0", kept=20),)

    def __len__(self) -> int:
        return len(self.clouds)

    def points(self, index: int) -> NDArray[np.float32]:
        return self.clouds[index]


def micro_config(mode: Mode = Mode.DUAL) -> PretrainConfig:
    """Width 12, one block: a step takes some 20 ms."""
    config = recipe("tiny", mode)
    return replace(
        config,
        encoder=EncoderConfig(
            width=12,
            depth=1,
            heads=2,
            stage_one=(8, 8),
            stage_two=(8,),
            cls_token=mode.has_cls,
            drop_path=0.25,
            points=48,
            patches=8,
            patch_points=6,
        ),
        head=HeadConfig(hidden=16, bottleneck=8, prototypes=16),
        predictor=PredictorConfig(width=8, heads=2, depth=1),
        global_crop=replace(config.global_crop, points=48, patches=8, patch_points=6),
        local_crop=CropConfig(
            count=2, share_low=0.2, share_high=0.4, points=24, patches=4, patch_points=6
        ),
        batch_size=6,
        steps=7,
    )


@pytest.fixture
def memory_corpus() -> MemoryCorpus:
    rng = np.random.default_rng(0)
    return MemoryCorpus([rng.normal(size=(60 + i, 3)).astype(np.float32) for i in range(20)])
