"""A run's folder: configuration, metrics, checkpoints, encoder, and what they tell of an encoder's training."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

import torch

from pointdistill.data.files.files import LOCK_NAME, read_json, write_aside, write_json
from pointdistill.data.files.schema import (
    bounded_lines,
    from_plain,
    parse_json,
    refusing_damage,
    to_plain,
)
from pointdistill.engine.config.config import RUN_FORMAT, PretrainConfig
from pointdistill.engine.pretraining.checkpoints import (
    TrainState,
    list_checkpoints,
    load_latest,
    new_state,
    start_from,
)
from pointdistill.engine.pretraining.loader import PointSource
from pointdistill.engine.weights import BUNDLED, BUNDLED_TERMS, given_or_default, name_of
from pointdistill.engine.weights.encoders import (
    fingerprint,
    locate_encoder,
    read_facts,
    read_tensors,
    save_encoder,
    weights_file,
)
from pointdistill.engine.weights.licences import licence_ledger
from pointdistill.errors import CheckpointError, ConfigError, DataError, PointDistillError
from pointdistill.model.encoder import Encoder
from pointdistill.reporter import SILENT, Reporter
from pointdistill.version import __version__

log = logging.getLogger("pointdistill")

CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
TRACKING = "tracking"
RUN_CONFIG = "config.json"
ENCODER = "encoder"
JUDGEMENT = "judgement.json"
"""What a run that continues from weights made of their features; see ``adapting``."""

CONTINUED = "continued_from"
"""Key of what is recorded of the weights that a run began with."""

WARNINGS = "warnings"
"""Key of the warnings that a training gave, in the record of an encoder."""

LEFT_OVER = ".*.part*"
"""Pattern of temporary files and folders, which ``data.files.files`` renames when they are complete."""

FEW_VIEWS = 100_000
"""Shapes in batches; fewer teach less of real shapes than the bundled encoder knows (docs/results.md)."""


class TrainingCorpus(PointSource, Protocol):
    """A corpus that knows its folder and its sources."""

    @property
    def path(self) -> Path:
        """The corpus's folder."""
        ...

    @property
    def sources(self) -> Any:
        """One record for each source, with ``name``, ``licence`` and ``kept``."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEnvironment:
    """The part of a run's environment that decides how its numbers are rounded."""

    device: str
    """``cpu`` or ``cuda``."""

    precision: str
    """``no`` (float32) or ``bf16``."""

    def __str__(self) -> str:
        return f"{self.device} with precision {self.precision}"


def read_run_environment(run: Path) -> RunEnvironment | None:
    """The environment that a run was started in; None for a run of an earlier version, which did not record it.

    Raises:
        CheckpointError: if ``run`` is not a run folder.
    """
    recorded = read_run_config(run).get("begun_on")
    if recorded is None:
        return None
    with refusing_damage(run / RUN_CONFIG, error=CheckpointError):
        return from_plain(RunEnvironment, recorded, where="begun_on")


def begin_run(
    config: PretrainConfig,
    corpus: TrainingCorpus,
    run: Path,
    *,
    init_from: Path | str | None,
    environment: RunEnvironment,
    processes: int = 1,
    write: bool = True,
) -> TrainState:
    """Start a run: a fresh training state, and the run's ``config.json``, which only one process may ``write``.

    Raises:
        ConfigError: if ``run`` is not empty, the corpus does not fill a batch, or the batch cannot be divided
            among the processes.
    """
    check_free(run)
    config.check_batch(len(corpus), processes)
    state = new_state(config)
    weights = None if init_from is None else locate_encoder(init_from)
    if weights is not None:
        start_from(state, read_tensors(weights_file(weights)), weights_file(weights))
    # All processes build the same state from the seed, but only one of them may touch the folder.
    if not write:
        return state
    remove_unfinished_run_files(run)
    # A run that was killed before its first checkpoint starts from the beginning; its rows would appear twice.
    (run / METRICS).unlink(missing_ok=True)
    (run / JUDGEMENT).unlink(missing_ok=True)
    described = {
        "format": RUN_FORMAT,
        "pointdistill": __version__,
        "torch": torch.__version__,
        "begun_on": to_plain(environment),
        "corpus": {
            "path": str(corpus.path.resolve()),
            "shapes": len(corpus),
            "fingerprint": corpus_fingerprint(corpus),
        },
        "sources": [*_sources_of(weights), *licence_ledger(corpus.sources)],
        "init_from": None if init_from is None else str(init_from),
        "config": to_plain(config),
    }
    if weights is not None:
        described[CONTINUED] = {
            "fingerprint": fingerprint(state.student.encoder),
            "training": read_facts(weights).get("training", {}),
        }
    write_json(run / RUN_CONFIG, described)
    return state


