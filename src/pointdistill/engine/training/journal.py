"""The rows of a run: ``metrics.jsonl`` always, and Accelerate's trackers by name."""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from pointdistill.errors import ConfigError

log = logging.getLogger("pointdistill")

PACKAGES = {"comet_ml": "comet-ml", "dvclive": "dvclive"}
"""Where a tracker's package is not called as it is."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise unless every tracker exists and its package is installed.

    Raises:
        ConfigError: with the nearest name, or with the package to install.
    """
    available = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            near = difflib.get_close_matches(name, LOGGER_TYPE_TO_CLASS, n=1)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else "there are " + ", ".join(LOGGER_TYPE_TO_CLASS)
            )
            msg = f"no tracker {name!r}; {hint}"
            raise ConfigError(msg)
        if name not in available:
            package = PACKAGES.get(name, name)
            msg = (
                f"tracker {name!r} needs a package that is not installed; run `pip install {package}`, or leave "
                "it out: metrics.jsonl is always written"
            )
            raise ConfigError(msg)


class Journal:
    """Where the rows of a run go; written by one process of several.

    A row that a full disk refuses is kept and written with the next, so that no row is lost or cut short.
    """

    def __init__(self, path: Path, accelerator: Accelerator, settings: Mapping[str, Any]) -> None:
        """Rows go to ``path`` and to the trackers that the accelerator was made with, under ``settings``."""
        self.path = path
        self.accelerator = accelerator
        self.tracks = bool(accelerator.log_with)
        self._waiting: list[str] = []
        self._warned = False
        if self.tracks:
            accelerator.init_trackers("pointdistill", config=_flat(settings))

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row; ``step`` is its place on the trackers' axis."""
        if self.accelerator.is_main_process:
            self._waiting.append(json.dumps(row) + "\n")
            self._write_waiting()
        if self.tracks:
            numbers = {n: v for n, v in row.items() if n != "step" and isinstance(v, int | float)}
            self.accelerator.log(numbers, step=row["step"])

    def flush(self) -> None:
        """Put the rows on the disk, before a checkpoint that counts on them."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        """Write what a full disk refused, and let the trackers finish."""
        if self._waiting:
            self._write_waiting()
        if self.tracks:
            for tracker in self.accelerator.trackers:
                tracker.finish()

    def _write_waiting(self) -> None:
        """Append what waits, whole or not at all."""
        begin = self.path.stat().st_size if self.path.is_file() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(self._waiting))
        except OSError as error:
            if self.path.is_file():
                os.truncate(self.path, begin)
            if not self._warned:
                log.warning("%s: %s; its rows are kept for later", self.path, error.strerror)
            self._warned = True
        else:
            self._waiting.clear()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Settings under dotted names, as trackers take them."""
    found: dict[str, int | float | str | bool] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float | str):
            found[f"{prefix}{name}"] = value
        else:
            found[f"{prefix}{name}"] = str(value)
    return found
