"""The training loop on one process (steps, metrics, checkpoints), and the options of how a run is executed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from pointdistill.data.files.schema import to_plain
from pointdistill.engine.pretraining.checkpoints import (
    Saver,
    Snapshot,
    TrainState,
    list_checkpoints,
    take_snapshot,
    write_snapshot,
)
from pointdistill.engine.pretraining.execution import (
    COMPILE,
    ViewMaker,
    prepare_student,
    step_compiler,
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
    save_teacher,
)
from pointdistill.engine.pretraining.step import StopAndSaveFlags, TrainingStep, views_of
from pointdistill.engine.runtime.devices import DEVICES, PRECISIONS
from pointdistill.engine.runtime.schedules import Rates
from pointdistill.errors import CheckpointError, ConfigError, DivergenceError
from pointdistill.model.distillation import Views
from pointdistill.reporter import StepRecord, TrainingReporter

log = logging.getLogger("pointdistill")

SHARDINGS = ("none", "fsdp")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How a run is executed: options that change its numbers by no more than rounding.

    ``device``, ``precision``, ``sharding`` and ``compile`` decide how numbers are rounded; the others do not
    change a bit.

    Raises:
        ConfigError: for a value that is not accepted.
    """

    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""

    precision: str = "auto"
    """``auto``, ``no`` (float32) or ``bf16``. ``auto`` is bf16 on a GPU and float32 on a CPU; a resumed run keeps
    the precision it was started in, unless it moves from a GPU to a CPU."""

    sharding: str = "none"
    """``none``: every process holds the whole model (DDP). ``fsdp``: each holds a shard of it."""

    compile: str = "auto"
    """``auto`` fuses the step's operations by ``torch.compile`` in a single process on a GPU; ``on`` always does,
    and in such a process records them as a CUDA graph; ``off`` does neither. Without a working compiler the step
    is plain PyTorch, and one line says so."""

    save_every: int = 500
    """The most steps that a killed run can lose. Checkpoints are started a tenth earlier, so that they are usually
    on disk by then without training having to wait."""

    save_minutes: float = 10.0
    """Minutes after which a checkpoint is due, however few steps were taken."""

    keep: int = 2
    """Number of newest checkpoints to keep; with 2, a damaged last checkpoint still leaves the one before it."""

    log_every: int = 10
    """Steps between rows of ``metrics.jsonl``; the first and the last step are always logged."""

    track: tuple[str, ...] = ()
    """Names of Accelerate's trackers that also receive every row: ``tensorboard``, ``wandb``, …"""

    probe: str | None = None
    """Labelled set for the online k-nearest-neighbour probe of the teacher's features: ``builtin``, a corpus, or
    the archive of a benchmark; None for no probe."""

    probe_every: int = 5
    """Epochs between probes; the run's last step is always probed."""

    stop_at: int | None = None
    """Save and return after this step, as if interrupted."""

    @property
    def steps_between_checkpoints(self) -> int:
        """Steps from one periodic checkpoint to the next."""
        # A checkpoint is written in the background. Starting it a tenth early leaves it that many steps to finish
        # before ``save_every`` would force training to wait.
        return self.save_every - self.save_every // 10

    def __post_init__(self) -> None:
        for name, accepted in (
            ("device", DEVICES),
            ("precision", PRECISIONS),
            ("sharding", SHARDINGS),
            ("compile", COMPILE),
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


class Stopwatch:
    """Training time of a run, summed over resumes, and the time since the last call of ``lap``."""

    def __init__(self, spent: float) -> None:
        self.spent = spent
        self._since = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the previous call; adds them to ``spent``."""
        now = time.perf_counter()
        passed, self._since = now - self._since, now
        self.spent += passed
        return passed


class Trainer:
    """Trains a run on one process: the loop around ``TrainingStep``."""

    def __init__(
        self,
        state: TrainState,
        corpus: TrainingCorpus,
        accelerator: Accelerator,
        run: Path,
        options: RunOptions,
        *,
        spent: float,
        warnings: Sequence[str] = (),
        probe: RunProbe | None,
    ) -> None:
        """Prepare to train.

        Args:
            state: already on the accelerator's device.
            corpus: shapes to learn from.
            accelerator: this process's device and its connection to the others.
            run: the run's folder.
            options: how the run is executed.
            spent: seconds spent on the run before it was resumed.
            warnings: those that the run gave before it was resumed.
            probe: the online probe; on the main process only.
        """
        config = state.config
        self.state, self.corpus, self.accelerator = state, corpus, accelerator
        self.run, self.options, self.probe = run, options, probe
        self.total = config.total_steps(len(corpus))
        self.per_epoch = config.steps_per_epoch(len(corpus))
        self.last = min(self.total, options.stop_at or self.total)
        student = prepare_student(state, accelerator, options.sharding)
        compiler = step_compiler(options.compile, accelerator, sharding=options.sharding)
        self.step = TrainingStep(state, student, accelerator, compiler)
        self.queue = MetricsQueue(steps_behind(accelerator.device))
        # The views of all processes, since the posteriors' statistics are averaged over processes.
        self.collapse = CollapseWatch(
            self.total, config.head.prototypes, config.batch_size * config.global_crop.count
        )
        self.journal = Journal(run / METRICS, accelerator, to_plain(config))
        self.saver = Saver(self._write, safe=state.step)
        self.warnings = list(warnings)
        self.clock = Stopwatch(spent)
        self.saved_at = time.monotonic()
        self.loss = math.nan
        self._stopping = self._save_due = False

    def train(self, reporter: TrainingReporter, stopped: Callable[[], bool]) -> float:
        """Train to the end of the run, ``stop_at`` or a signal, and save a last checkpoint; returns the last loss.

        Raises:
            DivergenceError: if a number was not finite; the state before that step is saved.
            Exception: the error that reading a step's shapes raised; the state before that step is saved.
            CheckpointError: if the last checkpoint cannot be written.
        """
        try:
            for batch, views in self._with_views():
                flags = StopAndSaveFlags(stop=stopped(), save=self._is_time_to_save())
                if self.state.step + 1 - self.saver.safe > self.options.save_every:
                    # Normally the checkpoint is on disk by now. On a slow disk training waits for it, because
                    # ``save_every`` promises how many steps a kill can cost.
                    self.saver.wait()
                metrics = self.step(
                    batch,
                    views,
                    self._rates(),
                    # Entropies cost a pass over all the teacher's logits, so only logged steps compute them.
                    watch=self._is_logged(self.state.step + 1),
                    stop_and_save_flags=flags,
                )
                self.queue.send(metrics)
                self._read(reporter, everything=self._pauses(self.state.step))
                # Several processes must stop after the same step, or those that continue would hang in the next
                # collective. So they act on the averaged flags of the step's message; a single process need not
                # wait for its own flag to come back from the device.
                if self._stopping or (self.accelerator.num_processes == 1 and stopped()):
                    break
                if self._save_due and self.state.step < self.last:
                    # Only a state whose every step is known to have been applied may be saved.
                    self._read(reporter, everything=True)
                    self._save()
            self._read(reporter, everything=True)
            self._finish()
        finally:
            # Even after an error: a checkpoint that is being written becomes complete, and waiting rows are
            # logged.
            self.saver.close()
            self.journal.close()
        return self.loss

    def _with_views(self) -> Iterator[tuple[Batch, Views]]:
        """Each batch with its views."""
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

        views = ViewMaker(partial(views_of, config=config), device, self.step.compiler)

        def make(batch: Batch) -> tuple[Batch, Views]:
            return batch, views(batch)

        sent = on_device(source, device)
        # On a CPU a thread makes the next step's views while this step trains. On a GPU they are queued behind the
        # step before; the host runs ahead of the device, so a thread would gain nothing.
        return made_ahead(sent, make) if device.type == "cpu" else map(make, sent)

    def _rates(self) -> Rates:
        """The schedules' values for the next step."""
        # Schedules count steps from 0, metrics and checkpoints from 1: ``state.step`` is the number taken so far,
        # and therefore also the schedules' index of the next one.
        return self.state.config.schedule.at(
            self.state.step, total=self.total, steps_per_epoch=self.per_epoch
        )

    def _is_logged(self, step: int) -> bool:
        return step % self.options.log_every == 0 or step in (1, self.last) or self._is_probed(step)

    def _is_probed(self, step: int) -> bool:
        # Decided by the step alone, so that all processes agree: with FSDP each of them must contribute its shard
        # of the teacher, or the main process would wait for it forever.
        if self.options.probe is None:
            return False
        return step % (self.options.probe_every * self.per_epoch) == 0 or step == self.total

    def _is_saved(self, step: int) -> bool:
        return step % self.options.steps_between_checkpoints == 0

    def _pauses(self, step: int) -> bool:
        """Whether to wait until the metrics of every step so far have arrived."""
        # A probe or a checkpoint must not be made of a state whose last step turns out to have been skipped. On a
        # GPU this costs a synchronisation, which only these steps pay.
        return step == self.last or self._is_probed(step) or self._is_saved(step)

    def _is_time_to_save(self) -> bool:
        """Whether ``save_minutes`` have passed since the last checkpoint, as happens where steps are slow."""
        # Clocks of different processes differ, so this is only this process's wish; the step's message turns it
        # into a decision that all share.
        return time.monotonic() - self.saved_at > 60 * self.options.save_minutes

    def _read(self, reporter: TrainingReporter, *, everything: bool) -> None:
        """Handle the metrics that have arrived."""
        for metrics in self.queue.arrived(everything=everything):
            if not metrics.step_applied:
                self._refuse(metrics)
            self._record(metrics, reporter)

    def _record(self, metrics: HostMetrics, reporter: TrainingReporter) -> None:
        """Log and report a step that was applied."""
        logged, config = metrics.logged, self.state.config
        speed = config.batch_size / self.clock.lap()
        self.loss = logged["loss"]
        self._stopping |= metrics.outcome.stop > 0.0
        self._save_due |= metrics.outcome.save > 0.0 or self._is_saved(metrics.step)
        probed = self._probed() if self._is_probed(metrics.step) else {}
        if self._is_logged(metrics.step):
            self.journal.write(self._row(metrics, speed) | probed)
            for line in self.collapse.warnings_after(metrics.step, logged):
                self.warnings.append(line)
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
            "cls_temperature": float(temperatures.cls_teacher),
            "patch_temperature": float(temperatures.patch_teacher),
            "student_temperature": float(temperatures.student),
            "shapes_per_second": round(speed, 2),
            "seconds": round(self.clock.spent, 3),
        }

    def _probed(self) -> dict[str, float]:
        """Scores of the current teacher; empty on processes without a probe."""
        snapshot = None
        # With FSDP every process takes part in assembling the teacher, though only the main one keeps it. The
        # optimiser's moments are left out, which halves what is copied.
        if self.probe is not None or self.options.sharding == "fsdp":
            snapshot = take_snapshot(
                self.state, seconds=0.0, keep=self.probe is not None, moments=False
            )
        scores = {}
        if self.probe is not None and snapshot is not None:
            scores = self.probe(snapshot.teacher_encoder())
        # The probe's time counts for the run, but not for the next step's shapes per second.
        self.clock.lap()
        return scores

    def _refuse(self, metrics: HostMetrics) -> None:
        """Save the state from before a step that was not applied, and raise what went wrong."""
        # ``all_finite`` stays 0 once it is 0: steps queued after this one changed nothing either, so the weights
        # are still those from before it, and only the counter has to go back.
        self.queue.discard()
        self.state.step = metrics.step - 1
        saved = self._rescue()
        if metrics.read_error is not None:
            raise metrics.read_error
        others = ", see the other processes' messages" if self.accelerator.num_processes > 1 else ""
        # Randomness depends on (seed, epoch, index) and the step alone, so resuming repeats the same step.
        msg = (
            f"step {metrics.step}: {why_not_applied(metrics)}; the weights were not changed. "
            f"Last good checkpoint: {saved}. A resumed run would fail again: check the corpus (verify_corpus)"
            f"{others}, or start a run with a lower learning rate"
        )
        raise DivergenceError(msg)

    def _save(self) -> None:
        """Copy the current state to host memory; the saver's thread writes it while training continues."""
        snapshot = self._snapshot()
        if snapshot is not None:
            self.saver.save(snapshot)
        # Time spent copying is the run's, but not part of the next step's speed.
        self.clock.lap()

    def _snapshot(self) -> Snapshot | None:
        self.saved_at, self._save_due = time.monotonic(), False
        return take_snapshot(
            self.state, seconds=self.clock.spent, keep=self.accelerator.is_main_process
        )

    def _finish(self) -> None:
        """Write the current state and wait until it is on disk; does nothing before the first step."""
        if not self.state.step:
            return
        self.saver.finish(self._snapshot(), instead=self._newest)

    def _rescue(self) -> str:
        """Save the current state if possible; returns the path of the newest checkpoint, for a message."""
        # Whatever made the run stop is reported to the user; a full disk on top of it is only worth a warning.
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
        """Put a snapshot on disk; runs in the saver's thread."""
        # Metrics first: a resumed run drops rows after its checkpoint, but could not invent rows missing before
        # it.
        self.journal.flush()
        write_snapshot(snapshot, self.run / CHECKPOINTS, keep=self.options.keep)
        save_teacher(
            snapshot.teacher_encoder(),
            snapshot.step,
            snapshot.config,
            self.run,
            total=self.total,
            warnings=self.warnings,
        )
