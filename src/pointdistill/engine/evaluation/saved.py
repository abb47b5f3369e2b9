"""From what a user typed to results: an encoder and archives on disk, measured, written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pointdistill.data.workspace import last_run
from pointdistill.engine.devices import pick_device
from pointdistill.engine.evaluation.bench import Progress
from pointdistill.engine.evaluation.forecast import Say
from pointdistill.engine.evaluation.job import Job
from pointdistill.engine.evaluation.kept import KeptUnits
from pointdistill.engine.evaluation.kinds import ALL_PROTOCOLS, BENCHMARKS
from pointdistill.engine.evaluation.plan import COPIES_ON_CPU, FROZEN, HEADS
from pointdistill.engine.evaluation.published import comparison_for
from pointdistill.engine.evaluation.request import ALL, EvaluationRequest
from pointdistill.engine.evaluation.results import Result
from pointdistill.engine.evaluation.sources import Place, find_place, stand_in_place
from pointdistill.engine.exchange.encoders import find_encoder, load_encoder, locate_encoder
from pointdistill.engine.exchange.record import encoder_line, fingerprint
from pointdistill.engine.leaks import leak_warning
from pointdistill.engine.training.run_folder import METRICS
from pointdistill.errors import CheckpointError, DataError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an evaluation left behind."""

    outputs: tuple[Path, ...]
    """Folders with ``results.json`` and ``results.md``."""

    results: tuple[Result, ...]
    """What was asked for, over all the seeds that the folders hold."""

    absent: tuple[str, ...] = ()
    """With ``all``: what could not be measured, and where its data comes from."""


def evaluate_saved(
    request: EvaluationRequest,
    *,
    say: Say,
    progress: Progress,
    on_signal: Callable[[], None] | None = None,
) -> Outcome:
    """Measure a saved encoder; every score is written as soon as it is there.

    An evaluation that was interrupted goes on when it is asked for again. With ``all``, the protocols on frozen
    features of every benchmark come before those that train an encoder.

    Args:
        request: what to measure.
        say: told which encoder, data and settings were chosen, and what takes long.
        progress: told how far each part is.
        on_signal: called at once when a signal asks a training to stop, before its step is finished.

    Raises:
        DataError: if the archive is absent or damaged; says where it comes from. With ``all``, if there is none.
        CheckpointError: if there is no encoder.
        ConfigError: for a device that does not exist.
    """
    device = pick_device(request.device)
    names = tuple(name for name in request.names if request.protocols_of(name))
    # Before anything about the encoder: what is to be fetched is said first.
    places, absent = ({}, {}) if request.stand_in else _find_places(request, names, say)
    folder = _encoder_folder(request, say)
    for name in names if request.stand_in else ():
        # After the encoder was found: a stand-in takes minutes to make.
        places[name] = stand_in_place(
            name,
            folder=request.folder,
            say=say,
            count=lambda done, total: progress("making the stand-in", done, total),
        )
    work = _Work(request, folder, device, say, progress, on_signal)
    work.introduce(places)
    passes = (FROZEN, tuple(set(ALL_PROTOCOLS) - set(FROZEN)))
    for protocols in passes if request.benchmark == ALL else (ALL_PROTOCOLS,):
        for name, place in places.items():
            work.measure(name, place, protocols)
    lines = tuple(f"{name}: {reason}" for name, reason in (absent | work.refused).items())
    return Outcome(tuple(work.kept), tuple(work.results()), lines)


def _find_places(
    request: EvaluationRequest, names: tuple[str, ...], say: Say
) -> tuple[dict[str, Place], dict[str, str]]:
    """Where the data of each benchmark lies, and of those without data why; said where there is none at all.

    Raises:
        DataError: if there is data for none.
    """
    places: dict[str, Place] = {}
    absent: dict[str, str] = {}
    for name in names:
        try:
            places[name] = find_place(
                name,
                data=request.data,
                corpus=request.corpus,
                within=request.benchmark == ALL,
                folder=request.folder,
            )
        except DataError as error:
            if request.benchmark != ALL:
                raise
            absent[name] = str(error)
    if not places:
        for name, reason in absent.items():
            say(f"{name}: {reason}")
        msg = "no benchmark's data is here; fetch one of these, or add --stand-in to measure on stand-ins"
        raise DataError(msg)
    return places, absent


