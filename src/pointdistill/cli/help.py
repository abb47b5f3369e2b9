"""What ``--help`` and wrong input show: commands by purpose, an example for each, and what is accepted.

Both are read from the functions behind the commands, not from what typer makes of them, which differs between its
versions. Help is drawn with rich on a terminal and is plain text elsewhere, so that rich is loaded only for eyes.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from pointdistill.cli.console import draw, set_quiet

PROGRAM = "pointdistill"

_NARROWEST = 40
"""Fewest columns of help: names and what they mean need room beside each other, whatever a terminal claims."""

_WIDEST = 100
"""Most columns of help: longer lines are hard to read."""

_WIDEST_CHOICES = 28
"""Most characters of choices to stand in the place of a value; longer lists stand behind the text."""

_LARGEST = 2**31
"""A limit as large as this is that of the machine's numbers, which nobody needs to read."""

_METAVARS = {
    "up": "AXIS",
    "recipe": "RECIPE",
    "device": "DEVICE",
    "precision": "auto|no|bf16",
    "compile_step": "auto|on|off",
    "shares": "NAME=SHARE,…",
    "sharding": "none|fsdp",
    "probe": "DATA",
    "track": "TRACKER",
    "split": "SPLIT",
    "cluster": "ADDRESS",
    "deadline": "SECONDS",
    "memory": "GIB",
    "held_out": "SHARE",
    "sources": "NAMES",
    "take_tests": "NAMES",
    "exclude_tests": "all",
    "ids": "ID",
    "label": "LABEL",
    "source": "SOURCE",
    "category": "CATEGORY",
    "cloud_format": "npy|ply|xyz|pcd",
    "name": "NAME",
    "encoder": "ENCODER",
}
"""What stands for the value of an argument or option, where neither itself nor its type says enough."""

_ACCEPTED_TOO = {"hold_out": ("--held-out",), "held_out": ("--hold-out",)}
"""Spellings of an option that are accepted, as another command has them, and not shown."""

_Command = Callable[..., None]


@dataclass(frozen=True)
class Entry:
    """A command in the list of commands."""

    function: _Command | typer.Typer
    summary: str
    """One line for the list of commands."""

    example: str
    """What to type after the program's name, as an example that runs; it begins with the command's name."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """An argument or an option, as a user sees it."""

    name: str
    spelled: tuple[str, ...]
    """How the option is typed; nothing for an argument."""

    metavar: str
    """What stands for its value; empty for a flag."""

    text: str
    choices: tuple[str, ...]
    kind: type
    low: float | None
    high: float | None
    required: bool
    several: bool
    default: object

    @property
    def label(self) -> str:
        """The first column of help."""
        spelled = [one for one in self.spelled if one not in _ACCEPTED_TOO.get(self.name, ())]
        return " ".join([*([", ".join(spelled)] if spelled else []), self.metavar]).strip()

    @property
    def title(self) -> str:
        """What a message calls it."""
        return max(self.spelled, key=len) if self.spelled else self.metavar

    @property
    def help(self) -> str:
        """The text, with choices, limits and default where it does not name them itself."""
        shown = []
        if self.choices and "|" not in self.metavar:
            shown.append(f"one of {', '.join(self.choices)}")
        if (limits := self._limits()) and limits not in ("at least 0", "at least 1"):
            shown.append(limits)
        said = "default" in self.text.lower()
        if not (said or self.required or self.default is None or isinstance(self.default, bool)):
            default = self.default.value if isinstance(self.default, Enum) else self.default
            shown.append(
                f"default: {default:g}" if isinstance(default, float) else f"default: {default}"
            )
        return f"{self.text} [{'; '.join(shown)}]" if shown else self.text

    def accepted(self) -> str:
        """What is accepted, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        number = "a whole number" if self.kind is int else "a number"
        limits = self._limits().replace("at least", "of at least")
        return f"{number} {limits}" if limits else number

    def _limits(self) -> str:
        if self.high is not None and self.high < _LARGEST:
            return f"from {self.low or 0:,} to {self.high:,}"
        return "" if self.low is None else f"at least {self.low:,}"


