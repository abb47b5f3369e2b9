"""A reporter that keeps what it is told."""

from __future__ import annotations

from pointdistill.reporter import Reporter


class Recorder(Reporter):
    """Lines, the settings they name, and every report of progress."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.settings: tuple[str, ...] = ()
        self.steps: list[tuple[str, float, float | None]] = []
        self.notes: list[str] = []

    def say(self, line: str, *settings: str) -> None:
        self.said.append(line)
        self.settings = settings

    def progress(
        self, task: str, done: float, total: float | None = None, *, note: str = "", unit: str = ""
    ) -> None:
        self.steps.append((task, done, total))
        self.notes.append(note)
