"""Turns a user's overrides into a run that can start: defaults, checks, and remarks on what was chosen."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.files.files import check_folders_can_be_renamed, disk_is_full
from pointdistill.data.files.schema import from_plain, refusing_damage
from pointdistill.data.files.workspace import last_corpus, last_run, remember_run, why_no_run
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.config.recipes import ADAPT, SIZES, adapt
from pointdistill.engine.config.settings import ResolvedConfig, RunOverrides, resolve_config
from pointdistill.engine.pretraining.adapting import (
    HEALTHY,
    Judge,
    Judgement,
    check_enough,
    corpus_beside,
    corpus_of_folder,
    expected_first_loss,
    is_folder_of_files,
    is_healthy,
    mode_of_weights,
    open_own_folder,
    read_judgement,
    write_judgement,
)
from pointdistill.engine.pretraining.cost import largest_batch, step_gib
from pointdistill.engine.pretraining.pretrain import RunResult, hold_run, pretrain
from pointdistill.engine.pretraining.run_folder import (
    ENCODER,
    RUN_CONFIG,
    check_free,
    encoder_line,
    read_run_config,
)
from pointdistill.engine.pretraining.trainer import RunOptions
from pointdistill.engine.runtime.devices import (
    is_main_process,
    memory_gib,
    pick_device,
    process_count,
)
from pointdistill.engine.weights.encoders import load_encoder, locate_encoder
from pointdistill.errors import (
    CheckpointError,
    ConfigError,
    CorpusError,
    DataError,
    PointDistillError,
)
from pointdistill.reporter import (
    SILENT,
    SILENT_TRAINING,
    Reporter,
    StepRecord,
    TrainingReporter,
    plural,
)

LEAST_SHARE = 0.1
"""A run that sees a smaller share than this of the shapes of a tiny run causes a warning that it is too short."""

FEW_SHAPES = 64
"""A run that continues from weights on fewer shapes than these causes a warning."""

RUNS = Path("runs")
"""Folder of the runs whose folder is not named."""

MEMORY_SHARE = 0.4
"""Share of the machine's memory that a step on a CPU may take if the user gave no batch size."""


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run that is ready to start or to be resumed."""

    config: PretrainConfig
    corpus: Corpus
    run: Path
    resume: bool
    init_from: Path | str | None
    remarks: tuple[str, ...]
    """One line for each choice that was made for the user."""


@contextmanager
def prepare_run(
    overrides: RunOverrides,
    *,
    data: Path | None,
    run: Path | None = None,
    init_from: Path | str | None = None,
    up: str | None = None,
    device: str = "auto",
    reporter: Reporter = SILENT,
) -> Iterator[PreparedRun]:
    """Prepare a new run with these overrides; each choice made for the user gets a remark.

    With weights to start from, the recipe is ``adapt`` unless another is named, and ``data`` may be a folder of
    meshes: its corpus is built beside the run, while ``reporter`` hears about it. ``up`` is the up axis of its
    files that state none, z by default. Other processes are kept out of the run's folder until the block ends. If
    the run is refused, here or in the block, nothing new is left.

    Raises:
        ConfigError: for a setting that is not accepted, a ``run`` folder that is not free, a batch that cannot be
            divided among the processes, several processes without a ``run`` folder given, too few shapes to adapt
            to, ``adapt`` without weights, or an up axis without a folder of meshes.
        CheckpointError: if there are no weights at ``init_from``.
        DataError: if there is no corpus to train on.
    """
    pick_device(device)  # refuses a missing device before anything else takes time
    if up is not None and (init_from is None or data is None or not is_folder_of_files(data)):
        msg = "an up axis is for a folder of files and weights to continue from; in a corpus z is up already"
        raise ConfigError(msg, settings=("up", "init_from", "data"))
    weights = adapted = None
    if init_from is not None:
        weights = locate_encoder(init_from)
        adapted = partial(adapt, load_encoder(weights).config, mode_of_weights(weights))

    def resolve(shapes: int) -> ResolvedConfig:
        return resolve_config(overrides, continued=adapted(shapes=shapes) if adapted else None)

    likely = resolve(1)
    adapts = likely.recipe == ADAPT
    if adapts and weights is None:
        msg = (
            f"the recipe {ADAPT} continues from weights; name an encoder, or choose another recipe"
        )
        raise ConfigError(msg, settings=("init_from",))
    source = None
    if adapts and data is not None and is_folder_of_files(data):
        source = open_own_folder(data, up)
        files = len(source.entries())
        if likely.batch_size_chosen:  # before hours of reading them
            resolve(files).config.check_batch(files, process_count())
    with _claimed(run, likely.config) as chosen:
        remarks = [encoder_line(weights)] if adapts and weights is not None else []
        remarks += [] if run else [f"run: {chosen}"]
        corpus, found = (
            find_corpus(data)
            if source is None or data is None
            else corpus_of_folder(source, data, chosen, reporter)
        )
        remarks += [found] if found else []
        if source is not None and up is None:
            reporter.say("note: files that state no up axis were taken as z up", "up")
        if adapts:
            check_enough(len(corpus), data or corpus.path)
        settings = resolve(len(corpus))
        config, fitted = _fitted(settings, len(corpus), device)
        remarks += [*fitted, *settings.remarks(), *undertraining_warning(config, len(corpus))]
        remarks += _about_first_loss(config) if adapts else []
        yield PreparedRun(config, corpus, chosen, False, weights, tuple(remarks))


def _fitted(settings: ResolvedConfig, shapes: int, device: str) -> tuple[PretrainConfig, list[str]]:
    """The configuration with a batch that fits corpus and machine, unless the user chose it; with remarks."""
    config, remarks = settings.config, list[str]()
    if not settings.batch_size_chosen:
        config, remarks = fit_batch(config, shapes, device, processes=process_count())
    config.check_batch(shapes, process_count())
    return config, remarks


@contextmanager
def _claimed(run: Path | None, config: PretrainConfig) -> Iterator[Path]:
    """Yield the folder of a run, a new one unless it is given, and keep other processes out of it.

    If the run is refused before it has begun, nothing new is left. What was made of a corpus stays if the disk was
    full, and so does a corpus that was there.
    """
    no_runs_yet = not RUNS.exists()
    chosen = run or _new_run(config)
    try:
        with hold_run(chosen):
            check_free(chosen)
            if chosen.is_dir() and is_main_process():
                check_folders_can_be_renamed(chosen)  # before a corpus is built
            corpus = corpus_beside(chosen)
            was_there = corpus.exists()
            try:
                yield chosen
            except (PointDistillError, OSError) as error:
                # A CorpusError is about what is in the folder already, such as another process's work.
                is_needed = isinstance(error, CorpusError) or disk_is_full(error)
                if not (was_there or is_needed or (chosen / RUN_CONFIG).exists()):
                    shutil.rmtree(corpus, ignore_errors=True)
                raise
    finally:
        with suppress(OSError):  # where one is not empty
            if run is None:
                chosen.rmdir()
                if no_runs_yet:
                    RUNS.rmdir()


def _about_first_loss(config: PretrainConfig) -> list[str]:
    """Which first loss to expect, in a line; nothing where none is known."""
    expected = expected_first_loss(config)
    if expected is None:
        return []
    low, high = (factor * expected for factor in HEALTHY)
    return [
        f"first loss: about {expected:.2f} expected, {low:.1f} to {high:.1f} is healthy: the heads are new and "
        f"guess evenly among {config.head.prototypes:,} prototypes, whatever the weights know; it should "
        "fall from there"
    ]


def find_corpus(data: Path | None) -> tuple[Corpus, str | None]:
    """The corpus in ``data``; without it the last one made in the current folder, with a remark that names it.

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
    """Prepare to resume ``run``, or the last run made in the current folder, with its own configuration.

    Raises:
        CheckpointError: if there is no run.
        ConfigError: if there are overrides, since a run keeps the settings it was started with.
    """
    remarks = []
    overridden = tuple(dict.fromkeys(name for name, _ in overrides.items()))
    if overridden:
        msg = "a run is resumed with the settings it began with; leave out changes to them, or start a new run"
        raise ConfigError(msg, settings=overridden)
    if run is None:
        run = last_run()
        if run is None:
            msg = f"{why_no_run()}; name one, or start a new one"
            raise CheckpointError(msg, settings=("run", "resume"))
        remarks.append(f"run: {run} (the last one made in this folder)")
    described = read_run_config(run)
    corpus = open_corpus(data or Path(described["corpus"]["path"]))
    with refusing_damage(run / RUN_CONFIG, error=CheckpointError):
        config = from_plain(PretrainConfig, described["config"], where="config")
    return PreparedRun(config, corpus, run, True, None, tuple(remarks))


