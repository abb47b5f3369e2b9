"""Initial weights: the authors' distributions, and those of runs from before there was a choice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pointdistill.data.files.schema import from_plain, to_plain
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.config.recipes import RECIPES, recipe
from pointdistill.engine.pretraining.checkpoints import new_state
from pointdistill.model.config import Initialization
from pointdistill.model.distillation import Student
from pointdistill.model.initialize import initialize


def student(size: str, initialization: Initialization) -> Student:
    config = recipe(size)
    made = Student(config.mode, replace(config.encoder, depth=1), config.head, config.predictor)
    generator = torch.Generator().manual_seed(0)
    initialize(made, generator=generator, initialization=initialization)
    return made


@pytest.mark.parametrize(
    ("size", "encoder", "predictor"), [("small", 0.0361, 0.0510), ("base", 0.0255, 0.0361)]
)
def test_the_authors_attention_is_xavier_uniform(
    size: str, encoder: float, predictor: float
) -> None:
    """Over the packed weight: standard deviations measured in the authors' models, and a hard bound."""
    found = student(size, Initialization.AUTHORS).state_dict()
    for part, deviation in (("encoder", encoder), ("predictor", predictor)):
        names = [n for n in found if n.startswith(part) and n.endswith("query_key_value.weight")]
        assert names
        for name in names:
            assert float(found[name].std()) == pytest.approx(deviation, rel=0.01)
            assert float(found[name].abs().max()) <= 3**0.5 * deviation * 1.01
    others = [v for n, v in found.items() if n.endswith(("project.weight", "expand.weight"))]
    assert others
    assert all(float(value.std()) == pytest.approx(0.02, rel=0.03) for value in others)


def test_the_authors_prototypes_have_no_bias_at_first() -> None:
    """Their directions keep PyTorch's default, U(-1, 1) / 16 for 256 inputs."""
    found = student("small", Initialization.AUTHORS).state_dict()
    biases = [value for name, value in found.items() if name.endswith("prototypes.bias")]
    assert len(biases) == 2
    assert not torch.stack(biases).any()
    direction = next(v for n, v in found.items() if n.endswith("prototypes.direction"))
    assert float(direction.std()) == pytest.approx(1 / 16 / 3**0.5, rel=0.01)


def test_truncated_normal_is_what_it_was() -> None:
    found = student("small", Initialization.TRUNCATED_NORMAL).state_dict()
    packed = [value for name, value in found.items() if name.endswith("query_key_value.weight")]
    assert all(float(value.std()) == pytest.approx(0.02, rel=0.02) for value in packed)
    bias = next(value for name, value in found.items() if name.endswith("prototypes.bias"))
    assert 0.05 < float(bias.abs().max()) <= 1 / 16


@pytest.mark.parametrize("name", RECIPES)
def test_the_papers_recipes_begin_like_the_authors(name: str) -> None:
    ours = name.split("-")[0] in ("tiny", "procedural")
    expected = Initialization.TRUNCATED_NORMAL if ours else Initialization.AUTHORS
    assert RECIPES[name].config.initialization is expected


def test_a_configuration_from_before_the_setting_keeps_its_initial_weights() -> None:
    plain = to_plain(recipe("tiny"))
    del plain["initialization"]
    assert from_plain(PretrainConfig, plain) == recipe("tiny")
    small = to_plain(recipe("small"))
    del small["initialization"]
    assert from_plain(PretrainConfig, small).initialization is Initialization.TRUNCATED_NORMAL


def test_a_run_begins_with_the_weights_of_its_setting() -> None:
    theirs = new_state(replace(recipe("tiny"), initialization=Initialization.AUTHORS))
    ours = new_state(recipe("tiny"))
    name = "transformer.blocks.0.attention.attention.query_key_value.weight"
    packed = theirs.student.encoder.state_dict()[name]
    assert float(packed.std()) == pytest.approx(1 / (2 * 64) ** 0.5, rel=0.03)
    assert float(ours.student.encoder.state_dict()[name].std()) == pytest.approx(0.02, rel=0.05)
