"""Entropies of the teacher by hand, and a warning that comes once and not too soon."""

from __future__ import annotations

import math

import pytest
import torch

from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.pretraining.monitor import CollapseWatch, change_after
from pointdistill.engine.pretraining.step import entropies
from pointdistill.model import losses
from pointdistill.model.distillation import Head
from pointdistill.model.losses import posterior_stats

LOG4 = math.log(4)


def test_two_certain_rows_out_of_four_prototypes() -> None:
    """Each posterior certain: entropy 0; half the rows on each of two prototypes: log 2, half of log 4."""
    logits = torch.tensor([[[50.0, 0.0, 0.0, 0.0]], [[0.0, 50.0, 0.0, 0.0]]])
    found = entropies({Head.CLS: posterior_stats(logits, 1.0)})
    assert found["cls_marginal_entropy"].item() == pytest.approx(math.log(2))
    assert found["cls_marginal_share"].item() == pytest.approx(0.5)
    assert found["cls_posterior_entropy"].item() == pytest.approx(0.0, abs=1e-6)
    assert not any(name.startswith("patch") for name in found)


def test_equal_logits_are_uniform() -> None:
    stats = posterior_stats(torch.full((2, 3, 4), 7.0), 0.04)
    assert stats.posterior_entropy.item() == pytest.approx(LOG4)
    assert stats.marginal.tolist() == pytest.approx([0.25] * 4)


def test_the_temperature_sharpens() -> None:
    """Logits (0, log 3) at temperature 1 are (1/4, 3/4); at 1/2 they are (1/10, 9/10)."""
    logits = torch.tensor([[0.0, math.log(3)]])
    assert posterior_stats(logits, 1.0).marginal.tolist() == pytest.approx([0.25, 0.75])
    assert posterior_stats(logits, 0.5).marginal.tolist() == pytest.approx([0.1, 0.9])


def test_rows_at_once_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    whole = posterior_stats(logits, 0.1)
    monkeypatch.setattr(losses, "ROWS_AT_ONCE", 4)
    parts = posterior_stats(logits, 0.1)
    torch.testing.assert_close(parts.marginal, whole.marginal)
    torch.testing.assert_close(parts.posterior_entropy, whole.posterior_entropy)


def watch(**changes: int) -> CollapseWatch:
    return CollapseWatch(**({"total": 100, "prototypes": 256, "views": 64} | changes))


def values(marginal: float, posterior_share: float) -> dict[str, float]:
    return {"cls_marginal_entropy": marginal, "cls_posterior_share": posterior_share}


def test_a_collapsed_marginal_is_said_once_after_three_rows() -> None:
    """64 views can have log 64 = 4.16 nats; a tenth of that is 0.42."""
    seen = watch()
    said = [seen.warnings_after(step, values(0.3, 0.5)) for step in (10, 20, 30, 40, 50)]
    assert [len(lines) for lines in said] == [0, 0, 1, 0, 0]
    assert said[2][0].startswith(
        "step 30: collapse: the teacher puts nearly every shape on the same prototypes "
        "(marginal entropy 0.30 nats, 7% of the largest possible); start a new run with"
    )


def test_one_row_above_the_limit_starts_the_count_anew() -> None:
    seen = watch()
    marginals = [0.3, 0.3, 0.5, 0.3, 0.3, 0.3]
    said = [seen.warnings_after(step, values(value, 0.5)) for step, value in enumerate(marginals)]
    assert [len(lines) for lines in said] == [0, 0, 0, 0, 0, 1]


def test_uniform_posteriors_are_allowed_at_first() -> None:
    seen = watch()
    said = [seen.warnings_after(step, values(3.0, 0.995)) for step in range(1, 36)]
    assert [len(lines) for lines in said] == [0] * 32 + [1, 0, 0]
    assert "posteriors are uniform (entropy 99.5% of the largest possible)" in said[32][0]


def test_a_healthy_run_is_left_alone() -> None:
    seen = watch()
    assert [seen.warnings_after(step, values(3.0, 0.6)) for step in range(100)] == [[]] * 100


def test_the_setting_that_a_warning_advises_to_change() -> None:
    """Half as high again after a collapse; lower where the posteriors are uniform; nothing for other warnings."""
    config = PretrainConfig(name="any")
    assert config.schedule.first_cls_temperature == 0.04
    seen = watch()
    for step in (50, 60, 70):
        collapsed = seen.warnings_after(step, values(0.3, 0.5))
    assert change_after(collapsed[0], config) == ("schedule.first_cls_temperature", 0.06)
    seen = watch()
    for step in (50, 60, 70):
        uniform = seen.warnings_after(step, values(4.0, 0.995))
    assert change_after(uniform[0], config) == ("schedule.first_cls_temperature", 0.028)
    assert change_after("the disk is full", config) is None
