"""How much a foreign checkpoint may ask for before it is refused."""

from __future__ import annotations

from dataclasses import dataclass

_SHOWN = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What reading a file may cost; weights apart, under 150 MiB and a few seconds at these defaults.

    A checkpoint of the large model with its optimiser's moments needs a tenth of each.
    """

    members: int = 20_000
    """Files in the archive; each tensor has one."""

    directory_bytes: int = 4 << 20
    """Of the archive's table of contents."""

    pickle_bytes: int = 8 << 20
    """Of the pickle, in which the tensors' values do not lie."""

    operations: int = 500_000
    """Steps of the pickle; each makes at most one object of a fixed size beside its own bytes."""

    open_marks: int = 200
    """Nesting of lists, tuples and tables that are begun and not ended."""

    integer_bits: int = 256
    """Of one integer. Random states have up to 128; arithmetic on longer ones is slow."""

    name_length: int = 256
    """Characters of a global's name. Names can be recalled often, so long ones would add up."""

    dimensions: int = 16
    """Axes of one tensor."""

    held_twice: int = 2
    """Tensors may share values (tied weights), but add up to at most this many times what the file holds."""


LIMITS = Limits()
"""The limits of ``import-weights``."""


def shown(text: object) -> str:
    """Text that a file chose, quoted, shortened and without control characters, for a message."""
    plain = text if isinstance(text, str) else type(text).__name__
    return ascii(plain if len(plain) <= _SHOWN else plain[:_SHOWN] + "...")
