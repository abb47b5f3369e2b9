"""What long work tells whoever started it: lines, how far it is, and that a signal arrived."""

from __future__ import annotations


class Reporter:
    """Receives what a long call tells; this one ignores it all.

    Pass a subclass to show, record or forward what arrives. Every method may be called from the thread that does
    the work, never from another one.
    """

    def say(self, line: str, *settings: str) -> None:
        """One line a user should read.

        Args:
            line: complete without ``settings``.
            settings: names of the parameters that change what the line says, so that a command line can name its
                options for them.
        """

    def progress(
        self, task: str, done: float, total: float | None = None, *, note: str = "", unit: str = ""
    ) -> None:
        """How far a task is.

        Args:
            task: what is being done; another text begins another task.
            done: parts finished.
            total: parts in all; None where that is not known.
            note: anything beside it, such as a loss.
            unit: what a part is, where it is not simply one of the things named in ``task``: ``bytes``.
        """

    def on_signal(self) -> None:
        """Called inside the handler of the first Ctrl-C or SIGTERM, before the work reaches a place to stop."""


SILENT = Reporter()
"""For callers that want to hear nothing."""


def format_duration(seconds: float) -> str:
    """A duration to two digits: ``3 s``, ``25 min``, ``3.4 h``, ``12 days``."""
    for unit, size in (("days", 86_400.0), ("h", 3_600.0)):
        if seconds >= 2 * size:
            count = seconds / size
            return f"{count:.1f} {unit}" if count < 9.95 else f"{count:.0f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
