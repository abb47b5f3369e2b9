"""A task that takes longer than any test waits; it notes which process does it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def sleep_long(task: str, _: Callable[[int], None]) -> None:
    """Write this process's id to the file ``task``, and wait."""
    Path(task).write_text(str(os.getpid()))
    time.sleep(60)