def parameters_of(function: _Command) -> list[Parameter]:
    """The arguments of a command, then its options."""
    hints = typing.get_type_hints(function, include_extras=True)
    found = []
    for parameter in inspect.signature(function).parameters.values():
        arguments = typing.get_args(hints[parameter.name])
        if len(arguments) >= 2 and isinstance(arguments[1], typer.models.ParameterInfo):
            found.append(_parameter(parameter, *arguments[:2]))
    return sorted(found, key=lambda one: bool(one.spelled))


def _parameter(
    declared: inspect.Parameter, kind: Any, info: typer.models.ParameterInfo
) -> Parameter:
    inner = _inner_type(kind)
    choices = [member.value for member in inner] if issubclass(inner, Enum) else []
    spelled: tuple[str, ...] = ()
    if isinstance(info, typer.models.OptionInfo):
        # Within Annotated typer finds the first spelling where a default would stand.
        first = [info.default] if isinstance(info.default, str) else []
        spelled = (*first, *(info.param_decls or ())) or ("--" + _dashed(declared.name),)
    several = any(typing.get_origin(part) is list for part in (kind, *typing.get_args(kind)))
    parameter = Parameter(
        name=declared.name,
        spelled=spelled,
        metavar="",
        text=" ".join((info.help or "").split()),
        choices=tuple(choices),
        kind=inner,
        low=info.min,
        high=info.max,
        required=declared.default is inspect.Parameter.empty,
        several=several,
        default=None if declared.default is inspect.Parameter.empty else declared.default,
    )
    if inner is bool:
        return parameter
    return Parameter(**{**_fields(parameter), "metavar": info.metavar or _metavar(parameter)})


def _fields(parameter: Parameter) -> dict[str, Any]:
    return {name: getattr(parameter, name) for name in parameter.__dataclass_fields__}


def _metavar(parameter: Parameter) -> str:
    if not parameter.spelled:
        return _dashed(parameter.name).upper()
    together = "|".join(parameter.choices)
    if parameter.choices:
        return together if len(together) <= _WIDEST_CHOICES else "NAME"
    by_type = {int: "N", float: "NUMBER", Path: "PATH"}.get(parameter.kind, "TEXT")
    return _METAVARS.get(parameter.name, by_type)


def _inner_type(kind: Any) -> type:
    """The type of one value of an annotation such as ``list[Color] | None``."""
    if isinstance(kind, type) and typing.get_origin(kind) is None:
        return kind
    return next(_inner_type(part) for part in typing.get_args(kind) if part is not type(None))


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _quiet(value: bool) -> bool:
    set_quiet(value)
    return value


QUIET = typer.Option(
    "--quiet",
    "-q",
    callback=_quiet,
    help="Print results, warnings and errors only: no progress, no remarks, no next command.",
)


def with_quiet(function: _Command) -> _Command:
    """The command with the option --quiet, which the console obeys and the command need not know."""
    hints = typing.get_type_hints(function, include_extras=True)
    kind = typing.Annotated[bool, QUIET]

    @functools.wraps(function)
    def command(*args: Any, quiet: bool = False, **named: Any) -> None:  # noqa: ARG001
        function(*args, **named)

    del command.__wrapped__  # typer would read the function beneath
    command.__annotations__ = {**hints, "quiet": kind}
    signature = inspect.signature(function)
    own = [one.replace(annotation=hints[name]) for name, one in signature.parameters.items()]
    quiet = inspect.Parameter(
        "quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind
    )
    own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
    command.__signature__ = signature.replace(parameters=[*own, quiet])  # type: ignore[attr-defined]
    return command


class CommandHelp(TyperCommand):
    """A command whose help is drawn here."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Usage, what it does, arguments, options, and an example."""
        assert self.callback is not None
        known = parameters_of(inspect.unwrap(self.callback))
        arguments = [one for one in known if not one.spelled]
        options = [one for one in known if one.spelled]
        page = _Page(formatter)
        usage = [
            one.metavar if "[" in one.metavar or one.required else f"[{one.metavar}]"
            for one in arguments
        ]
        page.usage(" ".join([ctx.command_path, *usage, "[OPTIONS]"]))
        page.text(inspect.cleandoc(self.help or ""))
        page.rows("Arguments", [(one.label, one.help) for one in arguments])
        rows = [(one.label, one.help) for one in options]
        page.rows("Options", [*rows, ("-h, --help", "Show this message and exit.")])
        page.lines("Example", [self.epilog or ""])
        page.finish()


