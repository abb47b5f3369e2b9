"""Settings and recipes: the paper's numbers, the way through JSON, and helpful refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pointdistill.data.files.schema import from_plain, to_plain
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.config.recipes import SIZES, recipe
from pointdistill.errors import ConfigError
from pointdistill.model.config import Mode
from pointdistill.model.distillation import Student
from pointdistill.model.encoder import Encoder


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("small", 21_786_240), ("base", 91_484_928), ("large", 309_128_960)],
)
def test_the_papers_sizes(size: str, parameters: int) -> None:
    import torch

    with torch.device("meta"):
        encoder = Encoder(recipe(size).encoder)
    assert sum(p.numel() for p in encoder.parameters()) == parameters


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", Mode)
def test_every_recipe_builds_and_survives_json(size: str, mode: Mode) -> None:
    import torch

    config = recipe(size, mode)
    assert from_plain(PretrainConfig, json.loads(json.dumps(to_plain(config)))) == config
    with torch.device("meta"):
        Student(config.mode, config.encoder, config.head, config.predictor)
    assert config.encoder.points == config.global_crop.points
    assert config.encoder.patches == config.global_crop.patches


def test_mpm_sees_one_view_under_eight_masks_of_ratio_0_8() -> None:
    config = recipe("small", Mode.MPM)
    assert (config.global_crop.count, config.masking.masks_per_view) == (1, 8)
    assert config.masking.ratio == 0.8
    assert not config.encoder.cls_token


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"bach_size": 3}, "unknown setting 'bach_size'; did you mean 'batch_size'"),
        ({"masking": {"ratoi": 0.5}}, r"unknown setting 'masking\.ratoi'; did you mean 'ratio'"),
        ({"batch_size": "many"}, "batch_size must be of type int, got 'many'"),
        ({"batch_size": True}, "batch_size must be of type int, got True"),
        ({"mode": "triple"}, "mode must be one of dual, cls, mpm, got 'triple'"),
        ({"masking": 3}, "masking: expected a table of settings, got 3"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"mode": "mpm"}, r"encoder\.cls_token must be False in mpm mode"),
        ({"weight_decay": float("inf")}, "weight_decay must be a finite number, got inf"),
        (
            {"mode": "cls", "local_crop": None, "global_crop": {"count": 1}},
            "cls mode without local views needs at least 2 global views, got 1",
        ),
    ],
)
def test_wrong_settings_are_refused_in_one_line(plain: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_plain(PretrainConfig, plain)


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="size must be one of tiny, small, base, large, got 'huge'"
    ):
        recipe("huge")


def test_what_may_be_absent_is_none_or_its_name() -> None:
    """TOML has no null."""
    for absent in (None, "none"):
        config = from_plain(PretrainConfig, {"predictor": absent, "steps": absent})
        assert (config.predictor, config.steps) == (None, None)
        assert to_plain(config)["predictor"] is None


def test_steps_of_a_run() -> None:
    config = replace(recipe("small"), batch_size=10, epochs=3)
    assert config.total_steps(25) == 6
    assert replace(config, steps=7).total_steps(25) == 7
