"""Whether the teacher still tells shapes apart: entropies of what it says, and a warning when it stops.

Sizes: R rows (views, or patches of views), K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pointdistill.model.distillation import Targets, Temperatures

ROWS_AT_ONCE = 8192
"""Rows whose probabilities are held together: 128 MiB at 4096 prototypes."""

LOW = 0.1
"""Share of the entropy it could have below which the marginal counts as collapsed."""

HIGH = 0.99
"""Share of log K above which posteriors count as uniform."""

IN_A_ROW = 3
"""Observations that must agree before anything is said."""

UNIFORM_AT_FIRST = 0.3
"""Of a run: as long as that a teacher may be uniform, since untrained shapes all look alike to it."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """What the teacher said of one process's batch, summed up; averages over processes are of the same kind."""

    marginal: Tensor
    """(K,) mean of the posteriors."""

    posterior_entropy: Tensor
    """Scalar, nats: the mean of the posteriors' entropies."""


@torch.no_grad()
def sum_up(logits: Tensor, temperature: float) -> Spoken:
    """Marginal and mean posterior entropy of (…, K) centred teacher logits at ``temperature``."""
    rows = logits.flatten(0, -2)
    marginal = rows.new_zeros(rows.shape[1], dtype=torch.float32)
    entropy = rows.new_zeros((), dtype=torch.float32)
    for part in rows.split(ROWS_AT_ONCE):
        log_probs = (part.float() / temperature).log_softmax(-1)
        probs = log_probs.exp()
        marginal += probs.sum(0)
        entropy -= (probs * log_probs).sum()
    return Spoken(marginal / len(rows), entropy / len(rows))


def sum_up_targets(targets: Targets, temperatures: Temperatures) -> dict[str, Tensor]:
    """Marginals and posterior entropies of a step's targets, by name, to be averaged over processes."""
    found: dict[str, Tensor] = {}
    for kind, logits, temperature in (
        ("cls", targets.cls_logits, temperatures.cls_teacher),
        ("patch", targets.patch_logits, temperatures.patch_teacher),
    ):
        if logits is not None:
            spoken = sum_up(logits, temperature)
            found[f"{kind}_marginal"] = spoken.marginal
            found[f"{kind}_posterior_entropy"] = spoken.posterior_entropy
    return found


def entropies(averaged: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entropies, in nats and as shares of log K, from the averages of ``sum_up_targets``; scalars."""
    found: dict[str, Tensor] = {}
    for kind in ("cls", "patch"):
        if f"{kind}_marginal" not in averaged:
            continue
        marginal = averaged[f"{kind}_marginal"]
        largest = math.log(len(marginal))
        for name, value in (
            ("marginal", torch.special.entr(marginal).sum()),
            ("posterior", averaged[f"{kind}_posterior_entropy"]),
        ):
            found[f"{kind}_{name}_entropy"] = value
            found[f"{kind}_{name}_share"] = value / largest
    return found


@dataclass(slots=True)
class CollapseWatch:
    """Looks at the entropies of logged steps and says each thing once.

    Args:
        total: steps of the run.
        prototypes: K.
        views: global views a step, over all processes: so many rows cannot have a larger marginal entropy than
            their number's logarithm plus their own.
    """

    total: int
    prototypes: int
    views: int
    _agreeing: dict[str, int] = field(default_factory=dict)

    def look(self, step: int, values: Mapping[str, float]) -> list[str]:
        """What is to be said after step ``step``: mostly nothing."""
        said = []
        for kind in ("cls", "patch"):
            if f"{kind}_marginal_entropy" not in values:
                continue
            marginal = values[f"{kind}_marginal_entropy"]
            share = values[f"{kind}_posterior_share"]
            rows = self.views if kind == "cls" else self.prototypes
            reachable = math.log(min(self.prototypes, max(2, rows)))
            if self._is_time(f"{kind} marginal", marginal < LOW * reachable):
                said.append(_collapsed(kind, step, marginal, marginal / math.log(self.prototypes)))
            old_enough = step > UNIFORM_AT_FIRST * self.total
            if self._is_time(f"{kind} posteriors", share > HIGH and old_enough):
                said.append(_uniform(kind, step, share))
        return said

    def _is_time(self, what: str, wrong: bool) -> bool:
        """True once: when it has been wrong ``IN_A_ROW`` times in a row for the first time."""
        seen = self._agreeing.get(what, 0)
        if seen < IN_A_ROW:
            self._agreeing[what] = seen + 1 if wrong else 0
            return self._agreeing[what] == IN_A_ROW
        return False


def _collapsed(kind: str, step: int, entropy: float, share: float) -> str:
    return (
        f"step {step}: collapse: the teacher puts nearly every {_thing(kind)} on the same prototypes (marginal "
        f"entropy {entropy:.2f} nats, {share:.0%} of log K); start anew with a larger batch_size or a higher "
        f"schedule.first_{kind}_temperature"
    )


def _uniform(kind: str, step: int, share: float) -> str:
    return (
        f"step {step}: the teacher's {kind} posteriors are uniform (entropy {share:.1%} of log K), so there is "
        f"nothing to learn from them; start anew with a lower schedule.first_{kind}_temperature, or with "
        "centers_from_first_batch"
    )


def _thing(kind: str) -> str:
    return "shape" if kind == "cls" else "patch"
