"""Parameters of a module, replaced by name."""

from __future__ import annotations

from torch import Tensor, nn


def set_parameter(module: nn.Module, name: str, value: Tensor, learns: bool = False) -> nn.Parameter:
    """Makes `value` the parameter `name` of a module, and returns it."""
    place, _, leaf = name.rpartition(".")
    parameter = nn.Parameter(value, requires_grad=learns)
    setattr(module.get_submodule(place), leaf, parameter)
    return parameter
