"""Combines a recipe, a settings file and single changes into one complete configuration; the last change wins."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pointdistill.data.files.files import read_json
from pointdistill.data.files.schema import from_plain, to_plain
from pointdistill.engine.config.config import RUN_FORMAT, PretrainConfig
from pointdistill.engine.config.recipes import ADAPT, RECIPES, find_recipe, recipe
from pointdistill.errors import ConfigError, DataError
from pointdistill.model.config import Mode

LARGEST_FILE = 2**20
"""Largest settings file in bytes, so that a corpus or checkpoint named by mistake is not read into memory."""

LONGEST_LINE = 1024
"""Longest line of a TOML file in bytes: reading a key takes time that grows with the square of its length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOverrides:
    """How a run differs from the default one; fields that do not matter are None or empty."""

    recipe: str | None = None
    size: str | None = None
    mode: str | None = None
    config: Path | None = None
    """A TOML file, or a run's ``config.json``."""

    set: Sequence[str] = ()
    """``key=value`` with dotted keys."""

    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    seed: int | None = None

    def items(self) -> list[tuple[str, str]]:
        """Name and value of every field that is set; ``set`` occurs once for each of its assignments."""
        pairs: list[tuple[str, str]] = []
        for item in fields(self):
            value = getattr(self, item.name)
            values = value if item.name == "set" else [] if value is None else [value]
            pairs += [(item.name, str(one)) for one in values]
        return pairs


@dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """A complete configuration, and how it was put together."""

    config: PretrainConfig
    recipe: str
    """Name of the recipe it started from."""

    changed: tuple[str, ...]
    """``key = value`` of every setting that differs from the recipe, with the recipe's value."""

    batch_size_chosen: bool
    """Whether the user chose the batch size; if so, it must not be fitted to the machine."""

    def remarks(self) -> list[str]:
        """A line that lists the changes, if there are any."""
        return [f"changed from {self.recipe}: {', '.join(self.changed)}"] if self.changed else []


