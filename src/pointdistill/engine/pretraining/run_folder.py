"""A run on disk: ``config.json``, ``metrics.jsonl``, ``checkpoints/``, ``encoder/``; begun and resumed."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

import torch

from pointdistill.data.files.files import read_json, write_aside, write_json
from pointdistill.engine.config.config import RUN_FORMAT, PretrainConfig, from_plain, to_plain
from pointdistill.engine.pretraining.loader import PointSource
from pointdistill.engine.pretraining.state import (
    TrainState,
    list_checkpoints,
    load_latest,
    new_state,
    start_from,
)
from pointdistill.engine.weights.encoders import WEIGHTS, find_encoder, read_tensors, save_encoder
from pointdistill.errors import CheckpointError, ConfigError, DataError, PointDistillError
from pointdistill.model.encoder import Encoder
from pointdistill.version import __version__

CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
TRACKING = "tracking"
RUN_CONFIG = "config.json"
ENCODER = "encoder"
LEFT_OVER = ".*.part*"
"""Files and folders that `pointdistill.data.files.files` writes to before it renames them."""


class TrainingCorpus(PointSource, Protocol):
    """A corpus that can say where it came from."""

    @property
    def path(self) -> Path:
        """The corpus's folder."""
        ...

    @property
    def sources(self) -> Any:
        """Records with ``name``, ``licence`` and ``kept``, one a source."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEnvironment:
    """What decides how a run's numbers are rounded, as it was when the run was begun."""

    device: str
    """``cpu`` or ``cuda``."""

    precision: str
    """``no`` (float32) or ``bf16``."""

    def __str__(self) -> str:
        """For a message."""
        return f"{self.device} with precision {self.precision}"


def read_run_environment(run: Path) -> RunEnvironment | None:
    """The environment that ``begin_run`` recorded; None for a run of a version that did not.

    Raises:
        CheckpointError: if ``run`` is not a run folder.
    """
    found = read_run_config(run).get("begun_on")
    return None if found is None else from_plain(RunEnvironment, found, where="begun_on")


def begin_run(
    config: PretrainConfig,
    corpus: TrainingCorpus,
    run: Path,
    *,
    init_from: Path | None,
    environment: RunEnvironment,
    processes: int = 1,
    write: bool = True,
) -> TrainState:
    """A fresh state, with the run's ``config.json`` written (by one of the ``processes``: ``write``).

    Raises:
        ConfigError: if ``run`` holds a run already, the corpus does not fill a batch, or the processes cannot
            share one.
    """
    if list_checkpoints(run / CHECKPOINTS):
        msg = f"{run} holds a run already; resume it, or choose another folder"
        raise ConfigError(msg, settings=("resume", "run"))
    if run.exists() and not _is_free(run):
        msg = f"{run} holds other things than a run; choose a new folder"
        raise ConfigError(msg, settings=("run",))
    config.check_batch(len(corpus), processes)
    state = new_state(config)
    if init_from is not None:
        folder = find_encoder(init_from)
        start_from(state, read_tensors(folder / WEIGHTS), folder / WEIGHTS)
    if not write:
        return state
    remove_left_overs(run)
    # Rows of a run that was killed before its first checkpoint: it begins anew.
    (run / METRICS).unlink(missing_ok=True)
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
        "sources": licence_ledger(corpus),
        "init_from": None if init_from is None else str(init_from),
        "config": to_plain(config),
    }
    write_json(run / RUN_CONFIG, described)
    return state


