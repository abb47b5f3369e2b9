"""What was asked for: files, assignments and options laid over a recipe, and helpful refusals."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from pointdistill.data.files.schema import from_plain, to_plain
from pointdistill.engine.config.config import PretrainConfig, Recompute
from pointdistill.engine.config.recipes import RECIPES, recipe
from pointdistill.engine.config.settings import (
    RunOverrides,
    as_toml,
    merged,
    parse_assignment,
    read_settings,
    resolve_config,
)
from pointdistill.errors import ConfigError, DataError
from pointdistill.model.config import Mode


def test_nothing_asked_is_the_small_model() -> None:
    found = resolve_config(RunOverrides())
    assert (found.config, found.changed, found.batch_size_chosen) == (recipe("small"), (), False)


def test_size_and_mode_are_the_short_way() -> None:
    assert resolve_config(RunOverrides(size="tiny", mode="mpm")).config == recipe("tiny", Mode.MPM)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("masking.ratio=0.8", {"masking": {"ratio": 0.8}}),
        ("schedule.peak_learning_rate = 1e-3", {"schedule": {"peak_learning_rate": 1e-3}}),
        ("mode=mpm", {"mode": "mpm"}),
        ('name="1e5"', {"name": "1e5"}),
        ("encoder.stage_one=[32, 48]", {"encoder": {"stage_one": [32, 48]}}),
        ("augment.rotate_z=false", {"augment": {"rotate_z": False}}),
        ("masking.ratio=.5", {"masking": {"ratio": 0.5}}),
        ("name=a=b", {"name": "a=b"}),
        ("name=1\nseed=2", {"name": "1\nseed=2"}),  # one assignment, whatever TOML makes of it
    ],
)
def test_assignments(text: str, plain: dict[str, object]) -> None:
    assert parse_assignment(text) == plain


@pytest.mark.parametrize("text", ["masking", "=3", "masking..ratio=3", "seed="])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"changed by key=value, such as masking\.ratio=0\.8"):
        parse_assignment(text)


def test_tables_are_merged_and_values_replaced() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": None, "e": {"f": 1}}
    change = {"a": {"c": 3}, "d": {"g": 4}, "e": None}
    assert merged(base, change) == {"a": {"b": 1, "c": 3}, "d": {"g": 4}, "e": None}
    assert base["a"] == {"b": 1, "c": 2}


def test_recipe_then_file_then_assignment_then_option(tmp_path: Path) -> None:
    """Each lays over the one before; what differs from the recipe is said, with the recipe's value."""
    file = tmp_path / "run.toml"
    file.write_text("seed = 1\nbatch_size = 7\n[masking]\nratio = 0.5\nmasks_per_view = 3\n")
    found = resolve_config(
        RunOverrides(recipe="tiny", config=file, set=["seed=2", "masking.ratio=0.6"], seed=3)
    )
    config = found.config
    assert (config.seed, config.batch_size) == (3, 7)
    assert (config.masking.ratio, config.masking.masks_per_view) == (0.6, 3)
    assert found.batch_size_chosen
    assert found.changed == (
        "masking.ratio = 0.6 (recipe: 0.7)",
        "masking.masks_per_view = 3 (recipe: 1)",
        "batch_size = 7 (recipe: 32)",
        "seed = 3 (recipe: 0)",
    )
    assert found.remarks()[0].startswith("changed from tiny: masking.ratio = 0.6 (recipe: 0.7), ")


def test_a_key_that_takes_minutes_to_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("seed = 1\n" + "a." * 50_000 + "b = 1\n")
    with pytest.raises(DataError, match=r"run\.toml: not a TOML file .*a line of more than 1,024"):
        resolve_config(RunOverrides(config=file))