def execute(
    prepared: PreparedRun,
    options: RunOptions,
    reporter: TrainingReporter = SILENT_TRAINING,
) -> RunResult:
    """Train a prepared run, which the caller holds; one that continues from weights is judged before and after."""
    first = _FirstStep(prepared, reporter)
    judge = None
    if is_main_process() and _is_judged(prepared):
        points = prepared.config.encoder.points
        judge = Judge(prepared.corpus, points=points, device=pick_device(options.device))
        if prepared.init_from is not None:
            reporter.say(
                f"judging the weights on {plural(len(judge.numbers), 'shape')} before the run"
            )
            first.judgement = judge.begin(load_encoder(prepared.init_from))
    result = pretrain(
        prepared.config,
        corpus=prepared.corpus,
        run=prepared.run,
        resume=prepared.resume,
        init_from=prepared.init_from,
        options=options,
        reporter=first,
        held=True,
    )
    if judge is not None and not result.interrupted:
        begun = read_judgement(prepared.run)
        if begun is not None and begun.after is None:
            reporter.say("judging them again after the run")
            trained = load_encoder(prepared.run / ENCODER)
            write_judgement(prepared.run, judge.finish(begun, trained))
    return result


def _is_judged(prepared: PreparedRun) -> bool:
    """Whether a run continues from weights, or did so when it was started and was not judged at its end yet."""
    if not prepared.resume:
        return prepared.init_from is not None
    begun = read_judgement(prepared.run)
    return begun is not None and begun.after is None


