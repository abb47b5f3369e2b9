"""How much a foreign checkpoint may ask for before it is refused."""

from __future__ import annotations

from dataclasses import dataclass

from pointdistill.data.pickles import PickleLimits


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits(PickleLimits):
    """What reading a file may cost; weights apart, under 150 MiB and a few seconds at these defaults.

    A checkpoint of the large model with its optimiser's moments needs a tenth of each. Its pickle does not hold
    the tensors' values.
    """

    members: int = 20_000
    """Files in the archive; each tensor has one."""

    directory_bytes: int = 4 << 20
    """Of the archive's table of contents."""

    dimensions: int = 16
    """Axes of one tensor."""

    held_twice: int = 2
    """Tensors may share values (tied weights), but add up to at most this many times what the file holds."""


LIMITS = Limits()
"""The limits of ``import-weights``."""
