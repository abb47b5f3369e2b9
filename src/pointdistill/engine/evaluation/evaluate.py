"""From a request to results: an encoder and archives on disk, measured, written down."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from pointdistill.data.benchmarks.registry import (
    BENCHMARKS,
    Task,
    benchmark_spec,
    find_benchmark,
    find_stand_in,
)
from pointdistill.data.benchmarks.spec import ALL_PROTOCOLS, FROZEN, BenchmarkPaths
from pointdistill.data.files.workspace import given_or_last_run
from pointdistill.engine.evaluation.classification import evaluate_classification
from pointdistill.engine.evaluation.fewshot import evaluate_folds
from pointdistill.engine.evaluation.leak_check import leak_warning
from pointdistill.engine.evaluation.lvis import evaluate_retrieval
from pointdistill.engine.evaluation.parts import evaluate_parts
from pointdistill.engine.evaluation.request import ALL, EvaluationRequest
from pointdistill.engine.evaluation.results import Result, comparison_for
from pointdistill.engine.evaluation.run import COPIES_ON_CPU, HEADS, EvaluationRun
from pointdistill.engine.evaluation.store import ScoreStore
from pointdistill.engine.features.feature_extractors import EncoderFeatures
from pointdistill.engine.features.inputs import protocol_input
from pointdistill.engine.pretraining.record import encoder_line
from pointdistill.engine.pretraining.run_folder import run_folder_of
from pointdistill.engine.runtime.devices import pick_device
from pointdistill.engine.weights.encoders import fingerprint, load_encoder, locate_encoder
from pointdistill.errors import DataError
from pointdistill.reporter import SILENT, Reporter

_TASKS: dict[Task, Callable[[EvaluationRun], list[Result]]] = {
    "classification": evaluate_classification,
    "folds": evaluate_folds,
    "parts": evaluate_parts,
    "retrieval": evaluate_retrieval,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an evaluation left behind."""

    outputs: tuple[Path, ...]
    """Folders with ``results.json`` and ``results.md``."""

    results: tuple[Result, ...]
    """Those requested, over all the seeds that the folders hold."""

    absent: tuple[str, ...] = ()
    """With ``all``: what could not be measured, and where its data comes from."""


def evaluate_saved(request: EvaluationRequest, reporter: Reporter = SILENT) -> Outcome:
    """Measure a saved encoder; every score is written as soon as it is there.

    An evaluation that was interrupted continues when the same one is requested again. With ``all``, the protocols
    on frozen features of every benchmark come before those that train an encoder.

    Args:
        request: what to measure.
        reporter: told which encoder, data and settings were chosen, what takes long, and how far each part is.

    Raises:
        DataError: if the archive is absent or damaged; says where it comes from. With ``all``, if there is none.
        CheckpointError: if there is no encoder.
        ConfigError: for a device that does not exist.
    """
    device = pick_device(request.device)
    names = tuple(name for name in request.names if request.protocols_of(name))
    # Before anything about the encoder: a user who has to fetch an archive should hear of it first.
    paths, absent = ({}, {}) if request.stand_in else _find_data(request, names, reporter)
    encoder = locate_encoder(given_or_last_run(request.encoder, folder=request.folder))
    remark = "" if request.encoder else ", the teacher of the last run in this folder"
    reporter.say(encoder_line(encoder, remark))
    for name in names if request.stand_in else ():
        # After the encoder was found: a stand-in takes minutes to make.
        paths[name] = find_stand_in(name, folder=request.folder, reporter=reporter)
    evaluator = _Evaluator(request, encoder, device, reporter)
    evaluator.introduce(paths)
    passes = (FROZEN, tuple(set(ALL_PROTOCOLS) - set(FROZEN)))
    for protocols in passes if request.benchmark == ALL else (ALL_PROTOCOLS,):
        for name, where in paths.items():
            evaluator.measure(name, where, protocols)
    lines = tuple(f"{name}: {reason}" for name, reason in (absent | evaluator.refused).items())
    return Outcome(tuple(evaluator.stores), tuple(evaluator.results()), lines)


