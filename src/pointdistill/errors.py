"""Everything the program refuses, as one tree.

A message is one line: the value that was given, what is accepted, what to do next. The command line prints
it and exits with code 2; a traceback from here means a bug in the caller, not in the input.
"""

from __future__ import annotations


class PointDistillError(Exception):
    """Base of every error that the user's input or environment can cause.

    ``settings`` names the parameters that would change the outcome, in the spelling of Python (``output``). The
    message is complete without them; the command line adds which of its options set them.
    """

    settings: tuple[str, ...] = ()

    def __init__(self, message: str, *, settings: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        # Kept in __dict__ only where given: an error crosses processes as (class, args, __dict__).
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
    """Training met a loss or gradient that is not finite; the weights were left as they were."""