def resume_run(
    corpus: TrainingCorpus, run: Path, *, processes: int = 1, write: bool = True
) -> tuple[TrainState, float]:
    """The state of the newest whole checkpoint, and the seconds spent on it.

    One of the ``processes`` (``write``) also drops the metrics of later steps, which will be taken again.

    Raises:
        CheckpointError: if there is no run, no whole checkpoint, or the corpus is another.
        ConfigError: if the processes cannot share the run's batch.
    """
    begun_with = read_run_config(run)["corpus"]
    if begun_with["fingerprint"] != corpus_fingerprint(corpus):
        msg = (
            f"{run} was begun with the corpus {begun_with['path']}, and {corpus.path} holds other "
            "shapes; name the corpus that it was begun with, or start a new run"
        )
        raise CheckpointError(msg, settings=("data",))
    state, saved = load_latest(run / CHECKPOINTS)
    batch = state.config.batch_size
    if batch % processes:
        fitting = max(n for n in range(1, processes) if batch % n == 0)
        msg = (
            f"the run's batch of {batch} is not a multiple of the {processes} processes; "
            f"resume it with {fitting} of them"
        )
        raise ConfigError(msg)
    if write:
        remove_left_overs(run)
        _forget_after(run / METRICS, state.step)
    return state, saved["seconds"]


def run_folder_of(path: Path) -> Path | None:
    """The run that ``path`` is, or lies directly in as an encoder folder does; None if there is none."""
    for folder in (path, path.parent):
        if (folder / METRICS).is_file():
            return folder
        with suppress(PointDistillError):  # one that was begun and has no step yet
            read_run_config(folder)
            return folder
    return None


def read_run_config(run: Path) -> dict[str, Any]:
    """What ``begin_run`` wrote.

    Raises:
        CheckpointError: if ``run`` is not a run folder.
    """
    path = run / RUN_CONFIG
    if not path.is_file():
        msg = f"{run}: no run here (no {RUN_CONFIG}); name another folder, or start a new run"
        raise CheckpointError(msg)
    found = read_json(path)
    whole = isinstance(found, dict) and found.get("format") == RUN_FORMAT
    if not (whole and isinstance(found.get("config"), dict) and _names_corpus(found.get("corpus"))):
        msg = f"{path}: not the configuration of a run, or a damaged one"
        raise CheckpointError(msg)
    return found


def _names_corpus(value: object) -> bool:
    return isinstance(value, dict) and {"path", "fingerprint"} <= value.keys()


def _is_free(run: Path) -> bool:
    """Whether a folder may be used: it is empty, or holds a run that was killed before its first checkpoint."""
    if not run.is_dir():
        return False
    if all(fnmatch(entry.name, LEFT_OVER) for entry in run.iterdir()):
        return True
    try:
        read_run_config(run)
    except (CheckpointError, DataError):
        return False
    return True


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl``, oldest first; a row cut short by a kill is left out."""
    path = run / METRICS
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def save_teacher(
    encoder: Encoder, step: int, config: PretrainConfig, run: Path, sources: Any, *, total: int
) -> None:
    """Write the teacher's encoder as the run's encoder folder, after ``step`` of ``total`` steps.

    The licences of what it saw go with it.
    """
    save_encoder(
        encoder,
        run / ENCODER,
        sources=sources,
        training={
            "name": config.name,
            "mode": str(config.mode),
            "step": step,
            "total_steps": total,
            "seed": config.seed,
            "batch_size": config.batch_size,
        },
    )


def remove_left_overs(run: Path) -> None:
    """Files and folders that a killed process was writing aside."""
    for folder in (run, run / CHECKPOINTS, run / ENCODER):
        for left in folder.glob(LEFT_OVER):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


def licence_ledger(corpus: TrainingCorpus) -> list[dict[str, Any]]:
    """Name, licence and number of shapes of each source of a corpus."""
    return [
        {"name": source.name, "licence": source.licence, "shapes": source.kept}
        for source in corpus.sources
    ]


def corpus_fingerprint(corpus: TrainingCorpus) -> str:
    """What tells one corpus from another: its content checksum where it has one, else its size."""
    manifest = getattr(corpus, "manifest", None)
    return str(getattr(manifest, "content", f"{len(corpus)} shapes"))


def _forget_after(metrics: Path, step: int) -> None:
    """Drop the rows of steps that the resumed run will take again."""
    if not metrics.is_file():
        return
    kept = [row for row in read_metrics(metrics.parent) if row["step"] <= step]
    with write_aside(metrics) as aside:
        aside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
