"""Ctrl-C, SIGTERM and a closed terminal, as a flag that a loop checks between its steps."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interruptible(on_signal: Callable[[], None] | None = None) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether to stop; a second signal interrupts at once.

    Outside the main thread no handler can be set, and the answer is always no.

    Args:
        on_signal: called within the handler of the first signal, so that a user is answered at once even where
            the loop checks late.
    """
    received: list[int] = []

    def handle(number: int, _frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        if on_signal is not None:
            on_signal()

    # A closed terminal sends SIGHUP, which Windows does not have.
    signals = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
    try:
        before = {number: signal.signal(number, handle) for number in signals}
    except ValueError:
        before = {}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