def _sources_of(weights: Path | None) -> list[Any]:
    """The licence ledger of the weights that a run begins with: what they were trained on stays in them."""
    sources = [] if weights is None else read_facts(weights).get("sources", [])
    if weights is not None and not sources:
        return [{"name": "the weights it began with", "licence": "not recorded"}]
    return list(sources) if isinstance(sources, list) else []


def resume_run(
    corpus: TrainingCorpus, run: Path, *, processes: int = 1, write: bool = True
) -> tuple[TrainState, float]:
    """The state of the newest intact checkpoint, and the seconds spent on the run until then.

    The process that may ``write`` also drops the metrics of later steps, which will be taken again.

    Raises:
        CheckpointError: if there is no run, no intact checkpoint, or the corpus is not the run's.
        ConfigError: if the run's batch cannot be divided among the processes.
    """
    recorded = read_run_config(run)["corpus"]
    # The order of shapes, and with it every view and mask, refers to shapes by number: on another corpus the run
    # would continue without an error, and be neither the one experiment nor the other.
    if recorded["fingerprint"] != corpus_fingerprint(corpus):
        msg = (
            f"{run} was started with the corpus {recorded['path']}, and {corpus.path} holds other "
            "shapes; name the corpus that it was started with, or start a new run"
        )
        raise CheckpointError(msg, settings=("data",))
    state, saved = load_latest(run / CHECKPOINTS)
    batch = state.config.batch_size
    # The batch size is part of the method's result, so it is not adjusted to the number of processes.
    if batch % processes:
        fitting = max(n for n in range(1, processes) if batch % n == 0)
        msg = (
            f"the run's batch of {batch} is not a multiple of the {processes} processes; "
            f"resume it with {fitting} of them"
        )
        raise ConfigError(msg)
    if write:
        remove_unfinished_run_files(run)
        _drop_rows_after(run / METRICS, state.step)
    return state, saved.seconds


def run_folder_of(path: Path) -> Path | None:
    """``path`` if it is a run folder, else its parent if that is one; else None. An encoder folder is in a run."""
    for folder in (path, path.parent):
        if (folder / METRICS).is_file():
            return folder
        with suppress(PointDistillError):
            # A run without metrics: it was started, and has not finished a step yet.
            read_run_config(folder)
            return folder
    return None


def read_run_config(run: Path) -> dict[str, Any]:
    """The content of a run's ``config.json``, as ``begin_run`` wrote it.

    Raises:
        CheckpointError: if ``run`` is not a run folder.
    """
    path = run / RUN_CONFIG
    if not path.is_file():
        msg = f"{run}: no run here (no {RUN_CONFIG}); name another folder, or start a new run"
        raise CheckpointError(msg)
    with refusing_damage(path, advice="restore it from a copy", error=CheckpointError):
        content = read_json(path)
        if not isinstance(content, dict) or content.get("format") != RUN_FORMAT:
            msg = f"{path}: not the configuration of a run, or a damaged one"
            raise CheckpointError(msg)
        record = from_plain(RunRecord, content, partial=True)
        from_plain(RunCorpus, record.corpus, where="corpus", partial=True)
        return content


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """The part of a run's ``config.json`` that is read again."""

    config: Mapping[str, Any]
    corpus: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCorpus:
    """The corpus that a run was started with."""

    path: str
    fingerprint: str
    shapes: int = 0


