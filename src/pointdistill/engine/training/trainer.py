"""The loop of a run on one process: steps, what is learned of them, what is written down."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator

from pointdistill.engine.config import to_plain
from pointdistill.engine.training.collapse import CollapseWatch
from pointdistill.engine.training.journal import Journal
from pointdistill.engine.training.loader import Batch, batches, made_ahead, on_device
from pointdistill.engine.training.readings import Reading, Readings, describe_unsound, steps_behind
from pointdistill.engine.training.run_folder import (
    CHECKPOINTS,
    METRICS,
    TrainingCorpus,
    licence_ledger,
    save_teacher,
)
from pointdistill.engine.training.run_options import RunOptions
from pointdistill.engine.training.run_probe import RunProbe
from pointdistill.engine.training.saving import Saver, Snapshot, take_snapshot, write_snapshot
from pointdistill.engine.training.sharding import prepare_student
from pointdistill.engine.training.state import TrainState, list_checkpoints
from pointdistill.engine.training.step import Stepper, make_views
from pointdistill.errors import CheckpointError, DivergenceError
from pointdistill.model.distillation import Views

log = logging.getLogger("pointdistill")


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one optimiser step is reported as."""

    step: int
    """Steps taken, from 1."""

    total: int
    epoch: int
    batch_size: int
    loss: float
    terms: dict[str, float]
    gradient_norm: float
    learning_rate: float
    shapes_per_second: float
    probe: dict[str, float] = field(default_factory=dict)
    """``probe_accuracy`` and what belongs to it, after the steps that were probed."""


