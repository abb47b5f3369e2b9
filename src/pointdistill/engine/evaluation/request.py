"""What a user asked to have measured, and what that means for each benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pointdistill.engine.evaluation.kinds import BENCHMARKS, BenchmarkKind
from pointdistill.engine.evaluation.plan import VOTING
from pointdistill.engine.evaluation.sources import check_data_options
from pointdistill.errors import ConfigError

ALL = "all"
"""In the place of a benchmark, every one that there is data for; of protocols, all that a benchmark has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRequest:
    """What a user asked to have measured; everything but the benchmark may be left out."""

    benchmark: str
    """One of ``BENCHMARKS``, or ``all``."""

    encoder: Path | None = None
    """A run or an encoder folder; the last run in ``folder`` by default."""

    data: Path | None = None
    """The benchmark's archive or the folder extracted from it, ``data/<archive>`` by default; with ``all``, the
    folder that holds the archives."""

    corpus: Path | None = None
    """Whose shapes LVIS names; the last corpus made in ``folder`` by default."""

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
            option = "--split" if self.splits else "--corpus"
            msg = f"{option} belongs to one benchmark; name it instead of {ALL!r}, or leave {option} out"
            raise ConfigError(msg)
        check_data_options(stand_in=self.stand_in, data=self.data, corpus=self.corpus)
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
        """The splits asked for, in the official order.

        Raises:
            ConfigError: for one that does not exist.
        """
        kind = BENCHMARKS[name]
        unknown = [split for split in self.splits if split not in kind.splits]
        if unknown:
            known = [split for split in kind.splits if split is not None]
            accepted = (
                f"choose from {', '.join(known)}" if known else "it has one only; leave it out"
            )
            msg = f"{name} has no split {unknown[0]!r}; {accepted}"
            raise ConfigError(msg)
        return tuple(split for split in kind.splits if not self.splits or split in self.splits)

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """Numbers of the seeds, folds or draws.

        Raises:
            ConfigError: if there are none, or not as many.
        """
        kind = BENCHMARKS[name]
        most = kind.most_seeds if self.benchmark != ALL else None
        wanted = kind.seeds if self.seeds is None else self.seeds
        if wanted < 1 or (most is not None and wanted > most):
            limit = "" if most is None else f" and at most {most}, the folds there are"
            msg = f"--seeds must be at least 1{limit}, got {wanted}"
            raise ConfigError(msg)
        return tuple(range(min(wanted, kind.most_seeds or wanted)))

    def protocols_of(self, name: str) -> tuple[str, ...]:
        """The protocols asked for, in the order in which they are run; with ``all``, those that a benchmark has.

        Raises:
            ConfigError: for one that a benchmark named alone does not have, or that cannot vote.
        """
        kind = BENCHMARKS[name]
        named = [protocol for protocol in self.protocols if protocol != ALL]
        if self.benchmark != ALL:
            self._check_protocols(named, name, kind)
        usual = kind.protocols if ALL in (*self.protocols, self.benchmark) else kind.usual
        chosen = [protocol for protocol in kind.protocols if protocol in (named or usual)]
        if self.votes > 1:
            chosen = [protocol for protocol in chosen if kind.votes and protocol in VOTING]
        return tuple(chosen)

    def _check_protocols(self, named: list[str], name: str, kind: BenchmarkKind) -> None:
        unknown = [protocol for protocol in named if protocol not in kind.protocols]
        if unknown:
            msg = f"{name} has no protocol {unknown[0]!r}; choose from {', '.join(kind.protocols)}"
            raise ConfigError(msg)
        silent = [p for p in named if not kind.votes or p not in VOTING]
        if self.votes > 1 and (silent or not kind.votes):
            voters = [p for p in kind.protocols if kind.votes and p in VOTING]
            accepted = f"choose from {', '.join(voters)}" if voters else "leave --votes out"
            msg = f"{name}, {', '.join(silent) or 'every protocol'}: no votes there; {accepted}"
            raise ConfigError(msg)
