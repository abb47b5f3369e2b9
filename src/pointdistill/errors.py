"""The errors that user input or the environment can cause, as one tree.

A message is one line: the value that was given, what is accepted, what to do next. The command line prints it and
exits with code 2.
"""

from __future__ import annotations

import unicodedata

_STEERING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Categories of characters that can steer a terminal or hide text: control, format (with those that change the
direction of writing), unpaired surrogates (bytes of names that are not UTF-8), line and paragraph separators."""


def one_line(text: str) -> str:
    r"""Text that may come from outside (names of files, classes, members; a server's words) as one harmless line.

    Characters that could steer a terminal become escapes such as \u001b, as in JSON, whose strings stay valid.
    """
    if text.isprintable():
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in _STEERING else c for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if code > 0xFFFF:  # as JSON does it
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"


class PointDistillError(Exception):
    """Base of every error that the user's input or environment can cause.

    ``settings`` names the parameters that would change the outcome, as spelled in Python (``output``). The message
    is complete without them; the command line adds the options that set them.
    """

    settings: tuple[str, ...] = ()

    def __init__(self, message: str, *, settings: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        # Pickled as (class, args, __dict__), so an error that crosses processes keeps its settings. Without any,
        # the class attribute suffices.
        if settings:
            self.settings = settings


class ConfigError(PointDistillError):
    """A setting has a value that is not accepted, or two settings contradict each other."""


class DataError(PointDistillError):
    """A file or archive is missing, damaged, empty, or not what its name says."""


class CorpusError(DataError):
    """A corpus folder is missing, incomplete, of another format version, or fails its checksum."""


class CheckpointError(PointDistillError):
    """Weights or a saved run are missing, incomplete, or do not fit the model."""


class DivergenceError(PointDistillError):
    """A loss or gradient in training was not finite; the weights were not changed."""
