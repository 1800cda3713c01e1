"""Diverged training stops at its step, says why, and spoils no checkpoint."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from small_runs import SMALL, frames, trainer

from wamkit.runs.checkpoint import load_checkpoint
from wamkit.training.divergence import Taken, TrainingDiverged, check_finite
from wamkit.training.step import StepResult


def test_divergence_stops_with_a_diagnosis(tmp_path):
    bad = frames()
    bad.action_expert[5] = np.nan
    with pytest.raises(TrainingDiverged, match=r"policy in rows .*not finite in \['action_expert'\]"):
        trainer(tmp_path, data=bad, family="bc").run()
    with pytest.raises(TrainingDiverged, match="data of this batch is finite"):
        t = trainer(tmp_path / "x", family="bc")
        with torch.no_grad():
            t.model.action.stream.head.weight.fill_(math.inf)
        t.run()


def test_a_device_that_is_not_waited_for_stops_at_the_same_step_and_spoils_no_checkpoint(tmp_path, monkeypatch):
    """Steps after the bad one are taken before anybody looks; the message is that of the CPU, and no NaN is saved."""
    bad, messages = frames(), []
    bad.action_expert[5] = np.nan
    config = dataclasses.replace(
        SMALL, threads=1, save_every=2, log_every=1000, seed=4
    )  # batch 2 is the first with row 5
    for device in ("cpu", "cpu:0"):
        out, taken = tmp_path / device, []
        t = trainer(out, dataclasses.replace(config, device=device), "bc", bad)
        call = type(t.strategy).__call__
        spy = lambda self, batch, step, lr, call=call, taken=taken: taken.append(step) or call(self, batch, step, lr)  # noqa: E731
        monkeypatch.setattr(type(t.strategy), "__call__", spy)
        with pytest.raises(TrainingDiverged, match="at step 2: not finite: policy in rows") as error:
            t.run()
        assert taken == ([0, 1, 2] if device == "cpu" else [0, 1, 2, 3])
        messages.append(str(error.value).replace(str(out), "OUT"))
        saved = load_checkpoint(out, training=True)
        assert saved.step == 2 and all(torch.isfinite(x).all() for x in saved.model_state.values())
    assert messages[0] == messages[1]


def test_of_several_steps_the_first_that_is_not_finite_is_named(tmp_path):
    def one(step: int, loss: float, norm: float) -> Taken:
        losses_B = {"policy": torch.tensor([1.0, loss])}
        return Taken(step, 1e-3, StepResult(losses_B, torch.tensor(norm), torch.tensor(math.isfinite(loss + norm))))

    batch = trainer(tmp_path).windows.batch
    check_finite([one(0, 1.0, 1.0), one(1, 2.0, 1.0)], batch, tmp_path)
    with pytest.raises(TrainingDiverged, match=r"at step 3: not finite: policy in rows \[1\];.*norm 1, rate 1.00e-03"):
        check_finite([one(2, 1.0, 1.0), one(3, math.inf, 1.0), one(4, 1.0, math.nan)], batch, tmp_path)
    with pytest.raises(TrainingDiverged, match="at step 4: not finite: none of the losses, but the gradient"):
        check_finite([one(4, 1.0, math.nan)], batch, tmp_path)
