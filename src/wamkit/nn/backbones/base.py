"""The interface of a backbone: a stack of transformer blocks that turns a token sequence into features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

from torch import Tensor, nn

from wamkit.types import WamkitError

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of the tokens read so far, one pair a block, each (B, heads, K, D / heads)."""


class Backbone(nn.Module, ABC):
    """A stack of transformer blocks with a key-value cache."""

    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """The blocks, in the order in which they run.

        A block is the unit of sharding (FSDP2), activation checkpointing and compilation. Its matrices are those that
        the optimizer Muon orthogonalises.
        """

    @classmethod
    def from_pretrained(cls, path: str) -> Self:
        """A backbone with released weights, from a local folder or a hub id. Raises WamkitError where there are none."""
        raise WamkitError(f"{cls.__name__} has no released weights, so there is nothing to load from {path!r}")
