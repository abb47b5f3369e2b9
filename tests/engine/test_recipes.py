"""Named runs: complete, buildable, told apart by what their name says, and each trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pointdistill.data.files.schema import from_plain, to_plain
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.config.recipes import RECIPES, find_recipe, recipe
from pointdistill.engine.config.settings import differences
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.trainer import RunOptions
from pointdistill.errors import ConfigError
from pointdistill.model.config import MaskKind, Mode
from pointdistill.model.distillation import Student
from tests.engine.conftest import MemoryCorpus
from tests.recorder import OnStep

# What an ablation changes in the run that it is taken from, beside its name.
CHANGED = {
    "mpm-query-attention": {"predictor.query_attention"},
    "mpm-no-predictor": {"predictor"},
    "mpm-one-mask": {
        "masking.masks_per_view",
        "batch_size",
        "epochs",
        "schedule.warmup_epochs",
        "schedule.temperature_epochs",
    },
    "no-local-crops": {"local_crop"},
    "cls-no-local-crops": {"local_crop"},
    "cls-no-crops": {"local_crop", "global_crop.share_low"},
    "random-masks": {"masking.kind"},
    "block-masks": {"masking.kind"},
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_complete(name: str) -> None:
    """It builds, survives its own JSON, and says what it costs."""
    found = find_recipe(name)
    assert found.config.name == name
    assert from_plain(PretrainConfig, to_plain(found.config)) == found.config
    with torch.device("meta"):
        Student(found.config.mode, found.config.encoder, found.config.head, found.config.predictor)
    assert "Cost" in found.about
    assert found.summary.endswith(".")


@pytest.mark.parametrize("size", ["small", "tiny"])
@pytest.mark.parametrize("ablation", CHANGED)
def test_an_ablation_changes_what_it_is_named_after_and_no_more(size: str, ablation: str) -> None:
    config = RECIPES[f"{size}-{ablation}"].config
    lines = differences(recipe(size, config.mode), config)
    assert {line.partition(" = ")[0] for line in lines} == CHANGED[ablation]


def test_the_papers_epochs_and_ratios() -> None:
    """Section 6 and 4 of docs/method.md."""
    epochs = {
        n: RECIPES[n].config.epochs for n in ("small-shapenet", "small-mixture", "base-mixture")
    }
    assert epochs == {"small-shapenet": 300, "small-mixture": 100, "base-mixture": 50}
    assert RECIPES["small-shapenet-mpm"].config.masking.ratio == 0.8
    assert RECIPES["small-shapenet"].config.masking.ratio == 0.7
    assert {r.config.batch_size for r in RECIPES.values() if r.name.startswith("base")} == {128}


def test_one_mask_takes_as_many_steps_over_as_many_masked_versions() -> None:
    one, several = RECIPES["small-mpm-one-mask"].config, recipe("small", Mode.MPM)
    shapes = 52_470
    assert (one.batch_size, one.masking.masks_per_view) == (1024, 1)
    versions = several.batch_size * several.masking.masks_per_view
    assert one.batch_size * one.masking.masks_per_view == versions
    assert one.total_steps(shapes) == pytest.approx(several.total_steps(shapes), rel=0.01)
    warmup = [c.schedule.warmup_epochs * c.steps_per_epoch(shapes) for c in (one, several)]
    assert warmup[0] == pytest.approx(warmup[1], rel=0.01)


def test_mask_kinds_and_crops() -> None:
    assert RECIPES["tiny-random-masks"].config.masking.kind is MaskKind.RANDOM
    assert RECIPES["tiny-block-masks"].config.masking.kind is MaskKind.BLOCK
    whole = RECIPES["small-cls-no-crops"].config.global_crop
    assert (whole.share_low, whole.share_high, whole.count) == (1.0, 1.0, 2)


def test_an_unknown_recipe_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'tiny-mmp'; did you mean 'tiny-mpm'\?"):
        find_recipe("tiny-mmp")


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("tiny")])
def test_every_tiny_recipe_trains(name: str, memory_corpus: MemoryCorpus, tmp_path: Path) -> None:
    """Ten steps of six shapes; the encoder moves, and no loss is lost on the way."""
    config = replace(RECIPES[name].config, batch_size=6, steps=10)
    seen: list[float] = []
    result = pretrain(
        config,
        corpus=memory_corpus,
        run=tmp_path / "run",
        options=RunOptions(device="cpu"),
        reporter=OnStep(lambda record: seen.append(record.loss)),
    )
    assert (result.step, len(seen)) == (10, 10)
    assert len(set(seen)) == 10
