"""What a user asked a run to be: a recipe, a settings file, ``key=value``, options; the last one wins."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pointdistill.data.files import read_json
from pointdistill.engine.config import PretrainConfig, from_plain, to_plain
from pointdistill.engine.recipes import RECIPES, find_recipe, recipe
from pointdistill.engine.training.run_folder import FORMAT
from pointdistill.errors import ConfigError, DataError
from pointdistill.model.distillation import Mode

LARGEST_FILE = 2**20
"""Bytes of a settings file; a corpus or checkpoint given by mistake is not read whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What was typed about the numbers of a run; None or empty where nothing was."""

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

    def words(self) -> list[str]:
        """As typed: options and their values."""
        typed: list[str] = []
        for item in fields(self):
            value = getattr(self, item.name)
            for one in value if item.name == "set" else [] if value is None else [value]:
                typed += [f"--{item.name.replace('_', '-')}", str(one)]
        return typed


@dataclass(frozen=True, slots=True)
class Settings:
    """A complete configuration, and how it came to be."""

    config: PretrainConfig
    recipe: str
    """Name of what it began as."""

    changed: tuple[str, ...]
    """``key = value`` of every setting that is not the recipe's, with the recipe's value."""

    batch_asked: bool
    """Whether the batch size was asked for, so that it must not be fitted to the machine."""

    def remarks(self) -> list[str]:
        """A line that says what was changed, if anything was."""
        return [f"changed from {self.recipe}: {', '.join(self.changed)}"] if self.changed else []


def settle(asked: Asked) -> Settings:
    """The configuration that was asked for.

    Raises:
        ConfigError: for an unknown recipe, size or setting, a value of the wrong kind, contradictions, or a change
            of what the run would never look at.
        DataError: if the settings file cannot be read.
    """
    if asked.epochs is not None and asked.steps is not None:
        msg = "--epochs and --steps both say how long to train; give one of them"
        raise ConfigError(msg)
    in_file = {} if asked.config is None else read_settings(asked.config)
    base = _base(asked, in_file, in_file.pop("recipe", None))
    change: dict[str, Any] = {}
    for source in (in_file, *map(parse_assignment, asked.set), _options(asked)):
        # Epochs decide over the steps of what was said before; a file or recipe with both means its steps.
        lasts = {"steps": None} if "epochs" in source and "steps" not in source else {}
        change = merged(change, {**source, **lasts})
    _refuse_unknown(change)
    config = from_plain(PretrainConfig, merged(to_plain(base), change))
    _refuse_unused(base, config, {} if _says_everything(in_file) else in_file, asked.set)
    return Settings(config, base.name, tuple(differences(base, config)), "batch_size" in change)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, or the configuration in a run's ``config.json``, as nested tables.

    Raises:
        DataError: if there is no such file, or it is neither.
    """
    if path.is_dir() or not path.exists():
        msg = f"{path}: no settings file here; give a TOML file or a run's config.json"
        raise DataError(msg)
    if path.stat().st_size > LARGEST_FILE:
        msg = f"{path}: too large for settings; give a TOML file or a run's config.json"
        raise DataError(msg)
    if path.suffix == ".json":
        found = read_json(path)
        if not (isinstance(found, dict) and found.get("format") == FORMAT):
            msg = f"{path}: not a run's config.json; settings of your own go into a TOML file"
            raise DataError(msg)
        found = found.get("config")
        if not isinstance(found, dict):
            msg = f"{path}: the run's configuration is damaged"
            raise DataError(msg)
        return found
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
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
        msg = f"--set wants key=value, such as masking.ratio=0.8; got {text!r}"
        raise ConfigError(msg)
    plain: Any = _parse_value(value.strip())
    for part in reversed(parts):
        plain = {part: plain}
    return plain