class _FirstStep(TrainingReporter):
    """Forwards everything, and with the first step records the run as the last one made in the current folder."""

    # Not before the first step: a run that is refused must not become the one that other commands take by default,
    # and a folder with a judgement in it is not free for a new run.

    def __init__(self, prepared: PreparedRun, reporter: TrainingReporter) -> None:
        self.prepared: PreparedRun | None = prepared
        self.judgement: Judgement | None = None
        self.reporter = reporter

    def say(self, line: str, *settings: str) -> None:
        """Forward the line."""
        self.reporter.say(line, *settings)

    def step(self, record: StepRecord) -> None:
        """Record the run once, on the main process, and say whether its first loss is the expected one."""
        if self.prepared is not None and is_main_process():
            remember_run(self.prepared.run)
            if self.judgement is not None:
                write_judgement(self.prepared.run, self.judgement)
            if self.prepared.init_from is not None and record.step == 1:
                self._say_first_loss(record.loss, self.prepared.config)
        self.prepared = None
        self.reporter.step(record)

    def _say_first_loss(self, loss: float, config: PretrainConfig) -> None:
        expected = expected_first_loss(config)
        if expected is None:
            return
        if is_healthy(loss, expected):
            self.say(f"first loss: {loss:.2f}, near the {expected:.2f} expected")
        else:
            self.say(
                f"warning: the first loss is {loss:.2f}, far from the {expected:.2f} expected: look at the shapes "
                "(`pointdistill preview`), or start from other weights"
            )

    def on_signal(self) -> None:
        """Forward the signal."""
        self.reporter.on_signal()


def announce(prepared: PreparedRun) -> list[str]:
    """Lines that summarise the run before it starts."""
    config, shapes = prepared.config, len(prepared.corpus)
    total = config.total_steps(shapes)
    summary = (
        f"{config.name}, {config.mode} mode, seed {config.seed}: {plural(total, 'step')} of "
        f"{config.batch_size} of {plural(shapes, 'shape')} ({total * config.batch_size / shapes:.1f} epochs)"
    )
    return [*prepared.remarks, summary]


