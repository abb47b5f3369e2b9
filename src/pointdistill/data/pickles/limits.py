"""How much a foreign pickle may cost before it is refused, and how messages describe it."""

from __future__ import annotations

from dataclasses import dataclass

_SHOWN = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class PickleLimits:
    """What reading a pickle may cost: under 150 MiB and a few seconds at these defaults."""

    pickle_bytes: int = 8 << 20
    """Size of the pickle."""

    operations: int = 500_000
    """Steps of the pickle; each creates at most one object of a fixed size in addition to its own bytes."""

    open_marks: int = 200
    """Nesting depth of lists, tuples and dictionaries."""

    integer_bits: int = 256
    """Length of one integer. Random states have up to 128 bits; arithmetic on much longer ones is slow."""

    name_length: int = 256
    """Characters of a global's name. A pickle can repeat a name cheaply, so long ones would add up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Purpose:
    """What a kind of pickle is for, in words for messages."""

    contents: str
    """What it should hold, in the plural: ``weights``."""

    writer: str
    """Who writes such files: ``torch.save``."""

    advice: str
    """What to do with a file that names what it should not need."""


def shown(text: object) -> str:
    """Text from a file for a message: quoted, shortened and without control characters."""
    plain = text if isinstance(text, str) else type(text).__name__
    return ascii(plain if len(plain) <= _SHOWN else plain[:_SHOWN] + "...")
