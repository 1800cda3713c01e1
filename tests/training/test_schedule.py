"""Stages and learning rates."""

from __future__ import annotations

import pytest

from wamkit.families.base import Stage
from wamkit.runs.config import TrainConfig
from wamkit.training.schedule import learning_rate, stage_spans
from wamkit.types import WamkitError


def test_stages_cover_all_steps():
    stages = (Stage("a", 1 / 3, ("",)), Stage("b", 1 / 3, ("",)), Stage("c", 1 / 3, ("",)))
    for steps in (1, 2, 7, 100):
        spans = stage_spans(stages, steps)
        assert [s for _, s, _ in spans] == [0, *(e for _, _, e in spans[:-1])] and spans[-1][2] == steps
    with pytest.raises(WamkitError, match="sum to 1"):
        stage_spans((Stage("a", 0.5, ("",)),), 10)


def test_learning_rate_warms_up_and_decays():
    config = TrainConfig(lr=2.0, warmup=10, final_lr=0.1)
    rates = [learning_rate(k, 100, 300, config) for k in range(100, 300)]
    assert rates[0] == pytest.approx(0.2, rel=1e-3) and max(rates) == pytest.approx(2.0, rel=0.02)
    assert rates[-1] == pytest.approx(0.2, rel=0.01) and all(
        a >= b for a, b in zip(rates[10:], rates[11:], strict=False)
    )
