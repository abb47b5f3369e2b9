"""A warning when the teacher stops telling shapes apart, from the entropies of its posteriors.

Sizes: K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

LOW = 0.1
"""Share of the entropy it could have below which the marginal counts as collapsed."""

HIGH = 0.99
"""Share of log K above which posteriors count as uniform."""

IN_A_ROW = 3
"""Observations in a row that must agree before anything is said: one odd batch is no collapse."""

UNIFORM_AT_FIRST = 0.3
"""Share of a run during which a teacher may be uniform, since untrained it cannot tell shapes apart."""


@dataclass(slots=True)
class CollapseWatch:
    """Looks at the entropies of logged steps and warns of each kind of collapse once.

    Args:
        total: steps of the run.
        prototypes: K.
        views: global views in a step, over all processes. Few views cannot spread over many prototypes, so the
            marginal of CLS posteriors is compared with the logarithm of their number, not with log K.
    """

    total: int
    prototypes: int
    views: int
    _agreeing: dict[str, int] = field(default_factory=dict)

    def look(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Warnings after step ``step``; mostly none."""
        said = []
        for kind in ("cls", "patch"):
            if f"{kind}_marginal_entropy" not in values:
                continue
            marginal = values[f"{kind}_marginal_entropy"]
            share = values[f"{kind}_posterior_share"]
            rows = self.views if kind == "cls" else self.prototypes
            reachable = math.log(min(self.prototypes, max(2, rows)))
            if self._is_first_alarm(f"{kind} marginal", marginal < LOW * reachable):
                said.append(_collapsed(kind, step, marginal, marginal / math.log(self.prototypes)))
            old_enough = step > UNIFORM_AT_FIRST * self.total
            if self._is_first_alarm(f"{kind} posteriors", share > HIGH and old_enough):
                said.append(_uniform(kind, step, share))
        return said

    def _is_first_alarm(self, what: str, wrong: bool) -> bool:
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