class _Work:
    """One encoder, measured on one benchmark after the other."""

    def __init__(
        self,
        request: EvaluationRequest,
        folder: Path,
        device: torch.device,
        say: Say,
        progress: Progress,
        on_signal: Callable[[], None] | None,
    ) -> None:
        self.kept: dict[Path, KeptUnits] = {}
        self.refused: dict[str, str] = {}
        """With ``all``: splits whose data cannot be read, and why."""
        self._asked: dict[Path, list[Result]] = {}
        self._request, self._folder, self._device = request, folder, device
        self._say, self._progress, self._on_signal = say, progress, on_signal
        self._encoder = load_encoder(folder)
        self._fingerprint = fingerprint(self._encoder)

    def introduce(self, places: dict[str, Place]) -> None:
        """Say what was chosen for the user."""
        self._say(f"device: {self._device}")
        heads = [h for h in HEADS if any(h in self._request.protocols_of(name) for name in places)]
        if heads:
            self._say(f"{', '.join(heads)}: {_copies_in_words(self._copies)}")

    def measure(self, name: str, place: Place, protocols: tuple[str, ...]) -> None:
        """Those of ``protocols`` that were asked for on one benchmark."""
        asked = tuple(p for p in self._request.protocols_of(name) if p in protocols)
        splits = self._request.splits_of(name)
        if asked and self._request.benchmark != ALL:
            self._measure(name, place, splits, asked)
        elif asked:
            # What one archive lacks must not keep the others from being measured.
            for split in splits:
                try:
                    self._measure(name, place, (split,), asked)
                except DataError as error:
                    self.refused[f"{name}, {split}" if split else name] = str(error)

    def _measure(
        self, name: str, place: Place, splits: tuple[str | None, ...], protocols: tuple[str, ...]
    ) -> None:
        request = self._request
        output = request.output or _output(request, name, self._folder)
        kept = self.kept.setdefault(output, KeptUnits(output))
        job = Job(
            encoder=self._encoder,
            folder=self._folder,
            name=f"encoder of {_named(request.encoder, self._folder)}",
            fingerprint=self._fingerprint,
            published_model=comparison_for(self._folder),
            device=self._device,
            archive=place.archive,
            corpus=place.corpus,
            splits=splits,
            protocols=protocols,
            seeds=request.seeds_of(name),
            epochs=request.epochs,
            votes=request.votes,
            augmented_copies=self._copies,
            kept=kept,
            warn=lambda benchmark: leak_warning(benchmark, name, self._folder),
            say=self._say,
            progress=self._progress,
            on_signal=self._on_signal,
        )
        self._asked.setdefault(output, []).extend(BENCHMARKS[name].measure(job))

    def results(self) -> list[Result]:
        """Of all that was asked for, as the folders hold them now."""
        return [row for output, of in self._asked.items() for row in self.kept[output].results(of)]

    @property
    def _copies(self) -> int | None:
        """Augmented copies for the heads; None to augment anew each epoch."""
        asked = self._request.augmented_copies
        if asked is None:
            asked = COPIES_ON_CPU if self._device.type == "cpu" else 0
        return asked or None


def _encoder_folder(request: EvaluationRequest, say: Say) -> Path:
    """The folder, or the file by itself, of the encoder asked for, or of the last run's.

    Raises:
        CheckpointError: if there is neither.
    """
    if request.encoder is not None:
        folder = locate_encoder(request.encoder)
        say(encoder_line(folder))
        return folder
    run = last_run(folder=request.folder)
    if run is None:
        msg = (
            "no run was made in this folder yet; run `pointdistill pretrain`, "
            "or name an encoder with --encoder"
        )
        raise CheckpointError(msg)
    folder = find_encoder(run)
    say(encoder_line(folder, ", the teacher of the last run in this folder"))
    return folder


def _run_of(encoder: Path) -> Path:
    """The run whose encoder this is, or the folder itself."""
    return encoder.parent if (encoder.parent / METRICS).is_file() else encoder


def _named(asked: Path | None, encoder: Path) -> Path:
    """What results call an encoder by: its run, its folder, or its name on the Hub."""
    return asked if asked is not None and not asked.exists() else _run_of(encoder)


def _output(request: EvaluationRequest, name: str, encoder: Path) -> Path:
    """In the run where the encoder is a run's; under ``evaluation/`` of the working folder else."""
    run = _run_of(encoder)
    base = request.folder if run == encoder else run
    return base / "evaluation" / (f"{name}-stand-in" if request.stand_in else name)


def _copies_in_words(copies: int | None) -> str:
    if copies is None:
        return "training clouds augmented anew each epoch, as published"
    return (
        f"{copies} augmented sets of training clouds in turn; --augmented-copies 0 makes a new one "
        "each epoch, as published"
    )