class GroupHelp(TyperGroup):
    """A group of commands whose help is drawn here."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """What the group is for, its commands, and an example."""
        page = _Page(formatter)
        page.usage(f"{ctx.command_path} COMMAND [OPTIONS]")
        page.text(inspect.cleandoc(self.help or ""))
        commands = [(name, one.short_help or "") for name, one in self.commands.items()]
        page.rows("Commands", commands)
        page.rows("Options", [("-h, --help", "Show this message and exit.")])
        page.lines("Example", [self.epilog or ""])
        page.finish()


class ProgramHelp(TyperGroup):
    """The program, whose commands are listed by what one wants."""

    groups: typing.ClassVar[dict[str, dict[str, str]]] = {}
    """Title of each group of commands -> names of its commands -> what each does, in a line."""

    options: typing.ClassVar[list[tuple[str, str]]] = []
    """The program's own options, and what each does."""

    first_steps: typing.ClassVar[list[str]] = []

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """What the program is, its commands by purpose, and what to type first."""
        page = _Page(formatter)
        page.usage(f"{ctx.command_path} COMMAND [OPTIONS]")
        page.text(self.help or "")
        width = max(len(name) for group in self.groups.values() for name in group)
        for title, commands in self.groups.items():
            page.rows(title, list(commands.items()), width=width)
        page.rows("Options", [*self.options, ("-h, --help", "Show this message and exit.")])
        page.lines("First steps", self.first_steps)
        page.finish()


