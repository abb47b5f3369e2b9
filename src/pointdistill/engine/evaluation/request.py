"""What a user wants measured, and what that means for each benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pointdistill.data.benchmarks.registry import (
    BENCHMARKS,
    benchmark_spec,
    check_data_choice,
    choose_splits,
)
from pointdistill.data.benchmarks.spec import BenchmarkSpec
from pointdistill.engine.evaluation.run import VOTING
from pointdistill.errors import ConfigError

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
