"""What a user wants measured, and how it is done: an encoder and archives on disk, measured, written down."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from pointdistill.data.benchmarks.registry import (
    BENCHMARKS,
    Task,
    benchmark_spec,
    check_data_choice,
    choose_splits,
    find_benchmark,
    find_stand_in,
)
from pointdistill.data.benchmarks.spec import ALL_PROTOCOLS, FROZEN, BenchmarkPaths, BenchmarkSpec
from pointdistill.data.files.workspace import given_or_last_run
from pointdistill.engine.evaluation.classification import evaluate_classification
from pointdistill.engine.evaluation.fewshot import evaluate_folds
from pointdistill.engine.evaluation.leak_check import LeakRequest, command_in_words, leak_warning
from pointdistill.engine.evaluation.lvis import evaluate_retrieval
from pointdistill.engine.evaluation.parts import evaluate_parts
from pointdistill.engine.evaluation.results import Result, comparison_for
from pointdistill.engine.evaluation.run import COPIES_ON_CPU, HEADS, VOTING, EvaluationRun
from pointdistill.engine.evaluation.store import ScoreStore
from pointdistill.engine.features.feature_extractors import EncoderFeatures
from pointdistill.engine.features.inputs import protocol_input
from pointdistill.engine.pretraining.record import encoder_line
from pointdistill.engine.pretraining.run_folder import run_folder_of
from pointdistill.engine.runtime.devices import pick_device
from pointdistill.engine.weights.encoders import fingerprint, load_encoder, locate_encoder
from pointdistill.errors import ConfigError, DataError
from pointdistill.reporter import SILENT, Reporter

ALL = "all"
"""As a benchmark: every one that there is data for. As a protocol: all that a benchmark has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRequest:
    """What a user wants measured; everything but the benchmark may be left out."""

    benchmark: str
    """One of ``BENCHMARKS``, or ``all``."""

    encoder: Path | None = None
    """A run or an encoder folder; the last run in ``folder`` by default."""

    data: Path | None = None
    """The benchmark's archive or the folder extracted from it, ``data/<archive>`` by default; with ``all``, the
    folder that holds the archives."""

    corpus: Path | None = None
    """The corpus whose shapes LVIS names; the last corpus made in ``folder`` by default."""

    stand_in: bool = False
    """Measure on the stand-in, made on first use."""

    splits: tuple[str, ...] = ()
    """All of the benchmark's by default."""

    protocols: tuple[str, ...] = ()
    """By default the benchmark's usual ones; with the benchmark ``all``, all of them."""

    seeds: int | None = None
    """How many, from 0 on: seeds, folds or draws. By default 3 seeds, and all folds and draws."""

    epochs: int | None = None
    """Instead of the protocols'."""

    votes: int = 1
    """Versions of each test cloud whose logits are averaged."""

    augmented_copies: int | None = None
    """For the heads on frozen features: 0 augments anew each epoch, as published. None means 0 on a GPU and
    ``COPIES_ON_CPU`` on a CPU."""

    output: Path | None = None
    """Where results are written; in the run, or under ``evaluation/``, by default."""

    device: str = "auto"
    folder: Path = Path()
    """Where defaults are looked for."""

    def __post_init__(self) -> None:
        if self.benchmark not in (*BENCHMARKS, ALL):
            msg = f"unknown benchmark {self.benchmark!r}; choose one of {', '.join(BENCHMARKS)}, {ALL}"
            raise ConfigError(msg)
        if self.benchmark == ALL and (self.splits or self.corpus):
            option = "split" if self.splits else "corpus"
            msg = f"a {option} belongs to one benchmark; name it instead of {ALL!r}, or leave the {option} out"
            raise ConfigError(msg, settings=(option,))
        check_data_choice(stand_in=self.stand_in, data=self.data, corpus=self.corpus)
        for name in self.names:
            self.splits_of(name)
            self.seeds_of(name)
        if not any(self.protocols_of(name) for name in self.names):
            msg = f"no benchmark can be measured by {', '.join(self.protocols)} with {self.votes} votes"
            raise ConfigError(msg)

    @property
    def names(self) -> tuple[str, ...]:
        """The benchmarks that are meant."""
        return tuple(BENCHMARKS) if self.benchmark == ALL else (self.benchmark,)

    def splits_of(self, name: str) -> tuple[str | None, ...]:
        """The splits that are wanted, in the official order.

        Raises:
            ConfigError: for one that does not exist.
        """
        return choose_splits(name, self.splits)

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """Numbers of the seeds, folds or draws.

        Raises:
            ConfigError: if there are none, or not as many.
        """
        spec = benchmark_spec(name)
        most = spec.most_seeds if self.benchmark != ALL else None
        wanted = spec.seeds if self.seeds is None else self.seeds
        if wanted < 1 or (most is not None and wanted > most):
            limit = "" if most is None else f" and at most {most}, the folds there are"
            msg = f"seeds must be at least 1{limit}, got {wanted}"
            raise ConfigError(msg, settings=("seeds",))
        return tuple(range(min(wanted, spec.most_seeds or wanted)))

    def protocols_of(self, name: str) -> tuple[str, ...]:
        """The protocols that are wanted, in the order in which they are run; with ``all``, those a benchmark has.

        Raises:
            ConfigError: for one that a benchmark named alone does not have, or that cannot vote.
        """
        spec = benchmark_spec(name)
        named = [protocol for protocol in self.protocols if protocol != ALL]
        if self.benchmark != ALL:
            self._check_protocols(named, name, spec)
        default = (
            spec.protocols if ALL in (*self.protocols, self.benchmark) else spec.default_protocols
        )
        chosen = [protocol for protocol in spec.protocols if protocol in (named or default)]
        if self.votes > 1:
            chosen = [protocol for protocol in chosen if spec.voting and protocol in VOTING]
        return tuple(chosen)

    def _check_protocols(self, named: list[str], name: str, spec: BenchmarkSpec) -> None:
        unknown = [protocol for protocol in named if protocol not in spec.protocols]
        if unknown:
            msg = f"{name} has no protocol {unknown[0]!r}; choose from {', '.join(spec.protocols)}"
            raise ConfigError(msg)
        without_logits = [p for p in named if not spec.voting or p not in VOTING]
        if self.votes > 1 and (without_logits or not spec.voting):
            voters = [p for p in spec.protocols if spec.voting and p in VOTING]
            accepted = f"choose from {', '.join(voters)}" if voters else "leave votes out"
            who = ", ".join(without_logits) or "every protocol"
            msg = f"{name}, {who}: there are no logits to average; {accepted}"
            raise ConfigError(msg, settings=("votes",))


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