class _Page:
    """Help in sections: panels on a terminal, indented text elsewhere."""

    def __init__(self, formatter: Any) -> None:
        self._write = formatter.write
        self._width = max(_NARROWEST, min(shutil.get_terminal_size().columns, _WIDEST))
        self._drawn = sys.stdout.isatty()

    def usage(self, line: str) -> None:
        if not self._drawn:
            self._write(f"Usage: {line}\n")
        else:
            self._print(f"[yellow]Usage:[/] [bold]{_escaped(line)}[/]")

    def text(self, text: str) -> None:
        for paragraph in text.split("\n\n"):
            self._write("\n")
            filled = textwrap.fill(
                " ".join(paragraph.split()), self._width - 2, break_on_hyphens=False
            )
            self._write(textwrap.indent(filled, " " if self._drawn else "  ") + "\n")

    def rows(self, title: str, rows: list[tuple[str, str]], *, width: int | None = None) -> None:
        """A section of names and what they mean."""
        if not rows:
            return
        column = width or max(len(name) for name, _ in rows)
        column = min(column, max(24, self._width // 3))
        if self._drawn:
            self._panel(title, rows, column)
            return
        self._write(f"\n{title}:\n")
        text_width = self._width - column - 4
        for name, text in rows:
            lines = textwrap.wrap(text, text_width, break_on_hyphens=False) or [""]
            first = f"  {name}"
            if len(name) > column:
                self._write(first + "\n")
                first = ""
            for line in lines:
                self._write(f"{first:<{column + 4}}{line}".rstrip() + "\n")
                first = ""

    def lines(self, title: str, lines: Sequence[str]) -> None:
        """A section of lines to copy, which are not wrapped."""
        if not self._drawn:
            self._write(f"\n{title}:\n" + "".join(f"  {line}\n" for line in lines))
            return
        self._write("\n")
        self._print(f" [bold]{title}[/]")
        for line in lines:
            self._print(f"   [green]{_escaped(line)}[/]")

    def finish(self) -> None:
        if self._drawn:
            self._write("\n")

    def _panel(self, title: str, rows: list[tuple[str, str]], column: int) -> None:
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(width=column, style="bold cyan")
        table.add_column(ratio=1)
        for name, text in rows:
            table.add_row(Text(name, overflow="fold"), Text(text))
        self._print(Panel(table, title=title, title_align="left", border_style="dim"))

    def _print(self, drawn: Any) -> None:
        self._write(draw(drawn, self._width))


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def usage_message(
    error: Exception, arguments: Sequence[str], functions: dict[str, _Command]
) -> str:
    """What was wrong with the words of a command, what is accepted, and where to read more.

    Args:
        error: the parser's error; which package defines its class depends on the version of typer.
        arguments: the words that were typed.
        functions: the function behind each command, by name.
    """
    context = getattr(error, "ctx", None)
    name = getattr(context, "command_path", "").removeprefix(PROGRAM).strip()
    # A missing value is reported without its command.
    if not name and hasattr(error, "option_name"):
        possible = (*arguments, *map(" ".join, itertools.pairwise(arguments)))
        name = next((one for one in possible if one in functions), "")
    function = functions.get(name)
    parameters = parameters_of(function) if function is not None else []
    message = _described(error, arguments, parameters, _commands_of(name, functions))
    path = f"{PROGRAM} {name}".strip()
    return message if message.endswith("?") else f"{message}; see `{path} --help`"


def _commands_of(group: str, functions: dict[str, _Command]) -> list[str]:
    """The commands of a group, or of the program itself if ``group`` is empty."""
    before = f"{group} " if group else ""
    inside = (name.removeprefix(before) for name in functions if name.startswith(before))
    return list(dict.fromkeys(name.split()[0] for name in inside))


def _described(
    error: Exception,
    arguments: Sequence[str],
    parameters: list[Parameter],
    commands: Sequence[str],
) -> str:
    typed = str(getattr(error, "message", error))
    option = getattr(error, "option_name", None)
    name = getattr(getattr(error, "param", None), "name", None)
    parameter = next((one for one in parameters if name == one.name or option in one.spelled), None)
    if type(error).__name__ == "NoSuchOption":
        is_program = getattr(getattr(error, "ctx", None), "command_path", PROGRAM) == PROGRAM
        known = [spelled for one in parameters for spelled in one.spelled]
        known += ["--help", *(["--version"] if is_program else [])]
        return f"there is no option {option}{did_you_mean(str(option), known)}"
    if match := re.search(r"No such command '(.*?)'", typed):
        return f"there is no command {match[1]!r}{did_you_mean(match[1], commands)}"
    if match := re.search(r"unexpected extra argument.*? \((.*)\)", typed):
        return f"there is no place for {match[1]!r}; a name that has spaces needs quotes"
    if parameter is None:
        return typed.rstrip(".")
    if type(error).__name__ == "MissingParameter":
        accepted = parameter.accepted() if parameter.choices else parameter.text.rstrip(".")
        return f"{parameter.title} is missing: {accepted[0].lower()}{accepted[1:]}"
    if option is not None:
        return f"{option} needs a value: {parameter.metavar}"
    value = _value(parameter, arguments, typed)
    got = "" if value is None else f", got {value!r}"
    if not parameter.choices and parameter.kind not in (int, float):
        return f"{parameter.title}{got[1:]}: {typed.removeprefix('Value error, ').rstrip('.')}"
    return f"{parameter.title} must be {parameter.accepted()}{got}{did_you_mean(value or '', parameter.choices)}"


def _value(parameter: Parameter, arguments: Sequence[str], message: str) -> str | None:
    """The value that was refused: the message names a wrong choice, and an option's value is typed behind it."""
    if match := re.search(r"'(.*?)' is not ", message):
        return match[1]
    for position, argument in enumerate(arguments):
        for spelled in parameter.spelled:
            if argument.startswith(f"{spelled}="):
                return argument.partition("=")[2]
            if argument == spelled and position + 1 < len(arguments):
                return arguments[position + 1]
    return None


def did_you_mean(value: str, known: Sequence[str]) -> str:
    """``; did you mean 'small'?`` if a known name is near to ``value``, else nothing."""
    lower = value.lower()
    near = difflib.get_close_matches(lower, known, n=1) or [
        name for name in known if len(lower) > 2 and name.startswith(lower)
    ]
    return f"; did you mean {near[0]!r}?" if near else ""
