"""Models without memory behind their weights: the shapes of a recipe or family, before there is data."""

from __future__ import annotations

import dataclasses

import torch

from wamkit.families.base import Family
from wamkit.nn.normalizer import Normalizer
from wamkit.runs.config import RunConfig, family_class
from wamkit.types import Spec

EXAMPLE = Spec(cameras=("corner",), height=64, width=64, proprio_dim=4, action_dim=4, point_grid=32)
"""Shapes of an example data set; a run has its own."""


def meta_model(config: RunConfig, spec: Spec = EXAMPLE) -> Family:
    """The model of `config` on PyTorch's meta device, for data of the shapes `spec`; windows are those of `config`."""
    spec = dataclasses.replace(spec, chunk=config.window.chunk, past_offsets=config.window.past_offsets)
    with torch.device("meta"):
        sizes = {"proprio": spec.proprio_dim, "action": spec.action_dim}
        statistics = Normalizer({name: (torch.zeros(n), torch.ones(n)) for name, n in sizes.items()})
        return family_class(config.family)(config.model, spec, statistics)
