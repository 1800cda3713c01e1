"""Forward passes of a model's blocks as a training wants them: compiled, or computed again in backward passes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from wamkit.families.base import Family
from wamkit.runs.config import TrainConfig


def change_blocks(model: Family, config: TrainConfig) -> None:
    """Changes the forward passes of the blocks of all backbones as `config` says; those of copies are their own."""
    if config.compile or config.checkpoint_activations:
        for block in model.blocks():
            block.forward = Forward(block, config)  # type: ignore[method-assign]


class Forward:
    """The forward pass of a block, compiled and kept in memory as a training says.

    Hooks of the block, which gather its weights where they are divided, stay outside of it. A copy of the block, which
    serves averaged weights or is held still, computes by its own class.
    """

    def __init__(self, block: nn.Module, config: TrainConfig):
        forward: Any = block.forward
        if config.compile:  # blocks of one class share what is compiled
            forward = torch.compile(forward)
        if config.checkpoint_activations:  # nothing in a block is random, so no state of a generator is kept either
            forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
        self._block, self._forward = block, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo[id(self._block)]
        return type(copied).forward.__get__(copied)
