"""Sources for the tests of builds, in a module of their own so that worker processes can import it."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.sources.base import Entry, SourceCloud
from pointdistill.errors import DataError


def segfault() -> None:
    ctypes.string_at(0)


def hang_in_c() -> None:
    ctypes.PyDLL(None).pause()  # keeps the interpreter's lock


def hoard() -> None:
    """Half a GiB, a little at a time."""
    blocks = []
    for _ in range(64):
        blocks.append(np.empty(2**23, np.uint8))


def hoard_quietly() -> None:
    """As a library that makes something else of the error, and does not name it as its cause."""
    try:
        np.empty(2**55)
    except MemoryError:
        raise ValueError("cannot parse this") from None


RETRYABLE_FAULTS: dict[str, Callable[[], object]] = {
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(3),
    "segfault": segfault,
    "hang": lambda: time.sleep(1000),
    "hang in C": hang_in_c,
    "one huge array": lambda: np.empty(2**55),
    "hoard": hoard,
    "hoard quietly": hoard_quietly,
}


@dataclass(frozen=True, slots=True)
class OddSource:
    """``shapes`` random clouds; ``odd`` names the behaviour of some, by number.

    Once the folder ``scratch`` has a file ``healed``, what failed is as good as any. Where it has a
    file ``reads``, every shape that is read is added to it.
    """

    shapes: int
    odd: dict[int, str] = field(default_factory=dict)
    scratch: Path = Path()
    name: str = "odd"

    @property
    def facts(self) -> SourceFacts:
        return SourceFacts(
            name=self.name,
            licence="none",
            origin="a test",
            turned="none",
            labels=("even", "uneven"),
            settings={"shapes": self.shapes},
        )

    def entries(self) -> Sequence[Entry]:
        # Backwards: the build sorts.
        return [Entry(f"{k:04d}", label=k % 2, where=str(k)) for k in reversed(range(self.shapes))]

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:
        number = int(entry.where)
        if (self.scratch / "reads").is_file():
            with (self.scratch / "reads").open("a") as file:
                file.write(f"{number}\n")
        if (behaviour := RETRYABLE_FAULTS.get(self.odd.get(number, ""))) and not (
            self.scratch / "healed"
        ).is_file():
            behaviour()
        points = rng.normal(size=(count, 3)).astype(np.float32)
        part = (np.arange(count) % 3).astype(np.uint8)
        match self.odd.get(number):
            case "raise":
                raise ValueError("a reader's own\nbug")
            case "refuse":
                raise DataError("a cause")
            case "nan":
                points[5, 1] = np.nan
            case "few":
                return SourceCloud(points[:31])
            case "fewest":
                return SourceCloud(points[:32])
            case "many":
                return SourceCloud(rng.normal(size=(count * 2, 3)).astype(np.float32))
            case "one place":
                points[:] = points[0]
            case "wrong parts":
                part = part[:-1]
            case "die once":
                mark = self.scratch / "died"
                if not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            case "full disk":
                raise OSError(errno.ENOSPC, "No space left on device")
            case "slow":
                time.sleep(0.02)
        return SourceCloud(points, part)
