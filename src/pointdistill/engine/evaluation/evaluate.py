"""An encoder on disk, measured on archives on disk: what a user can request, and how it is carried out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pointdistill.data.benchmarks.registry import (
    ALL_PROTOCOLS,
    BENCHMARKS,
    FROZEN,
    PARTIAL,
    RETRIEVAL,
    BenchmarkPaths,
    BenchmarkSpec,
    Task,
    benchmark_spec,
    check_data_choice,
    choose_splits,
    find_benchmark,
    find_stand_in,
)
from pointdistill.data.files.files import hold_output, short_name
from pointdistill.data.meshes import check_axis
from pointdistill.data.sources.folder import OWN_FOLDER
from pointdistill.engine.embedding.comparison import default_statistics
from pointdistill.engine.evaluation.classification import (
    evaluate_classification,
    evaluate_folds,
    evaluate_parts,
)
from pointdistill.engine.evaluation.leak_check import LeakRequest, command_in_words, leak_warning
from pointdistill.engine.evaluation.lvis import evaluate_draws
from pointdistill.engine.evaluation.results import Result, comparison_for
from pointdistill.engine.evaluation.retrieval import evaluate_retrieval
from pointdistill.engine.evaluation.run import (
    BY_EPOCHS,
    COPIES_ON_CPU,
    HEADS,
    VOTING,
    EvaluationRun,
    check_hold_out,
)
from pointdistill.engine.evaluation.store import ScoreStore
from pointdistill.engine.features.feature_extractors import EncoderFeatures
from pointdistill.engine.features.inputs import embedding_input, protocol_input
from pointdistill.engine.features.statistics import FeatureStatistics
from pointdistill.engine.pretraining.run_folder import choose_encoder, run_folder_of
from pointdistill.engine.runtime.devices import pick_device
from pointdistill.engine.weights import name_of
from pointdistill.engine.weights.encoders import fingerprint, load_encoder
from pointdistill.errors import ConfigError, DataError
from pointdistill.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from pointdistill.data.benchmarks.registry import Labelled

ALL = "all"
"""As a benchmark: every one whose data is here. As a protocol: all of a benchmark's protocols."""


FOLDER = "folder"
"""As a benchmark: a user's own folder, with one sub-folder a class."""


def _spec(name: str) -> BenchmarkSpec:
    return OWN_FOLDER if name == FOLDER else benchmark_spec(name)


