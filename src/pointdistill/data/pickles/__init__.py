"""Reads foreign pickles as data: nothing that they name is imported, nothing in them is called."""

from __future__ import annotations

from pointdistill.data.pickles.inert_pickle import read_pickle
from pointdistill.data.pickles.limits import PickleLimits, Purpose, shown
from pointdistill.data.pickles.names import Builder, Globals, Placeholder, Stateful

__all__ = [
    "Builder",
    "Globals",
    "PickleLimits",
    "Placeholder",
    "Purpose",
    "Stateful",
    "read_pickle",
    "shown",
]
