"""From a user's overrides to a run that can start: defaults filled in, contradictions refused, remarks made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.files.workspace import last_corpus, last_run, remember_run
from pointdistill.engine.config.config import PretrainConfig, from_plain
from pointdistill.engine.config.recipes import SIZES
from pointdistill.engine.config.settings import RunOverrides, resolve_config
from pointdistill.engine.pretraining.cost import largest_batch, step_gib
from pointdistill.engine.pretraining.pretrain import RunResult, pretrain
from pointdistill.engine.pretraining.run_folder import read_run_config
from pointdistill.engine.pretraining.trainer import RunOptions
from pointdistill.engine.runtime.devices import (
    is_main_process,
    memory_gib,
    pick_device,
    process_count,
)
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.reporter import SILENT_TRAINING, StepRecord, TrainingReporter

LEAST_SHARE = 0.1
"""Share of the shapes that a tiny run sees, below which a run is warned of as too short to learn from."""

MEMORY_SHARE = 0.4
"""Share of the machine's memory that a step on a CPU may take, where no batch size was given."""


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run about to start or to be resumed."""

    config: PretrainConfig
    corpus: Corpus
    run: Path
    resume: bool
    init_from: Path | None
    remarks: tuple[str, ...]
    """What was chosen for the user, a line each."""


def prepare_run(
    overrides: RunOverrides,
    *,
    data: Path | None,
    run: Path | None = None,
    init_from: Path | None = None,
    device: str = "auto",
) -> PreparedRun:
    """A new run with these overrides; whatever is not given is chosen here, and remarked on.

    Raises:
        ConfigError: for a setting that is not accepted, a batch that the processes cannot share, or several
            processes without one named ``run``.
        DataError: if there is no corpus to train on.
    """
    pick_device(device)  # a device that cannot be had is refused before anything is made
    settings = resolve_config(overrides)
    config, remarks = settings.config, []
    corpus, where = find_corpus(data)
    if where:
        remarks.append(where)
    if not settings.batch_size_chosen:
        config, why = fit_batch(config, len(corpus), device, processes=process_count())
        remarks += why
    config.check_batch(len(corpus), process_count())
    if run is None:
        if process_count() > 1:
            msg = f"{process_count()} processes were started together; name the one folder that they share"
            raise ConfigError(msg, settings=("run",))
        run = _next_run(config)
        remarks.append(f"run: {run}")
    remarks += settings.remarks()
    remarks += undertraining_warning(config, len(corpus))
    return PreparedRun(config, corpus, run, False, init_from, tuple(remarks))


def find_corpus(data: Path | None) -> tuple[Corpus, str | None]:
    """The corpus in ``data``, or the last one made in this folder and a line that says which.

    Raises:
        DataError: if there is none.
    """
    if data is not None:
        return open_corpus(data), None
    last = last_corpus()
    if last is None:
        msg = "no corpus was made in this folder yet; run `pointdistill prepare-data`, or name one"
        raise DataError(msg, settings=("data",))
    return open_corpus(last), f"corpus: {last} (the last one made in this folder)"


def prepare_resumed_run(
    overrides: RunOverrides, *, data: Path | None, run: Path | None
) -> PreparedRun:
    """The run in ``run``, or the last one made in this folder, as it was configured.

    Raises:
        CheckpointError: if there is no run.
        ConfigError: if a setting was given that belongs to the run.
    """
    remarks = []
    overridden = tuple(dict.fromkeys(name for name, _ in overrides.items()))
    if overridden:
        msg = "a run is resumed with the settings it began with; leave out changes to them, or start a new run"
        raise ConfigError(msg, settings=overridden)
    if run is None:
        run = last_run()
        if run is None:
            msg = "no run was made in this folder yet; name one, or start a new one"
            raise CheckpointError(msg, settings=("run", "resume"))
        remarks.append(f"run: {run} (the last one made in this folder)")
    described = read_run_config(run)
    corpus = open_corpus(data or Path(described["corpus"]["path"]))
    config = from_plain(PretrainConfig, described["config"])
    return PreparedRun(config, corpus, run, True, None, tuple(remarks))


def execute(
    prepared: PreparedRun,
    options: RunOptions,
    reporter: TrainingReporter = SILENT_TRAINING,
) -> RunResult:
    """Train; the run becomes this folder's last one with its first step, so that a refused one never does."""
    return pretrain(
        prepared.config,
        corpus=prepared.corpus,
        run=prepared.run,
        resume=prepared.resume,
        init_from=prepared.init_from,
        options=options,
        reporter=_RemembersRun(prepared.run, reporter),
    )


