"""The command line's surface: every command's arguments, options, defaults and choices stay what they are.

Help texts may change. Record ``surface.json`` anew only for a change that users are told of:
``python tests/cli/test_surface.py > tests/cli/surface.json``.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from pointdistill.cli import app

RECORDED = Path(__file__).with_name("surface.json")


def surface() -> dict[str, dict[str, dict[str, Any]]]:
    """What can be typed after each command, after the program's own name under the empty one.

    Read from the functions that typer reads, not from what it makes of them, which differs between its versions.
    """
    assert app.registered_callback is not None
    functions = {"": app.registered_callback.callback}
    for command in app.registered_commands:
        assert command.callback is not None
        functions[command.name or command.callback.__name__.replace("_", "-")] = command.callback
    for group in app.registered_groups:
        assert group.typer_instance is not None
        for command in group.typer_instance.registered_commands:
            assert command.callback is not None
            functions[f"{group.name} {command.name}"] = command.callback
    return {name: _parameters(function) for name, function in functions.items() if function}


def _parameters(function: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    hints = typing.get_type_hints(function, include_extras=True)
    found = inspect.signature(function).parameters.values()
    return {
        parameter.name: _described(parameter, *typing.get_args(hints[parameter.name]))
        for parameter in found
        if hints[parameter.name] is not typer.Context
    }


def _described(parameter: inspect.Parameter, kind: Any, info: Any) -> dict[str, Any]:
    """``kind``: the type within ``Annotated``; ``info``: typer's account of the option or argument."""
    required = parameter.default is inspect.Parameter.empty
    described: dict[str, Any] = {
        "is": "argument" if isinstance(info, typer.models.ArgumentInfo) else "option",
        "default": "REQUIRED" if required else _plain(parameter.default),
    }
    choices = [member.value for found in _enums(kind) for member in found]
    described |= {"choices": choices} if choices else {"type": str(kind)}
    limits = {name: getattr(info, name, None) for name in ("min", "max")}
    described |= {name: limit for name, limit in limits.items() if limit is not None}
    if typing.get_origin(kind) is list or any(
        typing.get_origin(part) is list for part in typing.get_args(kind)
    ):
        described["several"] = True
    if described["is"] == "option":
        # Within Annotated typer finds the first spelling where a default would stand.
        first = [info.default] if isinstance(info.default, str) else []
        spelled = [*first, *(info.param_decls or ())]
        described["spelled"] = spelled or ["--" + parameter.name.replace("_", "-")]
    return described


def _enums(kind: Any) -> list[type[Enum]]:
    """The choices within a type such as ``list[Color] | None``."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [kind]
    return [found for part in typing.get_args(kind) for found in _enums(part)]


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def test_the_surface_is_the_recorded_one() -> None:
    assert surface() == json.loads(RECORDED.read_text(encoding="utf-8"))


if __name__ == "__main__":
    print(json.dumps(surface(), indent=1))  # noqa: T201
