"""The moving average that checkpoints serve."""

from __future__ import annotations

import torch

from wamkit.families.base import Stage
from wamkit.training.ema import MovingAverage


def test_a_young_average_forgets_its_start_and_an_old_one_decays_as_asked():
    model = torch.nn.Linear(1, 1, bias=False)
    average = MovingAverage(model, decay=0.9)
    start = model.weight.item()
    with torch.no_grad():
        model.weight.fill_(start + 1)
    average.follow([model.weight], step=0)  # decay 1 / 10
    torch.testing.assert_close(average.state["weight"].item(), start + 0.9)
    average.follow([model.weight], step=10**6)  # decay 0.9
    torch.testing.assert_close(average.state["weight"].item(), start + 1 - 0.1 * 0.9)


def test_a_stage_adopts_its_averages_and_frozen_parameters_are_served_as_they_are():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    average = MovingAverage(model, decay=0.9)
    first = {k: v.clone() for k, v in average.state.items()}
    model["b"].requires_grad_(False)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    moved = {k: v.detach().clone() for k, v in model.state_dict().items()}
    average.copy_frozen(model)
    assert torch.equal(average.state["b.weight"], moved["b.weight"])
    assert torch.equal(average.state["a.weight"], first["a.weight"])
    served = average.served(model)
    assert not served.training and torch.equal(served["a"].weight, first["a.weight"])
    average.adopt(model, Stage("one", 1.0, ("a",)))
    assert torch.equal(model["a"].weight, first["a.weight"]) and torch.equal(model["b"].weight, moved["b.weight"])