def test_a_file_may_name_its_recipe_and_the_option_decides(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('recipe = "tiny-mpm"\nseed = 5\n')
    assert resolve_config(RunOverrides(config=file)).recipe == "tiny-mpm"
    assert resolve_config(RunOverrides(config=file, recipe="tiny-cls")).recipe == "tiny-cls"


@pytest.mark.parametrize("name", ["small-shapenet", "tiny-mpm-no-predictor", "tiny-no-local-crops"])
def test_what_recipes_prints_is_a_file_that_config_reads(name: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(as_toml(RECIPES[name].config))
    found = resolve_config(RunOverrides(config=file))
    assert (found.config, found.changed, found.recipe) == (RECIPES[name].config, (), name)


def test_every_setting_can_be_changed_by_its_printed_line() -> None:
    """A whole recipe carried over line by line as assignments."""
    wanted = RECIPES["tiny"].config
    lines = as_toml(wanted).splitlines()
    assert resolve_config(RunOverrides(recipe="small-shapenet", set=lines)).config == wanted
    assert tomllib.loads(as_toml(wanted))["masking"]["masks_per_view"] == 1


def test_a_runs_own_configuration_is_the_run(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    plain = to_plain(RECIPES["tiny-cls-no-crops"].config)
    file.write_text(json.dumps({"format": "pointdistill-run", "config": plain}))
    assert resolve_config(RunOverrides(config=file)).config == RECIPES["tiny-cls-no-crops"].config


def test_a_runs_configuration_from_before_recomputing_is_complete(tmp_path: Path) -> None:
    """It is accepted as it is, with a setting that its mode does not use."""
    file = tmp_path / "config.json"
    wanted = replace(RECIPES["tiny-mpm"].config, koleo_weight=0.5)
    plain = to_plain(wanted)
    assert plain.pop("checkpoint_patch_embedding") == "auto"
    file.write_text(json.dumps({"format": "pointdistill-run", "config": plain}))
    assert resolve_config(RunOverrides(config=file)).config == wanted


def test_recomputing_the_patch_embedding_is_chosen_by_word() -> None:
    chosen = resolve_config(RunOverrides(recipe="tiny", set=["checkpoint_patch_embedding=on"]))
    assert chosen.config.checkpoint_patch_embedding is Recompute.ON
    with pytest.raises(ConfigError, match="checkpoint_patch_embedding"):
        resolve_config(RunOverrides(recipe="tiny", set=["checkpoint_patch_embedding=maybe"]))


@pytest.mark.parametrize("name", ["tiny", "tiny-cls", "tiny-mpm"])
def test_a_configuration_from_before_koleo_weight_was_a_setting_has_its_default(name: str) -> None:
    plain = to_plain(RECIPES[name].config)
    assert plain.pop("koleo_weight") == 0.01
    assert from_plain(PretrainConfig, plain) == RECIPES[name].config


def test_none_takes_a_part_away_and_a_value_brings_it_back() -> None:
    without = resolve_config(RunOverrides(recipe="tiny-mpm", set=["predictor=none"])).config
    assert without.predictor is None
    back = resolve_config(
        RunOverrides(recipe="tiny-mpm-no-predictor", set=["predictor.depth=1"])
    ).config
    assert back.predictor is not None
    assert back.predictor.depth == 1


def test_epochs_decide_over_steps_that_were_said_before(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("steps = 9\n")
    assert resolve_config(RunOverrides(recipe="tiny", config=file)).config.steps == 9
    assert resolve_config(RunOverrides(recipe="tiny", config=file, epochs=2)).config.steps is None
    assert resolve_config(RunOverrides(recipe="tiny", set=["epochs=2"])).config.steps is None
    assert (
        resolve_config(RunOverrides(recipe="tiny", set=["epochs=2", "steps=4"])).config.steps == 4
    )


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("masking.ratoi=1", r"unknown setting 'masking.ratoi'; did you mean 'masking.ratio'\?"),
        ("peak_learning_rate=1", r"did you mean 'schedule.peak_learning_rate'\?"),
        ("batch_size.x=1", r"unknown setting 'batch_size.x'; did you mean 'batch_size'\?"),
        ("batch_size=2.5", "batch_size must be of type int, got 2.5"),
        ("batch_size=many", "batch_size must be of type int, got 'many'"),
        ("seed=none", "seed must be of type int, got 'none'"),
        ("masking=3", "masking: expected a table of settings, got 3"),
        (
            "masking.kind=blok",
            "masking.kind must be one of inverse-block, block, random, got 'blok'",
        ),
        ("encoder.stage_one=[1.5]", "encoder.stage_one must be of type int, got 1.5"),
        ("encoder.stage_one=8", r"encoder.stage_one must be of type tuple\[int, ...\], got 8"),
        ("weight_decay=nan", "weight_decay must be a finite number, got nan"),
        ("weight_decay=-1", "weight_decay must not be negative"),
        ("clip_norm=0", "clip_norm must be positive"),
        ("koleo_weight=-0.1", "koleo_weight must be a finite number and not negative, got -0.1"),
        ("mode=mpm", r"encoder.cls_token must be False in mpm mode; choose the mode by its name"),
        ("masking.ratio=0.01", "hides 0 of 16 patches"),
        ("predictor.depth=0", "predictor = none trains without one"),
        ("head.hidden=-4", "head.hidden must be at least 1, got -4"),
        (
            "augment.scale_low=5",
            r"augment.scale_low and .scale_high must satisfy 0 < low <= high, got 5",
        ),
        ("augment.scale_low=0", r"must satisfy 0 < low <= high, got 0.0 and 1.2"),
        ("augment.tilt_share=1.5", "augment.tilt_share must be from 0 to 1, got 1.5"),
        ("augment.density_low=0", "augment.density_low must be above 0 and at most 1, got 0.0"),
        ("augment.scale_high=-1", r"must satisfy 0 < low <= high, got 0.8 and -1.0"),
        ("schedule.warmup_epochs=-1", "schedule.warmup_epochs must not be negative"),
        ("name=../elsewhere", "name must be"),
    ],
)
def test_wrong_values_are_refused_in_one_line(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        resolve_config(RunOverrides(recipe="tiny", set=[assignment]))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        (
            "tiny-cls",
            ["masking.ratio=0.5", "seed=1", "predictor.depth=9"],
            "masking.ratio, predictor.depth would not be used in cls mode; leave it out, or train in dual or mpm",
        ),
        ("tiny-cls", ["predictor=none"], "predictor would not be used in cls mode"),
        ("tiny-cls", ["schedule.final_patch_temperature=0.5"], "final_patch_temperature would not"),
        (
            "tiny-mpm",
            ["local_crop.count=8"],
            "local_crop.count would not be used in mpm mode; .*dual or cls",
        ),
        ("tiny-mpm", ["koleo_weight=0.1"], "koleo_weight would not be used in mpm mode"),
        ("tiny-mpm", ["local_crop=none"], "local_crop would not be used in mpm mode"),
        ("tiny-mpm", ["schedule.first_cls_temperature=0.5"], "first_cls_temperature would not"),
        (
            "tiny",
            ["masking.kind=random", "masking.block_share=0.9"],
            "masking.block_share would not be used with masking.kind = random; .*inverse-block or block",
        ),
    ],
)
def test_a_change_that_the_run_would_never_look_at_is_refused(
    recipe: str, changes: list[str], message: str, tmp_path: Path
) -> None:
    """Typed or in a file."""
    file = tmp_path / "run.toml"
    file.write_text("\n".join(changes).replace("=random", "='random'").replace("=none", "='none'"))
    for asked in (
        RunOverrides(recipe=recipe, set=changes),
        RunOverrides(recipe=recipe, config=file),
    ):
        with pytest.raises(ConfigError, match=message) as refused:
            resolve_config(asked)
        assert "\n" not in str(refused.value)


def test_what_was_not_changed_is_not_refused() -> None:
    """The recipe's own value, and a setting that another change brings into use."""
    same = ["masking.ratio=0.7", "predictor.depth=2"]
    assert (
        resolve_config(RunOverrides(recipe="tiny-cls", set=same)).config
        == RECIPES["tiny-cls"].config
    )
    used = ["masking.kind=block", "masking.block_share=0.3"]
    assert (
        resolve_config(
            RunOverrides(recipe="tiny-random-masks", set=used)
        ).config.masking.block_share
        == 0.3
    )


@pytest.mark.parametrize("name", ["tiny", "of-my-own"])
def test_a_whole_configuration_is_taken_with_what_it_does_not_use(
    name: str, tmp_path: Path
) -> None:
    """As the run was, whatever its recipe is now; but a change beside it is a change."""
    config = replace(recipe("tiny", Mode.MPM), name=name, local_crop=None)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"format": "pointdistill-run", "config": to_plain(config)}))
    found = resolve_config(RunOverrides(config=file))
    assert found.config == config
    assert not any(line.startswith("local_crop") for line in found.changed)
    with pytest.raises(ConfigError, match="first_cls_temperature would not be used in mpm"):
        resolve_config(RunOverrides(config=file, set=["schedule.first_cls_temperature=0.5"]))