def evaluate_saved(
    request: EvaluationRequest,
    reporter: Reporter = SILENT,
    *,
    leaks_command: Callable[[LeakRequest], str] = command_in_words,
) -> Outcome:
    """Measure a saved encoder; every score is written as soon as it is there.

    An evaluation that was interrupted continues when the same one is requested again. With ``all``, the protocols
    on frozen features of every benchmark come before those that train an encoder.

    Args:
        request: what to measure.
        reporter: told which encoder, data and settings were chosen, what takes long, and how far each part is.
        leaks_command: gives the command that checks a benchmark for leaks, for a warning to name.

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
    evaluator = _Evaluator(request, encoder, device, reporter, leaks_command)
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
        self,
        request: EvaluationRequest,
        folder: Path,
        device: torch.device,
        reporter: Reporter,
        leaks_command: Callable[[LeakRequest], str],
    ) -> None:
        self.stores: dict[Path, ScoreStore] = {}
        self.refused: dict[str, str] = {}
        """With ``all``: splits whose data cannot be read, and why."""
        self._measured: dict[Path, list[Result]] = {}
        self._request, self._folder, self._device = request, folder, device
        self._reporter, self._leaks_command = reporter, leaks_command
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
            warn=lambda benchmark: leak_warning(benchmark, name, self._folder, self._leaks_command),
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
