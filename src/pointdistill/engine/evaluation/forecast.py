"""What something long will cost, said once it is known: after the first measured part, never before."""

from __future__ import annotations

import time
from collections.abc import Callable

Say = Callable[[str], None]
"""Told, a line at a time, what a user should know."""

Count = Callable[[int, int], None]
"""Told how many are done and how many there are."""

MEASURED_SECONDS = 2.0
"""Least measured time to forecast from."""

WORTH_SAYING_SECONDS = 60.0
"""Remaining time below which nothing is said."""


class Forecast:
    """Watches work go by and says, once, how long the rest of it will take."""

    def __init__(
        self, say: Say, what: str, *, hint: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin to measure.

        Args:
            say: told the one line.
            what: what takes the time.
            hint: how to make it shorter.
            clock: seconds; another one for tests.
        """
        self._say, self._what, self._hint, self._clock = say, what, hint, clock
        self._began = clock()
        self._before: float | None = None
        self._said = False

    def __call__(self, done: float, total: float, *, latest: float | None = None) -> None:
        """``done`` of ``total`` parts of equal cost are done.

        ``latest`` of them are new in the first call, by default all: what was gone on with was done another time.
        """
        if self._before is None:
            self._before = 0.0 if latest is None else done - latest
        spent, new = self._clock() - self._began, done - self._before
        if self._said or new <= 0 or spent < MEASURED_SECONDS:
            return
        self._said = True
        rest = spent / new * (total - done)
        if rest >= WORTH_SAYING_SECONDS:
            hint = f"; {self._hint}" if self._hint else ""
            self._say(
                f"{self._what}: about {in_words(rest)} to go, by the first {in_words(spent)}; what is finished "
                f"is kept, Ctrl-C and the same command go on from there{hint}"
            )


def in_words(seconds: float) -> str:
    """A duration to two digits: ``3 s``, ``25 min``, ``3.4 h``, ``12 days``."""
    for unit, size in (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * size or (unit == "min" and seconds >= 90):
            count = seconds / size
            return (
                f"{count:.1f} {unit}" if count < 9.95 and unit != "min" else f"{count:.0f} {unit}"
            )
    return f"{seconds:.0f} s"