def check_free(run: Path) -> None:
    """Check that a new run may use a folder: it is absent or empty, or its run was killed before a checkpoint.

    Raises:
        ConfigError: if not.
    """
    if list_checkpoints(run / CHECKPOINTS):
        msg = f"{run} holds a run already; resume it, or choose another folder"
        raise ConfigError(msg, settings=("resume", "run"))
    names = [entry.name for entry in run.iterdir()] if run.is_dir() else [run.name] * run.exists()
    if all(name == LOCK_NAME or fnmatch(name, LEFT_OVER) for name in names):
        return
    try:
        read_run_config(run)
    except (CheckpointError, DataError) as error:
        msg = f"{run} is not empty and holds no run; choose a new folder"
        raise ConfigError(msg, settings=("run",)) from error


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl``, oldest first.

    A row that was cut short by a kill, or damaged otherwise, is left out with a warning: no other depends on it.

    Raises:
        DataError: if the file cannot be read at all.
    """
    path = run / METRICS
    if not path.is_file():
        return []
    rows, damaged = [], 0
    advice = "remove it; the run can go on without it"
    with refusing_damage(path, advice=advice), path.open("rb") as file:
        for line in bounded_lines(file):
            try:
                rows.append(_row(line))
            except ValueError:
                damaged += 1
    if damaged:
        log.warning("%s: %d rows are cut short or damaged, and are left out", path, damaged)
    return rows


def _row(line: bytes) -> dict[str, Any]:
    """One row: a step and numbers by name.

    Raises:
        ValueError: if it is anything else.
    """
    row = parse_json(line)
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        msg = "a row without a step"
        raise ValueError(msg)  # noqa: TRY004
    if not all(isinstance(value, int | float) for value in row.values()):
        msg = "a value that is no number"
        raise ValueError(msg)
    return row


def save_teacher(
    encoder: Encoder,
    step: int,
    config: PretrainConfig,
    run: Path,
    *,
    total: int,
    warnings: Sequence[str] = (),
) -> None:
    """Save the teacher's encoder to the run's encoder folder, after ``step`` of ``total`` steps.

    What the run's configuration records of its sources and of the weights it began with is recorded there too, and
    the ``warnings`` that the training gave.
    """
    described = read_run_config(run)
    continued = {CONTINUED: described[CONTINUED]} if CONTINUED in described else {}
    # Saved with every checkpoint, so that a run can be used while it trains and after a kill.
    save_encoder(
        encoder,
        run / ENCODER,
        sources=described.get("sources", []),
        training={
            "name": config.name,
            "mode": str(config.mode),
            "step": step,
            "total_steps": total,
            "seed": config.seed,
            "batch_size": config.batch_size,
            **continued,
            **({WARNINGS: list(warnings)} if warnings else {}),
        },
    )


def warnings_of(training: Any) -> list[str]:
    """The warnings in a record of training, such as of a collapse; the record may come from elsewhere."""
    found = training.get(WARNINGS) if isinstance(training, Mapping) else None
    return [one[:400] for one in found if isinstance(one, str)] if isinstance(found, list) else []


def remove_unfinished_run_files(run: Path) -> None:
    """Remove the temporary files and folders of a killed process."""
    for folder in (run, run / CHECKPOINTS, run / ENCODER):
        for path in folder.glob(LEFT_OVER):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def corpus_fingerprint(corpus: TrainingCorpus) -> str:
    """Identifies a corpus by the checksum of its content, or by its size if it has no manifest."""
    manifest = getattr(corpus, "manifest", None)
    return str(getattr(manifest, "content", f"{len(corpus)} shapes"))


def _drop_rows_after(metrics: Path, step: int) -> None:
    """Drop the rows of steps that the resumed run will take again."""
    if not metrics.is_file():
        return
    rows = [row for row in read_metrics(metrics.parent) if row["step"] <= step]
    with write_aside(metrics) as aside:
        aside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def training_record(stored: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """How an encoder was trained: what is recorded with it and, if it is still in its run, with the run.

    The run adds the corpus and ``total_steps``, the number of steps of the whole training.
    """
    recorded = facts.get("training")
    training = dict(recorded) if isinstance(recorded, Mapping) else {}
    run = run_folder_of(stored)
    run_config: Any = None
    if run is not None:
        with suppress(DataError):
            run_config = read_json(run / RUN_CONFIG)
    corpus = run_config.get("corpus") if isinstance(run_config, Mapping) else None
    if isinstance(run_config, Mapping) and isinstance(corpus, Mapping):
        training["corpus"] = {k: corpus[k] for k in ("shapes", "fingerprint") if k in corpus}
        total = _total_steps(run_config.get("config"), corpus.get("shapes"))
        training |= {} if total is None else {"total_steps": total}
    return training


def _total_steps(config: Any, shapes: Any) -> int | None:
    """Steps of a whole run, from its configuration and the size of its corpus; None where these are not known.

    Only the three settings that decide it are read: the others may be those of another version.
    """
    if not isinstance(config, Mapping) or not isinstance(shapes, int):
        return None
    steps, epochs, batch_size = map(config.get, ("steps", "epochs", "batch_size"))
    if not isinstance(batch_size, int) or not 1 <= batch_size <= shapes:
        return None
    if isinstance(steps, int):
        return steps
    return epochs * (shapes // batch_size) if isinstance(epochs, int) else None


def choose_encoder(
    encoder: Path | str | None,
    *,
    folder: Path = Path(),
    reporter: Reporter = SILENT,
) -> Path:
    """Where the encoder lies that a user named, or else the default one, which is said in a line.

    Args:
        encoder: as for ``load_encoder``; None for the last run in ``folder`` or, without a run, the encoder that
            comes with the program.
        folder: where the last run is looked for.
        reporter: receives the line, and the progress of a download.

    Raises:
        CheckpointError: if there is none.
    """
    source = given_or_default(encoder, folder=folder, reporter=reporter)
    return locate_and_say(source, by_default=encoder is None, reporter=reporter)


def locate_and_say(source: Path | str, *, by_default: bool, reporter: Reporter = SILENT) -> Path:
    """Where the encoder lies that was named or found by ``given_or_default``, which is said in a line.

    Raises:
        CheckpointError: if there is none.
    """
    stored = locate_encoder(source, reporter=reporter)
    if by_default and source == BUNDLED:
        reporter.say(f"{encoder_line(stored)}; another can be chosen", "encoder")
    else:
        remark = ", the teacher of the last run in this folder" if by_default else ""
        reporter.say(encoder_line(stored, remark))
        if by_default and (seen := _views_seen(stored)) is not None and seen < FEW_VIEWS:
            line = f"it has seen {seen:,} shapes; {BUNDLED}, which comes with pointdistill, knows real ones better"
            reporter.say(line, "encoder")
    return stored


def encoder_line(stored: Path, remark: str = "") -> str:
    """A line such as ``encoder: runs/a/encoder, unfinished: step 65 of 400`` or ``encoder: asymdsd-s (FOLDER)``.

    Args:
        stored: the result of ``locate_encoder``. Errors in its files are ignored here and reported on loading.
        remark: why this encoder was chosen, inserted after the path.
    """
    name = name_of(stored)
    if name == BUNDLED:
        return f"encoder: {BUNDLED}, which comes with pointdistill ({BUNDLED_TERMS})"
    if name is not None:
        return f"encoder: {name} ({stored}){remark}"
    training = _training_of(stored)
    steps = unfinished_steps(training)
    state = "" if steps is None else f", unfinished: step {steps[0]:,} of {steps[1]:,}"
    state += "".join(f"; warning of its training: {line}" for line in warnings_of(training)[:1])
    return f"encoder: {stored}{remark}{state}"


def _training_of(stored: Path) -> dict[str, Any]:
    """How an encoder was trained, empty if its files have errors, which are reported on loading."""
    with suppress(CheckpointError):
        return training_record(stored, read_facts(stored))
    return {}


def _views_seen(stored: Path) -> int | None:
    """Shapes of all batches of a training from new weights; None if it went on from others, or is not recorded."""
    training = _training_of(stored)
    step, batch_size = training.get("step"), training.get("batch_size")
    if CONTINUED in training or not isinstance(step, int) or not isinstance(batch_size, int):
        return None
    return step * batch_size


def unfinished_steps(training: Any) -> tuple[int, int] | None:
    """Steps taken and steps of the whole run in a `training_record`; None if it is finished or one is unknown."""
    if not isinstance(training, Mapping):
        return None
    step, total = training.get("step"), training.get("total_steps")
    if isinstance(step, int) and isinstance(total, int) and step < total:
        return step, total
    return None
