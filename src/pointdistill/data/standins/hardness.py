"""How hard the ScanObjectNN stand-in is, in one place, with a version.

Numbers measured on the stand-in can be compared only within one version. A change of any value
here, or of the code that reads it, is a new version.
"""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardness:
    """What stands between a shape and its scan; the unit is the object's bounding radius."""

    version: int = 1
    """Raised with every change, and written into the archive."""

    tilt_degrees: float = 2.0
    """Largest error of the scanner's upright direction."""

    elevation_degrees: Range = (20.0, 45.0)
    """The camera's height above the horizon, seen from the object."""

    distance: Range = (2.5, 4.0)
    """From the object's centre to the camera."""

    views: int = 3
    """Cameras that see an object; with one, much less is left of it."""

    between_views_degrees: Range = (40.0, 50.0)
    """How far around the object each camera stands from the one before."""

    occluder: float = 0.1
    """Share of views in which something in front hides one side of the object."""

    occluded_share: Range = (0.1, 0.25)
    """How much of what that view would see is hidden then."""

    wall: float = 0.15
    """Share of rooms with a wall close behind the object, beside the floor that every room has."""

    neighbour: float = 0.2
    """Share of rooms with another object that reaches into this one's box."""

    clutter_share: Range = (0.05, 0.15)
    """Background points among all points of an OBJ-BG cloud."""

    jitter: float = 0.005
    """Standard deviation of the sensor's noise, on every axis."""


HARDNESS = Hardness()
"""The stand-in that every reported number refers to."""

STAND_IN_SEED = 40_417
"""Its seed, for both benchmarks; not one that a user would choose for a corpus."""
