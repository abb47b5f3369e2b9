"""How much an untrusted pickle may cost before it is refused, and how messages refer to it."""

from __future__ import annotations

from dataclasses import dataclass

_SHOWN = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class PickleLimits:
    """What reading a pickle may cost: under 150 MiB and a few seconds at these defaults."""

    pickle_bytes: int = 8 << 20
    """Size of the pickle."""

    operations: int = 500_000
    """Opcodes of the pickle; each creates at most one object of a fixed size besides its own bytes."""

    open_marks: int = 200
    """Nesting of lists, tuples and dictionaries that are begun and not ended."""

    integer_bits: int = 256
    """Bits of one integer. Random states have up to 128; arithmetic on longer ones is slow."""

    name_length: int = 256
    """Characters in the name of a global. Names can be recalled often, so long ones would add up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Purpose:
    """What a kind of pickle is for, worded for error messages."""

    contents: str
    """What it should hold, in the plural: ``weights``."""

    writer: str
    """Who writes such files: ``torch.save``."""

    advice: str
    """What to do with a file that names something such files do not need."""


def shown(text: object) -> str:
    """Text from a file for a message: quoted, shortened and without control characters."""
    plain = text if isinstance(text, str) else type(text).__name__
    return ascii(plain if len(plain) <= _SHOWN else plain[:_SHOWN] + "...")