class Stopwatch:
    """Seconds of a run, over all calls, and of the lap since it was last looked at."""

    def __init__(self, spent: float) -> None:
        self.spent = spent
        self._since = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last look."""
        now = time.perf_counter()
        passed, self._since = now - self._since, now
        self.spent += passed
        return passed


class Trainer:
    """One process's part in a run."""

    def __init__(
        self,
        state: TrainState,
        corpus: TrainingCorpus,
        accelerator: Accelerator,
        run: Path,
        options: RunOptions,
        *,
        spent: float,
        probe: RunProbe | None,
    ) -> None:
        """Train ``state``, which is on its device; ``probe`` is given to the main process alone."""
        config = state.config
        self.state, self.corpus, self.accelerator = state, corpus, accelerator
        self.run, self.options, self.probe = run, options, probe
        self.total = config.total_steps(len(corpus))
        self.per_epoch = config.steps_per_epoch(len(corpus))
        self.last = min(self.total, options.stop_at or self.total)
        student = prepare_student(state, accelerator, options.sharding)
        self.step = Stepper(state, student, accelerator, total=self.total, per_epoch=self.per_epoch)
        self.readings = Readings(steps_behind(accelerator.device))
        self.collapse = CollapseWatch(
            self.total, config.head.prototypes, config.batch_size * config.global_crop.count
        )
        self.journal = Journal(run / METRICS, accelerator, to_plain(config))
        self.saver = Saver(self._write, safe=state.step)
        self.clock = Stopwatch(spent)
        self.saved_at = time.monotonic()
        self.loss = math.nan
        self._stopping = self._save_due = False

    def train(self, report: Callable[[StepRecord], None], stopped: Callable[[], bool]) -> float:
        """Steps until the run's end, ``stop_at``, or a signal; then a last checkpoint. The last step's loss.

        Raises:
            DivergenceError: if a number was not finite; the state before that step is saved.
            Exception: what was wrong with the shapes of a step, likewise.
            CheckpointError: if the last checkpoint cannot be written.
        """
        try:
            for batch, views in self._with_views():
                votes = {"stop": stopped(), "save": self._is_time_to_save()}
                watch = self._is_logged(self.state.step + 1)
                if self.state.step + 1 - self.saver.safe > self.options.save_every:
                    self.saver.wait()  # A kill must not cost more, so the disk is waited for after all.
                self.readings.send(self.step(batch, views, watch=watch, votes=votes))
                self._read(report, everything=self._pauses(self.state.step))
                if self._stopping or (self.accelerator.num_processes == 1 and stopped()):
                    break
                if self._save_due and self.state.step < self.last:
                    self._read(report, everything=True)
                    self._save()
            self._read(report, everything=True)
            self._finish()
        finally:
            self.saver.close()
            self.journal.close()
        return self.loss

    def _with_views(self) -> Iterator[tuple[Batch, Views]]:
        """Each batch and its views: made on the GPU in their turn, on a CPU one step ahead."""
        device, config = self.accelerator.device, self.state.config
        source = batches(
            self.corpus,
            batch_size=config.batch_size,
            seed=config.seed,
            first=self.state.step,
            last=self.last,
            part=self.accelerator.process_index,
            parts=self.accelerator.num_processes,
            pin=device.type == "cuda",
        )

        def make(batch: Batch) -> tuple[Batch, Views]:
            return batch, make_views(batch, config)

        sent = on_device(source, device)
        return made_ahead(sent, make) if device.type == "cpu" else map(make, sent)

    def _is_logged(self, step: int) -> bool:
        return step % self.options.log_every == 0 or step in (1, self.last) or self._is_probed(step)

    def _is_probed(self, step: int) -> bool:
        """The same on all processes: with FSDP they all have a part in it."""
        if self.options.probe is None:
            return False
        return step % (self.options.probe_every * self.per_epoch) == 0 or step == self.total

    def _is_saved(self, step: int) -> bool:
        return step % self.options.steps_between_checkpoints == 0

    def _pauses(self, step: int) -> bool:
        """Whether something follows that needs to know that every step so far was taken."""
        return step == self.last or self._is_probed(step) or self._is_saved(step)

    def _is_time_to_save(self) -> bool:
        """Where steps are slow, checkpoints are due every so many minutes."""
        return time.monotonic() - self.saved_at > 60 * self.options.save_minutes

    def _read(self, report: Callable[[StepRecord], None], *, everything: bool) -> None:
        """Take in what has arrived of the steps."""
        for reading in self.readings.arrived(everything=everything):
            if not reading.sound:
                self._refuse(reading)
            self._take_in(reading, report)

    def _take_in(self, reading: Reading, report: Callable[[StepRecord], None]) -> None:
        """A step that was taken: written down, watched, reported."""
        values, config = reading.values, self.state.config
        speed = config.batch_size / self.clock.lap()
        self.loss = values["loss"]
        self._stopping |= values["stop"] > 0.0
        self._save_due |= values["save"] > 0.0 or self._is_saved(reading.step)
        probed = self._probed() if self._is_probed(reading.step) else {}
        if self._is_logged(reading.step):
            self.journal.write(self._row(reading, speed) | probed)
            for line in self.collapse.look(reading.step, values):
                if self.accelerator.is_main_process:
                    log.warning(line)
        report(
            StepRecord(
                step=reading.step,
                total=self.total,
                epoch=reading.epoch,
                batch_size=config.batch_size,
                loss=values["loss"],
                terms={name: values[name] for name in reading.terms},
                gradient_norm=values["gradient_norm"],
                learning_rate=reading.rates.learning_rate,
                shapes_per_second=speed,
                probe=probed,
            )
        )

    def _row(self, reading: Reading, speed: float) -> dict[str, float]:
        rates, warmth = reading.rates, reading.rates.temperatures
        unsaid = {"taken", "stop", "save", "centers"}
        return {
            "step": reading.step,
            "epoch": reading.epoch,
            **{name: value for name, value in reading.values.items() if name not in unsaid},
            "learning_rate": rates.learning_rate,
            "teacher_momentum": rates.teacher_momentum,
            "cls_temperature": warmth.cls_teacher,
            "patch_temperature": warmth.patch_teacher,
            "student_temperature": warmth.student,
            "shapes_per_second": round(speed, 2),
            "seconds": round(self.clock.spent, 3),
        }

    def _probed(self) -> dict[str, float]:
        """What the probe says of the teacher as it is now; nothing on processes that have none."""
        snapshot = None
        if self.probe is not None or self.options.sharding == "fsdp":
            snapshot = take_snapshot(
                self.state, seconds=0.0, keep=self.probe is not None, moments=False
            )
        found = {}
        if self.probe is not None and snapshot is not None:
            found = self.probe(snapshot.teacher_encoder())
        self.clock.lap()
        return found

    def _refuse(self, reading: Reading) -> None:
        """Stop at a step that was not taken, with the state of the step before it."""
        self.readings.forget()
        self.state.step = reading.step - 1
        saved = self._rescue()
        if reading.fault is not None:
            raise reading.fault
        others = ", see what other processes said" if self.accelerator.num_processes > 1 else ""
        msg = (
            f"step {reading.step}: {describe_unsound(reading)}; the weights were not changed. "
            f"Last good checkpoint: {saved}. --resume would meet it again: check the corpus (verify_corpus)"
            f"{others}, or start a run with a lower learning rate"
        )
        raise DivergenceError(msg)

    def _save(self) -> None:
        """Copy the state as it is now, and let it be written."""
        snapshot = self._snapshot()
        if snapshot is not None:
            self.saver.save(snapshot)
        self.clock.lap()

    def _snapshot(self) -> Snapshot | None:
        self.saved_at, self._save_due = time.monotonic(), False
        return take_snapshot(
            self.state, seconds=self.clock.spent, keep=self.accelerator.is_main_process
        )

    def _finish(self) -> None:
        """Write the state as it is now, and wait until it is there; nothing before the first step."""
        if not self.state.step:
            return
        self.saver.finish(self._snapshot(), instead=self._newest)

    def _rescue(self) -> str:
        """Save the state as it is, so that nothing learned is lost; the newest checkpoint, for a message."""
        try:
            self._finish()
        except CheckpointError as error:
            log.warning("%s", error)
            return self._newest()
        step = self.state.step
        return str(self.run / CHECKPOINTS / f"step-{step:08d}") if step else "none yet"

    def _newest(self) -> str:
        saved = list_checkpoints(self.run / CHECKPOINTS)
        return str(saved[-1]) if saved else "none yet"

    def _write(self, snapshot: Snapshot) -> None:
        """In the saver's thread."""
        self.journal.flush()
        write_snapshot(snapshot, self.run / CHECKPOINTS, keep=self.options.keep)
        save_teacher(
            snapshot.teacher_encoder(),
            snapshot.step,
            snapshot.config,
            self.run,
            licence_ledger(self.corpus),
            total=self.total,
        )