def _find_data(
    request: EvaluationRequest, names: tuple[str, ...], reporter: Reporter
) -> tuple[dict[str, BenchmarkPaths], dict[str, str]]:
    """Where the data of each benchmark lies, and the reasons for those that have none.

    Raises:
        DataError: if there is data for none.
    """
    paths: dict[str, BenchmarkPaths] = {}
    absent: dict[str, str] = {}
    for name in names:
        try:
            paths[name] = find_benchmark(
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
    if not paths:
        for name, reason in absent.items():
            reporter.say(f"{name}: {reason}")
        msg = "no benchmark's data is here; fetch one of these, or measure on stand-ins"
        raise DataError(msg, settings=("stand_in",))
    return paths, absent


class _Evaluator:
    """One encoder, measured on one benchmark after the other."""

    def __init__(
        self, request: EvaluationRequest, folder: Path, device: torch.device, reporter: Reporter
    ) -> None:
        self.stores: dict[Path, ScoreStore] = {}
        self.refused: dict[str, str] = {}
        """With ``all``: splits whose data cannot be read, and why."""
        self._measured: dict[Path, list[Result]] = {}
        self._request, self._folder, self._device = request, folder, device
        self._reporter = reporter
        self._encoder = load_encoder(folder)
        self._fingerprint = fingerprint(self._encoder)

    def introduce(self, names: Iterable[str]) -> None:
        """Say what was chosen for the user."""
        self._reporter.say(f"device: {self._device}")
        heads = [h for h in HEADS if any(h in self._request.protocols_of(name) for name in names)]
        if not heads:
            return
        if self._copies is None:
            how = "training clouds augmented anew each epoch, as published"
            self._reporter.say(f"{', '.join(heads)}: {how}")
        else:
            how = f"{self._copies} augmented sets of training clouds in turn; 0 makes a new one each epoch"
            self._reporter.say(f"{', '.join(heads)}: {how}, as published", "augmented_copies")

    def measure(self, name: str, paths: BenchmarkPaths, protocols: tuple[str, ...]) -> None:
        """Those of ``protocols`` that were requested for one benchmark."""
        wanted = tuple(p for p in self._request.protocols_of(name) if p in protocols)
        splits = self._request.splits_of(name)
        if wanted and self._request.benchmark != ALL:
            self._measure(name, paths, splits, wanted)
        elif wanted:
            # What one archive lacks must not keep the others from being measured.
            for split in splits:
                try:
                    self._measure(name, paths, (split,), wanted)
                except DataError as error:
                    self.refused[f"{name}, {split}" if split else name] = str(error)

    def results(self) -> list[Result]:
        """Rows of everything that was measured, as the folders hold them now."""
        return [
            row
            for output, results in self._measured.items()
            for row in self.stores[output].results(results)
        ]

    def _measure(
        self,
        name: str,
        paths: BenchmarkPaths,
        splits: tuple[str | None, ...],
        protocols: tuple[str, ...],
    ) -> None:
        request, spec = self._request, benchmark_spec(name)
        output = request.output or _output(request, name, self._folder)
        store = self.stores.setdefault(output, ScoreStore(output))
        extractor = EncoderFeatures(
            name=f"encoder of {_display_name(request.encoder, self._folder)}",
            encoder=self._encoder,
            inputs=protocol_input(spec.title, self._encoder.config),
            device=self._device,
        )
        run = EvaluationRun(
            extractor=extractor,
            fingerprint=self._fingerprint,
            published_model=comparison_for(self._folder),
            paths=paths,
            spec=spec,
            splits=splits,
            protocols=protocols,
            seeds=request.seeds_of(name),
            repeated_over=spec.repeated_over,
            epochs=request.epochs,
            votes=request.votes,
            augmented_copies=self._copies,
            store=store,
            warn=lambda benchmark: leak_warning(benchmark, name, self._folder),
            reporter=self._reporter,
        )
        results = _TASKS[BENCHMARKS[name].task](run)
        self._measured.setdefault(output, []).extend(results)

    @property
    def _copies(self) -> int | None:
        """Augmented copies for the heads; None to augment anew each epoch."""
        copies = self._request.augmented_copies
        if copies is None:
            copies = COPIES_ON_CPU if self._device.type == "cpu" else 0
        return copies or None


def _display_name(requested: Path | None, encoder: Path) -> Path:
    """What results call an encoder: by its run, its folder, or its name on the Hub."""
    if requested is not None and not requested.exists():
        return requested
    return run_folder_of(encoder) or encoder


def _output(request: EvaluationRequest, name: str, encoder: Path) -> Path:
    """In the run that the encoder belongs to; else under ``evaluation/`` of the working folder."""
    base = run_folder_of(encoder) or request.folder
    return base / "evaluation" / (f"{name}-stand-in" if request.stand_in else name)
