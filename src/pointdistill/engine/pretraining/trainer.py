"""The loop of a run on one process: steps, their metrics, checkpoints."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator

from pointdistill.engine.config.config import to_plain
from pointdistill.engine.pretraining.checkpoints import (
    Saver,
    Snapshot,
    take_snapshot,
    write_snapshot,
)
from pointdistill.engine.pretraining.loader import Batch, batches, made_ahead, on_device
from pointdistill.engine.pretraining.monitor import (
    CollapseWatch,
    HostMetrics,
    Journal,
    MetricsQueue,
    steps_behind,
    why_not_applied,
)
from pointdistill.engine.pretraining.online_probe import RunProbe
from pointdistill.engine.pretraining.run_folder import (
    CHECKPOINTS,
    METRICS,
    TrainingCorpus,
    licence_ledger,
    save_teacher,
)
from pointdistill.engine.pretraining.sharding import prepare_student
from pointdistill.engine.pretraining.state import TrainState, list_checkpoints
from pointdistill.engine.pretraining.step import StopAndSaveFlags, TrainingStep, make_views
from pointdistill.engine.runtime.devices import DEVICES, PRECISIONS
from pointdistill.engine.runtime.schedules import Rates
from pointdistill.errors import CheckpointError, ConfigError, DivergenceError
from pointdistill.model.distillation import Views
from pointdistill.reporter import StepRecord, TrainingReporter

if TYPE_CHECKING:
    pass

# How a run is executed: choices that change its numbers by no more than rounding.

SHARDINGS = ("none", "fsdp")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How a run is executed. ``device``, ``precision`` and ``sharding`` decide how its numbers are rounded; the
    others change no bit of them.

    Raises:
        ConfigError: for a value that is not accepted.
    """

    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""

    precision: str = "auto"
    """``auto``, ``no`` (float32) or ``bf16``. ``auto`` is the precision that a resumed run was begun in; for a new
    run, and on a CPU for one begun on a GPU, bf16 on a GPU and float32 on a CPU."""

    sharding: str = "none"
    """``none``: every process holds the whole model (DDP). ``fsdp``: they hold a part each."""

    save_every: int = 500
    """Steps that a kill may cost at the most. Checkpoints are begun a tenth earlier, so that they are on the disk
    by then without training having waited."""

    save_minutes: float = 10.0
    """Minutes after which a checkpoint is due whatever the steps."""

    keep: int = 2
    """Checkpoints kept, the newest; with 2 there is one before the last in case the last is damaged."""

    log_every: int = 10
    """Steps between rows of ``metrics.jsonl``; the first and the last are always written."""

    track: tuple[str, ...] = ()
    """Accelerate's trackers that are told every row, by name: ``tensorboard``, ``wandb``, …"""

    probe: str | None = None
    """Labelled set on which nearest neighbours of the teacher's features are judged: ``builtin``, a corpus, or the
    archive of a benchmark; None for none."""

    probe_every: int = 5
    """Epochs between probes; the run's last step is always probed."""

    stop_at: int | None = None
    """Save and return after this step, as if interrupted."""

    @property
    def steps_between_checkpoints(self) -> int:
        """After how many steps the next checkpoint is begun."""
        return self.save_every - self.save_every // 10

    def __post_init__(self) -> None:
        for name, accepted in (
            ("device", DEVICES),
            ("precision", PRECISIONS),
            ("sharding", SHARDINGS),
        ):
            if getattr(self, name) not in accepted:
                msg = f"{name} must be one of {', '.join(accepted)}, got {getattr(self, name)!r}"
                raise ConfigError(msg)
        for name in ("save_every", "keep", "log_every", "probe_every"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise ConfigError(msg)
        if not self.save_minutes > 0.0:
            msg = f"save_minutes must be positive, got {self.save_minutes}"
            raise ConfigError(msg)


log = logging.getLogger("pointdistill")


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
        self.step = TrainingStep(state, student, accelerator)
        self.queue = MetricsQueue(steps_behind(accelerator.device))
        self.collapse = CollapseWatch(
            self.total, config.head.prototypes, config.batch_size * config.global_crop.count
        )
        self.journal = Journal(run / METRICS, accelerator, to_plain(config))
        self.saver = Saver(self._write, safe=state.step)
        self.clock = Stopwatch(spent)
        self.saved_at = time.monotonic()
        self.loss = math.nan
        self._stopping = self._save_due = False

    def train(self, reporter: TrainingReporter, stopped: Callable[[], bool]) -> float:
        """Steps until the run's end, ``stop_at``, or a signal; then a last checkpoint. The last step's loss.

        Raises:
            DivergenceError: if a number was not finite; the state before that step is saved.
            Exception: what was wrong with the shapes of a step, likewise.
            CheckpointError: if the last checkpoint cannot be written.
        """
        try:
            for batch, views in self._with_views():
                flags = StopAndSaveFlags(stop=stopped(), save=self._is_time_to_save())
                if self.state.step + 1 - self.saver.safe > self.options.save_every:
                    self.saver.wait()  # A kill must not cost more, so the disk is waited for after all.
                metrics = self.step(
                    batch,
                    views,
                    self._rates(),
                    # Entropies of a step's posteriors cost a pass over all the teacher's logits.
                    watch=self._is_logged(self.state.step + 1),
                    stop_and_save_flags=flags,
                )
                self.queue.send(metrics)
                self._read(reporter, everything=self._pauses(self.state.step))
                # Several processes must stop after the same step, which only the message between them can settle.
                if self._stopping or (self.accelerator.num_processes == 1 and stopped()):
                    break
                if self._save_due and self.state.step < self.last:
                    self._read(reporter, everything=True)
                    self._save()
            self._read(reporter, everything=True)
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

    def _rates(self) -> Rates:
        """What the schedules say at the next step; they count steps from 0."""
        return self.state.config.schedule.at(
            self.state.step, total=self.total, steps_per_epoch=self.per_epoch
        )

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
        """Whether something follows that needs to know that every step so far was applied.

        A GPU is then waited for: the price of a probe or a checkpoint, not of every step.
        """
        return step == self.last or self._is_probed(step) or self._is_saved(step)

    def _is_time_to_save(self) -> bool:
        """Whether minutes ask for a checkpoint, as they do where steps are slow."""
        return time.monotonic() - self.saved_at > 60 * self.options.save_minutes

    def _read(self, reporter: TrainingReporter, *, everything: bool) -> None:
        """Handle the metrics that have arrived."""
        for metrics in self.queue.arrived(everything=everything):
            if not metrics.step_applied:
                self._refuse(metrics)
            self._record(metrics, reporter)

    def _record(self, metrics: HostMetrics, reporter: TrainingReporter) -> None:
        """Log, watch and report a step that was applied."""
        logged, config = metrics.logged, self.state.config
        speed = config.batch_size / self.clock.lap()
        self.loss = logged["loss"]
        self._stopping |= metrics.outcome.stop > 0.0
        self._save_due |= metrics.outcome.save > 0.0 or self._is_saved(metrics.step)
        probed = self._probed() if self._is_probed(metrics.step) else {}
        if self._is_logged(metrics.step):
            self.journal.write(self._row(metrics, speed) | probed)
            for line in self.collapse.look(metrics.step, logged):
                if self.accelerator.is_main_process:
                    log.warning(line)
        reporter.step(
            StepRecord(
                step=metrics.step,
                total=self.total,
                epoch=metrics.epoch,
                batch_size=config.batch_size,
                loss=logged["loss"],
                terms={name: logged[name] for name in metrics.terms},
                gradient_norm=logged["gradient_norm"],
                learning_rate=metrics.rates.learning_rate,
                shapes_per_second=speed,
                probe=probed,
            )
        )

    def _row(self, metrics: HostMetrics, speed: float) -> dict[str, float]:
        rates, temperatures = metrics.rates, metrics.rates.temperatures
        return {
            "step": metrics.step,
            "epoch": metrics.epoch,
            **metrics.logged,
            "learning_rate": rates.learning_rate,
            "teacher_momentum": rates.teacher_momentum,
            "cls_temperature": temperatures.cls_teacher,
            "patch_temperature": temperatures.patch_teacher,
            "student_temperature": temperatures.student,
            "shapes_per_second": round(speed, 2),
            "seconds": round(self.clock.spent, 3),
        }

    def _probed(self) -> dict[str, float]:
        """Scores of the teacher as it is now; none on processes without a probe."""
        snapshot = None
        if self.probe is not None or self.options.sharding == "fsdp":
            snapshot = take_snapshot(
                self.state, seconds=0.0, keep=self.probe is not None, moments=False
            )
        found = {}
        if self.probe is not None and snapshot is not None:
            found = self.probe(snapshot.teacher_encoder())
        self.clock.lap()  # a probe's time is not the next step's
        return found

    def _refuse(self, metrics: HostMetrics) -> None:
        """Stop at a step that was called off, with the state of the step before it."""
        # Steps that were queued after it changed nothing either, so the state is still that of before.
        self.queue.discard()
        self.state.step = metrics.step - 1
        saved = self._rescue()
        if metrics.read_error is not None:
            raise metrics.read_error
        others = ", see what other processes said" if self.accelerator.num_processes > 1 else ""
        msg = (
            f"step {metrics.step}: {why_not_applied(metrics)}; the weights were not changed. "
            f"Last good checkpoint: {saved}. A resumed run would meet it again: check the corpus (verify_corpus)"
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


# A reporter that also sees every step of a training.
