"""A reporter that keeps what it is told, for tests to look at."""

from __future__ import annotations

from collections.abc import Callable

from pointdistill.reporter import Reporter, StepRecord, TrainingReporter


class Recorder(Reporter):
    """``lines`` with the ``settings`` that each names, ``tasks`` as (task, done, total, note)."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.settings: list[tuple[str, ...]] = []
        self.tasks: list[tuple[str, float, float | None, str]] = []

    def say(self, line: str, *settings: str) -> None:
        self.lines.append(line)
        self.settings.append(settings)

    def progress(
        self, task: str, done: float, total: float | None = None, *, note: str = "", unit: str = ""
    ) -> None:
        self.tasks.append((task, done, total, note))


class OnStep(TrainingReporter):
    """Calls a function with the record of each step."""

    def __init__(self, function: Callable[[StepRecord], object]) -> None:
        self.function = function

    def step(self, record: StepRecord) -> None:
        self.function(record)