def _parse_value(text: str) -> Any:
    """A TOML value; what is none, such as ``mpm``, is text."""
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        found = {}
    if found.keys() == {"value"}:
        return found["value"]
    try:
        return float(text)  # .5 and 5. are not TOML
    except ValueError:
        return text


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``change`` laid over it, table by table."""
    result = dict(base)
    for key, value in change.items():
        below = result.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            result[key] = merged(below, value)
        else:
            result[key] = value
    return result


def differences(base: PretrainConfig, config: PretrainConfig) -> list[str]:
    """``key = value (recipe: value)`` of all settings that ``config`` uses and that are not those of ``base``."""
    before, after = flat(to_plain(base)), flat(to_plain(config))
    lines = []
    for key, value in after.items():
        # A table that one of them lacks is a key of its own there, and its settings are missing.
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
    """Every setting on a line of its own, in a form that ``--config`` reads and ``--set`` takes."""
    return "".join(f"{key} = {_shown(value)}\n" for key, value in flat(to_plain(config)).items())


def _shown(value: Any) -> str:
    """A plain value as TOML, which has no null. JSON's numbers, lists and texts are TOML's."""
    return json.dumps("none" if value is None else value, ensure_ascii=False)


def _base(asked: Asked, in_file: Mapping[str, Any], named: object) -> PretrainConfig:
    """What the changes are laid over: the recipe, the size and mode, or the recipe ``named`` in the file."""
    if asked.recipe is not None and (asked.size is not None or asked.mode is not None):
        msg = "--recipe names a whole run, and --size and --mode a shorter way to one; give one of them"
        raise ConfigError(msg)
    if asked.size is not None or asked.mode is not None:
        return recipe(asked.size or "small", Mode(asked.mode or "dual"))
    chosen = asked.recipe or named
    if chosen is None:
        # A run's config.json says everything; its name only decides what it is compared with.
        known = RECIPES.get(str(in_file.get("name")))
        return recipe("small") if known is None else known.config
    if not isinstance(chosen, str):
        msg = f"recipe must be the name of one, got {chosen!r}; `pointdistill recipes` lists them"
        raise ConfigError(msg)
    return find_recipe(chosen).config


def _options(asked: Asked) -> dict[str, Any]:
    """The settings that have options of their own."""
    given = {name: getattr(asked, name) for name in ("epochs", "steps", "batch_size", "seed")}
    return {name: value for name, value in given.items() if value is not None}


def _says_everything(in_file: Mapping[str, Any]) -> bool:
    """Whether a file is a whole configuration, such as a run's own: what of it is unused was not asked for."""
    return {item.name for item in fields(PretrainConfig)} <= in_file.keys()


def _refuse_unused(
    base: PretrainConfig,
    config: PretrainConfig,
    in_file: Mapping[str, Any],
    assigned: Sequence[str],
) -> None:
    """Raise if a setting was changed that the run would never look at: it would be taken to matter."""
    before, after = flat(to_plain(base)), flat(to_plain(config))
    asked = dict.fromkeys(
        key for one in (in_file, *map(parse_assignment, assigned)) for key in flat(one)
    )
    reasons: dict[str, list[str]] = {}
    for key in asked:
        why = config.why_unused(key)
        same = key in before and key in after and before[key] == after[key]
        if why is not None and not same:
            reasons.setdefault(why, []).append(key)
    for why, keys in reasons.items():
        msg = f"{', '.join(keys)} would not be used {why}"
        raise ConfigError(msg)


def _refuse_unknown(change: Mapping[str, Any]) -> None:
    """Raise unless every key is a setting or a table of settings; names the nearest, whatever its table."""
    known = flat(to_plain(PretrainConfig()))
    tables = {key.rpartition(".")[0] for key in known}
    for key in flat(change).keys() - known.keys() - tables:
        near = [name for name in known if name.rpartition(".")[2] == key]
        near += difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`pointdistill recipes tiny` prints all"
        msg = f"unknown setting {key!r}; {hint}"
        raise ConfigError(msg)