def resolve_config(
    overrides: RunOverrides, *, continued: PretrainConfig | None = None
) -> ResolvedConfig:
    """Apply the overrides to the recipe that they name.

    Args:
        overrides: what the user chose.
        continued: the recipe ``adapt`` for the weights to start from, which is then the default and what the name
            ``adapt`` means; None for a run that starts anew.

    Raises:
        ConfigError: for an unknown recipe, size or setting, a value of the wrong type, a contradiction, or a
            change to a setting that the run would not use.
        DataError: if the settings file cannot be read.
    """
    if overrides.epochs is not None and overrides.steps is not None:
        msg = "epochs and steps both say how long to train; give one of them"
        raise ConfigError(msg, settings=("epochs", "steps"))
    in_file = {} if overrides.config is None else read_settings(overrides.config)
    base = _base(overrides, in_file, in_file.pop("recipe", None), continued)
    change: dict[str, Any] = {}
    for source in (in_file, *map(parse_assignment, overrides.set), _single_values(overrides)):
        # A later change of epochs overrides earlier steps; in a file or recipe that has both, steps count.
        length = {"steps": None} if "epochs" in source and "steps" not in source else {}
        change = merged(change, {**source, **length})
    _refuse_unknown(change)
    config = from_plain(PretrainConfig, merged(to_plain(base), change))
    _refuse_unused(base, config, {} if _is_complete(in_file) else in_file, overrides.set)
    return ResolvedConfig(
        config, base.name, tuple(differences(base, config)), "batch_size" in change
    )


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, or the configuration in a run's ``config.json``, as nested tables.

    Raises:
        DataError: if there is no such file, or it is neither.
    """
    if not path.is_file():
        msg = f"{path}: no settings file here; give a TOML file or a run's config.json"
        raise DataError(msg)
    if path.stat().st_size > LARGEST_FILE:
        msg = f"{path}: too large for settings; give a TOML file or a run's config.json"
        raise DataError(msg)
    if path.suffix == ".json":
        stored = read_json(path)
        if not (isinstance(stored, dict) and stored.get("format") == RUN_FORMAT):
            msg = f"{path}: not a run's config.json; settings of your own go into a TOML file"
            raise DataError(msg)
        config = stored.get("config")
        if not isinstance(config, dict):
            msg = f"{path}: the run's configuration is damaged"
            raise DataError(msg)
        return config
    content = path.read_bytes()
    if max(map(len, content.splitlines()), default=0) > LONGEST_LINE:
        msg = f"{path}: not a TOML file of settings (a line of more than {LONGEST_LINE:,} bytes)"
        raise DataError(msg)
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        msg = f"{path}: not a TOML file ({error}); write lines such as masking.ratio = 0.8"
        raise DataError(msg) from error


def parse_assignment(text: str) -> dict[str, Any]:
    """``"masking.ratio=0.8"`` as ``{"masking": {"ratio": 0.8}}``; values as in TOML, quotes optional.

    Raises:
        ConfigError: if it is not a dotted key, an equals sign and a value.
    """
    key, equals, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not (equals and value.strip() and all(parts)):
        msg = f"a setting is changed by key=value, such as masking.ratio=0.8; got {text!r}"
        raise ConfigError(msg, settings=("set",))
    plain: Any = _parse_value(value.strip())
    for part in reversed(parts):
        plain = {part: plain}
    return plain


def _parse_value(text: str) -> Any:
    """A TOML value; anything else, such as ``mpm``, is taken as text."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        table = {}
    if table.keys() == {"value"}:
        return table["value"]
    try:
        return float(text)  # .5 and 5. are not TOML
    except ValueError:
        return text


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``change``; nested tables are merged."""
    result = dict(base)
    for key, value in change.items():
        below = result.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            result[key] = merged(below, value)
        else:
            result[key] = value
    return result


def differences(base: PretrainConfig, config: PretrainConfig) -> list[str]:
    """``key = value (recipe: value)`` for every setting that ``config`` uses and that differs from ``base``."""
    before, after = flat(to_plain(base)), flat(to_plain(config))
    lines = []
    for key, value in after.items():
        # Where one of the two has None instead of a table, its settings are missing from the flat names.
        known = key in before
        if key == "name" or (known and before[key] == value) or config.why_unused(key):
            continue
        lines.append(
            f"{key} = {_shown(value)}" + (f" (recipe: {_shown(before[key])})" if known else "")
        )
    return lines


def flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def as_toml(config: PretrainConfig) -> str:
    """Every setting on a line of its own, as a TOML file that ``read_settings`` reads."""
    return "".join(f"{key} = {_shown(value)}\n" for key, value in flat(to_plain(config)).items())


def _shown(value: Any) -> str:
    """A plain value as TOML, which has no null; numbers, lists and strings are written as in JSON."""
    return json.dumps("none" if value is None else value, ensure_ascii=False)


def _base(
    overrides: RunOverrides,
    in_file: Mapping[str, Any],
    recipe_in_file: object,
    continued: PretrainConfig | None,
) -> PretrainConfig:
    """The recipe to change: the named one, that of the size and mode, or the one named in the file."""
    if overrides.recipe is not None and (overrides.size is not None or overrides.mode is not None):
        msg = "a recipe is a complete run, which fixes size and mode; give either the recipe or size and mode"
        raise ConfigError(msg, settings=("recipe", "size", "mode"))
    if overrides.size is not None or overrides.mode is not None:
        return recipe(overrides.size or "small", Mode(overrides.mode or "dual"))
    chosen = overrides.recipe or recipe_in_file
    if continued is not None and (
        chosen == ADAPT or (chosen is None and not _is_complete(in_file))
    ):
        return continued
    if chosen is None:
        # A run's config.json is complete; its name only decides which recipe it is compared with.
        known = RECIPES.get(str(in_file.get("name")))
        return recipe("small") if known is None else known.config
    if not isinstance(chosen, str):
        msg = f"recipe must be the name of a recipe, got {chosen!r}; `pointdistill recipes` lists them"
        raise ConfigError(msg)
    return find_recipe(chosen).config


def _single_values(overrides: RunOverrides) -> dict[str, Any]:
    values = {name: getattr(overrides, name) for name in ("epochs", "steps", "batch_size", "seed")}
    return {name: value for name, value in values.items() if value is not None}


def _is_complete(in_file: Mapping[str, Any]) -> bool:
    """Whether a file has every setting, as a run's own ``config.json`` has."""
    # Nobody chose the unused settings of a complete file, so they are no mistake. How a step saves memory is not a
    # part of the run, and files from before this setting existed are complete without it.
    needed = {item.name for item in fields(PretrainConfig)} - {"checkpoint_patch_embedding"}
    return needed <= in_file.keys()


def _refuse_unused(
    base: PretrainConfig,
    config: PretrainConfig,
    in_file: Mapping[str, Any],
    assigned: Sequence[str],
) -> None:
    """Refuse changes of settings that the run would not use, since the user expects them to matter."""
    before, after = flat(to_plain(base)), flat(to_plain(config))
    changed = dict.fromkeys(
        key for one in (in_file, *map(parse_assignment, assigned)) for key in flat(one)
    )
    reasons: dict[str, list[str]] = {}
    for key in changed:
        why = config.why_unused(key)
        same = key in before and key in after and before[key] == after[key]
        if why is not None and not same:
            reasons.setdefault(why, []).append(key)
    for why, keys in reasons.items():
        msg = f"{', '.join(keys)} would not be used {why}"
        raise ConfigError(msg)


def _refuse_unknown(change: Mapping[str, Any]) -> None:
    """Check that every key is a setting or a table of settings; suggests the nearest name of any table."""
    known = flat(to_plain(PretrainConfig()))
    tables = {key.rpartition(".")[0] for key in known}
    for key in flat(change).keys() - known.keys() - tables:
        near = [name for name in known if name.rpartition(".")[2] == key]
        near += difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`pointdistill recipes tiny` prints all"
        msg = f"unknown setting {key!r}; {hint}"
        raise ConfigError(msg)
