"""A reporter that also sees every step of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointdistill.reporter import Reporter

if TYPE_CHECKING:
    from pointdistill.engine.training.trainer import StepRecord


class TrainingReporter(Reporter):
    """Receives the record of each step; where that is not overridden, it becomes plain progress."""

    def step(self, record: StepRecord) -> None:
        """Called after a step whose record is ready."""
        note = f"loss {record.loss:.3f}, {record.shapes_per_second:.0f} shapes/s"
        self.progress("training", record.step, record.total, note=note)


SILENT_TRAINING = TrainingReporter()
"""For callers that want to hear nothing of a training."""
