"""How large a foreign checkpoint may be before it is refused."""

from __future__ import annotations

from dataclasses import dataclass

from pointdistill.data.pickles import PickleLimits


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits(PickleLimits):
    """Limits to what reading a file may cost: at most 150 MiB, besides the weights, and a few seconds by default.

    A checkpoint of the large model with its optimiser's moments needs a tenth of each. The values of tensors are
    not in the pickle and do not count.
    """

    members: int = 20_000
    """Files in the archive, where each tensor has one."""

    directory_bytes: int = 4 << 20
    """Size of the archive's table of contents."""

    dimensions: int = 16
    """Axes of one tensor."""

    held_twice: int = 2
    """Tensors may share values (tied weights), but add up to at most this many times what the file holds."""


LIMITS = Limits()
"""The limits of ``import-weights``."""
