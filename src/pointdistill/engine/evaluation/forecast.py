"""A forecast of how long work will take, given once, after its first part was timed."""

from __future__ import annotations

import time
from collections.abc import Callable

from pointdistill.reporter import Reporter, format_duration

MEASURED_SECONDS = 2.0
"""Least measured time to forecast from."""

WORTH_SAYING_SECONDS = 60.0
"""Remaining time below which nothing is said."""

SHORTER = ("fewer epochs shorten it, as a deviation from the protocol", ("epochs",))
"""Hint for trainings, and the setting that it is about."""


class Forecast:
    """Watches how far work is and says, once, how long the rest of it will take."""

    hint = ""
    """How to make it shorter."""

    settings: tuple[str, ...] = ()
    """Parameters that the hint is about."""

    def __init__(
        self, reporter: Reporter, what: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin to time.

        Args:
            reporter: told the one line.
            what: what takes the time.
            clock: seconds; another one for tests.
        """
        self._reporter, self._what, self._clock = reporter, what, clock
        self._began = clock()
        self._before: float | None = None
        self._said = False

    def __call__(self, done: float, total: float, *, latest: float | None = None) -> None:
        """``done`` of ``total`` parts of equal cost are done.

        ``latest`` of them are new in the first call, by default all: after a resume, those done before took their
        time in an earlier process.
        """
        if self._before is None:
            self._before = 0.0 if latest is None else done - latest
        spent, new = self._clock() - self._began, done - self._before
        if self._said or new <= 0 or spent < MEASURED_SECONDS:
            return
        self._said = True
        rest = spent / new * (total - done)
        if rest >= WORTH_SAYING_SECONDS:
            hint = f"; {self.hint}" if self.hint else ""
            self._reporter.say(
                f"{self._what}: about {format_duration(rest)} to go, by the first {format_duration(spent)}; "
                f"what is finished is kept, Ctrl-C and the same command go on from there{hint}",
                *self.settings,
            )