def test_contradictions_are_refused() -> None:
    with pytest.raises(ConfigError, match="epochs and steps both say how long"):
        resolve_config(RunOverrides(epochs=1, steps=1))
    with pytest.raises(ConfigError, match="a recipe is a complete run"):
        resolve_config(RunOverrides(recipe="tiny", mode="mpm"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.toml", "masking.ratio: 0.8", "not a TOML file"),
        ("run.toml", 'recipe = "tiny-mmp"', "did you mean 'tiny-mpm'"),
        ("run.toml", "recipe = 3", "recipe must be the name of a recipe, got 3"),
        ("run.toml", "x = " + "1" * 2**20, "too large for settings"),
        ("config.json", "{}", "not a run's config.json"),
        ("config.json", '{"format": "pointdistill-run"}', "configuration is damaged"),
    ],
)
def test_what_is_no_settings_file_is_refused(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises((ConfigError, DataError), match=message):
        resolve_config(RunOverrides(config=tmp_path / name))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.toml"):
        with pytest.raises(DataError, match="no settings file here"):
            read_settings(path)


def test_items_are_the_fields_that_are_given() -> None:
    overrides = RunOverrides(recipe="tiny", set=["seed=1", "steps=2"], batch_size=4)
    assert overrides.items() == [
        ("recipe", "tiny"),
        ("set", "seed=1"),
        ("set", "steps=2"),
        ("batch_size", "4"),
    ]
