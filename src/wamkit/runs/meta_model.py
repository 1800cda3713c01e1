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
PAIR = Spec(cameras=("scene", "wrist"), height=0, width=0, proprio_dim=8, action_dim=7)
"""The same for recipes that say what size images have: an arm with two cameras."""


def example(config: RunConfig) -> Spec:
    """The shapes of an example for `config`."""
    window = config.window
    spec = EXAMPLE if window.size is None else dataclasses.replace(PAIR, height=window.size[0], width=window.size[1])
    return dataclasses.replace(
        spec, chunk=window.chunk, frame_offsets=window.frame_offsets, past_offsets=window.past_offsets
    )


def meta_model(config: RunConfig, spec: Spec | None = None) -> Family:
    """The model of `config` on PyTorch's meta device, for data of the shapes `spec`; an example's if not given."""
    spec = spec or example(config)
    spec = dataclasses.replace(spec, chunk=config.window.chunk, past_offsets=config.window.past_offsets)
    with torch.device("meta"):
        sizes = {"proprio": spec.proprio_dim, "action": spec.action_dim}
        statistics = Normalizer({name: (torch.zeros(n), torch.ones(n)) for name, n in sizes.items()})
        return family_class(config.family)(config.model, spec, statistics)