def undertraining_warning(config: PretrainConfig, shapes: int) -> list[str]:
    """A warning if a run is too short to learn anything, compared with the smallest recipe; else nothing."""
    if config.name == ADAPT:
        return _too_few_to_adapt(config, shapes)
    tiny = SIZES["tiny"]()
    # The tiny recipe counts steps, not epochs, so the size of its corpus does not matter here.
    usual = tiny.total_steps(tiny.batch_size) * tiny.batch_size
    shown = config.total_steps(shapes) * config.batch_size
    if shapes <= config.batch_size:
        return [
            f"warning: {plural(shapes, 'shape is', 'shapes are')} one batch, so every step sees them all: too few "
            "to learn from; `pointdistill prepare-data builtin` makes thousands"
        ]
    if shown < LEAST_SHARE * usual:
        return [
            f"warning: this run sees {plural(shown, 'shape')}, the tiny recipe's {usual:,}: too few to learn "
            "from; give it more steps"
        ]
    return []


def _too_few_to_adapt(config: PretrainConfig, shapes: int) -> list[str]:
    """A warning if there are so few shapes that adapting is likelier to harm than to help; else nothing."""
    if shapes >= FEW_SHAPES:
        return []
    total = config.total_steps(shapes)
    return [
        f"warning: {plural(shapes, 'shape is', 'shapes are')} few: each is seen "
        f"{total * config.batch_size / shapes:.0f} times, and the features may become worse. "
        "Compare the judgement at the end; hundreds of shapes are better"
    ]


def fit_batch(
    config: PretrainConfig, shapes: int, device: str | None, *, processes: int = 1
) -> tuple[PretrainConfig, list[str]]:
    """Shrink a recipe's batch to what corpus, number of processes and, on a CPU, memory allow; with remarks.

    ``device`` is None for a GPU that is not in this machine.
    """
    remarks = []

    def shareable(size: int) -> int:
        """The largest multiple of the number of processes up to ``size``, but at least one shape for each."""
        return max(1, processes, size - size % processes)

    together = f", and {processes} processes can share" if processes > 1 else ""
    if shapes < config.batch_size:
        largest = shareable(shapes)
        remarks.append(
            f"batch: {largest} instead of {config.batch_size}, all the corpus has{together}"
        )
        config = replace(config, batch_size=largest)
    elif config.batch_size % processes:
        largest = shareable(config.batch_size)
        remarks.append(
            f"batch: {largest} instead of {config.batch_size}, a multiple of the {processes} processes"
        )
        config = replace(config, batch_size=largest)
    # On a GPU too large a batch fails at once with a clear error. On a CPU the machine would start to swap, or the
    # system would kill the process without a message, so there the batch is fitted by arithmetic.
    if device is not None and pick_device(device).type == "cpu":
        allowed = MEMORY_SHARE * memory_gib()
        if step_gib(config) > allowed:
            fitting = shareable(largest_batch(config, allowed))
            remarks.append(
                f"batch: {fitting} instead of {config.batch_size}, whose step would take about "
                f"{step_gib(config):.0f} GiB of this CPU's memory; results will differ from the paper's "
                "(a batch size given by you is not changed)"
            )
            config = replace(config, batch_size=fitting)
    return config, remarks


def _new_run(config: PretrainConfig) -> Path:
    """The first free run folder for a configuration, which is made.

    Raises:
        ConfigError: if several processes were started together.
    """
    # Each process would look for the first free folder by itself, and they could find different ones.
    if process_count() > 1:
        msg = f"{process_count()} processes were started together; name the run folder that they share"
        raise ConfigError(msg, settings=("run",))
    return _next_run(config)


def _next_run(config: PretrainConfig) -> Path:
    """Make the first free ``runs/<name>-<mode>-<number>``; without the mode if the name contains it already."""
    named = str(config.mode) in config.name.split("-")
    name = config.name if named else f"{config.name}-{config.mode}"
    for number in itertools.count(1):
        path = RUNS / f"{name}-{number}"
        if corpus_beside(path).exists():  # left by a run that was removed; it is of other shapes
            continue
        # Made in the same instant as it is found to be free, so that two runs begun together do not share it.
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            break
    return path