def _task(name: str) -> Task:
    return "retrieval" if name == FOLDER else BENCHMARKS[name].task


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRequest:
    """What a user wants measured; only the benchmark is required."""

    benchmark: str
    """One of ``BENCHMARKS``, ``folder``, or ``all``."""

    encoder: Path | str | None = None
    """As for ``load_encoder``; by default the last run in ``folder``, or else the program's own encoder."""

    data: Path | None = None
    """The benchmark's archive or the folder extracted from it, ``data/<archive>`` by default; with ``all``, the
    folder that holds the archives; for ``folder``, the user's own folder of shapes."""

    up: str | None = None
    """Up axis of the files in a user's own folder that do not state one; z by default."""

    corpus: Path | None = None
    """The corpus whose shapes LVIS names; the last corpus made in ``folder`` by default."""

    stand_in: bool = False
    """Measure on the stand-in, which is made on first use."""

    splits: tuple[str, ...] = ()
    """All of the benchmark's by default."""

    protocols: tuple[str, ...] = ()
    """By default the benchmark's usual ones; with the benchmark ``all``, all of them."""

    seeds: int | None = None
    """How many seeds, folds or draws, counted from 0; by default 3 seeds, and all folds and draws."""

    epochs: int | None = None
    """Replaces the protocols' number of epochs."""

    votes: int = 1
    """Versions of each test cloud whose logits are averaged."""

    hold_out: float | None = None
    """Share of every class of the training split that selects an epoch instead of being trained on, in protocols
    with epochs; None to train on all of it, as published."""

    augmented_copies: int | None = None
    """For the heads on frozen features: 0 augments anew in each epoch, as published. None means 0 on a GPU and
    ``COPIES_ON_CPU`` on a CPU."""

    output: Path | None = None
    """Where results are written; in the run, or under ``evaluation/``, by default."""

    device: str = "auto"
    folder: Path = Path()
    """Where defaults are looked for."""

    def __post_init__(self) -> None:
        if self.benchmark not in (*BENCHMARKS, FOLDER, ALL):
            known = ", ".join((*BENCHMARKS, FOLDER, ALL))
            msg = f"unknown benchmark {self.benchmark!r}; choose one of {known}"
            raise ConfigError(msg)
        self._check_folder()
        if self.benchmark == ALL and (self.splits or self.corpus):
            option = "split" if self.splits else "corpus"
            msg = f"a {option} belongs to one benchmark; name it instead of {ALL!r}, or leave the {option} out"
            raise ConfigError(msg, settings=(option,))
        check_data_choice(stand_in=self.stand_in, data=self.data, corpus=self.corpus)
        if self.up is not None:
            check_axis(self.up)
        check_hold_out(self.hold_out, votes=self.votes)
        for name in self.names:
            self.splits_of(name)
            self.seeds_of(name)
        self._check_hold_out()
        if not any(self.protocols_of(name) for name in self.names):
            msg = f"no benchmark can be measured by {', '.join(self.protocols)} with {self.votes} votes"
            raise ConfigError(msg)

    def _check_folder(self) -> None:
        if self.benchmark == FOLDER and (self.data is None or self.splits or self.stand_in):
            msg = (
                "your own shapes are a folder of data, with one sub-folder per class; they have neither official "
                "splits nor a stand-in"
            )
            raise ConfigError(msg, settings=("data", "split", "stand_in"))
        if self.benchmark != FOLDER and self.up is not None:
            msg = f"{self.benchmark} has its own axes; an up axis is for your own folder"
            raise ConfigError(msg, settings=("up",))

    def _check_hold_out(self) -> None:
        """Raise if clouds are to be held out and nothing is trained for epochs that could be selected from."""
        if self.hold_out is None:
            return
        usable = [
            name
            for name in self.names
            if _task(name) not in ("draws", "retrieval")
            and set(self.protocols_of(name)) & set(BY_EPOCHS)
        ]
        if not usable:
            msg = (
                f"nothing requested of {self.benchmark} is tested after every epoch; an epoch can be selected in "
                f"{', '.join(BY_EPOCHS)}, of other benchmarks than lvis"
            )
            raise ConfigError(msg, settings=("hold_out",))

    @property
    def names(self) -> tuple[str, ...]:
        """The benchmarks that are requested."""
        return tuple(BENCHMARKS) if self.benchmark == ALL else (self.benchmark,)

    def splits_of(self, name: str) -> tuple[str | None, ...]:
        """The requested splits, in the official order.

        Raises:
            ConfigError: for one that does not exist.
        """
        return (None,) if name == FOLDER else choose_splits(name, self.splits)

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """Numbers of the seeds, folds or draws.

        Raises:
            ConfigError: if the number is below 1 or above the benchmark's.
        """
        spec = _spec(name)
        most = spec.most_seeds if self.benchmark != ALL else None
        wanted = spec.seeds if self.seeds is None else self.seeds
        if wanted < 1 or (most is not None and wanted > most):
            limit = "" if most is None else f" and at most {most}, the folds there are"
            msg = f"seeds must be at least 1{limit}, got {wanted}"
            raise ConfigError(msg, settings=("seeds",))
        return tuple(range(min(wanted, spec.most_seeds or wanted)))

    def protocols_of(self, name: str) -> tuple[str, ...]:
        """The requested protocols, in the order of running; with ``all``, those that the benchmark has.

        Raises:
            ConfigError: for a single benchmark, if it lacks a protocol or the protocol cannot vote.
        """
        spec = _spec(name)
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
    "draws": evaluate_draws,
    "retrieval": evaluate_retrieval,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an evaluation left behind."""

    outputs: tuple[Path, ...]
    """Folders with ``results.json`` and ``results.md``."""

    results: tuple[Result, ...]
    """The requested results, over all the seeds that the folders hold."""

    absent: tuple[str, ...] = ()
    """With ``all``: what could not be measured, and where to get its data."""


def evaluate_saved(
    request: EvaluationRequest,
    reporter: Reporter = SILENT,
    *,
    leaks_command: Callable[[LeakRequest], str] = command_in_words,
) -> Outcome:
    """Measure a saved encoder; every score is written as soon as it is known.

    An interrupted evaluation continues when it is requested again. With ``all``, the protocols on frozen features
    of every benchmark come before those that train an encoder.

    Args:
        request: what to measure.
        reporter: told which encoder, data and settings were chosen, how far each part is and how long it takes.
        leaks_command: returns the command that checks a benchmark for leaks, which a warning names.

    Raises:
        DataError: if the archive is absent or damaged; says where to get it. With ``all``, if no archive is here.
        CheckpointError: if there is no encoder.
        ConfigError: for a device that does not exist.
    """
    device = pick_device(request.device)
    names = tuple(name for name in request.names if request.protocols_of(name))
    # Before the encoder is looked for: a user who has to download an archive should hear of it first.
    paths, absent = ({}, {}) if request.stand_in else _find_data(request, names, reporter)
    encoder = choose_encoder(request.encoder, folder=request.folder, reporter=reporter)
    for name in names if request.stand_in else ():
        # After the encoder was found, since a stand-in takes minutes to make.
        paths[name] = find_stand_in(name, folder=request.folder, reporter=reporter)
    evaluator = _Evaluator(request, encoder, device, reporter, leaks_command)
    evaluator.introduce(paths)
    frozen = (*FROZEN, *PARTIAL, RETRIEVAL)
    passes = (frozen, tuple(set(ALL_PROTOCOLS) - set(frozen)))
    for protocols in passes if request.benchmark == ALL else (ALL_PROTOCOLS,):
        for name, where in paths.items():
            evaluator.measure(name, where, protocols)
    lines = tuple(f"{name}: {reason}" for name, reason in (absent | evaluator.refused).items())
    return Outcome(tuple(evaluator.stores), tuple(evaluator.results()), lines)


def _find_data(
    request: EvaluationRequest, names: tuple[str, ...], reporter: Reporter
) -> tuple[dict[str, BenchmarkPaths], dict[str, str]]:
    """Where the data of each benchmark lies, and for those without data, the reason.

    Raises:
        DataError: if no benchmark has data.
    """
    if request.benchmark == FOLDER:
        assert request.data is not None
        return {FOLDER: BenchmarkPaths(request.data, up=request.up)}, {}
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
    """One encoder, measured on one benchmark after another."""

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
        """Say what was chosen on the user's behalf."""
        self._reporter.say(f"device: {self._device}")
        heads = [h for h in HEADS if any(h in self._request.protocols_of(name) for name in names)]
        if not heads:
            return
        if self._copies is None:
            how = "training clouds augmented anew each epoch, as published"
            self._reporter.say(f"{', '.join(heads)}: {how}")
        else:
            sets = "1 augmented set" if self._copies == 1 else f"{self._copies} augmented sets"
            how = f"{sets} of training clouds in turn; 0 makes a new one each epoch"
            self._reporter.say(f"{', '.join(heads)}: {how}, as published", "augmented_copies")

    def measure(self, name: str, paths: BenchmarkPaths, protocols: tuple[str, ...]) -> None:
        """Run those of ``protocols`` that were requested for one benchmark."""
        wanted = tuple(p for p in self._request.protocols_of(name) if p in protocols)
        splits = self._request.splits_of(name)
        if wanted and self._request.benchmark != ALL:
            self._measure(name, paths, splits, wanted)
        elif wanted:
            # A damaged or incomplete archive must not stop the others from being measured.
            for split in splits:
                try:
                    self._measure(name, paths, (split,), wanted)
                except DataError as error:
                    self.refused[f"{name}, {split}" if split else name] = str(error)

    def results(self) -> list[Result]:
        """The rows of everything that was measured, read back from the folders."""
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
        request = self._request
        output = request.output or _output(request, name, self._folder)
        with hold_output(output):
            self._measure_into(output, name, paths, splits, protocols)

    def _measure_into(
        self,
        output: Path,
        name: str,
        paths: BenchmarkPaths,
        splits: tuple[str | None, ...],
        protocols: tuple[str, ...],
    ) -> None:
        request, spec, task = self._request, _spec(name), _task(name)
        store = self.stores.setdefault(output, ScoreStore(output))
        config = self._encoder.config

        def warn(benchmark: Labelled) -> str | None:
            # Who measures on own shapes may well have pretrained on them.
            if name == FOLDER:
                return None
            return leak_warning(benchmark, name, self._folder, self._leaks_command)

        extractor = EncoderFeatures(
            name=f"encoder of {_display_name(request.encoder, self._folder)}",
            encoder=self._encoder,
            inputs=embedding_input(config)
            if task == "retrieval"
            else protocol_input(spec.title, config),
            device=self._device,
        )
        run = EvaluationRun(
            extractor=extractor,
            fingerprint=self._fingerprint,
            statistics=self._statistics() if task == "retrieval" else None,
            published_model=comparison_for(self._folder),
            paths=paths,
            spec=spec,
            splits=splits,
            protocols=protocols,
            seeds=request.seeds_of(name),
            repeated_over=spec.repeated_over,
            epochs=request.epochs,
            votes=request.votes,
            hold_out=request.hold_out,
            augmented_copies=self._copies,
            store=store,
            warn=warn,
            reporter=self._reporter,
        )
        results = _TASKS[task](run)
        self._measured.setdefault(output, []).extend(results)

    def _statistics(self) -> FeatureStatistics | None:
        """Those that came with the encoder, of the features that ``embed`` writes by default."""
        statistics, problem = default_statistics(self._folder, self._encoder)
        if problem:
            self._reporter.say(problem)
        return statistics

    @property
    def _copies(self) -> int | None:
        """Augmented copies for the heads; None to augment anew each epoch."""
        copies = self._request.augmented_copies
        if copies is None:
            copies = COPIES_ON_CPU if self._device.type == "cpu" else 0
        return copies or None


def _display_name(requested: Path | str | None, encoder: Path) -> Path:
    """What results call an encoder: its name, its run, its folder, or its repository on the Hub."""
    if name := name_of(encoder):
        return Path(name)
    if requested is not None and not Path(requested).exists():
        return Path(requested)
    return short_name(run_folder_of(encoder) or encoder)


def _output(request: EvaluationRequest, name: str, encoder: Path) -> Path:
    """``evaluation/`` in the encoder's run; if it has none, in the working folder."""
    base = run_folder_of(encoder) or request.folder
    return base / "evaluation" / (f"{name}-stand-in" if request.stand_in else name)
