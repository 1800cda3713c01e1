"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from wamkit.families.base import Family, Stage


class MovingAverage:
    """Exponential moving average of a model's weights: the weights that checkpoints serve.

    state: averaged tensors by the names of the model's state dict; buffers keep their first value.
    """

    def __init__(self, model: Family, decay: float):
        self.state = {name: x.detach().clone() for name, x in model.state_dict().items()}
        self._decay = decay
        self._average = {p: self.state[name] for name, p in model.named_parameters() if name in self.state}

    @torch.no_grad()
    def follow(self, moved: list[Tensor], step: int) -> None:
        """Moves the averages of the parameters `moved` towards their values after step number `step`."""
        # A young average must not remember the initialisation: its memory grows with the steps.
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([self._average[p] for p in moved], moved, 1 - decay)

    @torch.no_grad()
    def adopt(self, model: Family, stage: Stage) -> None:
        """Sets the parameters that `stage` trained to their averages, so that later stages build on what is served."""
        for name, p in model.named_parameters():
            if name in self.state and name.startswith(stage.prefixes):
                p.copy_(self.state[name])

    @torch.no_grad()
    def copy_frozen(self, model: Family) -> None:
        """Copies the parameters that do not learn now: frozen parts, and targets that follow learned weights."""
        for name, p in model.named_parameters():
            if name in self.state and not p.requires_grad:
                self.state[name].copy_(p)

    def served(self, model: Family) -> Family:
        """A copy of `model` with its averaged weights, as a checkpoint of this moment serves it."""
        served = copy.deepcopy(model)
        served.load_state_dict(self.state)
        return served.eval()

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores averages that were saved from `state`."""
        for name, x in state.items():
            self.state[name].copy_(x)
