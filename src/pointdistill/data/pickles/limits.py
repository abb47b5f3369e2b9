"""How much a foreign pickle may ask for before it is refused, and how messages call it."""

from __future__ import annotations

from dataclasses import dataclass

_SHOWN = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class PickleLimits:
    """What reading a pickle may cost: under 150 MiB and a few seconds at these defaults."""

    pickle_bytes: int = 8 << 20
    """Of the pickle."""

    operations: int = 500_000
    """Steps of the pickle; each makes at most one object of a fixed size beside its own bytes."""

    open_marks: int = 200
    """Nesting of lists, tuples and tables that are begun and not ended."""

    integer_bits: int = 256
    """Of one integer. Random states have up to 128; arithmetic on longer ones is slow."""

    name_length: int = 256
    """Characters of a global's name. Names can be recalled often, so long ones would add up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Purpose:
    """What a kind of pickle is for, in the words of messages."""

    contents: str
    """What it should hold, in the plural: ``weights``."""

    writer: str
    """Who writes such files: ``torch.save``."""

    advice: str
    """What to do with one that names what such a file does not need."""


def shown(text: object) -> str:
    """Text that a file chose, quoted, shortened and without control characters, for a message."""
    plain = text if isinstance(text, str) else type(text).__name__
    return ascii(plain if len(plain) <= _SHOWN else plain[:_SHOWN] + "...")