class _RemembersRun(TrainingReporter):
    """Passes everything on; with the first step the run becomes the last one of this folder."""

    def __init__(self, run: Path, reporter: TrainingReporter) -> None:
        self.run: Path | None = run
        self.reporter = reporter

    def step(self, record: StepRecord) -> None:
        """Remember the run once, in one process of several."""
        if self.run is not None and is_main_process():
            remember_run(self.run)
        self.run = None
        self.reporter.step(record)

    def on_signal(self) -> None:
        """As it is."""
        self.reporter.on_signal()


def announce(prepared: PreparedRun) -> list[str]:
    """What is about to happen, in a few lines."""
    config, shapes = prepared.config, len(prepared.corpus)
    total = config.total_steps(shapes)
    lines = [
        f"{config.name}, {config.mode} mode, seed {config.seed}: {total:,} steps of "
        f"{config.batch_size} of {shapes:,} shapes ({total * config.batch_size / shapes:.1f} epochs)"
    ]
    return [*prepared.remarks, *lines]


def undertraining_warning(config: PretrainConfig, shapes: int) -> list[str]:
    """A warning where a run is too short to learn anything, measured by the smallest recipe there is."""
    tiny = SIZES["tiny"]()
    usual = tiny.total_steps(tiny.batch_size) * tiny.batch_size
    shown = config.total_steps(shapes) * config.batch_size
    if shapes <= config.batch_size:
        return [
            f"warning: {shapes} shapes are one batch, so every step sees them all: too few to learn from; "
            "`pointdistill prepare-data builtin` makes thousands"
        ]
    if shown < LEAST_SHARE * usual:
        return [
            f"warning: this run sees {shown:,} shapes, the tiny recipe's {usual:,}: too few to learn from; "
            "give it more steps"
        ]
    return []


def fit_batch(
    config: PretrainConfig, shapes: int, device: str, *, processes: int = 1
) -> tuple[PretrainConfig, list[str]]:
    """Shrink a recipe's batch to the corpus, to what processes can share, and on a CPU to its memory; say so."""
    remarks = []

    def shared(size: int) -> int:
        return max(1, processes, size - size % processes)

    together = f", and {processes} processes can share" if processes > 1 else ""
    if shapes < config.batch_size:
        most = shared(shapes)
        remarks.append(
            f"batch: {most} instead of {config.batch_size}, all the corpus has{together}"
        )
        config = replace(config, batch_size=most)
    elif config.batch_size % processes:
        most = shared(config.batch_size)
        remarks.append(
            f"batch: {most} instead of {config.batch_size}, a multiple of the {processes} processes"
        )
        config = replace(config, batch_size=most)
    if pick_device(device).type == "cpu":
        allowed = MEMORY_SHARE * memory_gib()
        if step_gib(config) > allowed:
            fitting = shared(largest_batch(config, allowed))
            remarks.append(
                f"batch: {fitting} instead of the recipe's {config.batch_size}, whose step would take some "
                f"{step_gib(config):.0f} GiB of this CPU's memory; results will differ from the paper's "
                f"(a batch size that is given is kept, even {config.batch_size})"
            )
            config = replace(config, batch_size=fitting)
    return config, remarks


def _next_run(config: PretrainConfig) -> Path:
    """The first free ``runs/<name>-<mode>-<number>``; a name that says the mode does not say it twice."""
    named = str(config.mode) in config.name.split("-")
    name = config.name if named else f"{config.name}-{config.mode}"
    number = 1
    while (path := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return path
