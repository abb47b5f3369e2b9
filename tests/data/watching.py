"""A reporter that passes on what it hears, for tests that count, stop or record."""

from __future__ import annotations

from collections.abc import Callable

from pointdistill.reporter import Reporter


class Watching(Reporter):
    """Records lines and tasks; calls ``on_progress`` with the parts done and their total."""

    def __init__(self, on_progress: Callable[[int, int | None], object] | None = None) -> None:
        self._on_progress = on_progress
        self.said: list[str] = []
        self.tasks: list[str] = []
        self.notes: list[str] = []

    def say(self, line: str, *settings: str) -> None:
        self.said.append(line)

    def progress(
        self, task: str, done: float, total: float | None = None, *, note: str = "", unit: str = ""
    ) -> None:
        if self.tasks[-1:] != [task]:
            self.tasks.append(task)
        self.notes.append(note)
        if self._on_progress:
            self._on_progress(int(done), None if total is None else int(total))
